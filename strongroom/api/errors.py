"""Class of an error -> status, code and body, once. A test fails on a class that is not mapped here."""

import http

import msgspec
from starlette.responses import Response

from strongroom.base.errors import (
    AccountNotFound,
    Canceled,
    ConfigError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    RegionRefused,
    RepositoryError,
    SourceError,
    StoreError,
    StrongroomError,
    Throttled,
    TooLarge,
    TooSlow,
    Unauthenticated,
    Unavailable,
    Unsupported,
)

# The first class of an error's method resolution order that is listed decides.
STATUS_OF: dict[type[StrongroomError], int] = {
    InvalidRequest: 400,
    Unsupported: 400,
    Conflict: 400,
    QuotaExceeded: 400,
    SourceError: 400,
    RegionRefused: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    AccountNotFound: 404,
    TooLarge: 413,
    TooSlow: 408,
    Throttled: 429,
    Canceled: 400,
    Unavailable: 503,
    StoreError: 503,
    RepositoryError: 500,
    ConfigError: 500,
    StrongroomError: 500,
}

# Published with 500 although the cause is the client's (contract/errors.md): the table wins over taste.
STATUS_500_CODES = frozenset({"0002", "6137", "7009"})

GENERIC = StrongroomError()
RETRY_AFTER_S = 5  # of 429 and 503


def status_of(error: StrongroomError) -> int:
    """HTTP status of an error."""
    if isinstance(error, Conflict) and error.conflict_code in STATUS_500_CODES:
        return 500
    return next(STATUS_OF[cls] for cls in type(error).__mro__ if cls in STATUS_OF)


def error_response(error: StrongroomError, *, keystone: bool, request_id: str) -> Response:
    """The envelope of contract/errors.md. Texts of errors that are ours to mend (500) stay with the operator's log."""
    status = status_of(error)
    shown = GENERIC if status == 500 and not isinstance(error, Conflict) else error
    body: dict[str, object]
    if keystone:
        body = {"error": {"code": status, "message": shown.message, "title": http.HTTPStatus(status).phrase}}
    else:
        body = {"error_code": shown.published_code, "error_msg": shown.message}
        if shown.published_code.startswith("APIGW."):
            body["request_id"] = request_id
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def gateway_response(status: int, code: str, message: str, request_id: str) -> Response:
    """What the gateway in front of the real service answers for paths and methods that do not exist."""
    body = {"error_code": code, "error_msg": message, "request_id": request_id}
    return Response(msgspec.json.encode(body), status, media_type="application/json")
