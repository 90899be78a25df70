"""Tokens: what a point remembers of its resource, so that the next one can tell whether it may trust the last.

A token is JSON in bytes, opaque to everybody else. "Unchanged" must be earned (RULINGS 15): a time stamp only counts
when it was safely in the past before the reading began and nothing dirty was left in the page cache.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Literal

TOKEN_BYTES_MAX = 4096
MARGIN_NS = 2_000_000_000  # coarser than any time stamp granularity we know (2 s on FAT), coarser than a clock tick
NETWORK_MARGIN_NS = 3600_000_000_000  # the server's clock writes the times there, and it may be off from ours
NETWORK_KINDS = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre", "afs", "fuse", "virtiofs")

LOCAL_KINDS = ("fuse.zfs",)  # by this host's clock, although a program serves them

TokenKind = Literal["folder", "image", "device", "qcow2", "rbd", "cinder", "host"]
Values = dict[str, int | bool | str]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds(at: datetime) -> int:
    """Nanoseconds since 1970 of an aware time; exact to the microsecond."""
    return (at - _EPOCH) // timedelta(microseconds=1) * 1000


def unchanged_before(taken_at_ns: int, file_system: str) -> int:
    """Change times below this are proven to be of before the point."""
    network = file_system.partition(".")[0] in NETWORK_KINDS and file_system not in LOCAL_KINDS
    return taken_at_ns - (NETWORK_MARGIN_NS if network else MARGIN_NS)


def dump_token(kind: TokenKind, values: Values) -> bytes:
    return json.dumps({"kind": kind, **values}, sort_keys=True).encode("ascii")


def load_token(kind: TokenKind, raw: bytes | None) -> Values | None:
    """None for no token, one of another kind or one that cannot be read: then nothing is trusted."""
    if raw is None or len(raw) > TOKEN_BYTES_MAX:
        return None
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.pop("kind", None) != kind:
        return None
    return values if all(isinstance(value, int | str) for value in values.values()) else None
