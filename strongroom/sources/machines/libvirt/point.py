"""One consistent point of a running domain: all its disks by one backup job.

    1 settle  a dead attempt's job is ended, checkpoints that no committed backup stands on are deleted
    2 plan    per disk: changes since its parent, or everything and why
    3 room    for what the guest overwrites meanwhile
    4 hold    the guest's file systems, begin the job, let them go
    5 read    over NBD; the room is watched, and the job ended before it is used up
    6 commit  end the job, delete the parents' checkpoints        abort: end it, delete the new checkpoint

Death before 4 leaves nothing but a folder. From 4 on it leaves a job and a checkpoint: the job is ended by `recover` or
the next point, the checkpoint deleted by the next point, because no token names it. Death between the rows and `commit`
leaves the parents' checkpoints, which no token names any more either.
"""

import contextlib
import threading
from collections.abc import Mapping, Sequence

from strongroom.base.clock import Clock
from strongroom.base.errors import SourceError, SourceGone
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import Consistency, Disk, DiskPoint, MachineWanted
from strongroom.sources.machines.libvirt.binding import Domain, call, connected, library, require_domain
from strongroom.sources.machines.libvirt.chain import (
    DiskRead,
    Token,
    dump_token,
    load_token,
    new_name,
    orphans,
    own_prefix,
    plan_reads,
)
from strongroom.sources.machines.libvirt.definition import Definition, DiskDefinition
from strongroom.sources.machines.libvirt.freeze import Hold, thaw
from strongroom.sources.machines.libvirt.job import (
    BitmapBroken,
    begin_job,
    checkpoints_of,
    delete_checkpoints,
    end_job,
    export_name,
    require_no_job,
    running_job,
)
from strongroom.sources.machines.libvirt.reading import MachineDisk, MachineStream
from strongroom.sources.machines.libvirt.scratch import (
    Scratch,
    Watch,
    left_behind,
    needed_bytes,
    scratch_base,
    was_frozen,
)
from strongroom.sources.machines.nbd import NbdClient
from strongroom.sources.machines.nbd_wire import UnixAddress
from strongroom.sources.pace import Pace
from strongroom.sources.tokens import nanoseconds

Pairs = Sequence[tuple[Disk, DiskDefinition]]
BROKEN = (
    "The list of changed blocks since the last backup is missing or broken, as after a crash of the machine's QEMU."
)


class LivePoint:
    """MachinePoint of a running or paused domain."""

    def __init__(
        self,
        uri: str,
        ref: SourceRef,
        wanted: MachineWanted,
        domain: Domain,
        definition: Definition,
        disks: Pairs,
        left_out: Pairs,
        facts: Mapping[str, object],
        xml: bytes,
        scratch_setting: str | None,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self.definition = xml
        self.metadata: Mapping[str, object] = facts
        self.left_out: Sequence[Disk] = tuple(disk for disk, _ in left_out)
        self._uri = uri
        self._uuid = definition.uuid
        self._wanted = wanted
        self._prefix = own_prefix(ref.resource_id)
        self._name = new_name(ref.resource_id)
        self._ended = threading.Event()
        self._why: SourceError | None = None
        self._closing = contextlib.ExitStack()
        try:
            reads, hold = self._begin(ref, domain, definition, disks, scratch_setting)
            self.consistency: Consistency = hold.reached
            self.consistency_reason = hold.reason
            self.disks: Sequence[DiskPoint] = self._connect(reads, Pace(ref.options.read_limit_bytes_s))
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> "LivePoint":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.abort()

    def commit(self) -> None:
        self._end(committed=True)

    def abort(self) -> None:
        self._end(committed=False)

    # --- opening ---

    def _begin(
        self, ref: SourceRef, domain: Domain, definition: Definition, disks: Pairs, scratch_setting: str | None
    ) -> tuple[list[DiskRead], Hold]:
        require_no_job(domain, self._prefix)
        base = scratch_base([found for _, found in disks], scratch_setting)
        settle(self._uri, domain, definition, ref.resource_id, base)
        doomed = orphans(self._prefix, checkpoints_of(domain), list(self._wanted.parent_tokens.values()))
        delete_checkpoints(domain, doomed)
        needed = needed_bytes([(found, disk.size_bytes) for disk, found in disks])
        scratch = Scratch.make(base, ref.resource_id, needed, definition.owner)
        self._closing.callback(scratch.close)
        self._scratch = scratch
        broken: dict[str, str] = {}
        while True:
            reads = plan_reads(self._uuid, disks, self._wanted, checkpoints_of(domain), broken)
            hold = Hold(self._uri, domain, scratch, asked=self._wanted.application, agent=definition.agent)
            try:
                with hold:
                    self.taken_at_ns = nanoseconds(self._clock.now())
                    begin_job(domain, self._name, reads, [disk.name for disk in self.left_out], scratch)
                return reads, hold
            except BitmapBroken as err:
                if set(err.devices) <= set(broken):
                    raise SourceError(reason="libvirt did not begin the backup.", detail=str(err.__cause__)) from err
                broken |= dict.fromkeys(err.devices, BROKEN)

    def _connect(self, reads: Sequence[DiskRead], pace: Pace) -> list[MachineDisk]:
        self._closing.callback(Watch(self._scratch, self._give_up).end)
        found = []
        for read in reads:
            export = export_name(self._name, read.disk.name)
            client = NbdClient.connect(
                UnixAddress(path=self._scratch.socket), export, bitmap=export if read.parent is not None else None
            )
            self._closing.callback(client.close)
            if client.size != read.disk.size_bytes:
                raise SourceError(reason=f"The disk {read.disk.name} changed its size just now. Run the backup again.")
            token = Token(
                machine=self._uuid, checkpoint=self._name if read.keeps_bitmap else "", size=read.disk.size_bytes
            )
            stream = MachineStream(client, pace, self._reason)
            found.append(MachineDisk(read.disk, stream, dump_token(token), read.reason))
        return found

    # --- while it is read ---

    def _give_up(self, error: SourceError) -> None:
        """The scratch room runs out: end the job at once, and say why to who reads."""
        self._why = error
        with contextlib.suppress(SourceError), connected(self._uri) as connection:
            domain = require_domain(connection, self._uuid)
            if running_job(domain, self._name) == "ours":
                end_job(domain)

    def _reason(self) -> SourceError | None:
        """Why the connection to QEMU broke, as far as it can be known."""
        if self._why is not None:
            return self._why
        with contextlib.suppress(SourceError), connected(self._uri) as connection:
            domain = require_domain(connection, self._uuid)
            if not domain.isActive():
                return SourceGone(reason="The machine was switched off, or ended, while it was read. Run it again.")
            if call("ask for its job", domain.jobInfo)[0] == library().VIR_DOMAIN_JOB_NONE:
                return SourceGone(reason="Somebody ended the backup job under libvirt while it was read. Run it again.")
        return None

    # --- the end ---

    def _end(self, *, committed: bool) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        with self._closing:
            try:
                with connected(self._uri) as connection:
                    domain = require_domain(connection, self._uuid)
                    if running_job(domain, self._name) == "ours":
                        end_job(domain)
                    delete_checkpoints(domain, self._spent() if committed else [self._name])
            except SourceError:
                pass  # the next point of this resource does it: nothing of it is named by a token

    def _spent(self) -> list[str]:
        """Checkpoints that only disks of this point stood on."""
        done = {point.disk.id for point in self.disks}
        parents = {id_: load_token(raw) for id_, raw in self._wanted.parent_tokens.items()}
        kept = {token.checkpoint for id_, token in parents.items() if token is not None and id_ not in done}
        spent = {token.checkpoint for id_, token in parents.items() if token is not None and id_ in done}
        return sorted(name for name in spent - kept - {self._name} if name.startswith(self._prefix))


def settle(uri: str, domain: Domain, definition: Definition, resource_id: str, base: str) -> None:
    """End what dead attempts for this resource left at the machine, but for checkpoints. Idempotent.

    Raises SourceError when the guest may still be held by them."""
    for left in left_behind(base, resource_id):
        if was_frozen(left) and domain.isActive() and not thaw(uri, definition.uuid):
            raise SourceError(
                reason=f"The machine {definition.name} may be held still by a backup that died, and its guest's agent "
                "does not answer. Look at the guest; start it anew if it hangs."
            )
        left.close()
    if running_job(domain, own_prefix(resource_id)) == "ours":
        end_job(domain)
