"""The protected paths of a host as one tree, whose root is `/`: what is walked of it, and where a path of it lies.

    paths   /etc   /srv/data   /srv/www/index.html
    tree    ()  etc ...   srv   srv/data ...   srv/www   srv/www/index.html

Folders above a path are entries with what leads on, and nothing else. No part of a path may be a symbolic link: what
is read must be where its name says. Disks are files (disks.py).
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from strongroom.agent.disks import DiskFolder, OpenDisk, is_disk
from strongroom.agent.policy import Policy, is_at_or_below, normal
from strongroom.base.clock import Clock
from strongroom.base.errors import InvalidRequest, SourceDenied, SourceError, SourceGone
from strongroom.base.streams import Attributes, Entry, Path
from strongroom.sources.base import SourceOptions
from strongroom.sources.files import FolderTree, OpenFolder
from strongroom.sources.hosts.messages import PATHS_MAX, Root
from strongroom.sources.inodes import OPEN_FOLDER, entry_of, fd_attributes, open_quietly, syncfs
from strongroom.sources.mounts import file_system
from strongroom.sources.oserrors import below, shown, source_error
from strongroom.sources.pace import Pace
from strongroom.sources.tokens import nanoseconds, unchanged_before

_SPECIAL = b"*?["


@dataclass(frozen=True, kw_only=True)
class Place:
    """A protected path: parts of it, whether it is a folder or a disk, and exclude patterns below it.

    identity: device and inode; of a disk nothing, because each backup reads all of it
    """

    parts: Path
    is_folder: bool
    is_disk: bool = False
    exclude: tuple[str, ...]
    identity: tuple[int, int]

    @property
    def path(self) -> bytes:
        return b"/" + b"/".join(self.parts)


def split(path: bytes) -> Path:
    return tuple(part for part in path.split(b"/") if part)


def places_of(roots: Sequence[Root], patterns: Sequence[str], policy: Policy) -> tuple[Place, ...]:
    """What is to be read, outermost paths only, in the order of the tree. Raises SourceError, InvalidRequest."""
    if not 0 < len(roots) <= PATHS_MAX:
        raise InvalidRequest(reason=f"Name 1 to {PATHS_MAX} paths of the host.")
    found: list[Place] = []
    for root in sorted(roots, key=lambda root: split(root.path)):
        path = _normal(root.path)
        policy.require_readable(path)
        if found and is_at_or_below(path, found[-1].path):
            continue
        if is_disk(path):
            policy.require_readable(path, disk=True)
            found.append(Place(parts=split(path), is_folder=False, is_disk=True, exclude=(), identity=(0, 0)))
            continue
        info = _look(path)
        if not stat.S_ISDIR(info.st_mode) and not stat.S_ISREG(info.st_mode):
            raise SourceError(reason=f"{shown(path)} is no folder, file or disk. Take it out of the paths.")
        inside = [*(_normal(path) for path in root.excluded), *policy.own]
        found.append(
            Place(
                parts=split(path),
                is_folder=stat.S_ISDIR(info.st_mode),
                exclude=(*patterns, *(pattern_of(place, path) for place in inside if is_at_or_below(place, path))),
                identity=(info.st_dev, info.st_ino),
            )
        )
    return tuple(found)


def pattern_of(path: bytes, root: bytes) -> str:
    """The exclude pattern of exactly this path below `root`. Raises SourceDenied for `root` itself."""
    inside = split(path)[len(split(root)) :]
    if not inside:
        raise SourceDenied(reason=f"{shown(path)} belongs to the agent itself, or is left out as a whole.")
    literal = b"".join(b"[%c]" % byte if byte in _SPECIAL else b"%c" % byte for byte in b"/".join(inside))
    return "/" + os.fsdecode(literal)


def _normal(path: bytes) -> bytes:
    try:
        return normal(path)
    except ValueError as err:
        raise InvalidRequest(reason=f"{shown(path)} is no absolute path of this host.") from err


def _look(path: bytes) -> os.stat_result:
    """Of every part the kind, without following links. Raises SourceError."""
    at = b""
    info = os.lstat(b"/")
    for part in split(path):
        at += b"/" + part
        try:
            info = os.lstat(at)
        except (OSError, ValueError) as err:
            raise source_error(err if isinstance(err, OSError) else OSError(str(err)), at, "look at") from err
        if stat.S_ISLNK(info.st_mode):
            real = shown(os.path.realpath(path))
            raise SourceError(reason=f"{shown(at)} is a symbolic link. Name the place it leads to instead: {real}.")
    return info


class HostTree:
    """TreeStream of this host. Closes what it opened in `close`."""

    def __init__(self, places: Sequence[Place], options: SourceOptions, clock: Clock) -> None:
        self._places = places
        self._options = options
        self._pace = Pace(options.read_limit_bytes_s)
        self._fds: list[int] = []
        self._disks: dict[Path, OpenDisk] = {}
        self.taken_at_ns = nanoseconds(clock.now())
        self.file_systems: set[str] = set()
        before = []
        try:
            for place in places:
                fd = self._open(place.parts if place.is_folder else place.parts[:-1])
                if place.is_disk:
                    self._disks[place.parts] = OpenDisk(place.path, self.taken_at_ns, self._pace)
                    before.append(unchanged_before(self.taken_at_ns, ""))
                    continue
                syncfs(fd)
                kind = file_system(fd)
                self.file_systems.add(kind)
                before.append(unchanged_before(self.taken_at_ns, kind))
        except OSError as err:
            self.close()
            raise source_error(err, b"/", "read") from err
        except SourceError:
            self.close()
            raise
        self.unchanged_before_ns = min(before)

    def close(self) -> None:
        """Idempotent."""
        while self._disks:
            self._disks.popitem()[1].close()
        while self._fds:
            os.close(self._fds.pop())

    @property
    def disk_reasons(self) -> str:
        """What is read of each disk, for people; "" without one."""
        return " ".join(f"{shown(below(b'/', path))}: {disk.reason}" for path, disk in self._disks.items())

    def root(self) -> tuple[Entry, Attributes]:
        fd = self._open(())
        return entry_of(b"", os.fstat(fd)), fd_attributes(fd)

    def folders(self) -> Iterator[OpenFolder]:
        yield from self._below((), list(zip(self._places, self._fds, strict=False)))

    def _below(self, path: Path, inside: list[tuple[Place, int]]) -> Iterator[OpenFolder]:
        """The tree at `path`, which is a place itself or leads to `inside`."""
        place, fd = inside[0]
        if place.parts == path and place.is_folder:
            options = SourceOptions(
                exclude=place.exclude,
                one_file_system=self._options.one_file_system,
                read_limit_bytes_s=self._options.read_limit_bytes_s,
            )
            yield from FolderTree(fd, b"/", options, self.unchanged_before_ns, above=path).folders()
            return
        at = self._open(path)
        names = sorted({place.parts[len(path)] for place, _ in inside})
        disks = {name: self._disks[(*path, name)] for name in names if (*path, name) in self._disks}
        try:
            entries = [
                disks[name].entry if name in disks else entry_of(name, os.stat(name, dir_fd=at, follow_symlinks=False))
                for name in names
            ]
        except OSError as err:
            raise source_error(err, below(b"/", path), "look at") from err
        if disks:
            yield DiskFolder(path, at, self._pace, entries, disks)
        else:
            yield OpenFolder(b"/", path, at, self._pace, entries, ())
        for entry in entries:
            if stat.S_ISDIR(entry.mode):
                deeper = [(place, fd) for place, fd in inside if place.parts[len(path)] == entry.name]
                yield from self._below((*path, entry.name), deeper)
            elif any(place.is_folder for place, _ in inside if place.parts == (*path, entry.name)):
                raise SourceGone(reason=f"{shown(below(b'/', (*path, entry.name)))} is not a folder any more.")

    def _open(self, path: Path) -> int:
        """A descriptor of a folder, no part of which is a link; closed by `close`. Raises SourceError."""
        fd = os.open(b"/", OPEN_FOLDER)
        try:
            for length, name in enumerate(path, 1):
                try:
                    inside = open_quietly(name, OPEN_FOLDER, fd)
                except OSError as err:
                    raise source_error(err, below(b"/", path[:length]), "read") from err
                os.close(fd)
                fd = inside
        except SourceError:
            os.close(fd)
            raise
        self._fds.append(fd)
        return fd
