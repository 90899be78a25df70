"""The backup verb.

    session (pins an index number, reads the index), then the parent
      -> chunks to packs, packs durable            a crash here leaves packs that no root needs
      -> index objects for them, durable           ... and the next attempt finds those chunks known
      -> packs relied on are checked to be there; a full backup notes its own as proven
      -> fence()                                   a newer attempt exists: stop
      -> root, put if absent                       the backup exists from here on
    session ends

Nothing is undone on the way: what a failed attempt left behind is garbage for prune, or known chunks for the next one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, cast

from strongroom.base.errors import Corrupt, ObjectMissing, PackCorrupt
from strongroom.base.streams import BlockStream, Cutting, CutTree, Monitor, TreeStream
from strongroom.base.units import MIB
from strongroom.engine.checks import TRUSTED_DAYS, note_checked, trusted_packs
from strongroom.engine.content import parse_content, top_pages
from strongroom.engine.files import ContentReader
from strongroom.engine.intake import Intake
from strongroom.engine.manifest import open_stream
from strongroom.engine.model import BackupReport, BackupRequest, ChangedBlocks, Root, RootBody, StreamKind
from strongroom.engine.repository import Repository, Session
from strongroom.engine.roots import pack_labels, root_name
from strongroom.engine.tree import Parent, TreeBackup

TICK_BYTES = 4 * MIB  # how often the monitor hears of a disk's progress


class _Made(NamedTuple):
    """What a stream became. `report` lacks what only the intake knows."""

    size: int
    body: RootBody
    report: BackupReport


def backup(
    repository: Repository,
    stream: TreeStream | BlockStream,
    request: BackupRequest,
    monitor: Monitor,
    fence: Callable[[], None],
) -> BackupReport:
    """Commit one stream as `<backup id>.<generation>`; durable on return.

    Raises ObjectExists when this generation committed before (adopt it with `find_root`), Fenced or Canceled from
    `fence` and `monitor`, SourceError, StoreError. No root was put when it raises, except that a StoreError of the last
    step may have put it: the caller looks with `find_root`.
    """
    name = root_name(request.backup_id, request.generation)
    pack_labels(request.labels)  # too large: say so before the work, not after
    kind: StreamKind = "tree" if hasattr(stream, "folders") else "block"
    created_at = repository.clock.now()
    with repository.session("backup", request.parent) as session:
        parent, reason = _load_parent(session, request, kind)
        if request.full:
            reason = _distrust(session)
        intake = Intake(session, monitor.check, prove=request.full)
        try:
            if kind == "tree":
                made = _tree(session, intake, cast(TreeStream, stream), request, parent, monitor)
            else:
                made = _block(session, intake, cast(BlockStream, stream), parent, monitor)
            intake.finish()
            if request.full:
                note_checked(repository, intake.made, repository.clock.now())
            report = replace(
                made.report,
                root=name,
                bytes_new=intake.bytes_new,
                bytes_stored=intake.bytes_stored,
                full_reason=reason or made.report.full_reason,
            )
            root = Root(
                name=name,
                backup_id=request.backup_id,
                generation=request.generation,
                kind=kind,
                created_at=created_at,
                parent=parent.name if parent else None,
                size=made.size,
                labels=request.labels,
                report=report,
                body=made.body,
            )
            if session.failures:
                _require_whole(session, root, monitor)
            monitor.check()
            fence()
            repository.put_root(root)
        finally:
            intake.close()
    return report


def _distrust(session: Session) -> str:
    """Rely only on packs that were proven lately (RULINGS 14); why all is read, and what is not relied on."""
    packs = {pack.id for pack in session.index.packs()}
    unproven = packs - trusted_packs(session.repository) - session.index.bad
    session.index.bad |= unproven
    if not unproven:
        return "a full backup was asked for"
    return (
        f"a full backup was asked for; {len(unproven)} of {len(packs)} packs were not verified in the last "
        f"{TRUSTED_DAYS} days and are stored anew"
    )


def _require_whole(session: Session, root: Root, monitor: Monitor) -> None:
    """Damage was met on the way: what was taken for known before that must not lie in a pack that failed."""
    from strongroom.engine.mark import Marks  # numpy, which only who meets damage waits for
    from strongroom.engine.usage import Usage

    session.refresh()
    marks = Marks()
    marks.add(session, root, monitor)
    usage = Usage(session.index, marks)
    hit = [pack for pack in usage.packs if pack in session.index.bad and usage.chunks_of(pack)[1]]
    if hit or usage.unknown.as_bytes():
        names = ", ".join(pack.hex() for pack in sorted(hit)[:10])
        raise PackCorrupt(reason="earlier packs were found damaged while the backup ran; run it again", detail=names)


def _load_parent(session: Session, request: BackupRequest, kind: StreamKind) -> tuple[Root | None, str | None]:
    """(the parent to compare with, why there is none although one was named).

    Call it inside the session: a parent that is there after the pin was set keeps its packs until the pin is given
    back, even if it is deleted meanwhile. Loaded before, it might be gone with its packs when the session begins.
    """
    if request.parent is None:
        return None, None
    if request.full:
        return None, None
    try:
        parent = session.load_root(request.parent)
    except ObjectMissing:
        return None, "the parent does not exist any more"
    except Corrupt as err:
        return None, f"the parent cannot be read: {err.message}"
    return (parent, None) if parent.kind == kind else (None, "the parent is of another kind")


def _usable_blocks(request: BackupRequest, parent: Root | None) -> tuple[ChangedBlocks | None, str | None]:
    """(the changed-block list, why it is not used)."""
    blocks = request.changed_blocks
    if blocks is None:
        return None, None
    if parent is None:
        return None, "there is no parent for the changed-block list"
    if blocks.base not in (None, parent.name):
        return None, f"the changed-block list counts from {blocks.base}, the parent is {parent.name}"
    return blocks, None


def _tree(
    session: Session,
    intake: Intake,
    stream: TreeStream,
    request: BackupRequest,
    parent: Root | None,
    monitor: Monitor,
) -> _Made:
    blocks, reason = _usable_blocks(request, parent)
    old = Parent(open_stream(parent, session.metadata, session.expect) if parent else None)
    work = TreeBackup(intake, session.metadata, old, monitor)
    if hasattr(stream, "cut_by"):
        domain = session.repository.domain
        cast(CutTree, stream).cut_by(Cutting(domain.dedup_key, domain.chunker_seed, intake.knows))
    entry, attributes = stream.root()
    stored = work.run(stream, blocks)
    monitor.advance(work.bytes_total, work.bytes_total, work.entries)
    body = RootBody(stored, (entry, attributes), stream.unchanged_before_ns, session.index.number)
    report = BackupReport(
        root="",
        bytes_total=work.bytes_total,
        bytes_read=work.bytes_read,
        entries=work.entries,
        folders=work.folders,
        changed_while_read=tuple(work.changed),
        changed_while_read_count=work.changed_count,
        skipped=tuple(work.skipped),
        skipped_count=work.skipped_count,
        vanished=work.vanished,
        full_reason=old.damage or reason or work.blocks_reason,
    )
    return _Made(work.bytes_total, body, report)


def _block(session: Session, intake: Intake, stream: BlockStream, parent: Root | None, monitor: Monitor) -> _Made:
    """SAME extents are believed only with a parent of the same size; else they are read."""
    reason = None
    content = None
    if parent is not None and parent.size != stream.size:
        reason = "the disk has another size than in the parent"
    elif parent is not None:
        content = parse_content(parent.body.stream)
        session.expect(top_pages(content))
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        if before // TICK_BYTES != done // TICK_BYTES:
            monitor.check()
            monitor.advance(done, stream.size, 0)

    reader = ContentReader(intake, session.metadata, tick)
    stored, _ = reader.read_blocks(stream.size, stream.extents(), stream.read_into, content)
    monitor.advance(stream.size, stream.size, 1)
    body = RootBody((stored.layout, stored.level, stored.rows), None, 0, session.index.number)
    report = BackupReport(root="", bytes_total=stream.size, bytes_read=done, entries=1, full_reason=reason)
    return _Made(stream.size, body, report)
