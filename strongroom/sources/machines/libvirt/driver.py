"""The driver of libvirt domains (OS::Nova::Server at `libvirt:URI#DOMAIN`).

Point: of a running machine one backup job over all disks (point.py), of one that is off its images (offline.py).
Restore: into images beside the old ones (target.py), or into a new machine (newcomer.py).
A machine that oVirt, OpenStack or KubeVirt manages is left alone, unless the resource says otherwise.
"""

import contextlib
from collections.abc import Mapping

from strongroom.base.clock import Clock, SystemClock
from strongroom.base.errors import SourceError, SourceGone
from strongroom.sources.base import DoneCallback, Recovered, SourceRef
from strongroom.sources.machines.base import (
    MachineInspection,
    MachinePoint,
    MachineRestorePlan,
    MachineRestoreWanted,
    MachineTarget,
    MachineWanted,
    Power,
)
from strongroom.sources.machines.libvirt import job, newcomer, scratch, target
from strongroom.sources.machines.libvirt.abilities import inspect_domain
from strongroom.sources.machines.libvirt.binding import (
    call,
    connected,
    library,
    parse_address,
    require_domain,
)
from strongroom.sources.machines.libvirt.definition import read_definition
from strongroom.sources.machines.libvirt.domain import (
    chosen_disks,
    facts_of,
    find_disks,
    power_of,
    require_own,
    require_version,
    stored_xml,
)
from strongroom.sources.machines.libvirt.offline import OfflinePoint
from strongroom.sources.machines.libvirt.point import LivePoint, settle


class LibvirtDriver:
    """MachineDriver."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def inspect(self, ref: SourceRef) -> MachineInspection:
        try:
            address = parse_address(ref.path)
            with connected(address.uri) as connection:
                return inspect_domain(connection, require_domain(connection, address.domain), ref, address)
        except SourceGone as err:
            return MachineInspection(exists=False, readable=False, reason=err.message)
        except SourceError as err:
            return MachineInspection(exists=True, readable=False, reason=err.message)

    def open_machine(self, ref: SourceRef, wanted: MachineWanted) -> MachinePoint:
        address = parse_address(ref.path)
        with connected(address.uri) as connection:
            domain = require_domain(connection, address.domain)
            active = bool(call("ask for the machine's state", domain.isActive))
            definition = read_definition(call("read the machine's definition", domain.XMLDesc))
            require_version(connection, definition)
            require_own(definition, address)
            taken, left_out = chosen_disks(find_disks(domain, definition), wanted)
            facts = facts_of(domain, definition, taken)
            xml = stored_xml(domain).encode()
            if active:
                return LivePoint(
                    address.uri,
                    ref,
                    wanted,
                    domain,
                    definition,
                    taken,
                    left_out,
                    facts,
                    xml,
                    address.scratch,
                    self._clock,
                )
            names = frozenset(job.checkpoints_of(domain))
            state, reason = domain.state()
            lib = library()
            shut_down = (state, reason) == (lib.VIR_DOMAIN_SHUTOFF, lib.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
            return OfflinePoint(
                ref, wanted, definition, taken, left_out, facts, xml, names, shut_down=shut_down, clock=self._clock
            )

    def plan_restore(self, wanted: MachineRestoreWanted) -> MachineRestorePlan:
        if wanted.new_name is not None:
            return newcomer.plan(wanted)
        return target.plan(wanted)

    def open_target(self, plan: MachineRestorePlan, on_done: Mapping[str, DoneCallback]) -> MachineTarget:
        if plan.wanted.new_name is not None:
            return newcomer.open_target(plan)
        return target.open_target(plan, on_done)

    def recover(self, ref: SourceRef, finished_tasks: frozenset[str]) -> tuple[Recovered, ...]:
        address = parse_address(ref.path)
        with connected(address.uri) as connection:
            domain = require_domain(connection, address.domain)
            definition = read_definition(call("read the machine's definition", domain.XMLDesc))
            base = scratch.scratch_base(definition.disks, address.scratch)
            settle(address.uri, domain, definition, ref.resource_id, base)
            settled = newcomer.recover(connection, definition, address, finished_tasks)
            return (*settled, *target.recover(domain, definition, finished_tasks))


def discover(uri: str) -> list[tuple[str, str, Power, str | None]]:
    """Machines of a hypervisor: (name, UUID, power, who else manages it), by name. Raises SourceError."""
    with connected(parse_address(f"libvirt:{uri}#any".encode()).uri) as connection:
        found = []
        for domain in call("list the machines", connection.listAllDomains):
            with contextlib.suppress(SourceGone):
                definition = read_definition(call("read a machine's definition", domain.XMLDesc))
                found.append((definition.name, definition.uuid, power_of(domain), definition.managed_by))
        return sorted(found)
