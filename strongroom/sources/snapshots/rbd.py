"""Snapshots of Ceph RBD images, and what changed between two, by the `rbd` command.

    rbd:POOL/IMAGE            the cluster of /etc/ceph/ceph.conf
    rbd:POOL/NAMESPACE/IMAGE@/path/of/ceph.conf

A snapshot costs nothing until the image is overwritten. `rbd diff` is exact, discards included; with the features
object-map and fast-diff it takes milliseconds. A snapshot's number, which Ceph never gives again, is its mark.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from strongroom.base.errors import SourceError, SourceGone
from strongroom.base.streams import Extent, ExtentKind
from strongroom.sources.oserrors import shown
from strongroom.sources.snapshots.base import RANGES_MAX, Changes, Consistency, Parent, Snapshot
from strongroom.sources.tools import run_tool

T = TypeVar("T")

SCHEME = b"rbd:"
CONF = "/etc/ceph/ceph.conf"
DIFF_BYTES_MAX = 96 << 20  # of the JSON that tells what changed: RANGES_MAX of them

_NAME = r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,127}"
_ADDRESS = re.compile(rf"rbd:({_NAME})/(?:({_NAME})/)?({_NAME})(?:@(/[\x21-\x7e]+))?")


@dataclass(frozen=True, kw_only=True)
class RbdAddress:
    """namespace: "" for the pool's own."""

    pool: str
    namespace: str
    image: str
    conf: str

    @property
    def options(self) -> list[str]:
        """Of the command. No part of the address is parsed again: each is an option of its own."""
        namespace = ["--namespace", self.namespace] if self.namespace else []
        return ["--conf", self.conf, "--pool", self.pool, *namespace, "--image", self.image]

    def disk(self, snapshot: str | None = None) -> str:
        """As QEMU's tools take it."""
        node = {"driver": "rbd", "pool": self.pool, "image": self.image, "conf": self.conf}
        if self.namespace:
            node["namespace"] = self.namespace
        if snapshot is not None:
            node["snapshot"] = snapshot
        return "json:" + json.dumps(node)


@dataclass(kw_only=True)
class RbdSnapshot:
    """Snapshot. path: the address of the image; it is read with the name."""

    name: str
    mark: str
    path: bytes
    consistency: Consistency = "crash_consistent"

    def close(self) -> None:
        return None  # nothing is held open


class Rbd:
    """SnapshotProvider of RBD images; a volume is an address."""

    name: Final = "Ceph RBD"
    keeps_parent: Final = True

    def create(self, volume: bytes, name: str) -> RbdSnapshot:
        address = parse_address(volume)
        _rbd(address, "snap", "create", "--snap", name, "--no-progress")
        number = _numbers(address).get(name)
        if number is None:
            raise SourceError(reason=f"The snapshot of {shown(volume)} is gone already. Run the task again.")
        return RbdSnapshot(name=name, mark=number, path=volume)

    def changed(self, volume: bytes, parent: Parent, now: Snapshot) -> Changes:
        address = parse_address(volume)
        if _numbers(address).get(parent.name) != parent.mark:
            return Changes(None, "The snapshot of the last backup is not there any more, so all of the disk is read.")
        found = _diff(address, now.name, parent.name)
        if found is None:
            return Changes(None, "Too many pieces of the disk changed to be told apart, so all of it is read.")
        return Changes([(offset, length) for offset, length, _ in found])

    def verify(self, volume: bytes, now: Snapshot) -> None:
        if _numbers(parse_address(volume)).get(now.name) != now.mark:
            raise SourceError(reason=f"Somebody removed the snapshot of {shown(volume)}. Run the task again.")

    def release(self, volume: bytes, name: str) -> None:
        address = parse_address(volume)
        if name in _numbers(address):
            _rbd(address, "snap", "rm", "--snap", name, "--no-progress")

    def names(self, volume: bytes, prefix: str) -> list[str]:
        return [name for name in _numbers(parse_address(volume)) if name.startswith(prefix)]


def parse_address(path: bytes) -> RbdAddress:
    """Raises SourceError for what is no address of an image."""
    found = _ADDRESS.fullmatch(path.decode("latin-1"))
    if found is None:
        raise SourceError(
            reason=f"{shown(path)} is no RBD image. Write rbd:POOL/IMAGE, or rbd:POOL/IMAGE@/path/of/ceph.conf."
        )
    pool, namespace, image, conf = found.groups()
    return RbdAddress(pool=pool, namespace=namespace or "", image=image, conf=conf or CONF)


def image_facts(address: RbdAddress) -> dict[str, Any]:
    """`rbd info`: size, features. Raises SourceGone when there is no such image, SourceError."""
    return _parsed(_rbd(address, "info", "--format", "json"), dict)


def has_watchers(address: RbdAddress) -> bool:
    """Whether a client has the image open for writing."""
    return bool(_parsed(_rbd(address, "status", "--format", "json"), dict).get("watchers"))


def allocated(address: RbdAddress, snapshot: str, size: int) -> list[Extent]:
    """DATA and ZERO of a snapshot, covering [0, size); one DATA when there are too many pieces."""
    found = _diff(address, snapshot, None)
    if found is None:
        return [Extent(0, size, ExtentKind.DATA)] if size else []
    extents, at = [], 0
    for offset, length, exists in found:
        stop = min(offset + length, size)
        if not exists or stop <= max(at, offset):
            continue
        if offset > at:
            extents.append(Extent(at, offset - at, ExtentKind.ZERO))
            at = offset
        extents.append(Extent(at, stop - at, ExtentKind.DATA))
        at = stop
    if at < size:
        extents.append(Extent(at, size - at, ExtentKind.ZERO))
    return extents


def _diff(address: RbdAddress, snapshot: str, parent: str | None) -> list[tuple[int, int, bool]] | None:
    """(offset, length, exists), sorted. None: more than we keep."""
    since = ["--from-snap", parent] if parent is not None else []
    text = _rbd(address, "diff", "--snap", snapshot, *since, "--format", "json", output_bytes_max=DIFF_BYTES_MAX)
    if len(text) >= DIFF_BYTES_MAX:
        return None
    found = [(int(e["offset"]), int(e["length"]), str(e["exists"]) == "true") for e in _parsed(text, list)]
    return None if len(found) > RANGES_MAX else sorted(found)


def _numbers(address: RbdAddress) -> dict[str, str]:
    """The image's snapshots: number by name."""
    listed = _parsed(_rbd(address, "snap", "ls", "--format", "json"), list)
    return {str(item["name"]): str(item["id"]) for item in listed}


def _rbd(address: RbdAddress, *command: str, output_bytes_max: int = 16 << 20) -> str:
    words = [word for word in command[:2] if not word.startswith("-")]
    rest = command[len(words) :]
    try:
        return run_tool(["rbd", *words, *address.options, *rest], output_bytes_max=output_bytes_max)
    except SourceError as err:
        if "No such file or directory" in str(err.detail) and "snap" not in words:
            raise SourceGone(
                reason=f"The RBD image {address.pool}/{address.image} is not there. Check the resource's path.",
                detail=err.detail,
            ) from err
        raise


def _parsed(text: str, kind: type[T]) -> T:
    try:
        found = json.loads(text)
    except ValueError as err:
        raise SourceError(reason="The rbd command gave no answer that can be read. Run the task again.") from err
    if not isinstance(found, kind):
        raise SourceError(reason="The rbd command gave another answer than expected. Run the task again.")
    return found
