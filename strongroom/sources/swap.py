"""Moving a staged tree into its place, unit by unit, so that a crash at any instant ends in the old or the new state.

Before: everything is staged in `new` and durable; the journal says "swapping" and lists the moves. Each unit then takes
two renames, the live one to `old/<number>`, the staged one to its place:

                         staged?  old/<n>?  live
    not begun              yes       no     old
    first rename done      yes      yes     nothing     (a program that looks now finds nothing there)
    second rename done     no       yes     new

What is there tells how far a unit is, so running forward again repeats nothing, and going back is as clear. Names that
the restore point lacks take the first rename only. A step that fails for good (a mount point) sends everything back.
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace

from strongroom.base.errors import SourceError, TargetDenied
from strongroom.base.streams import Path
from strongroom.sources.carry import Carrier
from strongroom.sources.inodes import OPEN_FOLDER, OPEN_READ, change_flags, exists, list_names, rename_new, syncfs
from strongroom.sources.journal import Journal, Move, Record, write_journal
from strongroom.sources.metadata import LeftOut, MetadataWriter, loosen
from strongroom.sources.oserrors import target_error
from strongroom.sources.patterns import compile_patterns
from strongroom.sources.stage import NEW, Stage

Trace = Callable[[str], None]  # called before every step that changes something; tests die in it

ASIDE_MAX = 8  # a program may make a name again as soon as it is moved away; then it is moved away again
PARENT_MODE = 0o755  # of folders that had to be made and that the restore point does not describe


def no_trace(step: str) -> None:
    """The trace of the product: nothing."""


class Swap:
    """The moves of one journal. Raises OSError; state on disk is then one that `forward` and `undo` go on from."""

    def __init__(self, root_fd: int, stage: Stage, journal: Journal, trace: Trace = no_trace) -> None:
        self._root_fd = root_fd
        self._stage = stage
        self._journal = journal
        self._trace = trace

    def forward(self, metadata: MetadataWriter) -> None:
        """Idempotent."""
        for path in self._journal.missing:
            self._make_parent(path)
        with _Folders(self._root_fd) as live, _Folders(self._stage.new_fd) as staged:
            for move in self._journal.moves:
                self._forward_one(move, live.at(move.unit.live[:-1]), staged)
                if move.new_mode is not None or move.new_flags:
                    self._trace("pin")
                    self._pin_new(move, live.at(move.unit.live[:-1]), metadata)
            for record in reversed(self._journal.parents):
                self._trace("parent metadata")
                metadata.set_on_fd(live.at(record.path), record.path, record.entry, record.attributes)

    def undo(self) -> bool:
        """Idempotent. False when something of the old state could not be put back, because its place is taken."""
        clean = True
        with _Folders(self._root_fd) as live, _Folders(self._stage.new_fd) as staged:
            for move in reversed(self._journal.moves):
                try:
                    folder_fd = live.at(move.unit.live[:-1])
                except FileNotFoundError:
                    continue  # a parent that was never made
                clean = self._undo_one(move, folder_fd, staged) and clean
        for path in reversed(self._journal.missing):
            self._remove_parent(path)
        return clean and not list_names(self._stage.old_fd)

    def _forward_one(self, move: Move, live_fd: int, staged: "_Folders") -> None:
        name = move.unit.live[-1]
        if not move.staged:
            if not exists(self._stage.old_fd, b"%d" % move.number):
                self._put_aside(move, live_fd, name)
            return
        staged_fd, staged_name = self._staged_place(move, staged)
        for left in reversed(range(ASIDE_MAX)):
            if not exists(staged_fd, staged_name):
                break
            self._put_aside(move, live_fd, name)
            self._trace("move new in")
            try:
                rename_new(staged_fd, staged_name, live_fd, name)
            except FileExistsError:
                if not left:
                    raise

    def _pin_new(self, move: Move, live_fd: int, metadata: MetadataWriter) -> None:
        """What the user may not set is listed, like all metadata; it is no reason to go back."""
        try:
            _pin(live_fd, move.unit.live[-1], move.new_mode, move.new_flags)
        except OSError as err:
            metadata.left_out.failed(move.unit.live, "mode and inode flags", err)

    def _undo_one(self, move: Move, live_fd: int, staged: "_Folders") -> bool:
        name, old_name = move.unit.live[-1], b"%d" % move.number
        if move.staged:
            staged_fd, staged_name = self._staged_place(move, staged)
            if not exists(staged_fd, staged_name) and exists(live_fd, name):
                self._trace("move new back")
                _move(live_fd, name, staged_fd, staged_name)
        if exists(self._stage.old_fd, old_name):
            self._trace("move old back")
            try:
                _move(self._stage.old_fd, old_name, live_fd, name)
            except FileExistsError:
                return False
        if (move.old_mode is not None or move.old_flags) and exists(live_fd, name):
            self._trace("pin old")
            _pin(live_fd, name, move.old_mode, move.old_flags)
        return True

    def _put_aside(self, move: Move, live_fd: int, name: bytes) -> None:
        """Move what is live to `old`, if there is anything."""
        for count in range(ASIDE_MAX):
            if not exists(live_fd, name):
                return
            aside = b"%d" % move.number if not count else b"%d.%d" % (move.number, count)
            if exists(self._stage.old_fd, aside):
                continue
            self._trace("put aside")
            try:
                _move(live_fd, name, self._stage.old_fd, aside)
            except FileNotFoundError:
                return  # removed by somebody else just now
        if exists(live_fd, name):
            raise FileExistsError(errno.EEXIST, "is made again and again", name)

    def _staged_place(self, move: Move, staged: "_Folders") -> tuple[int, bytes]:
        path = move.unit.staged
        return (staged.at(path[:-1]), path[-1]) if path else (self._stage.fd, NEW)

    def _make_parent(self, path: Path) -> None:
        self._trace("make parent")
        with _Folders(self._root_fd) as live:
            try:
                os.mkdir(path[-1], PARENT_MODE, dir_fd=live.at(path[:-1]))
            except FileExistsError:
                return

    def _remove_parent(self, path: Path) -> None:
        """Those that were made for this restore; one that is used meanwhile stays."""
        self._trace("remove parent")
        with _Folders(self._root_fd) as live:
            try:
                os.rmdir(path[-1], dir_fd=live.at(path[:-1]))
            except OSError as err:
                if err.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise


def complete(
    root_fd: int, root: bytes, stage: Stage, journal: Journal, left_out: LeftOut, trace: Trace
) -> tuple[str, ...]:
    """Go forward from "swapping" to the end, or all the way back. Closes the stage. Returns warnings.

    Raises the error that stopped it after everything was put back. When going back fails too, the stage stays, with the
    journal at "undoing", and `recover` tries again.
    """
    metadata = MetadataWriter(left_out, trusted=journal.trusted)
    try:
        Swap(root_fd, stage, journal, trace).forward(metadata)
        syncfs(root_fd)
        trace("journal swapped")
        journal = replace(journal, state="swapped")
        write_journal(stage.fd, journal)
    except OSError as err:
        go_back(root_fd, root, stage, journal, trace)
        raise target_error(err, root, "move the restored files into") from err
    return settle_in(root_fd, root, stage, journal, left_out, trace)


def settle_in(
    root_fd: int, root: bytes, stage: Stage, journal: Journal, left_out: LeftOut, trace: Trace
) -> tuple[str, ...]:
    """Go on from "swapped": carry over, root metadata, remove the old. Closes the stage. Returns warnings."""
    metadata = MetadataWriter(left_out, trusted=journal.trusted)
    try:
        if journal.exclude:
            _carry_over(root_fd, stage, journal, left_out, trace)
        if journal.root is not None:
            trace("root metadata")
            _set_root(root_fd, journal.root, metadata)
        syncfs(root_fd)
        trace("journal done")
        write_journal(stage.fd, replace(journal, state="done", moves=()))
        return tidy_up(root_fd, stage, journal, metadata, trace)
    except OSError as err:
        raise target_error(err, root, "finish the restore in") from err
    finally:
        stage.close()


def _carry_over(root_fd: int, stage: Stage, journal: Journal, left_out: LeftOut, trace: Trace) -> None:
    carrier = Carrier(compile_patterns(journal.exclude), left_out, trace)
    with _Folders(root_fd) as live:
        for move in journal.moves:
            if move.staged:
                path = move.unit.live
                carrier.carry(stage.old_fd, b"%d" % move.number, live.at(path[:-1]), path)


def tidy_up(root_fd: int, stage: Stage, journal: Journal, metadata: MetadataWriter, trace: Trace) -> tuple[str, ...]:
    """Remove the old state and the staging place, then set the root's times and flags, which that would change.

    The new state stands already, so a removal that fails is only a warning; `recover` tries it again.
    """
    warnings: tuple[str, ...] = ()
    trace("remove old")
    try:
        stage.remove()
    except (OSError, TargetDenied) as err:
        warnings = (f"The old files could not all be removed from {stage.name.decode()} in the folder: {err}",)
        stage.close()
    if journal.root is not None:
        trace("root times")
        metadata.set_times(root_fd, (), journal.root.entry)
        metadata.set_flags(root_fd, (), journal.root.attributes.flags)
        os.fsync(root_fd)
    return warnings


def go_back(root_fd: int, root: bytes, stage: Stage, journal: Journal, trace: Trace) -> None:
    """Undo a swap and remove the staging place. Idempotent. Raises SourceError when the old state is not complete."""
    try:
        trace("journal undoing")
        write_journal(stage.fd, replace(journal, state="undoing"))
        clean = Swap(root_fd, stage, journal, trace).undo()
        syncfs(root_fd)
        if clean:
            trace("remove new")
            stage.remove()
            return
    except OSError as err:
        raise target_error(err, root, "put the old files back into") from err
    finally:
        stage.close()
    raise SourceError(
        reason="The restore was undone, but files that it had put aside could not go back: their places were taken. "
        f"They are in {stage.name.decode()}/old of the folder."
    )


def _set_root(root_fd: int, record: Record, metadata: MetadataWriter) -> None:
    metadata.set_on_fd(root_fd, (), record.entry, record.attributes, times=False)
    metadata.drop_others(root_fd, (), record.attributes)


def _move(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    """Rename to a free name; what is immutable, append-only or a read-only folder is loosened first."""
    try:
        rename_new(source_fd, source, target_fd, target)
    except PermissionError:
        loosen(source_fd, source)
        rename_new(source_fd, source, target_fd, target)


def _pin(folder_fd: int, name: bytes, mode: int | None, flags: int) -> None:
    """Set what would have been in the way of a rename. Only files and folders have such a thing."""
    try:
        fd = os.open(name, OPEN_READ, dir_fd=folder_fd)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return  # replaced by somebody else since
        raise
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind) and mode is not None and stat.S_IMODE(kind) != mode:
            os.fchmod(fd, mode)
        if (stat.S_ISDIR(kind) or stat.S_ISREG(kind)) and flags:
            change_flags(fd, add=flags)
    finally:
        os.close(fd)


class _Folders:
    """Folders below an open one, opened name by name without following links; remembers the last."""

    def __init__(self, top_fd: int) -> None:
        self._top_fd = top_fd
        self._path: Path = ()
        self._fd = -1

    def __enter__(self) -> "_Folders":
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def at(self, path: Path) -> int:
        """A descriptor, valid until the next call. Raises OSError."""
        if not path:
            return self._top_fd
        if self._fd >= 0 and path == self._path:
            return self._fd
        at = os.dup(self._top_fd)
        for name in path:
            try:
                below = os.open(name, OPEN_FOLDER, dir_fd=at)
            finally:
                os.close(at)
            at = below
        self.__exit__()
        self._path, self._fd = path, at
        return at
