"""Snapshots of logical volumes: classic ones, which need room and do not tell what changed, and thin ones, which do.

**Classic.** What the origin overwrites is copied into room set aside for the snapshot. When that is full the kernel
makes the snapshot invalid and every read of it fails, so a backup fails too and is never wrong. It goes with its point.

**Thin.** A snapshot takes room only for what is overwritten, and `thin_delta` compares the maps of two. It reads the
pool's metadata while that is frozen (`reserve_metadata_snap`), which only one program may do at a time and which is
given back whatever happens. A snapshot's UUID is its mark, so one that was made again is not believed.
"""

import contextlib
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Any, Final

from strongroom.base.errors import SourceError
from strongroom.base.units import MIB, human_bytes
from strongroom.sources.oserrors import shown
from strongroom.sources.snapshots.base import RANGES_MAX, Changes, Consistency, Parent, Snapshot
from strongroom.sources.tools import run_tool

ROOM_PERCENT = 20  # of the origin, for what it overwrites while a classic snapshot is read
ROOM_PERCENT_MIN = 5  # less than this is not even tried
ROOM_BYTES_MIN = 32 * MIB
DELTA_BYTES_MAX = 96 << 20  # of what thin_delta tells
SECTOR_BYTES = 512
LOCKS = "/run/lock"

_FIELDS = "vg_name,lv_name,lv_uuid,lv_attr,lv_size,origin,pool_lv,thin_id,vg_free,data_percent"
_DELTA = re.compile(r'<(same|different|left_only|right_only)\s+begin="(\d+)"\s+length="(\d+)"')
_BLOCK = re.compile(r'data_block_size="(\d+)"')
_TYPE, _STATE, _HEALTH = 0, 4, 8  # places in lv_attr
_INVALID = "ISmMX"  # states of a snapshot that gives no sound bytes: invalid, merge failed, unknown
_SICK = "pFDMX"  # health: parts missing, failed, pool full, metadata read-only, unknown


class LvmSnapshot:
    """A snapshot volume; Snapshot. Nothing is held open: LVM refuses to remove what somebody reads."""

    consistency: Consistency = "crash_consistent"

    def __init__(self, name: str, mark: str, path: bytes) -> None:
        self.name = name
        self.mark = mark
        self.path = path

    def close(self) -> None:
        return None


class _Lvm:
    """What both kinds share."""

    def verify(self, volume: bytes, now: Snapshot) -> None:
        facts = _volume(volume)
        _require_sound(_facts(f"{facts['vg_name']}/{now.name}"))

    def release(self, volume: bytes, name: str) -> None:
        group = _volume(volume)["vg_name"]
        if name in _snapshots(group):
            _lvm("lvremove", "-q", "--force", "--yes", f"{group}/{name}")

    def names(self, volume: bytes, prefix: str) -> list[str]:
        facts = _volume(volume)
        found = _snapshots(facts["vg_name"])
        return [name for name, item in found.items() if name.startswith(prefix) and item["origin"] == facts["lv_name"]]

    def _made(self, group: str, name: str) -> LvmSnapshot:
        facts = _facts(f"{group}/{name}")
        _require_sound(facts)
        return LvmSnapshot(name, facts["lv_uuid"], _node(group, name))


class LvmClassic(_Lvm):
    """SnapshotProvider of linear, striped and mirrored volumes."""

    name: Final = "LVM"
    keeps_parent: Final = False

    def create(self, volume: bytes, name: str, *, writable: bool = False) -> LvmSnapshot:
        """writable: for who mounts it, because a file system may have to replay its journal."""
        facts = _volume(volume)
        room = room_for(int(facts["lv_size"]), int(facts["vg_free"]))
        if room is None:
            raise SourceError(
                reason=f"The volume group {facts['vg_name']} has no room for a snapshot of {shown(volume)}: "
                f"{human_bytes(int(facts['vg_free']))} are free. Add room to it."
            )
        origin = f"{facts['vg_name']}/{facts['lv_name']}"
        options = ["--permission", _permission(writable), "--size", f"{room}b", "--name", name, origin]
        _lvm("lvcreate", "-q", "--yes", "--snapshot", *options)
        return self._made(facts["vg_name"], name)

    def changed(self, volume: bytes, parent: Parent, now: Snapshot) -> Changes:
        return Changes(None, "Classic LVM snapshots do not tell which blocks changed.")


class LvmThin(_Lvm):
    """SnapshotProvider of thin volumes."""

    name: Final = "LVM thin"
    keeps_parent: Final = True

    def create(self, volume: bytes, name: str, *, writable: bool = False) -> LvmSnapshot:
        """writable: as above."""
        facts = _volume(volume)
        _require_sound(_facts(f"{facts['vg_name']}/{facts['pool_lv']}"))
        origin = f"{facts['vg_name']}/{facts['lv_name']}"
        options = ["--permission", _permission(writable), "--setactivationskip", "n", "--name", name, origin]
        _lvm("lvcreate", "-q", "--yes", "--snapshot", *options)
        return self._made(facts["vg_name"], name)

    def changed(self, volume: bytes, parent: Parent, now: Snapshot) -> Changes:
        group = _volume(volume)["vg_name"]
        found = _snapshots(group)
        old, new = found.get(parent.name), found.get(now.name)
        if old is None or new is None or old["lv_uuid"] != parent.mark:
            return Changes(None, "The snapshot of the last backup is not there any more, so all of the disk is read.")
        if old["pool_lv"] != new["pool_lv"] or old["lv_size"] != new["lv_size"]:
            return Changes(None, "The volume had another pool or size at the last backup.")
        pool = f"{_escaped(group)}-{_escaped(new['pool_lv'])}"
        try:
            with _metadata_frozen(pool):
                ids = ["--snap1", old["thin_id"], "--snap2", new["thin_id"]]
                arguments = ["thin_delta", "--metadata-snap", *ids, f"/dev/mapper/{pool}_tmeta"]
                told = run_tool(arguments, output_bytes_max=DELTA_BYTES_MAX)
        except SourceError as err:
            return Changes(None, f"The pool does not tell what changed, so all of the disk is read. {err.message}")
        ranges = parse_delta(told, int(new["lv_size"]))
        return Changes(ranges, None if ranges is not None else "Too many pieces changed to be told apart.")


def _permission(writable: bool) -> str:
    return "rw" if writable else "r"


def choose(path: bytes) -> "tuple[LvmClassic | LvmThin | None, str]":
    """The provider for a device, and a sentence that says why. Raises SourceError when LVM gives no answer."""
    if not _is_lvm(path):
        return None, "It does not lie on a logical volume."
    facts = _volume(path)
    kind = facts["lv_attr"][_TYPE]
    if kind == "V":
        return LvmThin(), "A thin LVM snapshot is read, so all of the volume is of one moment."
    if kind in "-oOmMrR":
        if room_for(int(facts["lv_size"]), int(facts["vg_free"])) is None:
            return None, f"The volume group {facts['vg_name']} has no room for a snapshot."
        return LvmClassic(), "An LVM snapshot is read, so all of the volume is of one moment."
    return None, "LVM makes no snapshots of this kind of volume."


def room_for(origin_bytes: int, free_bytes: int) -> int | None:
    """Bytes for a classic snapshot; None when there is too little to try."""
    wanted = min(max(origin_bytes * ROOM_PERCENT // 100, ROOM_BYTES_MIN), origin_bytes + ROOM_BYTES_MIN)
    least = min(max(origin_bytes * ROOM_PERCENT_MIN // 100, ROOM_BYTES_MIN), wanted)
    if free_bytes < least:
        return None
    return min(wanted, free_bytes) // SECTOR_BYTES * SECTOR_BYTES


def parse_delta(told: str, size: int) -> list[tuple[int, int]] | None:
    """What thin_delta says differs, as sorted (offset, length) in bytes; None: more than we keep, or cut off.

    What neither snapshot ever had is not told at all: it reads as zeros in both.
    """
    block = _BLOCK.search(told)
    if block is None or "</diff>" not in told:
        return None
    unit = int(block[1]) * SECTOR_BYTES
    changed: list[tuple[int, int]] = []
    for kind, begin, length in _DELTA.findall(told):
        offset, stop = int(begin) * unit, min((int(begin) + int(length)) * unit, size)
        if kind == "same" or stop <= offset:
            continue
        if changed and sum(changed[-1]) == offset:
            changed[-1] = (changed[-1][0], stop - changed[-1][0])
        else:
            changed.append((offset, stop - offset))
        if len(changed) > RANGES_MAX:
            return None
    return sorted(changed)


@contextlib.contextmanager
def _metadata_frozen(pool: str) -> Iterator[None]:
    """The pool's metadata as of one moment, for one program at a time. What a killed one left is given back first."""
    lock = os.open(f"{LOCKS}/strongroom-{pool}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    message = ["dmsetup", "message", f"{pool}-tpool", "0"]
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.pread(lock, 1, 0):  # a process of ours died between the two messages
            with contextlib.suppress(SourceError):
                run_tool([*message, "release_metadata_snap"])
        os.pwrite(lock, b"1", 0)
        run_tool([*message, "reserve_metadata_snap"])
        try:
            yield
        finally:
            run_tool([*message, "release_metadata_snap"])
    finally:
        os.ftruncate(lock, 0)
        os.close(lock)


def _require_sound(facts: Mapping[str, str]) -> None:
    attributes = facts["lv_attr"].ljust(10, "-")
    if attributes[_TYPE] == "s" and (attributes[_STATE] in _INVALID or float(facts["data_percent"] or 0) >= 100):
        raise SourceError(
            reason="The snapshot ran full while it was read: more was overwritten than it has room for. "
            "Add room to the volume group, or run the backup when less is written."
        )
    if attributes[_STATE] in _INVALID or attributes[_HEALTH] in _SICK:
        raise SourceError(
            reason="The logical volume or its pool is not sound. Look at it with lvs, then run the backup again.",
            detail=f"{facts['vg_name']}/{facts['lv_name']}: lv_attr {attributes}",
        )


def _is_lvm(path: bytes) -> bool:
    try:
        info = os.stat(path)
        if not stat.S_ISBLK(info.st_mode):
            return False
        place = f"/sys/dev/block/{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}/dm/uuid"
        with open(place, encoding="ascii", errors="replace") as file:
            return file.read(256).startswith("LVM-")
    except OSError:
        return False


def _volume(path: bytes) -> dict[str, str]:
    """Facts of the volume behind a device node."""
    info = os.stat(path)
    place = f"/sys/dev/block/{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}/dm/name"
    with open(place, encoding="ascii", errors="replace") as file:
        return _facts(f"/dev/mapper/{file.read(256).strip()}")


def _facts(what: str) -> dict[str, str]:
    found = _report(what)
    if len(found) != 1:
        raise SourceError(reason="LVM does not know the volume. Look at it with lvs, then run the backup again.")
    return found[0]


def _snapshots(group: str) -> dict[str, dict[str, str]]:
    return {item["lv_name"]: item for item in _report(group) if item["origin"]}


def _report(what: str) -> list[dict[str, str]]:
    told = _lvm("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", _FIELDS, what)
    try:
        rows: Any = json.loads(told)["report"][0]["lv"]
        return [{str(key): str(value) for key, value in row.items()} for row in rows]
    except (ValueError, LookupError, TypeError, AttributeError) as err:
        raise SourceError(reason="LVM gave no answer that can be read. Run the task again.") from err


def _lvm(*arguments: str) -> str:
    return run_tool(["lvm", *arguments])


def _escaped(name: str) -> str:
    """As the device mapper spells a name in another one."""
    return name.replace("-", "--")


def node_of(volume: bytes, name: str) -> bytes:
    """The device of a snapshot of a volume."""
    return _node(_volume(volume)["vg_name"], name)


def _node(group: str, name: str) -> bytes:
    return os.fsencode(f"/dev/mapper/{_escaped(group)}-{_escaped(name)}")
