"""Rotating the master key: the keys of every domain are wrapped once more, by another master key.

    keys/0    wrapped by the old key       stays
    keys/1    wrapped by the new key       put if absent, read back and compared

Domains keep their own keys, so nothing else is written again. A domain without any wrap was shredded: there is nothing
to rotate, and it holds nobody up. At every instant each domain opens with at least one of
the two keys; after `rewrap` with both. `drop_wraps` ends that: it removes what the new key does not open, domain by
domain, and only where it has just seen the new key open another wrap of the same keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from strongroom.base.errors import Corrupt, FormatUnknown, KeyWrong, ObjectExists, ObjectMissing
from strongroom.base.streams import Monitor
from strongroom.engine.catalogue import DomainPlace, find_domains
from strongroom.engine.digests import delete_object
from strongroom.engine.keys import Domain, MasterKey
from strongroom.engine.open import load_wraps, put_wrap
from strongroom.engine.store.base import Store


@dataclass(frozen=True, kw_only=True)
class RotationReport:
    """What became of the wraps.

    wrapped   (place, object keys/<n> by the new key) of every domain that opens with it now
    added     how many of them this run put                removed  wraps that were dropped
    failed    (place, reason) of domains that neither key opens
    """

    wrapped: Sequence[tuple[DomainPlace, bytes]] = ()
    added: int = 0
    removed: int = 0
    failed: Sequence[tuple[DomainPlace, str]] = ()


def find_closed(store: Store, key: MasterKey) -> list[tuple[DomainPlace, str]]:
    """(place, reason) of the domains that `key` does not open: to be asked before a rotation begins."""
    closed = []
    for place in _places(store):
        try:
            if _find_wrap(store, place, key) is None:
                key.unwrap(load_wraps(store, _below(place))[0][1])  # raises why it does not open
                raise Corrupt(reason="its keys are those of another domain")
        except (KeyWrong, FormatUnknown, Corrupt, ObjectMissing) as err:
            closed.append((place, str(err)))
    return closed


def rewrap(store: Store, old: MasterKey, new: MasterKey, monitor: Monitor) -> RotationReport:
    """Every domain in the store opens with `new` too. Idempotent; durable on return. Raises StoreError."""
    wrapped: list[tuple[DomainPlace, bytes]] = []
    failed: list[tuple[DomainPlace, str]] = []
    added = 0
    for place in _places(store):
        monitor.check()
        try:
            known = _find_wrap(store, place, new)
            if known is None:
                known = _add_wrap(store, place, old, new)
                added += 1
            wrapped.append((place, known))
        except (KeyWrong, FormatUnknown, Corrupt, ObjectMissing) as err:
            failed.append((place, str(err)))
    return RotationReport(wrapped=tuple(wrapped), added=added, failed=tuple(failed))


def drop_wraps(store: Store, key: MasterKey, monitor: Monitor) -> RotationReport:
    """Remove every wrap that `key` does not open, from the domains that it opens. Idempotent. Raises StoreError."""
    wrapped: list[tuple[DomainPlace, bytes]] = []
    failed: list[tuple[DomainPlace, str]] = []
    removed = 0
    for place in _places(store):
        monitor.check()
        try:
            own = _find_wrap(store, place, key)
            if own is None:
                raise KeyWrong(reason="no wrap of it opens with this key")
        except (KeyWrong, FormatUnknown, Corrupt, ObjectMissing) as err:
            failed.append((place, str(err)))
            continue
        wrapped.append((place, own))
        for number, data in load_wraps(store, _below(place)):
            if _open(key, place, data) is None:
                delete_object(store, _below(place), f"keys/{number}")
                removed += 1
    return RotationReport(wrapped=tuple(wrapped), removed=removed, failed=tuple(failed))


def _places(store: Store) -> list[DomainPlace]:
    return [place for place in find_domains(store) if place.objects.get("keys")]


def _find_wrap(store: Store, place: DomainPlace, key: MasterKey) -> bytes | None:
    """The newest wrap that this key opens. Raises ObjectMissing when there are none at all."""
    return next((data for _, data in load_wraps(store, _below(place)) if _open(key, place, data) is not None), None)


def _add_wrap(store: Store, place: DomainPlace, old: MasterKey, new: MasterKey) -> bytes:
    """Raises the error of the newest wrap when the old key opens none."""
    wraps = load_wraps(store, _below(place))
    domain = next((found for _, data in wraps if (found := _open(old, place, data)) is not None), None)
    if domain is None:
        old.unwrap(wraps[0][1])  # raises why it does not open
        raise Corrupt(reason="its keys are those of another domain", detail=_below(place))
    data, number = new.wrap(domain), wraps[0][0] + 1
    name = f"{_below(place)}keys/{number}"
    try:
        put_wrap(store, _below(place), number, data)
    except ObjectExists:
        raise KeyWrong(reason="somebody else rotates its keys right now", detail=name) from None
    if new.unwrap(store.read(name)) != domain:
        raise Corrupt(reason="a new wrap did not come back as it was written", detail=name)
    return data


def _open(key: MasterKey, place: DomainPlace, data: bytes) -> Domain | None:
    try:
        domain = key.unwrap(data)
    except (KeyWrong, FormatUnknown, Corrupt):
        return None
    return domain if domain.id == place.id else None


def _below(place: DomainPlace) -> str:
    return f"{place.prefix}domains/{place.id.hex()}/"
