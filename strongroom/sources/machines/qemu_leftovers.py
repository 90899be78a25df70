"""What a dead process left in a QEMU: found by name and settled. Who calls this holds the monitor: nobody else works.

Names in QEMU: nodes have at most 31 characters, so a point's are numbered, and a bitmap on each disk tells its number.

    strongroom.held      a guest is held still                  strongroom.tmp.N  bitmap on the disk of number N
    strongroom.cbw.N     filter above the disk of number N      strongroom.access.N  what the filter keeps, for reading
    strongroom.scratch.N its scratch file                       strongroom.b.OWNER.ID  bitmap: changes since a point

Order of the removal: let the guest go -> exports -> server -> reading nodes -> filters -> scratch -> bitmaps.
"""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from strongroom.base.errors import SourceError
from strongroom.sources.machines.base import PREFIX
from strongroom.sources.machines.guest_agent import GuestAgent
from strongroom.sources.machines.hold import MARKER
from strongroom.sources.machines.qemu_view import find_agent
from strongroom.sources.machines.qmp import QmpClient, QmpRefused

CBW, ACCESS, SCRATCH, BITMAP, CHANGES = (PREFIX + word for word in ("cbw.", "access.", "scratch.", "tmp.", "b."))
EXPORT = PREFIX + "export."
LISTENER = PREFIX + "listener"
_GOES_S_MAX = 30.0  # an export is closed when its last request is answered
_LOOK_AGAIN_S = 0.02


def settle(monitor: QmpClient, agent_path: str | None) -> tuple[str, ...]:
    """Undo whatever a point of ours has made, but for its bitmaps of changes; what was removed. Idempotent.

    Raises SourceError when something does not go: a new point must not be made then.
    """
    nodes = {str(each["node-name"]): each for each in monitor.execute("query-named-block-nodes", {"flat": True})}
    ours = sorted(name for name in nodes if name.startswith(PREFIX))
    exports = [each["id"] for each in monitor.execute("query-block-exports")]
    our_exports = sorted(each for each in exports if each.startswith(EXPORT))
    bitmaps = [
        (node, bitmap["name"])
        for node, each in nodes.items()
        for bitmap in each.get("dirty-bitmaps") or ()
        if str(bitmap.get("name", "")).startswith(BITMAP)
    ]
    if MARKER in nodes:
        _let_go(monitor, agent_path or find_agent(monitor))
    for name in our_exports:
        remove_export(monitor, name)
    if (ours or our_exports) and len(our_exports) == len(exports):
        stop_server(monitor)
    _remove_nodes(monitor, ours, ACCESS)  # as long as one reads of a filter, the device cannot leave it
    _unplug(monitor, {bitmap.removeprefix(BITMAP): node for node, bitmap in bitmaps})
    for kind in (CBW, SCRATCH, MARKER):
        _remove_nodes(monitor, ours, kind)
    for node, bitmap in bitmaps:
        monitor.execute("block-dirty-bitmap-remove", {"node": node, "name": bitmap})
    return (*our_exports, *ours, *(bitmap for _, bitmap in bitmaps))


def _remove_nodes(monitor: QmpClient, names: Sequence[str], kind: str) -> None:
    for name in names:
        if name.startswith(kind) and not name.endswith(".file"):  # which goes with the node above it
            monitor.execute("blockdev-del", {"node-name": name})


def _let_go(monitor: QmpClient, agent_path: str | None) -> None:
    """Somebody died while he held the guest; his watchdog may have been here before."""
    if monitor.execute("query-status")["status"] == "paused":
        monitor.execute("cont")
    if agent_path is not None:
        with contextlib.suppress(SourceError):  # an agent that is not there holds nothing
            with GuestAgent.connect(agent_path) as agent:
                if agent.is_frozen():
                    agent.thaw()


def _unplug(monitor: QmpClient, bases: Mapping[str, str]) -> None:
    """Put each device back on its disk, from which a filter of ours had moved it."""
    for entry in monitor.execute("query-block"):
        name = str((entry.get("inserted") or {}).get("node-name", ""))
        if name.startswith(CBW):
            base = bases.get(name.removeprefix(CBW))
            if base is None:
                raise SourceError(
                    reason="A filter of an earlier backup sits above a disk that is unknown now. Restart the machine."
                )
            replace_node(monitor, entry["qdev"], base)


def replace_node(monitor: QmpClient, qdev: str, node: str) -> None:
    """Make a device use another node. A device that was unplugged in the meantime needs none."""
    try:
        monitor.execute("qom-set", {"path": qdev, "property": "drive", "value": node})
    except QmpRefused as err:
        if "not found" not in err.said:
            raise


def remove_export(monitor: QmpClient, name: str) -> None:
    """Cut its clients, and wait until QEMU has let go of it."""
    _if_there(monitor, "block-export-del", {"id": name, "mode": "hard"})
    give_up_s = time.monotonic() + _GOES_S_MAX
    pause = threading.Event()
    while any(each["id"] == name for each in monitor.execute("query-block-exports")):
        if time.monotonic() > give_up_s:
            raise SourceError(
                reason="QEMU does not close an export of an earlier backup. Restart the machine.", detail=name
            )
        pause.wait(_LOOK_AGAIN_S)


def stop_server(monitor: QmpClient) -> None:
    _if_there(monitor, "nbd-server-stop", {})


def remove_bitmaps(
    monitor: QmpClient, node: str, bitmaps: Mapping[str, Mapping[str, Any]], owner: str, keep: str
) -> None:
    """Remove the owner's bitmaps of changes from a disk, but `keep`: of points that never were, or are replaced."""
    for name in bitmaps:
        if name.startswith(f"{CHANGES}{owner}.") and name != keep:
            _if_there(monitor, "block-dirty-bitmap-remove", {"node": node, "name": name})


def _if_there(monitor: QmpClient, command: str, arguments: Mapping[str, Any]) -> None:
    try:
        monitor.execute(command, arguments)
    except QmpRefused as err:
        if not any(word in err.said.lower() for word in ("not found", "not running", "is already shutting down")):
            raise
