"""The published document of the CBR v3 API, and what an answer does wrong by it.

Beside the schemas it knows four rules that no schema says: members that must not be null, times without an offset,
a request id on every answer, and that a member which the document names is there unless `stories/optional.json` lets it
be absent.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any
from urllib.parse import unquote

Json = dict[str, Any]

# Members that clients dereference without a look: a null there crashes them (contract, "never null on output").
NEVER_NULL = frozenset(
    {
        *("billing", "bind_rules", "resources", "tags", "children", "error_info", "operation_definition", "trigger"),
        *("properties", "associated_vaults", "count", "total_count", "resource_count"),
    }
)
# Times are UTC with microseconds and without an offset: the Python SDK appends the Z itself.
TIMES = frozenset({"created_at", "updated_at", "started_at", "ended_at", "protected_at", "expired_at", "accepted_at"})
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")
_ERROR_CODE = re.compile(r"(BackupService|APIGW|APIG)\.\d{4}")
_INDEX = re.compile(r"\[\d+\]")
_MESSAGE_MAX = 200  # a schema's complaint quotes the whole value
_SENTENCE_MIN = 10  # characters of an error's text below which it cannot tell anybody what to do


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request and its answer. `path` is as sent, without the query; header names are in lower case."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)

    @functools.cached_property
    def body(self) -> Any:
        """The decoded answer; None when there is none, or it is not JSON."""
        try:
            return json.loads(self.content) if self.content else None
        except ValueError:
            return None

    @property
    def error_code(self) -> str:
        """Code of a refusal, or an empty text."""
        return str(self.body.get("error_code", "")) if isinstance(self.body, dict) else ""

    @property
    def unknown_path(self) -> bool:
        """The server has no such operation. A refusal of the service itself carries a code of the service."""
        return self.status in (404, 405, 501) and not self.error_code.startswith("BackupService.")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One row of the document. `success`: the statuses below 400 that it declares."""

    id: str
    method: str
    path: str
    document: Json
    success: tuple[int, ...]
    clients: tuple[str, ...]
    tier: str


@functools.cache
def document() -> Json:
    """The whole document."""
    text = resources.files("strongroom.api").joinpath("openapi.json").read_text()
    found: Json = json.loads(text)
    return found


@functools.cache
def operations() -> dict[str, Operation]:
    """operationId -> operation, in the order of the document."""
    return {
        item["operationId"]: Operation(
            id=item["operationId"],
            method=method.upper(),
            path=path,
            document=item,
            success=tuple(int(status) for status in item["responses"] if int(status) < 400),
            clients=tuple(item.get("x-clients", ())),
            tier=item.get("x-tier", ""),
        )
        for path, methods in document()["paths"].items()
        for method, item in methods.items()
        if isinstance(item, dict) and "operationId" in item
    }


@functools.cache
def _routes() -> list[tuple[str, re.Pattern[str], str]]:
    """(method, pattern, operationId); paths with fewer variables first, because a fixed word wins over a variable."""
    rows = sorted(operations().values(), key=lambda row: row.path.count("{"))
    return [
        (
            row.method,
            re.compile("".join("[^/]+" if p.startswith("{") else re.escape(p) for p in _parts(row.path))),
            row.id,
        )
        for row in rows
    ]


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"(\{\w+\})", path) if part]


def operation_of(method: str, path: str) -> str | None:
    """operationId of a request, or None when the document does not know it."""
    wanted = unquote(path.rstrip("/") or "/")
    for name, pattern, operation_id in _routes():
        if name == method and pattern.fullmatch(wanted):
            return operation_id
    return None


def faults(operation_id: str, exchange: Exchange) -> list[str]:
    """What is wrong with one answer, as sentences that name the member. Empty: it fits."""
    operation = operations()[operation_id]
    found = list(_header_faults(exchange))
    if exchange.status >= 400:
        return found + list(error_faults(operation, exchange))
    if exchange.status not in operation.success:
        return [*found, f"status {exchange.status} is not declared; {_listed(operation.success)} is"]
    validator = _validator(operation_id, str(exchange.status))
    if validator is None:
        return found + ([f"a body of {len(exchange.content)} bytes where none is declared"] if exchange.content else [])
    if exchange.body is None:
        return [*found, "the body is not JSON"]
    found += [_said(error) for error in validator.iter_errors(exchange.body)]
    found += _value_faults(exchange.body, "$")
    found += _absent(validator.schema, exchange.body, "$")
    return found


def error_faults(operation: Operation, exchange: Exchange) -> Iterator[str]:
    """What is wrong with a refusal: the envelope, a code of the service or its gateway, and a sentence."""
    if str(exchange.status) not in operation.document["responses"] and exchange.status not in (405, 413, 415, 429):
        yield f"status {exchange.status} is not declared"
    body = exchange.body
    if not isinstance(body, dict):
        yield f"status {exchange.status} without an error envelope"
        return
    for error in _error_validator().iter_errors(body):
        yield _said(error)
    if not _ERROR_CODE.fullmatch(str(body.get("error_code"))):
        yield f"$.error_code is {body.get('error_code')!r}"
    if len(str(body.get("error_msg", ""))) < _SENTENCE_MIN:
        yield f"$.error_msg says nothing: {body.get('error_msg')!r}"


def _said(error: Any) -> str:
    """A schema's complaint; the place in a list is left out, because the same fault is in all its rows."""
    return f"{_INDEX.sub('[]', error.json_path)}: {error.message[:_MESSAGE_MAX]}"


def _header_faults(exchange: Exchange) -> Iterator[str]:
    if not exchange.headers.get("x-request-id"):
        yield "no X-Request-Id header"
    if exchange.content and not exchange.headers.get("content-type", "").startswith("application/json"):
        yield f"Content-Type is {exchange.headers.get('content-type', 'absent')}"


@functools.cache
def _validator(operation_id: str, status: str) -> Any:
    """A jsonschema validator, or None when no body is declared. The library is one of the extra `conformance`."""
    import jsonschema

    content = operations()[operation_id].document["responses"][status].get("content")
    if content is None:
        return None
    schema = {**content["application/json"]["schema"], "components": document()["components"]}
    return jsonschema.Draft202012Validator(schema)


@functools.cache
def _error_validator() -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(
        {"$ref": "#/components/schemas/ErrorResponse", "components": document()["components"]}
    )


def _value_faults(value: Any, where: str) -> Iterator[str]:
    """Nulls where clients dereference, and times in another form."""
    if isinstance(value, dict):
        for name, member in value.items():
            if member is None and name in NEVER_NULL:
                yield f"{where}.{name} is null"
            if name in TIMES and isinstance(member, str) and not _TIME.fullmatch(member):
                yield f"{where}.{name} is {member!r}, not a time in UTC without an offset"
            yield from _value_faults(member, f"{where}.{name}")
    elif isinstance(value, list):
        for member in value:
            yield from _value_faults(member, f"{where}[]")


@functools.cache
def _optional() -> dict[str, frozenset[str]]:
    """Schema -> members that an answer may leave out."""
    text = resources.files("strongroom.conformance").joinpath("stories", "optional.json").read_text()
    return {name: frozenset(members) for name, members in json.loads(text).items() if not name.startswith("#")}


def _absent(schema: Any, value: Any, where: str) -> Iterator[str]:
    """Members that the document names and the answer lacks."""
    name, resolved = _resolved(schema)
    if isinstance(value, list):
        for member in value:
            yield from _absent(resolved.get("items", {}), member, f"{where}[]")
    if not isinstance(value, dict):
        return
    for member, below in resolved.get("properties", {}).items():
        if member in value:
            yield from _absent(below, value[member], f"{where}.{member}")
        elif member not in resolved.get("required", ()) and member not in _optional().get(name, frozenset()):
            yield f"{where}.{member} is absent"


def unknown_members(operation_id: str, exchange: Exchange) -> set[str]:
    """Members of a success that the document does not name: harmless to every client, and worth knowing."""
    if exchange.status >= 400 or not isinstance(exchange.body, dict):
        return set()
    validator = (
        _validator(operation_id, str(exchange.status))
        if exchange.status in operations()[operation_id].success
        else None
    )
    return set(_unknown(validator.schema, exchange.body, "")) if validator is not None else set()


def _unknown(schema: Any, value: Any, where: str) -> Iterator[str]:
    _, resolved = _resolved(schema)
    if isinstance(value, list):
        for member in value:
            yield from _unknown(resolved.get("items", {}), member, where)
    if not isinstance(value, dict) or not resolved.get("properties"):
        return
    for member, below in value.items():
        path = f"{where}.{member}" if where else member
        if member not in resolved["properties"]:
            yield path
        else:
            yield from _unknown(resolved["properties"][member], below, path)


def _resolved(schema: Any) -> tuple[str, Json]:
    """(name of the schema or an empty text, the schema itself) behind references and `or null`."""
    name = ""
    while True:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            schema = document()["components"]["schemas"][name]
        elif alternatives := [s for s in schema.get("anyOf", ()) if s.get("type") != "null"]:
            schema = alternatives[0]
        else:
            return name, schema


def _listed(statuses: tuple[int, ...]) -> str:
    return " or ".join(map(str, statuses))
