"""The prune verb: the bytes of what no root needs go back to the store. Writers and readers go on meanwhile.

    leftovers of dead writers and dead roots go            what they referred to is not needed any more
    round:
      newest list m -> oldest pin -> names of roots        in this order: a root that is committed after the look at the
                                                           pins belongs to a session that was seen pinning
      session at m, roots marked, what each pack is worth
      sweep    fossils nobody needs or pins, index objects retired before the oldest pin, old lists
      move     from packs under half live to new packs, then their index object     (only when nothing was condemned)
      clean    index objects that name swept packs are replaced
      list m+1 new fossils, revived ones, retired index objects; put if absent, the loser plans again
    until a round has nothing to say

A fossil is a pack that writers do not know any more and readers take last. It stays readable, so a session that pinned
an older number may still commit a root that needs it; the next round sees that root and revives the pack. A crash
between any two steps leaves garbage, never a root without its chunks, and the next prune goes on from the store alone.
Sweeping comes before anything is written, so that a full disk is helped: then one small list is all that is put.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from strongroom.base.errors import (
    ChunkCorrupt,
    Corrupt,
    IndexIncomplete,
    ObjectExists,
    ObjectMissing,
    PackCorrupt,
    StoreFull,
)
from strongroom.base.streams import Monitor, SilentMonitor
from strongroom.base.units import GIB, MIB
from strongroom.engine.index import NUMBER_DIGITS, IndexList
from strongroom.engine.index_merge import merge_tables
from strongroom.engine.index_table import Table
from strongroom.engine.mark import Marks, Usage
from strongroom.engine.move import Mover
from strongroom.engine.pack import Pack, pack_name
from strongroom.engine.repository import Repository, Session

ROUNDS_MAX = 64  # condemn, sweep, move, sweep, clean are five; more only when other prunes or writers get in between
MOVE_BYTES_MAX = GIB  # live bytes moved a round: the space a prune may need before it gives space back
MERGE_BYTES_MAX = 128 * MIB  # plain bytes of an index object that a merge makes: 4 million chunks
INDEX_OBJECTS_MAX = 32  # every backup adds one; each costs a reader an open
LEFTOVER_AGE_S = 3600.0  # for writers on other machines; those on this one are never touched

_PACK_NAME = re.compile(r"[0-9a-f]{32}")
_LIST_NAME = re.compile(rf"[0-9]{{{NUMBER_DIGITS}}}")
_INDEX_NAME = re.compile(rf"[0-9]{{{NUMBER_DIGITS}}}(\.[0-9a-f]{{32}})?")

Action = Literal["keep", "sweep", "wait", "condemn", "revive", "move", "forget"]


@dataclass(frozen=True, kw_only=True)
class PackState:
    """One pack, before it is decided what becomes of it.

    size          bytes of the object; None: the store does not hold it
    stored        sealed bytes of its segments; 0: no index object names it
    live          share of `stored` that roots need: of each segment, by raw bytes
    fossil_since  number of the list that made it a fossil; None: it is none
    suspect       it failed a check
    """

    id: bytes
    size: int | None
    stored: int
    live: int
    fossil_since: int | None = None
    suspect: bool = False


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What becomes of a pack, and why.

    keep     it stays as it is                      condemn  it becomes a fossil with the next list
    sweep    its object is deleted now              revive   a fossil that a root needs after all
    wait     a fossil that a session may need       move     what is live goes to a new pack, then it is condemned
    forget   the index names it, the store does not hold it, nobody needs it
    """

    pack: PackState
    action: Action
    reason: str


def plan_prune(packs: Iterable[PackState], *, oldest_pinned: int | None) -> list[Decision]:
    """Decide for each pack, in the order given. `oldest_pinned` was read before the roots were listed."""
    decisions = []
    for pack in packs:
        action, reason = _judge(pack, oldest_pinned)
        decisions.append(Decision(pack=pack, action=action, reason=reason))
    return decisions


def _judge(pack: PackState, oldest_pinned: int | None) -> tuple[Action, str]:
    share = f"{100 * pack.live // max(pack.stored, 1)} % live"
    if pack.size is None:
        return ("keep", "needed, but missing: damage") if pack.live else ("forget", "not needed and gone")
    if pack.live:
        if pack.fossil_since is not None:
            return "revive", f"a root needs it: {share}"
        if pack.live * 2 < pack.stored and not pack.suspect:
            return "move", share
        return "keep", share
    if pack.fossil_since is None:
        return "condemn", "no root needs it" if pack.stored else "no index object names it"
    if oldest_pinned is None or oldest_pinned >= pack.fossil_since:
        return "sweep", f"a fossil since list {pack.fossil_since}, and nobody pins an older one"
    return "wait", f"a fossil since list {pack.fossil_since}, list {oldest_pinned} is pinned"


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What a prune did. Bytes are sealed bytes in the store.

    bytes_freed    of deleted packs, index objects and leftovers     bytes_moved  written to move what is live
    packs_waiting  fossils that an open session may need             packs_missing  needed packs that are not there
    postponed      why something was left to the next prune, "" if nothing was
    """

    bytes_freed: int = 0
    bytes_moved: int = 0
    live_bytes: int = 0
    packs_deleted: int = 0
    packs_rewritten: int = 0
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
        return Usage(session.index, marks.keys()).live_bytes


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


class _Prune:
    """One run. What was marked stays marked from round to round; everything else is read anew.

    Its caller holds no session: that would pin the very fossils the run makes.
    """

    def __init__(self, repository: Repository, monitor: Monitor) -> None:
        self._repository = repository
        self._store = repository.store
        self._prefix = repository.prefix
        self._monitor = monitor
        self._marks = Marks()
        self._report = PruneReport()

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
                break
        return self._report

    def _round(self) -> bool:
        """True when a list was written, or another prune wrote one: look again."""
        repository = self._repository
        index_list = repository.load_index_list()
        oldest = repository.sessions.oldest_pinned()
        names = repository.root_names()
        with repository.session("prune") as session:
            if session.index.number != index_list.number:
                return True
            self._mark(session, names)
            usage = Usage(session.index, self._marks.keys())
            if len(usage.unknown.first):
                reason = "it lacks chunks that restore points need; run verify, then delete the restore points it names"
                raise IndexIncomplete(reason=reason, detail=f"{len(usage.unknown.first)} chunks")
            found = self._sizes("packs/", _PACK_NAME)
            decisions = plan_prune(_states(usage, found, index_list), oldest_pinned=oldest)
            self._note(usage, decisions)
            self._sweep(decisions)
            gone = {d.pack.id for d in decisions if d.action in ("sweep", "forget")}
            kept = self._sweep_index(index_list, oldest)
            coming = _Next(
                condemned={d.pack.id for d in decisions if d.action == "condemn"},
                revived={d.pack.id for d in decisions if d.action == "revive"},
            )
            if not coming:
                self._move(session, usage, [d.pack for d in decisions if d.action == "move"], coming)
            cleaned = self._clean(index_list, gone, coming)
            if not coming:
                return False
            fossils = {pack: since for pack, since in index_list.fossils if not (cleaned and pack in gone)}
            return self._publish(index_list, coming, fossils, kept)

    # --- reading ---

    def _mark(self, session: Session, names: list[str]) -> None:
        for name in names:
            if name in self._marks.roots:
                continue
            try:
                root = self._repository.load_root(name)
            except ObjectMissing:
                continue  # deleted since the listing
            self._marks.add(session, root, self._monitor)

    def _sizes(self, folder: str, pattern: re.Pattern[str]) -> dict[str, int]:
        start = len(self._prefix) + len(folder)
        listed = self._store.list(f"{self._prefix}{folder}")
        return {info.name[start:]: info.size for info in listed if pattern.fullmatch(info.name[start:])}

    def _note(self, usage: Usage, decisions: list[Decision]) -> None:
        """What the last round saw stands in the report."""
        waiting = sum(d.action == "wait" for d in decisions)
        missing = sum(d.action == "keep" and d.pack.size is None for d in decisions)
        self._report = replace(
            self._report, live_bytes=usage.live_bytes, packs_waiting=waiting, packs_missing=missing, postponed=""
        )

    def _count(self, **more: int) -> None:
        self._report = replace(self._report, **{name: getattr(self._report, name) + by for name, by in more.items()})

    # --- deleting ---

    def _sweep(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if decision.action == "sweep":
                self._monitor.check()
                self._store.delete(pack_name(self._prefix, decision.pack.id))
                self._count(packs_deleted=1, bytes_freed=decision.pack.size or 0)

    def _sweep_index(self, index_list: IndexList, oldest: int | None) -> dict[str, int]:
        """Delete retired index objects and old lists that nobody can still be reading; what stays retired."""
        sizes = self._sizes("index/", _INDEX_NAME)
        border = index_list.number if oldest is None else min(oldest, index_list.number)
        kept = {name: since for name, since in index_list.retired if since > border and name in sizes}
        for name in sizes:
            is_list = _LIST_NAME.fullmatch(name) is not None
            # The list before the newest stays: a reader may have seen its name a moment ago, and not pinned it yet.
            is_old = int(name) < border - 1 if is_list else name in dict(index_list.retired) and name not in kept
            if is_old:
                self._repository.delete_index(name)
                self._count(bytes_freed=sizes[name])
        return kept

    # --- writing ---

    def _move(self, session: Session, usage: Usage, packs: list[PackState], coming: _Next) -> None:
        """Copy what is live in `packs` to new packs, make these known, condemn the old ones."""
        if not packs:
            return
        made: list[Pack] = []
        mover = Mover(session, made, self._monitor)
        done: set[bytes] = set()
        moved = 0
        try:
            for pack in packs:
                if moved >= MOVE_BYTES_MAX:
                    break
                self._monitor.check()
                moved += pack.live
                try:
                    mover.move(pack.id, usage.needed_keys(pack.id))
                    done.add(pack.id)
                except (PackCorrupt, ChunkCorrupt):
                    coming.suspect.add(pack.id)
            mover.finish()
            name, _, size = self._repository.put_index_object(made, session.index.number)
        except StoreFull as err:
            self._report = replace(self._report, postponed=f"no room to move what is live in {len(packs)} packs: {err}")
            return
        finally:
            mover.release()
        coming.added.add(name)
        coming.condemned |= done
        self._count(packs_rewritten=len(done), bytes_moved=size + sum(pack.size for pack in made))

    def _clean(self, index_list: IndexList, gone: set[bytes], coming: _Next) -> bool:
        """Replace index objects that name packs that are gone, or are too many. False when there was no room."""
        repository = self._repository
        names = repository.index_object_names(index_list)
        many = len(names) > INDEX_OBJECTS_MAX
        if not gone and not many:
            return True
        tables = {name: repository.load_table(name) for name in names if name not in coming.added}
        stale = {name for name, table in tables.items() if any(pack.id in gone for pack in table.packs)}
        for group in _groups({name: table for name, table in tables.items() if many or name in stale}):
            if len(group) == 1 and not stale.intersection(group):
                continue
            merged = merge_tables([tables[name] for name in group], frozenset(gone))
            try:
                if merged.chunk_count:
                    known = repository.digests_of(group, frozenset(gone))
                    added, _ = repository.put_table(merged, index_list.number, known)
                    coming.added.add(added)
            except StoreFull as err:
                self._report = replace(self._report, postponed=f"no room to shorten the index: {err}")
                return False
            coming.retired.update(group)
        return True

    def _publish(
        self, index_list: IndexList, coming: _Next, fossils: dict[bytes, int], retired: dict[str, int]
    ) -> bool:
        """Put list m+1. True also when another prune was faster: what was written meanwhile is found by the next."""
        self._monitor.check()
        repository = self._repository
        number = index_list.number + 1
        for pack in coming.revived:
            fossils.pop(pack, None)
        fossils.update(dict.fromkeys(coming.condemned, number))
        retired.update(dict.fromkeys(coming.retired, number))
        valid = [name for name in repository.index_object_names(index_list) if name not in coming.retired]
        suspect = set(index_list.suspect) | coming.suspect
        after = IndexList(
            number=number,
            objects=tuple(sorted(valid)),
            retired=tuple(sorted(retired.items())),
            suspect=tuple(sorted(suspect - coming.condemned)),
            fossils=tuple(sorted(fossils.items())),
        )
        try:
            repository.put_index_list(after)
        except ObjectExists:
            return True
        except StoreFull as err:
            if coming.condemned or coming.revived or coming.suspect:
                raise
            self._report = replace(self._report, postponed=f"no room to shorten the index: {err}")
            return False
        self._count(lists_written=1)
        return True


def _states(usage: Usage, found: dict[str, int], index_list: IndexList) -> list[PackState]:
    """Every pack that the index, the lists or the store know of."""
    fossils = dict(index_list.fossils)
    ids = dict.fromkeys([*usage.packs, *fossils, *map(bytes.fromhex, found)])
    states = []
    for pack in ids:
        stored, live = usage.of(pack)
        states.append(
            PackState(
                id=pack,
                size=found.get(pack.hex()),
                stored=stored,
                live=live,
                fossil_since=fossils.get(pack),
                suspect=pack in index_list.suspect,
            )
        )
    return states


def _groups(tables: dict[str, Table]) -> list[list[str]]:
    """Names in groups whose tables are small enough to be one; small ones together."""
    groups: list[list[str]] = []
    room = 0
    for name, table in sorted(tables.items(), key=lambda item: len(item[1].data)):
        if not groups or len(table.data) > room:
            groups.append([])
            room = MERGE_BYTES_MAX
        groups[-1].append(name)
        room -= len(table.data)
    return groups
