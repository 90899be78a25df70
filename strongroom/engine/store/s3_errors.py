"""The one place where an answer of an object store, or its absence, becomes a StoreError.

`detail` names the HTTP status and the code of the error document, nothing else of it: some servers send back what was
signed and with which key.
"""

import re

from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

from strongroom.base.errors import ObjectExists, ObjectMissing, StoreDenied, StoreError, StoreFull, StoreTimeout

# What a vendor exception may be. FileNotFoundError and OSError come from obstore too.
VENDOR_ERRORS = (BaseError, OSError, ValueError)

_CODE = re.compile(r"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")
_STATUS = re.compile(r"status code: (\d{3})\b|\bstatus: (\d{3})\b")
_KIND = re.compile(r"\bkind: (\w{1,32})")  # of obstore's HttpError and of std::io::Error below it

_FULL_CODES = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageQuotaExceeded"})
_BUSY_CODES = frozenset({"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling"})
_BUSY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_CONFLICT_CODES = frozenset(
    {"ConditionalRequestConflict", "OperationAborted"}
)  # another write was under way: ask again


def code_of(text: str) -> str:
    """The code in an error document, `` when there is none."""
    found = _CODE.search(text)
    return found[1] if found else ""


def refused(name: str, status: int, code: str) -> StoreError:
    """The error for an answer that is not a success. `name` is the store's name of the object, never a URL."""
    detail = f"HTTP {status} {code}".rstrip()
    if status == 507 or code in _FULL_CODES:
        return StoreFull(name=name, detail=detail)
    if code in _CONFLICT_CODES or status in _BUSY_STATUS or code in _BUSY_CODES:
        return StoreTimeout(name=name, detail=detail)
    if status in (401, 403):
        return StoreDenied(name=name, detail=detail)
    if status == 404 and code in ("", "NoSuchKey", "NoSuchUpload"):
        return ObjectMissing(name=name, detail=detail)
    if status in (409, 412) and code in ("", "PreconditionFailed"):
        return ObjectExists(name=name, detail=detail)
    return StoreError(name=name, detail=detail)


def is_beyond_end(err: Exception) -> bool:
    """The range begins behind the last byte of the object."""
    status = _STATUS.search(str(err))
    return status is not None and "416" in status.groups()


def translated(err: Exception, name: str) -> StoreError:
    """The error for an exception of obstore, which carries status and code in its text only."""
    text = str(err)
    status = _STATUS.search(text)
    if status:
        return refused(name, int(status[1] or status[2]), code_of(text))
    if isinstance(err, FileNotFoundError):
        return ObjectMissing(name=name)
    if isinstance(err, AlreadyExistsError):
        return ObjectExists(name=name)
    if isinstance(err, PermissionDeniedError | UnauthenticatedError):
        return StoreDenied(name=name)
    kinds = list(dict.fromkeys(_KIND.findall(text)))
    if kinds:
        return StoreTimeout(name=name, detail=f"no answer: {', '.join(kinds)}")
    return StoreError(name=name, detail=type(err).__name__)
