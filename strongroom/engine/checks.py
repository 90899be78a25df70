"""When packs were last proven: opened, decrypted and every chunk compared with its id.

    checks/<hex>     sealed: rows of pack id and time; put by a deep verify, and by a full backup for what it wrote

A reader takes all objects together, the latest time of each pack counts. What is lost or does not open only makes packs
look as if nobody had checked them, which is the safe side. Who adds one too many puts one object in the place of all,
with the packs that are still there, so the folder stays small.
"""

import contextlib
import re
import struct
from collections.abc import Iterable, Mapping
from datetime import datetime

import zstandard

from strongroom.base.errors import Corrupt, ObjectMissing, StoreFull
from strongroom.base.units import MIB
from strongroom.engine.digests import delete_object, digest_of, put_digest
from strongroom.engine.pack import decompress_bounded
from strongroom.engine.repository import Repository
from strongroom.engine.seal import CHECKS, OBJECT_ID_BYTES, new_object_id, open_object, seal_object

TRUSTED_DAYS = 30  # RULINGS 14: a full backup relies on packs proven in the last so many days
OBJECTS_MAX = 16  # then they are merged: a month of daily samples is merged twice
CHECKS_BYTES_MAX = 256 * MIB  # 10 million packs, 300 TB

_ROW = struct.Struct(f"<{OBJECT_ID_BYTES}sQ")  # pack, seconds since 1970
_NAME = re.compile(r"[0-9a-f]{32}")
_DAY_S = 86_400


def load_checks(repository: Repository) -> dict[bytes, int]:
    """Seconds since 1970 when each pack was last proven, of those that ever were. Raises StoreError."""
    return _load(repository, _names(repository))


def trusted_packs(repository: Repository) -> frozenset[bytes]:
    """Packs proven in the last TRUSTED_DAYS, and not in the future: a clock that was wrong proves nothing."""
    now = repository.clock.now().timestamp()
    found = load_checks(repository)
    return frozenset(pack for pack, at in found.items() if now - TRUSTED_DAYS * _DAY_S <= at <= now + _DAY_S)


def note_checked(repository: Repository, packs: Iterable[bytes], at: datetime) -> None:
    """These packs were proven at that time. Durable on return; a full disk is passed over. Raises StoreError."""
    rows = dict.fromkeys(packs, int(at.timestamp()))
    if not rows:
        return
    names = _names(repository)
    merging = names if len(names) >= OBJECTS_MAX else []
    if merging:
        there = {info.name.rpartition("/")[2] for info in repository.store.list(f"{repository.prefix}packs/")}
        old = _load(repository, merging)
        rows = {pack: at_s for pack, at_s in (old | rows).items() if pack.hex() in there}
    try:
        _put(repository, rows)
    except StoreFull:
        return
    for name in merging:
        delete_object(repository.store, repository.prefix, f"checks/{name}")


def _names(repository: Repository) -> list[str]:
    start = len(repository.prefix) + len("checks/")
    names = [info.name[start:] for info in repository.store.list(f"{repository.prefix}checks/")]
    return [name for name in names if _NAME.fullmatch(name)]


def _load(repository: Repository, names: Iterable[str]) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for name in names:
        with contextlib.suppress(Corrupt, ObjectMissing):
            for pack, at in _read(repository, name):
                found[pack] = max(at, found.get(pack, 0))
    return found


def _read(repository: Repository, name: str) -> list[tuple[bytes, int]]:
    domain, full = repository.domain, f"{repository.prefix}checks/{name}"
    if repository.store.size(full) > CHECKS_BYTES_MAX:
        raise Corrupt(reason=f"checks/{name} is larger than any")
    payload = open_object(domain.data_key, domain.id, CHECKS, repository.store.read(full), name.encode())
    rows = decompress_bounded(payload, CHECKS_BYTES_MAX)
    if len(rows) % _ROW.size:
        raise Corrupt(reason=f"checks/{name} is malformed")
    return [(pack, at) for pack, at in _ROW.iter_unpack(rows)]


def _put(repository: Repository, rows: Mapping[bytes, int]) -> None:
    domain, name = repository.domain, new_object_id().hex()
    plain = b"".join(_ROW.pack(pack, at) for pack, at in sorted(rows.items()))
    payload = zstandard.ZstdCompressor(level=1).compress(plain)
    data = seal_object(domain.data_key, domain.id, CHECKS, payload, name.encode())
    repository.store.put(f"{repository.prefix}checks/{name}", [data])
    put_digest(repository.store, repository.prefix, digest_of(f"checks/{name}", data))
