"""The driver of Nova's servers (OS::Nova::Server at `nova:CLOUD/SERVER`).

Point: `nova_point.py`. Restore: onto the server's own volumes (`nova_target.py`), or a new server (`nova_newcomer.py`).
All through the APIs that the project's own account has: nothing runs on a compute host.
"""

from collections.abc import Mapping

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceError, SourceGone
from strongroom.sources.base import DoneCallback, Recovered, SourceRef
from strongroom.sources.machines.base import (
    Ability,
    MachineInspection,
    MachinePoint,
    MachineRestorePlan,
    MachineRestoreWanted,
    MachineTarget,
    MachineWanted,
)
from strongroom.sources.openstack import nova_newcomer, nova_target
from strongroom.sources.openstack.cloud import connect, errors
from strongroom.sources.openstack.copies import READ_WHOLE
from strongroom.sources.openstack.nova_point import NO_FREEZE, NovaPoint, remove_all_leftovers
from strongroom.sources.openstack.servers import Server, ServerAddress, load_server, not_covered, obstacle


class NovaDriver:
    """MachineDriver."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def inspect(self, ref: SourceRef) -> MachineInspection:
        try:
            address = ServerAddress.parse(ref.path)
            server = load_server(connect(address.cloud), address.server_id)
        except SourceGone as err:
            return MachineInspection(exists=False, readable=False, reason=err.message)
        except SourceError as err:
            return MachineInspection(exists=True, readable=False, reason=err.message)
        reason = obstacle(server, leave_out_local=address.leave_out_local)
        return MachineInspection(
            exists=True,
            readable=reason is None,
            disks=tuple(disk.disk for disk in server.disks),
            power=server.power,
            reason=reason,
            abilities=_abilities(server),
            detail={"provider": "nova", "status": server.status, "not_covered": not_covered(server)},
        )

    def open_machine(self, ref: SourceRef, wanted: MachineWanted) -> MachinePoint:
        return NovaPoint(ref, ServerAddress.parse(ref.path), wanted, self._clock)

    def plan_restore(self, wanted: MachineRestoreWanted) -> MachineRestorePlan:
        return nova_target.plan(wanted) if wanted.new_name is None else nova_newcomer.plan(wanted)

    def open_target(self, plan: MachineRestorePlan, on_done: Mapping[str, DoneCallback]) -> MachineTarget:
        if plan.wanted.new_name is None:
            return nova_target.ServerTarget(plan.wanted, on_done)
        return nova_newcomer.NewServer(plan.wanted, on_done)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        """A server that was held is let go: half restored, it needs the same restore again."""
        address = ServerAddress.parse(ref.path)
        cloud = connect(address.cloud)
        with errors(f"cloud {address.cloud}"):
            storage = cloud.block_storage
        remove_all_leftovers(storage, ref)
        gone = nova_newcomer.recover(cloud, finished_tasks)
        try:
            nova_target.settle(cloud, load_server(cloud, address.server_id))
        except SourceGone:
            pass  # a new one may be made of the backups of a server that is gone
        return tuple(Recovered(task_id=task_id, outcome="back") for task_id in gone)


def _abilities(server: Server) -> tuple[Ability, ...]:
    groups = {disk.volume.group_id for disk in server.disks}
    if len(server.disks) < 2:
        together = "It has one disk: a forced snapshot is of one moment."
    elif len(groups) == 1 and None not in groups:
        together = "Its volumes are in one group of Cinder: they are snapshotted together."
    else:
        together = (
            "Its volumes are not in one group of Cinder: each is crash-consistent by itself, unless the server is "
            "shut off."
        )
    missing = not_covered(server)
    return (
        Ability(name="consistency", works=True, reason=f"{together} {NO_FREEZE}"),
        Ability(name="incremental", works=False, reason=READ_WHOLE),
        Ability(name="coverage", works=missing is None, reason=missing or "All of its disks are volumes."),
    )
