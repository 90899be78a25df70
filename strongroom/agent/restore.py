"""A restore at the host, through the driver of folders: staged beside the live files, then moved into place.

A restore point of a host is one tree; here it is taken apart again into folders that are restored each on its own:

    in place   /srv/data is there          its content becomes that of the restore point
               /srv/data is missing        the nearest folder above gets it back, and nothing else of it changes
    selected   srv/data/x                  as the path that holds it, with that selection
    a disk     /dev/vg/data                onto the device itself (disks.py)
    aside      /restored                   every name of the restore point's root below it; its neighbours stay

Each such folder is old or new, whatever crashes; which ones belong to a task is noted in the agent's own folder, so
that a later attempt, or `recover`, settles all of them.
"""

import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path as File

from strongroom.agent.disks import DiskPlace, is_below_devices
from strongroom.agent.host_tree import pattern_of, split
from strongroom.agent.policy import Policy, is_at_or_below, normal
from strongroom.base.clock import Clock
from strongroom.base.errors import InvalidRequest, SourceError, TargetDenied
from strongroom.base.streams import FileTarget, Path, Skipped
from strongroom.sources.base import RestorePlan, RestoreWanted, SourceOptions, SourceRef
from strongroom.sources.folder import FolderDriver, FolderTarget
from strongroom.sources.hosts import messages
from strongroom.sources.hosts.channel import Channel
from strongroom.sources.hosts.messages import (
    Begin,
    BeginFile,
    Bytes,
    Done,
    EndFile,
    Finish,
    Finished,
    Linked,
    MakeFolder,
    MakeLink,
    MakeNode,
    Pour,
    RestoreJob,
    RestorePlanned,
    from_server,
    pack,
)
from strongroom.sources.oserrors import shown

NOTES = "restores"  # folder below the agent's own: <task>.json, the roots of a restore that is under way
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Leg:
    """One folder that is restored: its path, and what of the restore point goes there.

    above      parts of the restore point's paths that are the folder itself, cut off before the driver sees them
    selection  relative to `above`; () for all of it        sub_path  as RestoreWanted has it
    """

    root: bytes
    above: Path
    selection: tuple[Path, ...]
    sub_path: Path | None


def legs_of(job: RestoreJob, policy: Policy) -> tuple[Leg, ...]:
    """Raises InvalidRequest, TargetDenied, SourceError."""
    if not job.roots or len(job.roots) > messages.PATHS_MAX:
        raise InvalidRequest(reason="The restore point does not say which paths it holds.")
    roots = [split(_normal(root)) for root in job.roots]
    chosen = job.selection or tuple(roots)
    disks = disks_of(job)
    if job.aside is not None:
        into = _normal(job.aside)
        _require(policy, into)
        whole = tuple(sorted({path[:1] for path in chosen})) if not job.selection else chosen
        if () in whole:
            raise InvalidRequest(reason="The restore point holds the whole host. Select paths of it to restore aside.")
        _require_folder(into)
        return (Leg(root=into, above=(), selection=whole, sub_path=()),)
    legs: dict[tuple[bytes, Path], list[Path]] = {}
    for path in chosen:
        place = b"/" + b"/".join(path)
        _require(policy, place)
        if path in disks:
            policy.require_writable(place, disk=True)
            continue
        folder = _nearest_folder(path, is_root=path in roots)
        legs.setdefault((b"/" + b"/".join(folder), folder), []).append(path[len(folder) :])
    return tuple(
        Leg(root=root, above=above, selection=() if () in inside else tuple(sorted(inside)), sub_path=None)
        for (root, above), inside in legs.items()
    )


def disks_of(job: RestoreJob) -> tuple[Path, ...]:
    """Paths that go onto a disk: chosen ones below /dev that were protected by themselves, and are no folders now."""
    roots = [split(_normal(root)) for root in job.roots]
    if job.aside is not None:
        return ()
    found = [path for path in job.selection or roots if path in roots and is_below_devices(b"/" + b"/".join(path))]
    return tuple(path for path in found if not os.path.isdir(b"/" + b"/".join(path)))


def _require(policy: Policy, path: bytes) -> None:
    policy.require_writable(path)
    policy.require_foreign(path)


def _require_folder(path: bytes) -> None:
    """The folder itself and all above it are no links. Raises TargetDenied."""
    parts = split(path)
    if _nearest_folder((*parts, b"."), is_root=False) != parts:
        raise TargetDenied(reason=f"{shown(path)} is no folder of this host. Make it first.")


def _nearest_folder(path: Path, *, is_root: bool) -> Path:
    """The longest part of a path that is a folder now; a protected path itself counts when it is one."""
    found: Path = ()
    for length in range(1, len(path) + (1 if is_root else 0)):
        place = b"/" + b"/".join(path[:length])
        try:
            mode = os.lstat(place).st_mode
        except FileNotFoundError:
            break
        except (OSError, ValueError) as err:
            raise TargetDenied(reason=f"{shown(place)} cannot be looked at.", detail=repr(err)) from err
        if stat.S_ISLNK(mode) and length < len(path):
            raise TargetDenied(reason=f"{shown(place)} is a symbolic link now. Remove it, or restore to another place.")
        if not stat.S_ISDIR(mode):
            break
        found = path[:length]
    return found


def _normal(path: bytes) -> bytes:
    try:
        return normal(path)
    except ValueError as err:
        raise InvalidRequest(reason=f"{shown(path)} is no absolute path of this host.") from err


class _Notes:
    """Which folders a restore works in, durable before it begins."""

    def __init__(self, home: File) -> None:
        self._folder = home / NOTES

    def load(self, task_id: str) -> list[bytes]:
        try:
            return [os.fsencode(path) for path in json.loads(self._file(task_id).read_text())]
        except FileNotFoundError:
            return []

    def write(self, task_id: str, roots: Sequence[bytes]) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        file = self._file(task_id)
        temporary = file.with_suffix(".new")
        with temporary.open("w") as out:
            json.dump([os.fsdecode(root) for root in roots], out)
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(file)
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)

    def remove(self, task_id: str) -> None:
        self._file(task_id).unlink(missing_ok=True)

    def _file(self, task_id: str) -> File:
        if not _TASK.fullmatch(task_id):
            raise InvalidRequest(reason="The task id must be letters, digits and dashes.")
        return self._folder / f"{task_id}.json"


class Restorer:
    """Restores of one host. home: the agent's own folder."""

    def __init__(self, policy: Policy, home: File, clock: Clock) -> None:
        self._policy = policy
        self._notes = _Notes(home)
        self._driver = FolderDriver(clock)

    def run(self, channel: Channel, job: RestoreJob) -> None:
        """Plan, and when the server says so, restore. Raises SourceError, InvalidRequest, or what ended the session."""
        legs = legs_of(job, self._policy)
        plans = [self._driver.plan_restore(self._wanted(job, leg, legs)) for leg in legs]
        disks = {path: DiskPlace(b"/" + b"/".join(path), job.task_id) for path in disks_of(job)}
        channel.send(pack(_planned([*plans, *(disk.plan() for disk in disks.values())])))
        head = _take(channel).head
        if not isinstance(head, Begin):
            raise SourceError(reason="The server sent what belongs to no restore.")
        self.recover((job.task_id,))
        self._notes.write(job.task_id, [leg.root for leg in legs])
        with ExitStack() as stack:
            for disk in disks.values():
                stack.callback(disk.close)
            targets = [
                (leg, stack.enter_context(self._driver.open_target(plan)))
                for leg, plan in zip(legs, plans, strict=True)
            ]
            channel.send(pack(Done()))
            _Pourer(channel, targets, disks, self._policy).run()
            written = [disk.finish() for disk in disks.values()]  # first: where one fails, folders stay as they were
            reports = [target.finish() for _, target in targets]
        self._notes.remove(job.task_id)
        left_out = [
            Skipped((*leg.above, *skipped.path), skipped.reason)
            for (leg, _), report in zip(targets, reports, strict=True)
            for skipped in report.left_out
        ]
        warnings = dict.fromkeys(warning for report in (*written, *reports) for warning in report.warnings)
        written_bytes = sum(report.written_bytes for report in (*written, *reports))
        channel.send(pack(Finished(tuple(left_out), written_bytes, tuple(warnings))))

    def recover(self, tasks: Sequence[str]) -> tuple[tuple[str, bool], ...]:
        """Settle what attempts of these tasks left in any folder: (task, whether it went forward)."""
        settled = []
        for task in tasks:
            for root in self._notes.load(task):
                ref = SourceRef(resource_id="", type="OS::Sfs::Turbo", path=root)
                found = self._driver.recover(ref, frozenset({task}))
                settled += [(task, one.outcome == "forward") for one in found]
            self._notes.remove(task)
        return tuple(settled)

    def _wanted(self, job: RestoreJob, leg: Leg, legs: Sequence[Leg]) -> RestoreWanted:
        stays = [*self._policy.own, *(_normal(path) for path in job.excluded)]
        exclude = tuple(pattern_of(place, leg.root) for place in stays if is_at_or_below(place, leg.root))
        options = SourceOptions(exclude=exclude, privileged=job.privileged)
        alone = len({os.stat(one.root).st_dev for one in legs}) == 1 and not disks_of(job)
        return RestoreWanted(
            task_id=job.task_id,
            target=SourceRef(resource_id="host", type="OS::Sfs::Turbo", path=leg.root, options=options),
            same_resource=job.same_resource,
            kind="tree",
            # On several file systems, or beside disks, nobody knows yet how much goes to which.
            size_bytes=job.size_bytes if alone else 0,
            entries=job.entries if alone else 0,
            selection=leg.selection,
            sub_path=leg.sub_path,
            force=job.force,
        )


def _planned(plans: Sequence[RestorePlan]) -> RestorePlanned:
    return RestorePlanned(
        needed_bytes=max(plan.needed_bytes for plan in plans),
        free_bytes=min(plan.free_bytes for plan in plans),
        warnings=tuple(dict.fromkeys(warning for plan in plans for warning in plan.warnings)),
        conflicts=tuple(dict.fromkeys(conflict for plan in plans for conflict in plan.conflicts)),
    )


class _Pourer:
    """Takes the steps of a restore, each to the folder it belongs to."""

    def __init__(
        self,
        channel: Channel,
        targets: Sequence[tuple[Leg, FolderTarget]],
        disks: Mapping[Path, DiskPlace],
        policy: Policy,
    ) -> None:
        self._channel = channel
        self._disks = disks
        self._targets = sorted(targets, key=lambda target: len(target[0].above), reverse=True)  # the innermost first
        self._policy = policy
        self._files: dict[int, FileTarget] = {}

    def run(self) -> None:
        """Until Finish. Raises SourceError."""
        while True:
            head, tail = _take(self._channel)
            if isinstance(head, Finish):
                return
            if isinstance(head, MakeLink):
                self._channel.send(pack(Linked(self._link(head))))
                continue
            if not isinstance(head, Pour):
                raise SourceError(reason="The server sent what belongs to no restore.")
            at = 0
            for step in head.steps:
                if isinstance(step, Bytes):
                    at, begin = at + step.length, at
                    if not begin <= at <= len(tail):
                        raise SourceError(reason="The server sent less of a file than it said.")
                    self._files[step.number].write(step.offset, tail[begin:at])
                elif isinstance(step, EndFile):
                    self._files.pop(step.number).close()
                else:
                    self._make(step)

    def _make(self, step: MakeFolder | MakeNode | BeginFile | MakeLink) -> None:
        if isinstance(step, BeginFile) and step.path in self._disks:
            self._files[step.number] = self._disks[step.path].begin(step.entry)
            return
        legs = [self._place(step.path)] if not isinstance(step, MakeFolder) else self._folder_places(step.path)
        for found in legs:
            if found is None:
                raise TargetDenied(reason=f"{shown(b'/'.join(step.path))} was not selected for this restore.")
            target, path = found
            if isinstance(step, MakeFolder):
                target.stream.folder(path, step.entry, step.attributes)
            elif isinstance(step, MakeNode):
                target.stream.node(path, step.entry, step.attributes)
            elif isinstance(step, BeginFile):
                self._files[step.number] = target.stream.file(path, step.entry, step.attributes)

    def _link(self, step: MakeLink) -> bool:
        found, first = self._place(step.path), self._place(step.first)
        if found is None or first is None or found[0] is not first[0]:
            return False  # names of one file in two folders become two files
        return found[0].stream.link(found[1], first[1], step.entry, step.attributes)

    def _place(self, path: Path) -> tuple[FolderTarget, Path] | None:
        """Where an entry goes, and its path there."""
        for leg, target in self._targets:
            inside = path[len(leg.above) :]
            if path[: len(leg.above)] == leg.above and inside and _holds(leg, inside):
                self._policy.require_foreign(leg.root.rstrip(b"/") + b"/" + b"/".join(inside))
                return target, inside
        return None

    def _folder_places(self, path: Path) -> list[tuple[FolderTarget, Path] | None]:
        """A folder may be the root of one, and lead to what is selected of others; above all of them it is nobody's."""
        found = self._place(path)
        places: list[tuple[FolderTarget, Path] | None] = [found] if found is not None else []
        for leg, target in self._targets:
            inside = path[len(leg.above) :]
            if path[: len(leg.above)] == leg.above and (not inside or _leads(leg, inside)):
                places.append((target, inside))
        return places


def _holds(leg: Leg, inside: Path) -> bool:
    return not leg.selection or any(inside[: len(chosen)] == chosen for chosen in leg.selection)


def _leads(leg: Leg, inside: Path) -> bool:
    return any(chosen[: len(inside)] == inside and len(chosen) > len(inside) for chosen in leg.selection)


def _take(channel: Channel) -> messages.Received:
    payload = channel.take()
    assert payload is not None
    return from_server(payload)
