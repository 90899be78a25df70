"""The real otcextensions: `openstack cbr` as it is typed, and `conn.cbr` as it is called."""

import contextlib
import io
import itertools
import json
import logging
import os
import shlex
import types
import warnings
from collections.abc import Iterator
from typing import Any

import requests

from strongroom.conformance.contract import Exchange
from strongroom.conformance.listening import Ear
from strongroom.conformance.sdk import CRASHES
from strongroom.conformance.story import Outcome, Step
from strongroom.conformance.target import Party

ROWS_MAX = 1000  # a list that never ends is the server's fault; the kit shall end


class ConnectionActor:
    """`conn.cbr`. Steps name a method; arguments are `args` and `kwargs`."""

    def __init__(self, party: Party, ear: Ear) -> None:
        import openstack
        from otcextensions import sdk

        self._ear = ear
        with warnings.catch_warnings(), _environment(party):
            warnings.simplefilter("ignore")
            self._connection = openstack.connect(load_yaml_config=False)
            sdk.register_otc_extensions(self._connection)
            self._cbr: Any = getattr(self._connection, "cbr")  # noqa: B009 -- the extension adds it while it runs

    def close(self) -> None:
        self._connection.close()

    def perform(self, step: Step) -> Outcome:
        from openstack.exceptions import SDKException

        self._ear.empty()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call = getattr(self._cbr, step.do)
                got = call(*step.arguments.get("args", ()), **step.arguments.get("kwargs", {}))
                return Outcome(body=_plain(got))
            except SDKException as err:
                return _refused(self._ear.heard, str(err))
            except CRASHES as err:
                return Outcome(faults=(f"conn.cbr.{step.do} crashed: {type(err).__name__}: {err}",))


class CommandActor:
    """`openstack cbr`. Steps are the words behind it; what it prints with `-f json` is the answer."""

    def __init__(self, party: Party, ear: Ear) -> None:
        import otcextensions.osclient.cbr.client  # noqa: F401 -- without it there is no such command
        from openstackclient import shell

        self._shell = shell
        self._party = party
        self._ear = ear

    def close(self) -> None:
        return

    def perform(self, step: Step) -> Outcome:
        self._ear.empty()
        printed, complaints = io.StringIO(), io.StringIO()
        code: str | int | None
        with _environment(self._party), _quiet_logging(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
                try:
                    code = self._shell.main(["cbr", *shlex.split(step.do)])
                except SystemExit as end:
                    code = end.code
        if code:
            return _refused(self._ear.heard, " ".join(complaints.getvalue().split())[-300:] or f"exit code {code}")
        text = printed.getvalue()
        try:
            return Outcome(body=json.loads(text) if text.strip() else None)
        except ValueError:
            return Outcome(body=text)


def _refused(heard: list[Exchange], said: str) -> Outcome:
    """A failed call, with the code of the last answer that refused; the client itself keeps only its text."""
    refusals = [exchange for exchange in heard if exchange.status >= 400]
    return Outcome(
        error=f"{refusals[-1].status} {refusals[-1].error_code}" if refusals else "",
        refusal=said,
        missing=bool(refusals) and refusals[-1].unknown_path,
    )


def _plain(got: Any) -> Any:
    """What a method gave, as lists and dicts."""
    if isinstance(got, types.GeneratorType):
        return [_plain(row) for row in itertools.islice(got, ROWS_MAX)]
    if isinstance(got, list):
        return [_plain(row) for row in got]
    if isinstance(got, requests.Response):
        return got.json() if got.content else None
    return got.to_dict() if hasattr(got, "to_dict") else got


@contextlib.contextmanager
def _environment(party: Party) -> Iterator[None]:
    """OS_* variables for this tenant, and no others."""
    before = {name: value for name, value in os.environ.items() if name.startswith("OS_")}
    ours = {
        "OS_AUTH_URL": f"{party.endpoint}/v3",
        "OS_USERNAME": party.username,
        "OS_PASSWORD": party.password,
        "OS_USER_DOMAIN_NAME": party.domain_name,
        "OS_PROJECT_NAME": party.project_name,
        "OS_PROJECT_DOMAIN_NAME": party.domain_name,
        "OS_REGION_NAME": party.region,
        "OS_IDENTITY_API_VERSION": "3",
    }
    for name in before:
        del os.environ[name]
    os.environ.update({name: value for name, value in ours.items() if value})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """The command line adds handlers to the root logger at each run: take them away again."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
