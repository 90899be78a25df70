"""OSError into the product's words: which path, what was tried, and which class of error it is."""

import errno
import os

from strongroom.base.errors import SourceDenied, SourceError, SourceGone, TargetDenied
from strongroom.base.streams import Path

SHOWN_BYTES_MAX = 400  # of a path in a sentence; names may be deeper than any screen

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENXIO)  # vanished, or replaced by something else
DENIED = (errno.EACCES, errno.EPERM)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def shown(path: bytes) -> str:
    """A path for a sentence: printable, never longer than the limit."""
    if len(path) > SHOWN_BYTES_MAX:
        half = SHOWN_BYTES_MAX // 2
        path = path[:half] + b"..." + path[-half:]
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def below(root: bytes, path: Path) -> bytes:
    """The path of an entry as people write it."""
    return b"/".join((root.rstrip(b"/") or b"", *path)) if path else root


def source_error(err: OSError, path: bytes, doing: str) -> SourceError:
    """The error for a failed look at, or read of, `path`. `doing` is a verb phrase such as "read"."""
    why = os.strerror(err.errno) if err.errno else str(err)
    if err.errno in GONE:
        return SourceGone(reason=f"{shown(path)} is not there any more. Check the resource's path.", detail=why)
    if err.errno in DENIED:
        return SourceDenied(reason=f"The service may not {doing} {shown(path)}. Give it the right to.", detail=why)
    return SourceError(reason=f"Could not {doing} {shown(path)}: {why}.", detail=repr(err))


def target_error(err: OSError, path: bytes, doing: str) -> SourceError:
    """The error for a failed write to `path`."""
    why = os.strerror(err.errno) if err.errno else str(err)
    if err.errno in NO_ROOM:
        return SourceError(reason=f"There is no room to {doing} {shown(path)}: {why}. Free space, then run it again.")
    if err.errno in (*DENIED, errno.EROFS, errno.EBUSY):
        return TargetDenied(reason=f"The target refuses to {doing} {shown(path)}: {why}.", detail=repr(err))
    return SourceError(reason=f"Could not {doing} {shown(path)}: {why}.", detail=repr(err))
