"""The rebuild verb: the index from what packs say of themselves, when index objects or lists are lost or damaged.

    list n         reads: its retired objects, suspects and fossils stand
                   does not: they are forgotten; what was retired counts again, which only makes the index larger
    index objects  those that read are kept; those that do not are retired by the new list
    packs          each one that no kept index object names is opened at its footer -> new index objects
    list n + 1     put if absent, only when a list or an index object was lost or damaged

A crash anywhere leaves the index objects written so far: they are kept by the next run, which goes on with the packs
they do not name. Nothing is deleted, so readers and writers are not disturbed; prune removes what is retired. A pack
that is indexed here and swept by a prune at the same moment is one that no root needs, and a missing pack is never
relied on. Memory: one index object at a time, and the footers of one new index object.
"""

import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

from strongroom.base.errors import Corrupt, IndexIncomplete, ObjectExists, ObjectMissing, ShortRead
from strongroom.base.streams import Monitor, SilentMonitor
from strongroom.engine.digests import PackDigests, lost_index_objects
from strongroom.engine.index import NUMBER_DIGITS, IndexList
from strongroom.engine.pack import Pack, load_pack
from strongroom.engine.repository import Repository

OBJECT_CHUNKS_MAX = 1 << 18  # of one new index object: some 150 MB of memory while it is put together
FOOTERS_AHEAD = 8  # footers read at once: a store far away answers slowly, and a footer is a few small reads
LIST_ATTEMPTS_MAX = 8  # races with a prune over the next list

_LIST = re.compile(rf"[0-9]{{{NUMBER_DIGITS}}}")
_OBJECT = re.compile(rf"([0-9]{{{NUMBER_DIGITS}}})\.[0-9a-f]{{32}}")
_PACK = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class RebuildReport:
    """What was found and made.

    number            of the list that stands now           list_written      whether this run put it
    list_reason       why the newest list did not read, "" if it did
    objects_damaged   (name, reason) of index objects that did not read
    objects_lost      names that the list has and the store has not
    objects_written   index objects made                    packs_kept        packs that kept index objects name
    packs_read        packs whose footers were read         chunks_read       chunks in them
    packs_damaged     (id in hex, reason) of packs that no index object names and whose footers do not open
    """

    number: int
    list_written: bool = False
    list_reason: str = ""
    objects_damaged: tuple[tuple[str, str], ...] = ()
    objects_lost: tuple[str, ...] = ()
    objects_written: int = 0
    packs_kept: int = 0
    packs_read: int = 0
    chunks_read: int = 0
    packs_damaged: tuple[tuple[str, str], ...] = ()

    @property
    def was_sound(self) -> bool:
        """True when there was nothing to repair."""
        return not self.list_written


def rebuild(repository: Repository, monitor: Monitor | None = None) -> RebuildReport:
    """Make the index whole from packs. Idempotent; durable on return. Raises StoreError and what `monitor` raises."""
    work = _Rebuild(repository, monitor or SilentMonitor())
    for _ in range(LIST_ATTEMPTS_MAX):
        try:
            return work.run()
        except ObjectExists:
            continue  # a prune, or another rebuild, put that list: look again
    raise IndexIncomplete(reason="its index list keeps changing; run the rebuild again")


@dataclass(kw_only=True)
class _Found:
    """What the index is like. before: the list that reads, or an empty one with the number the next one follows."""

    before: IndexList
    list_reason: str
    valid: list[str] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    packs: set[bytes] = field(default_factory=set)
    digests: dict[bytes, PackDigests] = field(default_factory=dict)

    @property
    def is_sound(self) -> bool:
        return not (self.list_reason or self.damaged or self.lost)


class _Rebuild:
    """One run, or several after lost races."""

    def __init__(self, repository: Repository, monitor: Monitor) -> None:
        self._repository = repository
        self._monitor = monitor
        self._report = RebuildReport(number=0)

    def run(self) -> RebuildReport:
        found = self._look()
        lost = lost_index_objects(self._repository.store, self._repository.prefix)
        written, damaged = self._index_packs(found, lost)
        for name in lost:
            self._repository.delete_index(name)  # that is, its digest: what it told is told by the new ones
        report = replace(
            self._report,
            number=found.before.number,
            list_reason=found.list_reason,
            objects_damaged=tuple(found.damaged),
            objects_lost=tuple(found.lost),
            packs_kept=len(found.packs),
            packs_damaged=tuple(damaged),
        )
        if found.is_sound:
            return report
        number = found.before.number + 1
        retired = dict(found.before.retired) | {name: number for name, _ in found.damaged}
        self._monitor.check()
        self._repository.put_index_list(
            replace(
                found.before,
                number=number,
                objects=tuple(sorted([*found.valid, *written])),
                retired=tuple(sorted(retired.items())),
            )
        )
        return replace(report, number=number, list_written=True)

    # --- looking ---

    def _look(self) -> _Found:
        names = self._names("index/")
        found = self._load_list(names)
        retired = {name for name, _ in found.before.retired}
        objects = [name for name in names if _OBJECT.fullmatch(name) and name not in retired]
        found.lost = sorted(set(found.before.objects).difference(objects))
        for name in objects:
            self._monitor.check()
            try:
                table = self._repository.load_table(name)
            except ObjectMissing:
                continue  # deleted since the listing: a prune retired it
            except (Corrupt, ShortRead) as err:
                found.damaged.append((name, str(err)))
                continue
            found.valid.append(name)
            found.packs.update(pack.id for pack in table.packs)
        return found

    def _load_list(self, names: list[str]) -> _Found:
        """The newest list; if it does not read, an empty one that stands for every number that was ever given."""
        numbers = [int(name) for name in names if _LIST.fullmatch(name)]
        try:
            return _Found(before=self._repository.load_index_list(), list_reason="")
        except (Corrupt, ShortRead, ObjectMissing) as err:
            reason = str(err)
        numbers += [int(found[1]) for name in names if (found := _OBJECT.fullmatch(name))]
        return _Found(before=IndexList(number=max(numbers, default=-1)), list_reason=reason)

    def _names(self, folder: str) -> list[str]:
        start = len(self._repository.prefix) + len(folder)
        return [info.name[start:] for info in self._repository.store.list(f"{self._repository.prefix}{folder}")]

    # --- making ---

    def _index_packs(self, found: _Found, lost: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """Index objects for the packs that none names: (their names, packs that do not open)."""
        unknown = [name for name in self._names("packs/") if _PACK.fullmatch(name)]
        unknown = [name for name in unknown if bytes.fromhex(name) not in found.packs]
        if unknown:  # the digests of an index object are not lost with it
            found.digests = self._repository.digests_of([*lost, *(name for name, _ in found.damaged)])
        written: list[str] = []
        damaged: list[tuple[str, str]] = []
        batch: list[Pack] = []
        chunks = 0
        for name, pack in self._read_footers(unknown):
            if isinstance(pack, str):
                damaged.append((name, pack))
                continue
            own = sum(len(segment.ids) for segment in pack.segments)
            if batch and chunks + own > OBJECT_CHUNKS_MAX:
                written.append(self._put(batch, chunks, found))
                batch, chunks = [], 0
            batch.append(pack)
            chunks += own
        if batch:
            written.append(self._put(batch, chunks, found))
        return written, damaged

    def _put(self, packs: list[Pack], chunks: int, found: _Found) -> str:
        self._monitor.check()
        name, _, _ = self._repository.put_index_object(packs, max(found.before.number, 0), found.digests)
        self._report = replace(
            self._report,
            objects_written=self._report.objects_written + 1,
            packs_read=self._report.packs_read + len(packs),
            chunks_read=self._report.chunks_read + chunks,
        )
        return name

    def _read_footers(self, names: list[str]) -> Iterator[tuple[str, Pack | str]]:
        """(id in hex, the pack or why it does not open), several on their way; packs swept meanwhile are left out."""
        running: deque[tuple[str, Future[None]]] = deque()
        packs: dict[str, Pack] = {}
        done = 0
        try:
            for name in [*names, *[""] * FOOTERS_AHEAD]:
                self._monitor.check()
                if name:
                    running.append((name, self._repository.pool.compute(partial(self._load, name, packs))))
                if not running or (name and len(running) <= FOOTERS_AHEAD):
                    continue
                first, future = running.popleft()
                done += 1
                self._monitor.advance(0, 0, done)
                try:
                    future.result()
                except ObjectMissing:
                    continue
                except (Corrupt, ShortRead) as err:
                    yield first, str(err)
                    continue
                yield first, packs.pop(first)
        finally:
            while running:
                running.popleft()[1].exception()

    def _load(self, name: str, packs: dict[str, Pack]) -> None:
        """On a thread of the pool."""
        repository = self._repository
        packs[name] = load_pack(repository.store, repository.prefix, repository.domain, bytes.fromhex(name))
