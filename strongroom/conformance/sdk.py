"""The real `huaweicloudsdkcbr`, with AK/SK: every call by its operation's name, every answer looked through."""

import json
import warnings
from typing import Any

from strongroom.conformance.decoding import response_faults
from strongroom.conformance.findings import Findings
from strongroom.conformance.listening import Ear
from strongroom.conformance.story import Outcome, Step
from strongroom.conformance.target import Party

CRASHES = (AttributeError, TypeError, ValueError, KeyError, IndexError)  # what decoding junk raises inside a client


class SdkActor:
    """Calls of one tenant. Steps name an operation; `path` and `query` are its request's attributes."""

    def __init__(self, party: Party, ear: Ear, findings: Findings) -> None:
        from huaweicloudsdkcbr.v1 import CbrClient
        from huaweicloudsdkcore.auth.credentials import BasicCredentials

        credentials = BasicCredentials(party.access_key, party.secret_key, party.project_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._sdk = CbrClient.new_builder().with_credentials(credentials).with_endpoint(party.endpoint).build()
        self._ear = ear
        self._findings = findings

    def close(self) -> None:
        self._sdk.close()

    def perform(self, step: Step) -> Outcome:
        from huaweicloudsdkcore.exceptions.exceptions import ServiceResponseException

        self._ear.empty()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                response = getattr(self._sdk, step.do)(self._request(step))
            except ServiceResponseException as err:
                return Outcome(
                    error=f"{err.status_code} {err.error_code}",
                    refusal=f"answered {err.status_code} {err.error_code}: {err.error_msg}",
                    missing=any(exchange.unknown_path for exchange in self._ear.heard),
                    faults=() if err.request_id else ("the exception has no request_id",),
                )
            except CRASHES as err:
                return Outcome(faults=(f"the SDK crashed: {type(err).__name__}: {err}",))
        raw = json.loads(response.raw_content) if response.raw_content else None
        unknown: set[str] = set()
        found = response_faults(self._sdk.model_package, response, raw, unknown)
        self._findings.unknown.setdefault(step.op, set()).update(name.removeprefix("$.") for name in unknown)
        found += [f"the SDK warns: {one.message}" for one in said if "Conversion" in one.category.__name__]
        return Outcome(body=raw, faults=tuple(found))

    def _request(self, step: Step) -> Any:
        """The request as a user of the SDK would build it: models all the way down."""
        models = self._sdk.model_package
        request = getattr(models, "".join(word.capitalize() for word in step.do.split("_")) + "Request")
        attributes = {name: attribute for attribute, name in request.attribute_map.items()}
        given = {**step.arguments.get("path", {}), **step.arguments.get("query", {})}
        values = {attributes[name]: value for name, value in given.items()}
        if "body" in step.arguments:
            values["body"] = self._sdk._deserialize(step.arguments["body"], request.openapi_types["body"])
        return request(**values)
