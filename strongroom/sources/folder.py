"""The driver of folders (OS::Sfs::Turbo): a mounted share or any directory of this host.

Point: a snapshot of the tree where its storage can give one, so that all of it is of one moment; else the live tree,
crash-consistent at best: t0, syncfs, then the walk (RULINGS 15). The metadata tells which, and why.
Restore of all: the folder becomes equal to the restore point. What is not in it is removed, but for names that the
exclude patterns match and sockets in the root, which no restore point ever holds. Restore of selected paths: only these
are replaced, their neighbours stay.

Programs that keep old files open go on with the old ones until they open them again.
"""

import contextlib
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Literal

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import InvalidRequest, SourceError, SourceGone, TargetBusy
from strongroom.sources.base import (
    Detail,
    DoneCallback,
    Inspection,
    Kind,
    PointWanted,
    Recovered,
    ResourceType,
    RestorePlan,
    RestoreWanted,
    SourceRef,
    TargetReport,
)
from strongroom.sources.files import FolderTree, open_root
from strongroom.sources.folder_plan import Live, plan_folder, plan_moves
from strongroom.sources.inodes import OPEN_FOLDER, syncfs
from strongroom.sources.journal import write_journal
from strongroom.sources.metadata import LeftOut, MetadataWriter
from strongroom.sources.mounts import file_system
from strongroom.sources.oserrors import source_error, target_error
from strongroom.sources.patterns import compile_patterns
from strongroom.sources.selection import Selection, select
from strongroom.sources.snapshots.base import Hold, release_leftovers
from strongroom.sources.snapshots.choose import choose_for_folder
from strongroom.sources.stage import Stage, find_stages, stage_name
from strongroom.sources.swap import Trace, complete, go_back, no_trace, settle_in, tidy_up
from strongroom.sources.tokens import Values, dump_token, load_token, nanoseconds, unchanged_before
from strongroom.sources.tree_target import StagedTree

Outcome = Literal["forward", "back"]

MEASURE_S_MAX = 1.0  # of a walk that only sums sizes for a listing
MEASURE_ENTRIES_MAX = 200_000


class FolderPoint:
    """An open folder, or a snapshot of it, to read; Point."""

    kind: Final[Kind] = "tree"

    def __init__(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        self._ref = ref
        self._fds = contextlib.ExitStack()
        self._hold: Hold | None = None
        try:
            self._open(ref, wanted, clock)
        except OSError as err:
            self.abort()
            raise source_error(err, ref.path, "read") from err
        except BaseException:
            self.abort()
            raise

    def _open(self, ref: SourceRef, wanted: PointWanted, clock: Clock) -> None:
        fd = open_root(ref.path)
        self._fds.callback(os.close, fd)
        self.taken_at_ns = nanoseconds(clock.now())
        syncfs(fd)
        info = os.fstat(fd)
        own: Values = {"dev": info.st_dev, "ino": info.st_ino}
        self.token = dump_token("folder", own)
        self.full_reason = _full_reason(own, wanted)
        self._file_system = file_system(fd)
        provider, self._snapshot_reason = choose_for_folder(ref.path, one_file_system=ref.options.one_file_system)
        if provider is not None:
            self._hold = Hold(provider, ref.path, ref.resource_id, self.taken_at_ns, None)
            # Inodes and change times are those of the live tree, only the device's number is another.
            fd = os.open(self._hold.snapshot.path, OPEN_FOLDER)
            self._fds.callback(os.close, fd)
        before_ns = unchanged_before(self.taken_at_ns, self._file_system)
        self.stream = FolderTree(fd, ref.path, ref.options, before_ns)

    def __enter__(self) -> "FolderPoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    @property
    def consistency(self) -> str:
        return self._hold.snapshot.consistency if self._hold is not None else "crash_consistent"

    @property
    def metadata(self) -> Mapping[str, Detail]:
        return {
            "file_system": self._file_system,
            "exclude_patterns": len(self._ref.options.exclude),
            "consistency": self.consistency,
            "snapshot": self._hold.name if self._hold is not None else None,
            "snapshot_reason": self._snapshot_reason,
        }

    def commit(self) -> None:
        self._fds.close()
        if self._hold is not None:
            self._hold.commit()

    def abort(self) -> None:
        self._fds.close()
        if self._hold is not None:
            self._hold.abort()


class FolderTarget:
    """A staged restore of a folder; Target."""

    kind: Final[Kind] = "tree"

    def __init__(self, wanted: RestoreWanted, selection: Selection, root_fd: int, stage: Stage, trace: Trace) -> None:
        self._wanted = wanted
        self._selection = selection
        self._root_fd = root_fd
        self._stage = stage
        self._trace = trace
        self._left_out = LeftOut()
        self._metadata = MetadataWriter(
            self._left_out, trusted=wanted.same_resource or wanted.target.options.privileged
        )
        self.stream = StagedTree(stage.new_fd, wanted.target.path, selection, self._metadata)
        self._state = "staging"

    def __enter__(self) -> "FolderTarget":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._state == "staging":
                self._trace("roll back")
                self._stage.remove()
        except OSError as err:
            if error is None:
                raise target_error(err, self._wanted.target.path, "clean up in") from err
            error.add_note(f"The staging place could not be removed: {err}")  # recover will
        finally:
            self.stream.release()
            self._stage.close()
            if self._root_fd >= 0:
                os.close(self._root_fd)
                self._root_fd = -1

    def finish(self) -> TargetReport:
        root = self._wanted.target.path
        try:
            self._trace("finish stream")
            self.stream.finish()
            live = Live(
                root_fd=self._root_fd,
                new_fd=self._stage.new_fd,
                exclude=self._wanted.target.options.exclude,
                patterns=compile_patterns(self._wanted.target.options.exclude),
            )
            journal = plan_moves(self._selection, live, self.stream, trusted=self._metadata.trusted)
            self._trace("journal swapping")
            write_journal(self._stage.fd, journal)
        except OSError as err:
            raise target_error(err, root, "prepare the restore in") from err
        self._state = "swapping"  # from here on only the journal says what is to be done
        warnings = complete(self._root_fd, root, self._stage, journal, self._left_out, self._trace)
        return TargetReport(left_out=self._left_out.items(), written_bytes=self.stream.written_bytes, warnings=warnings)


class FolderDriver:
    """Driver of folders. `trace` is for tests that die at every step."""

    type: Final[ResourceType] = "OS::Sfs::Turbo"
    kind: Final[Kind] = "tree"

    def __init__(self, clock: Clock | None = None, trace: Trace = no_trace) -> None:
        self._clock = clock or SystemClock()
        self._trace = trace

    def inspect(self, ref: SourceRef, *, measure: bool = False) -> Inspection:
        try:
            fd = open_root(ref.path)
        except SourceGone as err:
            return Inspection(exists=False, readable=False, reason=err.message)
        except SourceError as err:
            return Inspection(exists=True, readable=False, reason=err.message)
        try:
            compile_patterns(ref.options.exclude)
            size = self._measure(fd, ref) if measure else None
            detail: Mapping[str, Detail] = {"file_system": file_system(fd)}
            return Inspection(exists=True, readable=True, size_bytes=size, detail=detail)
        except (SourceError, InvalidRequest) as err:
            return Inspection(exists=True, readable=False, reason=err.message)
        finally:
            os.close(fd)

    def open_point(self, ref: SourceRef, wanted: PointWanted) -> FolderPoint:
        return FolderPoint(ref, wanted, self._clock)

    def plan_restore(self, wanted: RestoreWanted) -> RestorePlan:
        root_fd = open_root(wanted.target.path)
        try:
            return plan_folder(root_fd, wanted, select(wanted))[0]
        except OSError as err:
            raise source_error(err, wanted.target.path, "look at") from err
        finally:
            os.close(root_fd)

    def open_target(self, plan: RestorePlan, on_done: DoneCallback | None = None) -> FolderTarget:
        wanted = plan.wanted
        name = stage_name(wanted.task_id)
        selection = select(wanted)
        root_fd = open_root(wanted.target.path)
        try:
            self._settle(root_fd, wanted.target.path, name)
            _, conflicts = plan_folder(root_fd, wanted, selection)  # what the plan saw may be long ago
            if conflicts:
                raise conflicts[0]
            self._trace("make stage")
            stage = Stage.make(root_fd, name)
        except OSError as err:
            os.close(root_fd)
            raise target_error(err, wanted.target.path, "make a staging folder in") from err
        except SourceError:
            os.close(root_fd)
            raise
        return FolderTarget(plan.wanted, selection, root_fd, stage, self._trace)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        try:
            root_fd = open_root(ref.path)
        except SourceGone:
            return ()
        provider, _ = choose_for_folder(ref.path, one_file_system=ref.options.one_file_system)
        if provider is not None:
            release_leftovers(provider, ref.path, ref.resource_id, keep=None)
        wanted = {stage_name(task_id): task_id for task_id in finished_tasks}
        settled = []
        try:
            for name in find_stages(root_fd):
                if name not in wanted:
                    continue
                try:
                    outcome = self._settle(root_fd, ref.path, name)
                except TargetBusy:
                    continue
                if outcome is not None:
                    settled.append(Recovered(task_id=wanted[name], outcome=outcome))
        except OSError as err:
            raise target_error(err, ref.path, "clean up in") from err
        finally:
            os.close(root_fd)
        return tuple(settled)

    def _measure(self, fd: int, ref: SourceRef) -> int | None:
        """Sum of the file sizes; None when there are too many to count now. Raises SourceError."""
        total = entries = 0
        begun_s = self._clock.monotonic_s()
        for folder in FolderTree(fd, ref.path, ref.options, 0).folders():
            total += sum(entry.size for entry in folder.entries)
            entries += len(folder.entries)
            if entries > MEASURE_ENTRIES_MAX or self._clock.monotonic_s() - begun_s > MEASURE_S_MAX:
                return None
        return total

    def _settle(self, root_fd: int, root: bytes, name: bytes) -> Outcome | None:
        """Bring one leftover to its end; None when there was none. Raises OSError, SourceError, TargetBusy."""
        stage = Stage.find(root_fd, name)
        if stage is None:
            return None
        try:
            journal = stage.journal()
            if journal is None or journal.state == "staging":
                begun = not stage.is_empty()
                self._trace("remove staged")
                stage.remove()
                return "back" if begun else None
            if journal.state == "undoing":
                go_back(root_fd, root, stage, journal, self._trace)
                return "back"
            left_out = LeftOut()
            if journal.state == "swapping":
                complete(root_fd, root, stage, journal, left_out, self._trace)
            elif journal.state == "swapped":
                settle_in(root_fd, root, stage, journal, left_out, self._trace)
            else:
                tidy_up(root_fd, stage, journal, MetadataWriter(left_out, trusted=journal.trusted), self._trace)
            return "forward"
        finally:
            stage.close()


def _full_reason(own: Values, wanted: PointWanted) -> str | None:
    if wanted.full:
        return "A full backup was asked for."
    if wanted.parent_token is None:
        return "It is the first backup of this folder in the vault."
    if load_token("folder", wanted.parent_token) != own:
        return "The path leads to another folder or file system than at the last backup."
    return None
