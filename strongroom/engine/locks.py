"""What a store itself knows of a locked vault, for programs that have no database (RULINGS 22).

    <vault>lock                            the vault is locked; never removed while it holds a root
    <vault>promises/20260205T103834Z       how far its clock of promises had come; the highest counts

Roots carry `lock_until` in their labels, by that clock. The clock here is one that was told: it shows less than the
service's own, never more, so a promise can only end late. A store in a folder keeps this against our own programs; who
may write to its folder may do anything.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from strongroom.base.clock import api_timestamp
from strongroom.base.errors import Conflict, Corrupt, ObjectExists, ObjectMissing
from strongroom.engine.model import Labels
from strongroom.engine.store.base import Store

LOCK = "lock"
TOLD = "promises/"
_FORMAT = "%Y%m%dT%H%M%SZ"
_TIME = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_ROOT = re.compile(r"((?:.*/)?)domains/[0-9a-f]{32}/roots/[^/]+")
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


def vault_of(below: str) -> str:
    """The prefix of the vault that a domain lies in, from that of the domain: `<vault>domains/<id>/`."""
    return below[: len(below) - len(below.rpartition("domains/")[2]) - len("domains/")]


def lock(store: Store, prefix: str) -> None:
    """Say that the vault is locked. Idempotent; durable on return."""
    with suppress(ObjectExists):
        store.put(f"{prefix}{LOCK}", [b"locked\n"])


def is_locked(store: Store, prefix: str) -> bool:
    try:
        store.size(f"{prefix}{LOCK}")
    except ObjectMissing:
        return False
    return True


def tell_time(store: Store, prefix: str, at: datetime) -> None:
    """Say how far the clock of promises has come. It never goes back; what it showed before is removed."""
    shown = _shown(store, prefix)
    text = at.astimezone(UTC).strftime(_FORMAT)
    if shown and shown[-1] >= text:
        return
    with suppress(ObjectExists):
        store.put(f"{prefix}{TOLD}{text}", [b"\n"])
    for name in shown:
        store.delete(f"{prefix}{TOLD}{name}")


def told_time(store: Store, prefix: str) -> datetime:
    """What the clock shows here; the beginning of time when nobody told."""
    shown = _shown(store, prefix)
    return datetime.strptime(shown[-1], _FORMAT).replace(tzinfo=UTC) if shown else _NEVER


def require_unpromised(store: Store, below: str, load_labels: Callable[[], Labels]) -> None:
    """Raise Conflict 6220 for a root whose time is not over. below: prefix of its domain."""
    prefix = vault_of(below)
    if not is_locked(store, prefix):
        return
    try:
        until = load_labels().get("lock_until")
    except (Corrupt, ObjectMissing):
        return  # nothing that could be restored
    at = told_time(store, prefix)
    if isinstance(until, str) and until > api_timestamp(at):
        raise Conflict(
            conflict_code="6220",
            reason=f"The vault is locked and keeps this restore point until {until} by its own clock, which shows "
            f"{api_timestamp(at)} here.",
        )


def require_no_locked_roots(store: Store, prefix: str) -> None:
    """Raise Conflict 6111 when a locked vault below `prefix` holds a root, whatever its time. One LIST."""
    locked, holding = set(), set()
    for info in store.list(prefix):
        if info.name == LOCK or info.name.endswith(f"/{LOCK}"):
            locked.add(info.name[: -len(LOCK)])
        elif found := _ROOT.fullmatch(info.name):
            holding.add(found[1])
    if locked & holding:
        raise Conflict(
            conflict_code="6111",
            reason="A locked vault that holds restore points keeps its keys. Delete it when the last one has expired.",
            detail=", ".join(sorted(locked & holding)),
        )


def _shown(store: Store, prefix: str) -> list[str]:
    start = len(prefix) + len(TOLD)
    names = [info.name[start:] for info in store.list(f"{prefix}{TOLD}")]
    return sorted(name for name in names if _TIME.fullmatch(name))
