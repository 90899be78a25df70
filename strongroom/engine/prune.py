"""The prune verb: the bytes of what no root needs go back to the store. Writers and readers go on meanwhile.

    leftovers of dead writers and dead roots go            what they referred to is not needed any more
    round:
      newest list m -> oldest pin -> names of roots        in this order: a root that is committed after the look at the
                                                           pins belongs to a session that was seen pinning
      session at m, roots marked, what each pack is worth  usage.py; what becomes of each pack: prune_plan.py
      adopt    packs that a killed prune had moved to become known            (then look again)
      sweep    fossils nobody needs or pins, index objects retired before the oldest pin, old lists
      move     from packs under half live, and from many small packs, to new packs, then their index object
                                                           (only when nothing was condemned)
      clean    index objects that name swept packs are replaced
      list m+1 new fossils, revived ones, retired index objects; put if absent, the loser plans again
    until a round has nothing to say

A fossil is a pack that writers do not know any more and readers take last. It stays readable, so a session that pinned
an older number may still commit a root that needs it; the next round sees that root and revives the pack. A crash
between any two steps leaves garbage, never a root without its chunks, and the next prune goes on from the store alone:
what was moved is not moved again. Sweeping comes before anything is written, so that a full disk is helped: then one
small list is all that is put, and when there is no room to move much, little is moved until there is more.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from strongroom.base.errors import (
    Corrupt,
    IndexIncomplete,
    ObjectExists,
    ObjectMissing,
    ShortRead,
    StoreFull,
)
from strongroom.base.streams import Monitor, SilentMonitor
from strongroom.base.units import GIB, MIB
from strongroom.engine.index import NUMBER_DIGITS, IndexList
from strongroom.engine.index_merge import merge_tables
from strongroom.engine.mark import Marks
from strongroom.engine.move import Moved, move_live
from strongroom.engine.pack import Pack, load_pack, pack_name
from strongroom.engine.prune_plan import Decision, PackState, PrunePlan, plan_prune, summary
from strongroom.engine.repository import Repository, Session
from strongroom.engine.usage import Usage

ROUNDS_MAX = 64  # condemn, sweep, move, sweep, clean are five; the rest moves 60 GiB, then another prune goes on
MOVE_BYTES_MAX = GIB  # live bytes moved a round: the space a prune may need before it gives space back
MERGE_BYTES_MAX = 24 * MIB  # sealed bytes of index objects merged into one: some 1.5 million chunks, 200 MB of memory
INDEX_OBJECTS_MAX = 32  # small ones; every backup adds one, each costs a reader an open
CONDEMNED_FEW = 16  # the largest dead packs, condemned alone when there is no room for a list of all
LEFTOVER_AGE_S = 3600.0  # for writers on other machines; those on this one are never touched

_PACK_NAME = re.compile(r"[0-9a-f]{32}")
_LIST_NAME = re.compile(rf"[0-9]{{{NUMBER_DIGITS}}}")
_INDEX_NAME = re.compile(rf"[0-9]{{{NUMBER_DIGITS}}}(\.[0-9a-f]{{32}})?")


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What a prune did. Bytes are sealed bytes in the store.

    bytes_freed    of deleted packs, index objects and leftovers     bytes_moved  written to move what is live
    stored_bytes, live_bytes   of the packs that are left, and what roots need of them
    packs_rewritten   packs that were moved or merged                packs_adopted  moved to by a prune that was killed
    packs_waiting  fossils that an open session may need             packs_missing  needed packs that are not there
    postponed      why something was left to the next prune, "" if nothing was
    """

    bytes_freed: int = 0
    bytes_moved: int = 0
    stored_bytes: int = 0
    live_bytes: int = 0
    packs_deleted: int = 0
    packs_rewritten: int = 0
    packs_adopted: int = 0
    packs_waiting: int = 0
    packs_missing: int = 0
    roots_removed: int = 0
    lists_written: int = 0
    postponed: str = ""


def prune(repository: Repository, *, dead: Collection[str], monitor: Monitor) -> PruneReport:
    """Remove the roots in `dead`, then everything that no other root needs.

    `dead` are names the caller has seen with `root_names` BEFORE it looked up which backups count; every root that is
    not among them counts, so one that a backup commits meanwhile is safe. Raises Corrupt classes, with nothing deleted
    that a root needs, when the metadata of a root cannot be read; StoreError; what `monitor` raises.
    """
    return _Prune(repository, monitor).run(dead)


def plan(repository: Repository, *, dead: Collection[str], monitor: Monitor) -> PrunePlan:
    """What `prune` would do, without doing it: nothing is written and nothing deleted. Raises as `prune`."""
    return _Prune(repository, monitor).plan(dead)


def live_bytes(repository: Repository, keep: Collection[str]) -> int:
    """Sealed bytes that these roots need: of each segment the share of its live raw bytes (RULINGS 19).

    A root that is lost or damaged counts as far as it can be read: accounting goes on, verify tells of the damage.
    """
    marks = Marks()
    with repository.session("verify") as session:
        for name in sorted(keep):
            try:
                marks.add(session, repository.load_root(name), SilentMonitor())
            except (ObjectMissing, Corrupt):
                continue
        return Usage(session.index, marks).live_bytes


@dataclass(kw_only=True)
class _Next:
    """What the next list will say otherwise than the one before."""

    condemned: set[bytes] = field(default_factory=set)
    revived: set[bytes] = field(default_factory=set)
    suspect: set[bytes] = field(default_factory=set)
    retired: set[str] = field(default_factory=set)
    added: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.condemned or self.revived or self.suspect or self.retired or self.added)


class _Progress:
    """Tells the monitor of bytes deleted and moved, of all that the plans so far speak of."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._done = self._total = self._objects = 0

    def planned(self, decisions: list[Decision]) -> None:
        goes = sum(d.pack.size or 0 for d in decisions if d.action in ("sweep", "condemn", "move", "merge"))
        goes += sum(d.pack.live for d in decisions if d.action in ("move", "merge"))
        self._total = max(self._total, self._done + goes)
        self.did(0)

    def did(self, count: int, objects: int = 0) -> None:
        self._done += count
        self._objects += objects
        self._monitor.advance(self._done, max(self._total, self._done), self._objects)


class _Prune:
    """One run. What was marked stays marked from round to round; everything else is read anew.

    Its caller holds no session: that would pin the very fossils the run makes.
    """

    def __init__(self, repository: Repository, monitor: Monitor) -> None:
        self._repository = repository
        self._store = repository.store
        self._prefix = repository.prefix
        self._monitor = monitor
        self._progress = _Progress(monitor)
        self._marks = Marks()
        self._report = PruneReport()
        self._may_adopt = True

    def run(self, dead: Collection[str]) -> PruneReport:
        idle = self._repository.sessions.oldest_pinned() is None
        self._count(bytes_freed=self._store.sweep_temporary(self._prefix, 0 if idle else LEFTOVER_AGE_S))
        for name in sorted(set(dead).intersection(self._repository.root_names())):
            self._monitor.check()
            self._repository.delete_root(name)
            self._count(roots_removed=1)
        for _ in range(ROUNDS_MAX):
            self._monitor.check()
            if not self._round():
                return self._report
        self._postpone("there is more to move than one prune moves")
        return self._report

    def plan(self, dead: Collection[str]) -> PrunePlan:
        repository = self._repository
        index_list = repository.load_index_list()
        oldest = repository.sessions.oldest_pinned()
        names = repository.root_names()
        with repository.session("prune") as session:
            usage = self._look(session, [name for name in names if name not in dead])
            decisions = plan_prune(_states(usage, self._sizes("packs/", _PACK_NAME), index_list), oldest_pinned=oldest)
            return summary(decisions, roots=set(dead).intersection(names), packs=len(usage.packs))

    def _round(self) -> bool:
        """True when a list was written, or another prune wrote one: look again."""
        repository = self._repository
        index_list = repository.load_index_list()
        oldest = repository.sessions.oldest_pinned()
        names = repository.root_names()
        with repository.session("prune") as session:
            if session.index.number != index_list.number:
                return True
            usage = self._look(session, names)
            found = self._sizes("packs/", _PACK_NAME)
            if self._adopt(session, usage, index_list, found):
                return True
            decisions = plan_prune(_states(usage, found, index_list), oldest_pinned=oldest)
            self._note(usage, decisions)
            self._sweep(decisions)
            gone = {d.pack.id for d in decisions if d.action in ("sweep", "forget")}
            kept = self._sweep_index(index_list, oldest)
            coming = _Next(
                condemned={d.pack.id for d in decisions if d.action == "condemn"},
                revived={d.pack.id for d in decisions if d.action == "revive"},
            )
            if not coming and self._move(session, usage, decisions, coming):
                return True
            cleaned = self._clean(index_list, gone, coming)
            if not coming:
                return False
            fossils = {pack: since for pack, since in index_list.fossils if not (cleaned and pack in gone)}
            return self._publish(index_list, coming, fossils, kept, found)

    # --- reading ---

    def _look(self, session: Session, names: list[str]) -> Usage:
        """Mark what these roots need, but for those that were deleted since they were listed, and count it."""
        for name in names:
            if name in self._marks.roots:
                continue
            try:
                root = self._repository.load_root(name)
            except ObjectMissing:
                continue
            self._marks.add(session, root, self._monitor)
            self._progress.did(0, objects=1)
        usage = Usage(session.index, self._marks)
        if len(usage.unknown.first):
            reason = "it lacks chunks that restore points need; run verify, then delete the restore points it names"
            raise IndexIncomplete(reason=reason, detail=f"{len(usage.unknown.first)} chunks")
        return usage

    def _sizes(self, folder: str, pattern: re.Pattern[str]) -> dict[str, int]:
        start = len(self._prefix) + len(folder)
        listed = self._store.list(f"{self._prefix}{folder}")
        return {info.name[start:]: info.size for info in listed if pattern.fullmatch(info.name[start:])}

    def _note(self, usage: Usage, decisions: list[Decision]) -> None:
        """What the last round saw stands in the report."""
        waiting = sum(d.action == "wait" for d in decisions)
        missing = sum(d.action == "keep" and d.pack.size is None for d in decisions)
        stored = sum(d.pack.stored for d in decisions if d.action not in ("sweep", "forget"))
        self._report = replace(
            self._report,
            stored_bytes=stored,
            live_bytes=usage.live_bytes,
            packs_waiting=waiting,
            packs_missing=missing,
            postponed="",
        )
        self._progress.planned(decisions)

    def _count(self, **more: int) -> None:
        self._report = replace(self._report, **{name: getattr(self._report, name) + by for name, by in more.items()})

    def _postpone(self, reason: str) -> None:
        self._report = replace(self._report, postponed=reason)

    # --- deleting ---

    def _sweep(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if decision.action == "sweep":
                self._monitor.check()
                self._store.delete(pack_name(self._prefix, decision.pack.id))
                self._count(packs_deleted=1, bytes_freed=decision.pack.size or 0)
                self._progress.did(decision.pack.size or 0, objects=1)

    def _sweep_index(self, index_list: IndexList, oldest: int | None) -> dict[str, int]:
        """Delete retired index objects and old lists that nobody can still be reading; what stays retired."""
        sizes = self._sizes("index/", _INDEX_NAME)
        retired = dict(index_list.retired)
        border = index_list.number if oldest is None else min(oldest, index_list.number)
        kept = {name: since for name, since in index_list.retired if since > border and name in sizes}
        for name in sizes:
            is_list = _LIST_NAME.fullmatch(name) is not None
            # The list before the newest stays: a reader may have seen its name a moment ago, and not pinned it yet.
            is_old = int(name) < border - 1 if is_list else name in retired and name not in kept
            if is_old:
                self._repository.delete_index(name)
                self._count(bytes_freed=sizes[name])
        return kept

    # --- writing ---

    def _adopt(self, session: Session, usage: Usage, index_list: IndexList, found: dict[str, int]) -> bool:
        """Make packs known that hold nothing but needed chunks and that no index object names: a prune was killed after
        it had moved chunks to them, and they need not be moved again. Once a run; True when there were any."""
        if not self._may_adopt:
            return False
        self._may_adopt = False
        repository, named = self._repository, {*usage.packs, *(pack for pack, _ in index_list.fossils)}
        packs: list[Pack] = []
        for name in found:
            if bytes.fromhex(name) in named:
                continue
            self._monitor.check()
            try:
                pack = load_pack(repository.store, repository.prefix, repository.domain, bytes.fromhex(name))
            except (Corrupt, ObjectMissing, ShortRead):
                continue  # it is condemned as garbage
            if usage.needs_all(chunk_id for segment in pack.segments for chunk_id in segment.ids):
                packs.append(pack)
        if not packs:
            return False
        try:
            repository.put_index_object(packs, session.index.number)
        except StoreFull:
            return False  # without room for that, they are garbage too
        self._count(packs_adopted=len(packs))
        return True

    def _move(self, session: Session, usage: Usage, decisions: list[Decision], coming: _Next) -> bool:
        """Copy what is live to new packs, make these known, condemn the old ones. True: look again, part of it is done.

        Emptiest first. When there is no room for all, what became durable counts; when that is nothing, one pack is
        tried alone: its space comes back before the next round.
        """
        todo = [d.pack for d in decisions if d.action in ("move", "merge")]
        todo.sort(key=lambda pack: pack.live / pack.stored)
        portion: list[bytes] = []
        room = MOVE_BYTES_MAX
        for pack in todo:
            if room > 0:
                portion.append(pack.id)
                room -= pack.live
        if not portion:
            return False
        moved = move_live(session, usage, portion, self._monitor)
        if moved.full is not None and not moved.made and len(portion) > 1:
            moved = move_live(session, usage, [min(todo, key=lambda pack: pack.live).id], self._monitor)
        coming.suspect |= moved.suspect
        if moved.full is not None and not moved.made:
            self._postpone(f"no room to move what is live in {len(todo)} packs: {moved.full}")
            return False
        return self._make_known(session, moved, coming)

    def _make_known(self, session: Session, moved: Moved, coming: _Next) -> bool:
        if not moved.made:
            return False
        try:
            name, _, size = self._repository.put_index_object(moved.made, session.index.number)
        except StoreFull as err:
            for pack in moved.made:
                self._store.delete(pack_name(self._prefix, pack.id))  # nobody knows of it
            self._postpone(f"no room to move what is live: {err}")
            return False
        coming.added.add(name)
        coming.condemned |= moved.done
        written = size + sum(pack.size for pack in moved.made)
        self._count(packs_rewritten=len(moved.done), bytes_moved=written)
        self._progress.did(written, objects=len(moved.done))
        return moved.full is not None  # what was copied wholly is found by the next round: its copies count

    def _clean(self, index_list: IndexList, gone: set[bytes], coming: _Next) -> bool:
        """Replace index objects that name packs that are gone, or are too many. False when there was no room.

        One table at a time is in memory, then those of one group.
        """
        repository = self._repository
        sizes = self._sizes("index/", _INDEX_NAME)
        names = [name for name in repository.index_object_names(index_list) if name not in coming.added]
        small = {name for name in names if sizes.get(name, 0) * 2 < MERGE_BYTES_MAX}
        many = len(small) > INDEX_OBJECTS_MAX
        if not gone and not many:
            return True
        stale = {name for name in names if gone and self._names_any(name, gone)}
        for group in _groups({name: sizes.get(name, 0) for name in names if name in stale or (many and name in small)}):
            if len(group) == 1 and not stale.intersection(group):
                continue
            self._monitor.check()
            merged = merge_tables([repository.load_table(name) for name in group], frozenset(gone))
            try:
                if merged.chunk_count:
                    known = repository.digests_of(group, frozenset(gone))
                    added, _ = repository.put_table(merged, index_list.number, known)
                    coming.added.add(added)
            except StoreFull as err:
                self._postpone(f"no room to shorten the index: {err}")
                return False
            coming.retired.update(group)
        return True

    def _names_any(self, name: str, gone: set[bytes]) -> bool:
        return any(pack.id in gone for pack in self._repository.load_table(name).packs)

    def _publish(
        self,
        index_list: IndexList,
        coming: _Next,
        fossils: dict[bytes, int],
        retired: dict[str, int],
        found: dict[str, int],
    ) -> bool:
        """Put list m+1. True also when another prune was faster: what was written meanwhile is found by the next.

        When there is no room for it, the largest dead packs are condemned alone, so that the next sweep makes room.
        """
        self._monitor.check()
        repository = self._repository
        retired.update(dict.fromkeys(coming.retired, index_list.number + 1))
        names = [name for name in repository.index_object_names(index_list) if name not in coming.retired]
        try:
            try:
                repository.put_index_list(_list_after(index_list, coming, fossils, retired, names))
            except StoreFull:
                if len(coming.condemned) <= CONDEMNED_FEW:
                    raise
                largest = sorted(coming.condemned, key=lambda pack: -found.get(pack.hex(), 0))[:CONDEMNED_FEW]
                coming.condemned = set(largest)
                repository.put_index_list(_list_after(index_list, coming, fossils, retired, names))
        except ObjectExists:
            return True
        except StoreFull as err:
            if coming.condemned or coming.revived or coming.suspect:
                raise
            self._postpone(f"no room to shorten the index: {err}")
            return False
        self._count(lists_written=1)
        return True


def _list_after(
    before: IndexList, coming: _Next, fossils: dict[bytes, int], retired: dict[str, int], names: list[str]
) -> IndexList:
    """The list after `before`. fossils, retired: those that are left of the ones before, with the new retired ones."""
    number = before.number + 1
    left = {pack: since for pack, since in fossils.items() if pack not in coming.revived}
    suspect = set(before.suspect) | coming.suspect
    return IndexList(
        number=number,
        objects=tuple(sorted(names)),
        retired=tuple(sorted(retired.items())),
        suspect=tuple(sorted(suspect - coming.condemned)),
        fossils=tuple(sorted((left | dict.fromkeys(coming.condemned, number)).items())),
    )


def _states(usage: Usage, found: dict[str, int], index_list: IndexList) -> Iterable[PackState]:
    """Every pack that the index, the lists or the store know of."""
    fossils, suspect = dict(index_list.fossils), frozenset(index_list.suspect)
    named = frozenset(usage.packs)
    beside = dict.fromkeys([*fossils, *map(bytes.fromhex, found)])
    for pack in (*usage.packs, *(pack for pack in beside if pack not in named)):
        stored, live = usage.of(pack)
        yield PackState(
            id=pack,
            size=found.get(pack.hex()),
            stored=stored,
            live=live,
            kind=usage.kind_of(pack),
            chunks=usage.chunks_of(pack)[0],
            fossil_since=fossils.get(pack),
            suspect=pack in suspect,
        )


def _groups(sizes: dict[str, int]) -> list[list[str]]:
    """Names in groups whose tables are small enough to be one; small ones together."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sorted(sizes.items(), key=lambda item: item[1]):
        if not groups or size > room:
            groups.append([])
            room = MERGE_BYTES_MAX
        groups[-1].append(name)
        room -= size
    return groups
