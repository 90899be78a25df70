"""Digests for what has none, or a damaged one: made from bytes that have just been opened with the key.

Early versions wrote no digests, a crash may fall between an object and its digest, and a rebuild knows footers only.
A deep verify ends here: it has read and opened every pack that is needed, and gives the digests of the sound ones.
Whatever cannot be done is left undone: an object without a digest is still proven by the next verify.
"""

import contextlib
from collections.abc import Iterator, Mapping

from strongroom.base.errors import Corrupt, ObjectExists, ObjectMissing, StoreError
from strongroom.base.streams import Monitor
from strongroom.engine.digests import (
    FOLDER,
    Digest,
    PackDigests,
    digest_name,
    digest_of,
    load_digest,
    put_checked_digest,
    replace_digest,
)
from strongroom.engine.repository import Repository
from strongroom.engine.seal import CHECKS, INDEX, LABELS, ROOT, open_object

_SEALED = {"roots": ROOT, "labels": LABELS, "checks": CHECKS}


def attest(repository: Repository, proven: Mapping[bytes, PackDigests], monitor: Monitor) -> int:
    """Add and repair digests; `proven` are those of packs just read whole. Returns how many objects were written.

    Raises what `monitor` raises.
    """
    try:
        return _attest(repository, proven, monitor)
    except (StoreError, Corrupt):
        return 0  # a store that takes no more, or an index that does not load: verify tells of that itself


def _attest(repository: Repository, proven: Mapping[bytes, PackDigests], monitor: Monitor) -> int:
    start = len(repository.prefix)
    there = {info.name[start:] for info in repository.store.list(repository.prefix + FOLDER)}
    written = 0
    for name in _names(repository):
        monitor.check()
        with contextlib.suppress(ObjectMissing, ObjectExists, Corrupt):
            written += _renew(repository, name, there, proven)
    return written


def _names(repository: Repository) -> Iterator[str]:
    start = len(repository.prefix)
    for folder in ("roots/", "labels/", "checks/", "index/"):
        for info in list(repository.store.list(repository.prefix + folder)):
            yield info.name[start:]
    for number, _ in repository.wraps:
        yield f"keys/{number}"


def _known(repository: Repository, name: str) -> Digest | None:
    """What the store says now; None when it is not there or damaged. Raises StoreError: then nothing is replaced."""
    try:
        return load_digest(repository.store, repository.prefix, name)
    except (ObjectMissing, Corrupt):
        return None


def _renew(repository: Repository, name: str, there: set[str], proven: Mapping[bytes, PackDigests]) -> bool:
    """Whether anything was written. Raises Corrupt when the object itself does not open: it gets no digest."""
    data = repository.store.read(repository.prefix + name)
    before = _known(repository, name) if digest_name(name) in there else None
    known = {pack.id: pack for pack in before.packs} if before else {}
    after = _made(repository, name, data, known | dict(proven))
    if before == after:
        return False
    if digest_name(name) in there:
        replace_digest(repository.store, repository.prefix, after)
    else:
        put_checked_digest(repository.store, repository.prefix, after)
    return True


def _made(repository: Repository, name: str, data: bytes, known: Mapping[bytes, PackDigests]) -> Digest:
    kind, _, last = name.partition("/")
    domain = repository.domain
    if kind in _SEALED:
        open_object(domain.data_key, domain.id, _SEALED[kind], data, last.encode())
        return digest_of(name, data)
    if kind == "keys":
        if (int(last), data) not in repository.wraps:
            raise Corrupt(reason=f"{name} is not what opened the repository")
        return digest_of(name, data)
    if "." not in last:
        index_list = repository.open_index_list(data, int(last))
        fossils = (pack for pack, _ in index_list.fossils)
        return digest_of(name, data, fossils=fossils, retired=(retired for retired, _ in index_list.retired))
    open_object(domain.data_key, domain.id, INDEX, data, last.encode())
    packs = [known[pack.id] for pack in repository.load_table(last).packs if pack.id in known]
    return digest_of(name, data, packs=packs)
