"""One table of operations: routing, validation, authorization and the envelope follow from its rows.

A request walks: match a row -> read the bounded body -> authenticate -> project of the path is the caller's -> action
allowed -> ids well-formed -> query and body decoded and validated -> handler -> response encoded once.
Nothing is read from the database on behalf of a caller before all of that holds.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from strongroom.api.services import Services
from strongroom.control.access import Caller
from strongroom.control.audit import Note

PUBLIC = "public"  # no credentials needed: versions, token issue, health
AUTHENTICATED = "authenticated"  # anybody with valid credentials
REGION = "region"  # the server of another region, by the secret that the two share; never a person


@dataclass(frozen=True, kw_only=True)
class Call:
    """One authenticated, authorized and validated request.

    path      names and values of the path's parameters, ids already checked for form
    query     instance of the operation's query type, or None
    body      instance of the operation's body type, or None
    request   the raw request, for the few handlers that need headers or stream their answer
    """

    services: Services
    caller: Caller
    path: Mapping[str, str]
    query: Any
    body: Any
    request: Request
    request_id: str
    note: Note  # what the audit log will say; a handler adds who it is where credentials are in the body

    @property
    def project_id(self) -> str:
        """The project of the path, which is the caller's: both were compared."""
        return self.path["project_id"]


Handler = Callable[[Call], Awaitable[msgspec.Struct | dict[str, Any] | Response | None]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A row of the table.

    name       operationId of contract/openapi.json, or of our own document for /ext
    action     access action such as `cbr:vaults:create`, PUBLIC, AUTHENTICATED or REGION
    body       msgspec Struct of the request body; None: a body is ignored
    query      msgspec Struct of the query; members that are lists take repeated keys
    status     of success; a handler that returns a Response decides itself
    keystone   errors in the Keystone envelope instead of the CBR one
    headers    extra headers of a successful answer
    answer     msgspec Struct of a successful answer, or the media type of one that is no JSON; None: no body
    events     of an answer that is a stream of them: kind -> data
    audit      a success is recorded also when it writes no rows: a login, protected data that leaves
    always     answered also when every place is taken
    """

    name: str
    method: str
    path: str
    action: str
    handler: Handler
    body: type[msgspec.Struct] | None = None
    query: type[msgspec.Struct] | None = None
    status: int = 200
    keystone: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    answer: type[msgspec.Struct] | str | None = None
    events: Mapping[str, type[msgspec.Struct]] = field(default_factory=dict)
    audit: bool = False
    always: bool = False
