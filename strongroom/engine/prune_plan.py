"""What becomes of each pack, and why: values in, values out.

- Fossils are swept when nobody can need them, and revived when a root does; dead packs are condemned.
- A pack under half live is moved: nothing that stays wastes more than it holds.
- When more than a quarter of everything is dead all the same, the emptiest of the others are moved too.
- Every backup leaves a small pack or two. Eight of about a size become one, of the next size: so a byte is written
  again at most once a size, and the number of small packs stays bounded.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from strongroom.base.units import human_bytes
from strongroom.engine.model import PACK_BYTES
from strongroom.engine.pack import DATA, METADATA, PACK_CHUNKS_MAX

DEAD_PARTS = 4  # a quarter of what is stored may be dead: moving frees at least a third of what it writes
SMALL_PARTS = 4  # a pack less than a quarter full is small: 8 MiB
SIZE_FACTOR = 8  # small packs of one size differ by at most that
SIZES = 5  # the smallest are those below 2 KiB
MERGE_PACKS_MIN = 8  # packs of one size that become one: then no more than 35 small ones of a kind stay

Action = Literal["keep", "sweep", "wait", "condemn", "revive", "move", "merge", "forget"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackState:
    """One pack, before it is decided what becomes of it.

    size          bytes of the object; None: the store does not hold it
    stored        sealed bytes of its segments; 0: no index object names it
    live          share of `stored` that roots need: of each segment, by raw bytes
    kind, chunks  DATA or METADATA; chunks in it
    fossil_since  number of the list that made it a fossil; None: it is none
    suspect       it failed a check
    """

    id: bytes
    size: int | None
    stored: int
    live: int
    kind: int = DATA
    chunks: int = 0
    fossil_since: int | None = None
    suspect: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What becomes of a pack, and why.

    keep     it stays as it is                      condemn  it becomes a fossil with the next list
    sweep    its object is deleted now              revive   a fossil that a root needs after all
    wait     a fossil that a session may need       move     what is live goes to a new pack, then it is condemned
    forget   the index names it, the store does     merge    as move, because it is one of many small ones
             not hold it, nobody needs it
    """

    pack: PackState
    action: Action
    reason: str


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """What a prune would do now, if no backup ended meanwhile.

    decisions     for every pack that does not simply stay
    roots         names of roots that go
    packs, stored_bytes, live_bytes   of all packs that the index names
    bytes_freed   of packs that go, less what is written of them again; fossils that wait are not counted
    bytes_moved   live bytes that are written again
    """

    decisions: tuple[Decision, ...]
    roots: tuple[str, ...]
    packs: int
    stored_bytes: int
    live_bytes: int
    bytes_freed: int
    bytes_moved: int


def plan_prune(packs: Iterable[PackState], *, oldest_pinned: int | None) -> list[Decision]:
    """Decide for each pack, in the order given. `oldest_pinned` was read before the roots were listed."""
    decisions = [_judge(pack, oldest_pinned) for pack in packs]
    _bound_dead(decisions)
    for kind in (DATA, METADATA):
        _merge_small(decisions, kind)
    return decisions


def summary(decisions: list[Decision], *, roots: Iterable[str], packs: int) -> PrunePlan:
    """The plan as somebody may want to read it before it is carried out."""
    again = sum(d.pack.live for d in decisions if d.action in ("move", "merge"))
    goes = sum(d.pack.size or 0 for d in decisions if d.action in ("sweep", "condemn", "move", "merge"))
    return PrunePlan(
        decisions=tuple(d for d in decisions if d.action != "keep" or d.pack.size is None),
        roots=tuple(sorted(roots)),
        packs=packs,
        stored_bytes=sum(d.pack.stored for d in decisions),
        live_bytes=sum(d.pack.live for d in decisions),
        bytes_freed=goes - again,
        bytes_moved=again,
    )


def _judge(pack: PackState, oldest_pinned: int | None) -> Decision:
    action, reason = _verdict(pack, oldest_pinned)
    return Decision(pack=pack, action=action, reason=reason)


def _verdict(pack: PackState, oldest_pinned: int | None) -> tuple[Action, str]:
    share = _share(100 * pack.live // max(pack.stored, 1))
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


@cache
def _share(percent: int) -> str:
    """One text for all packs of a share: there are hundreds of thousands of packs."""
    return f"{percent} % live"


def _is_sound(decision: Decision) -> bool:
    """It may be rewritten."""
    return decision.action == "keep" and decision.pack.size is not None and not decision.pack.suspect


def _bound_dead(decisions: list[Decision]) -> None:
    """Move the emptiest packs until no more than 1 / DEAD_PARTS of what stays is dead."""
    kept = [at for at, decision in enumerate(decisions) if _is_sound(decision)]
    stays = sum(decisions[at].pack.stored for at in kept)
    stays += sum(decision.pack.live for decision in decisions if decision.action == "move")
    dead = sum(decisions[at].pack.stored - decisions[at].pack.live for at in kept)
    if dead * DEAD_PARTS <= stays:
        return
    whole = f"and {100 * dead // stays} % of all that stays is dead"
    kept.sort(key=lambda at: decisions[at].pack.live / decisions[at].pack.stored)
    for at in kept:
        if dead * DEAD_PARTS <= stays:
            return
        pack = decisions[at].pack
        dead -= pack.stored - pack.live
        stays -= pack.stored - pack.live
        decisions[at] = replace(decisions[at], action="move", reason=f"{decisions[at].reason}, {whole}")


def _merge_small(decisions: list[Decision], kind: int) -> None:
    """Mark the largest size of which there are enough to be merged, and everything smaller with it."""
    sizes: list[list[int]] = [[] for _ in range(SIZES)]
    for at, decision in enumerate(decisions):
        if _is_sound(decision) and decision.pack.kind == kind:
            size = small_size(decision.pack)
            if size is not None:
                sizes[size].append(at)
    largest = max((size for size, found in enumerate(sizes) if len(found) >= MERGE_PACKS_MIN), default=None)
    if largest is None:
        return
    chosen = [at for found in sizes[: largest + 1] for at in found]
    total = human_bytes(sum(decisions[at].pack.live for at in chosen))
    reason = f"one of {len(chosen)} small packs, {total} in all"
    for at in chosen:
        decisions[at] = replace(decisions[at], action="merge", reason=reason)


def small_size(pack: PackState) -> int | None:
    """Which of SIZES a pack is of, 0 the smallest; None for one that is not small.

    Small means little in bytes and in chunks: a pack is also closed when it has as many chunks as one may have.
    """
    fill = max(pack.stored / PACK_BYTES, pack.chunks / PACK_CHUNKS_MAX) * SMALL_PARTS
    if fill >= 1:
        return None
    size = SIZES - 1
    while size and fill < 1 / SIZE_FACTOR:
        fill *= SIZE_FACTOR
        size -= 1
    return size
