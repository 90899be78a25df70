"""Deciding what a folder restore does: first the plan that people see, then the moves that the journal takes.

Nothing here changes anything. The restore point is not known to `plan_folder`; the moves are planned when it is staged.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from strongroom.base.errors import EntryNotFound, SourceError, TargetDenied, TargetTooSmall
from strongroom.base.streams import Path
from strongroom.base.units import KIB, human_bytes
from strongroom.sources.base import STAGING_PREFIX, RestorePlan, RestoreWanted
from strongroom.sources.inodes import FLAGS_PINNING, OPEN_FOLDER, OPEN_READ, exists, get_flags, list_names
from strongroom.sources.journal import Journal, Move, Record
from strongroom.sources.mounts import load_mounts, mounts_at_or_below, real_path
from strongroom.sources.oserrors import below, shown
from strongroom.sources.patterns import Pattern, is_excluded
from strongroom.sources.selection import Selection, Unit
from strongroom.sources.stage import stage_name
from strongroom.sources.tree_target import StagedTree

ENTRY_BYTES = 4 * KIB  # room an entry takes besides its content: inode, name, the rest of its last block


@dataclass(frozen=True, kw_only=True)
class Live:
    """The folder as it is now: descriptors of its root and of the staged tree, and what its restores leave alone."""

    root_fd: int
    new_fd: int
    exclude: tuple[str, ...]
    patterns: tuple[Pattern, ...]


def plan_folder(root_fd: int, wanted: RestoreWanted, selection: Selection) -> tuple[RestorePlan, list[SourceError]]:
    """The plan, and its conflicts as errors. Raises OSError when the folder cannot be looked at."""
    root = wanted.target.path
    space = os.fstatvfs(root_fd)
    free_blocks = space.f_bfree if os.geteuid() == 0 else space.f_bavail
    free_bytes = free_blocks * space.f_frsize
    needed_bytes = wanted.size_bytes + wanted.entries * ENTRY_BYTES
    conflicts: list[SourceError] = [
        TargetDenied(reason=reason)
        for reason in (
            *_type_conflicts(root_fd, wanted),
            *_mount_conflicts(root_fd, selection),
            *_parent_conflicts(root_fd, root, selection),
        )
    ]
    warnings = list(_warnings(wanted, selection))
    room = _room_sentence(wanted, needed_bytes, free_bytes, space.f_ffree if space.f_files else None)
    if room and (wanted.force or wanted.selection):
        warnings.append(room)  # forced; or a part of the tree, whose size nobody knows yet
    elif room:
        conflicts.append(TargetTooSmall(reason=room))
    plan = RestorePlan(
        wanted=wanted,
        staging=below(root, (stage_name(wanted.task_id),)),
        needed_bytes=needed_bytes,
        free_bytes=free_bytes,
        warnings=tuple(warnings),
        conflicts=tuple(conflict.message for conflict in conflicts),
    )
    return plan, conflicts


def plan_moves(selection: Selection, live: Live, tree: StagedTree, *, trusted: bool) -> Journal:
    """The journal of the swap, from what is staged and what is live. Raises OSError, TargetDenied, EntryNotFound."""
    if selection.whole:
        moves = [_move(number, unit, live, tree) for number, unit in enumerate(_all_units(live))]
        root = tree.records.get(())
        record = Record(path=(), entry=root[0], attributes=root[1]) if root else None
        return Journal(state="swapping", moves=tuple(moves), root=record, trusted=trusted, exclude=live.exclude)
    units = [unit for unit in selection.units if _is_staged(live, unit)]
    if not units and not tree.metadata.left_out.items():
        raise EntryNotFound(id=shown(b"/".join(selection.units[0].staged)))
    missing = _missing_parents(live.root_fd, units)
    in_place = {unit.live for unit in units if unit.live == unit.staged}
    known = [path for path in missing if path in tree.records and any(at[: len(path)] == path for at in in_place)]
    return Journal(
        state="swapping",
        moves=tuple(_move(number, unit, live, tree) for number, unit in enumerate(units)),
        missing=missing,
        parents=tuple(
            Record(path=path, entry=tree.records[path][0], attributes=tree.records[path][1]) for path in known
        ),
        trusted=trusted,
        exclude=live.exclude,
    )


def _room_sentence(wanted: RestoreWanted, needed_bytes: int, free_bytes: int, free_inodes: int | None) -> str | None:
    """What speaks against the restore for want of room; holes count as if they were full."""
    if needed_bytes > free_bytes:
        return (
            f"The restore needs up to {human_bytes(needed_bytes)} beside the old files, {human_bytes(free_bytes)} are "
            "free. Free space, restore selected paths, or force it if the files are mostly holes."
        )
    if free_inodes is not None and wanted.entries > free_inodes:
        return f"The restore needs {wanted.entries} inodes, {free_inodes} are free. Free some."
    return None


def _type_conflicts(root_fd: int, wanted: RestoreWanted) -> Iterable[str]:
    if wanted.kind != "tree":
        yield "A disk cannot be restored into a folder. Choose a disk as the target."
    if get_flags(root_fd) & FLAGS_PINNING:
        yield "The folder is immutable or append-only. Clear that flag (chattr), then restore."
    if not os.access(b"/proc/self/fd/%d" % root_fd, os.W_OK | os.X_OK, effective_ids=True):
        yield "The service may not write to the folder, or it is mounted read-only."


def _mount_conflicts(root_fd: int, selection: Selection) -> Iterable[str]:
    """What is moved aside is removed in the end: a file system mounted inside of it must not go with it."""
    root = real_path(root_fd)
    mounts = load_mounts()
    if selection.whole:
        inside = set(mounts_at_or_below(root, mounts)) - {root}
    else:
        places = (below(root, unit.live) for unit in selection.units)
        inside = {point for place in places for point in mounts_at_or_below(place, mounts)}
    for point in sorted(inside):
        yield f"{shown(point)} is mounted inside of what is to be replaced. Unmount it, or restore selected paths."


def _parent_conflicts(root_fd: int, root: bytes, selection: Selection) -> Iterable[str]:
    device = os.fstat(root_fd).st_dev
    for parent in sorted({unit.live[:-1] for unit in selection.units}):
        try:
            fd = _open_below(root_fd, parent)
        except FileNotFoundError:
            continue  # it will be made
        except OSError:
            yield f"{shown(below(root, parent))} is not a folder now. Move it away, or restore to another place."
            continue
        if os.fstat(fd).st_dev != device:
            yield f"{shown(below(root, parent))} is on another file system than the folder. Register it on its own."
        os.close(fd)


def _warnings(wanted: RestoreWanted, selection: Selection) -> Iterable[str]:
    trusted = wanted.same_resource or wanted.target.options.privileged
    if not trusted:
        yield (
            "The target is another resource: device nodes, setuid and setgid bits and security attributes are left out."
        )
    if os.geteuid() != 0:
        yield "The service does not run as root: owners and some attributes cannot be restored and will be listed."
    if selection.whole:
        yield "The folder will be equal to the restore point: files that are not in it are removed."
        if wanted.target.options.exclude:
            yield "What the exclude patterns match stays, where its folder is in the restore point."


def _all_units(live: Live) -> list[Unit]:
    """Every name of the staged root, and every live one but those that no restore point can hold."""
    staged = set(list_names(live.new_fd))
    names = staged | {name for name in list_names(live.root_fd) if name not in staged and not _stays(live, name)}
    return [Unit(staged=(name,), live=(name,)) for name in sorted(names)]


def _stays(live: Live, name: bytes) -> bool:
    if name.startswith(STAGING_PREFIX):
        return True
    try:
        mode = os.stat(name, dir_fd=live.root_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return True
    return stat.S_ISSOCK(mode) or is_excluded(live.patterns, (), name, is_folder=stat.S_ISDIR(mode))


def _move(number: int, unit: Unit, live: Live, tree: StagedTree) -> Move:
    new_mode, new_flags = tree.finals.get(unit.staged, (None, 0))
    old_mode, old_flags = _pinned(live.root_fd, unit.live)
    return Move(
        number=number,
        unit=unit,
        staged=_is_staged(live, unit),
        old_mode=old_mode,
        old_flags=old_flags,
        new_mode=new_mode,
        new_flags=new_flags,
    )


def _pinned(root_fd: int, path: Path) -> tuple[int | None, int]:
    """Mode and flags of a live name that would have to change for moving it; (None, 0) mostly."""
    try:
        parent_fd = _open_below(root_fd, path[:-1])
    except FileNotFoundError:
        return None, 0
    try:
        mode = os.stat(path[-1], dir_fd=parent_fd, follow_symlinks=False).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return None, 0
        tight = stat.S_IMODE(mode) if stat.S_ISDIR(mode) and mode & 0o700 != 0o700 else None
        fd = os.open(path[-1], OPEN_READ, dir_fd=parent_fd)
    except FileNotFoundError:
        return None, 0
    except PermissionError:
        return tight, 0
    finally:
        os.close(parent_fd)
    try:
        return tight, get_flags(fd) & FLAGS_PINNING
    finally:
        os.close(fd)


def _is_staged(live: Live, unit: Unit) -> bool:
    if not unit.staged:
        return True
    try:
        fd = _open_below(live.new_fd, unit.staged[:-1])
    except FileNotFoundError:
        return False
    try:
        return exists(fd, unit.staged[-1])
    finally:
        os.close(fd)


def _missing_parents(root_fd: int, units: list[Unit]) -> tuple[Path, ...]:
    """Folders that have to be made for the units, outermost first. Raises TargetDenied when something is in the way."""
    missing: set[Path] = set()
    for parent in {unit.live[:-1] for unit in units}:
        for length in range(1, len(parent) + 1):
            try:
                os.close(_open_below(root_fd, parent[:length]))
            except FileNotFoundError:
                missing.add(parent[:length])
            except OSError as err:
                raise TargetDenied(reason=f"{shown(b'/'.join(parent[:length]))} is not a folder now.") from err
    return tuple(sorted(missing))


def _open_below(root_fd: int, path: Path) -> int:
    """A descriptor of a folder below, opened name by name without following links. Raises OSError."""
    at = os.open(b".", OPEN_FOLDER, dir_fd=root_fd)
    for name in path:
        try:
            inside = os.open(name, OPEN_FOLDER, dir_fd=at)
        finally:
            os.close(at)
        at = inside
    return at
