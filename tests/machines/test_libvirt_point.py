"""Backups of running domains under a real libvirtd: full, incremental, and after everything that goes wrong."""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from libvirt_world import DISK_BYTES, Guest, Hypervisor, Kept, guest, libvirtd
from nbd_world import wait_until

from strongroom.base.errors import MachineBusy, SourceDenied, SourceError, SourceGone
from strongroom.base.units import KIB, MIB
from strongroom.sources.machines.libvirt import job
from strongroom.sources.machines.libvirt.point import BROKEN

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def two_disks(hypervisor: Hypervisor) -> Iterator[Guest]:
    with guest(hypervisor, {"vda": "qcow2", "vdb": "qcow2"}) as made:
        yield made


def assert_same(kept: Kept, made: Guest) -> None:
    for device, content in made.content.items():
        assert kept.of(device) == bytes(content), device


def test_ten_incrementals_hold_their_moment(two_disks: Guest) -> None:
    """Each restore point is what the disks held when it was opened, although the guest goes on writing."""
    kept = Kept(ref=two_disks.ref())
    _, reasons = kept.back_up()
    assert set(reasons.values()) == {"It is the first backup of this disk in the vault."}
    assert_same(kept, two_disks)
    for _ in range(10):
        two_disks.write_some()
        then = {device: bytes(content) for device, content in two_disks.content.items()}
        with kept.open() as point:
            two_disks.write_some(1)
            content, read = kept.read(point)
            assert [disk.full_reason for disk in point.disks] == [None, None]
            kept.commit(point, content)
        assert {device: kept.of(device) for device in then} == then
        assert max(read.values()) <= 16 * 64 * KIB
    checkpoints = two_disks.domain.listAllCheckpoints()
    assert len(checkpoints) == 1, "those of parents are deleted"


@pytest.mark.parametrize("seed", range(4))
def test_a_guest_that_writes_all_the_time_is_read_as_it_was(two_disks: Guest, short_path: Path, seed: int) -> None:
    """Data, zeros and discards at random places, as fast as QEMU takes them, while full points are read."""
    chance, stop, names = random.Random(seed), threading.Event(), sorted(two_disks.content)
    written: list[str] = []

    def write() -> None:
        while not stop.is_set():
            at, length = chance.randrange(DISK_BYTES // 4096 - 64) * 4096, chance.randrange(1, 64) * 4096
            what = chance.choice([f"write -P {chance.randrange(1, 255)}", "write -z", "write -z -u", "discard"])
            two_disks.qemu_io(chance.choice(names), f"{what} {at} {length}")
            written.append(what)

    def held() -> dict[str, bytes]:
        """What the images hold while nobody writes, by another program."""
        for name in names:
            command = ["qemu-img", "convert", "-U", "-O", "raw", two_disks.image(name), short_path / name]
            subprocess.run(command, check=True)
        return {name: (short_path / name).read_bytes() for name in names}

    for _ in range(4):
        two_disks.domain.suspend()  # QEMU writes out what it keeps of the images' tables
        before = held()
        two_disks.domain.resume()
        kept = Kept(ref=two_disks.ref())
        stop.clear()
        written.clear()
        with kept.open(full=True) as point:
            writer = threading.Thread(target=write)
            writer.start()
            try:
                wait_until(lambda: len(written) > 12, "the guest has written")
                content, _ = kept.read(point)
            finally:
                stop.set()
                writer.join()
            kept.commit(point, content)
        assert {name: kept.of(name) for name in names} == before


def test_a_killed_qemu_costs_a_full_backup_and_no_more(two_disks: Guest) -> None:
    """kill -9 of QEMU breaks its bitmaps: everything is read, with the reason, and the next is incremental again."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    two_disks.kill()
    two_disks.domain.create()
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert set(reasons.values()) == {BROKEN}
    assert_same(kept, two_disks)
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert set(reasons.values()) == {None}
    assert_same(kept, two_disks)
    assert len(two_disks.domain.listAllCheckpoints()) == 1


def test_a_restarted_machine_goes_on_incrementally(two_disks: Guest) -> None:
    """qcow2 images keep their bitmaps over a clean stop."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    two_disks.write_some()
    two_disks.domain.destroy()  # QEMU ends by SIGTERM, and closes its images
    two_disks.domain.create()
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert set(reasons.values()) == {None}
    assert_same(kept, two_disks)


def test_an_aborted_point_loses_no_change(two_disks: Guest) -> None:
    """What was written before a failed attempt is in the next one, and nothing of the attempt stays."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    two_disks.write_some()
    with kept.open() as point:
        kept.read(point)
    assert len(two_disks.domain.listAllCheckpoints()) == 1
    assert scratch_folders(two_disks) == []
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert set(reasons.values()) == {None}
    assert_same(kept, two_disks)


def test_a_killed_worker_is_settled(two_disks: Guest) -> None:
    """kill -9 of the backup's process leaves a job, a checkpoint and scratch: they go, and no change is lost."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    two_disks.write_some()
    held = hold_open(kept)
    assert two_disks.domain.jobInfo()[0] != 0
    two_disks.write_some()
    held.kill()
    held.communicate()
    assert two_disks.domain.jobInfo()[0] != 0, "the job outlives its client"
    kept.driver.recover(kept.ref, frozenset())
    assert two_disks.domain.jobInfo()[0] == 0
    assert scratch_folders(two_disks) == []
    _, reasons = kept.back_up()
    assert set(reasons.values()) == {None}
    assert_same(kept, two_disks)
    assert len(two_disks.domain.listAllCheckpoints()) == 1, "the dead attempt's checkpoint is gone"


def test_the_next_backup_settles_a_killed_worker_itself(two_disks: Guest) -> None:
    """Without `recover` too: the job has our name, so it is ended."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    held = hold_open(kept)
    held.kill()
    held.communicate()
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert set(reasons.values()) == {None}
    assert_same(kept, two_disks)


def test_a_commit_that_was_never_called_changes_nothing(two_disks: Guest) -> None:
    """The rows stand and the process died before point.commit(): the next is incremental from the new checkpoint."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    two_disks.write_some()
    with kept.open() as point:
        content, _ = kept.read(point)
        kept.content |= content
        kept.tokens |= {disk.disk.id: disk.token for disk in point.disks}
        job.end_job(two_disks.domain)
        point.__dict__["_ended"].set()  # as if we died here: neither commit nor abort
        point.__dict__["_closing"].close()
    assert len(two_disks.domain.listAllCheckpoints()) == 2
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert set(reasons.values()) == {None}
    assert_same(kept, two_disks)
    assert len(two_disks.domain.listAllCheckpoints()) == 1


def test_a_job_of_somebody_else_is_left_alone(two_disks: Guest) -> None:
    """Another program's backup job makes ours busy at once, with a sentence, and goes on."""
    two_disks.domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{two_disks.folder}/other'/></domainbackup>", None
    )
    kept = Kept(ref=two_disks.ref())
    found = kept.driver.inspect(kept.ref)
    assert not found.readable and found.reason is not None and "another program" in found.reason
    with pytest.raises(MachineBusy, match="domjobabort"):
        kept.open()
    assert two_disks.domain.jobInfo()[0] != 0
    two_disks.domain.abortJob()
    kept.back_up()
    assert_same(kept, two_disks)


def test_each_disk_decides_for_itself(two_disks: Guest) -> None:
    """A disk that was added is read whole, one of another size too; the others go on by their changes."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    two_disks.add_disk("vdc")
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert reasons == {"vda": None, "vdb": None, "vdc": "It is the first backup of this disk in the vault."}
    assert_same(kept, two_disks)
    two_disks.domain.blockResize("vdb", 12 * MIB, 1)
    two_disks.content["vdb"] += bytes(4 * MIB)
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert reasons == {"vda": None, "vdb": "The disk had another size at the last backup.", "vdc": None}
    assert_same(kept, two_disks)


def test_a_disk_that_is_left_out_keeps_its_parent(two_disks: Guest) -> None:
    """A backup of some disks must not take from the others what their next one stands on."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    two_disks.write_some()
    with kept.open(excluded=frozenset({kept.names["vdb"]})) as point:
        content, _ = kept.read(point)
        assert [disk.name for disk in point.left_out] == ["vdb"]
        kept.commit(point, content)
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert reasons == {"vda": None, "vdb": None}
    assert_same(kept, two_disks)


def test_raw_images_are_read_whole(hypervisor: Hypervisor) -> None:
    """They keep no bitmap: read whole each time, at the same moment as the others, and it is said."""
    with guest(hypervisor, {"vda": "qcow2", "vdb": "raw"}) as made:
        kept = Kept(ref=made.ref())
        kept.back_up()
        made.write_some()
        _, reasons = kept.back_up()
        assert reasons["vda"] is None
        assert reasons["vdb"] is not None and "raw" in reasons["vdb"]
        assert_same(kept, made)
        abilities = {a.name: a for a in kept.driver.inspect(kept.ref).abilities}
        assert not abilities["incremental"].works and "vdb (raw)" in abilities["incremental"].reason


def test_a_snapshot_in_between_loses_no_change(two_disks: Guest) -> None:
    """An external snapshot puts an overlay on each disk; libvirt carries the bitmaps over."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    two_disks.write_some()
    two_disks.domain.snapshotCreateXML("<domainsnapshot><name>s</name></domainsnapshot>", 16)  # disks only
    two_disks.write_some()
    kept.back_up()
    assert_same(kept, two_disks)
    two_disks.write_some()
    kept.back_up()
    assert_same(kept, two_disks)


def test_a_checkpoint_that_somebody_deleted_is_no_parent(two_disks: Guest) -> None:
    """An administrator cleans up checkpoints: read whole, with the reason."""
    kept = Kept(ref=two_disks.ref())
    kept.back_up()
    for checkpoint in two_disks.domain.listAllCheckpoints():
        checkpoint.delete(0)
    two_disks.write_some()
    _, reasons = kept.back_up()
    assert all(reason is not None and "is gone" in reason for reason in reasons.values())
    assert_same(kept, two_disks)


def test_a_machine_that_ends_while_it_is_read_says_so(two_disks: Guest) -> None:
    """The sentence is about the machine, not about a socket; the next backup is right."""
    kept = Kept(ref=two_disks.ref())
    with pytest.raises(SourceGone, match="switched off"), kept.open() as point:
        two_disks.domain.destroy()
        kept.read(point)
    assert scratch_folders(two_disks) == []
    two_disks.domain.create()
    kept.back_up()
    assert_same(kept, two_disks)


def test_paused_machines_are_backed_up(two_disks: Guest) -> None:
    kept = Kept(ref=two_disks.ref())
    two_disks.write_some()
    two_disks.domain.suspend()
    with kept.open() as point:
        content, _ = kept.read(point)
        assert point.metadata["power"] == "paused"
        assert point.consistency == "crash_consistent" and point.consistency_reason is not None
        kept.commit(point, content)
    assert_same(kept, two_disks)


@pytest.mark.parametrize(
    "extra",
    [
        "<metadata><o:vm xmlns:o='http://ovirt.org/vm/1.0'/></metadata>",
        "<metadata><n:instance xmlns:n='http://openstack.org/xmlns/libvirt/nova/1.1'/></metadata>",
        "<metadata><k:kubevirt xmlns:k='http://kubevirt.io'/></metadata>",
    ],
)
def test_a_machine_of_another_system_is_refused(hypervisor: Hypervisor, extra: str) -> None:
    """Unless the address says that it may be."""
    with guest(hypervisor, {"vda": "qcow2"}, extra=extra, start=False) as made:
        kept = Kept(ref=made.ref())
        assert not kept.driver.inspect(kept.ref).readable
        with pytest.raises(SourceDenied, match="foreign=yes"):
            kept.open()
        allowed = Kept(ref=made.ref("?foreign=yes"))
        allowed.back_up()
        assert_same(allowed, made)


def test_a_backup_does_not_start_without_scratch_room(hypervisor: Hypervisor, tmpfs: Path) -> None:
    """The sentence names folder and sizes; nothing was begun."""
    with guest(hypervisor, {"vda": "qcow2"}, size=64 * MIB) as made:
        kept = Kept(ref=made.ref(f"?scratch={tmpfs}"))
        found = kept.driver.inspect(kept.ref)
        assert not found.readable and found.reason is not None and str(tmpfs) in found.reason
        with pytest.raises(SourceError, match="scratch folder"):
            kept.open()
        assert made.domain.jobInfo()[0] == 0 and made.domain.listAllCheckpoints() == []


def test_scratch_that_runs_low_costs_the_backup_and_not_the_guest(tmpfs: Path) -> None:
    """The job is ended while there is a reserve: the guest writes on, the next backup holds it all."""
    with libvirtd() as own, guest(own, {"vda": "qcow2"}, size=16 * MIB) as made:  # it must see the tmpfs
        kept = Kept(ref=made.ref(f"?scratch={tmpfs}"))
        kept.back_up()
        made.write_some()
        with pytest.raises(SourceError, match="to save the machine"), kept.open() as point:
            (tmpfs / "others").write_bytes(bytes(tmpfs_free(tmpfs) - 8 * MIB))
            wait_until(lambda: made.domain.jobInfo()[0] == 0, "the job was ended")
            for offset in range(0, 16 * MIB, MIB):
                made.write("vda", offset, MIB)
            kept.read(point)
        (tmpfs / "others").unlink()
        _, reasons = kept.back_up()
        assert reasons == {"vda": None}
        assert_same(kept, made)


def scratch_folders(made: Guest) -> list[str]:
    return os.listdir(made.folder / ".strongroom-scratch")


def tmpfs_free(folder: Path) -> int:
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def hold_open(kept: Kept) -> "subprocess.Popen[str]":
    """A process that opens a point and then only waits."""
    script = (
        "import sys, base64, json\n"
        "from strongroom.sources.base import SourceRef\n"
        "from strongroom.sources.machines.base import MachineWanted\n"
        "from strongroom.sources.machines.libvirt.driver import LibvirtDriver\n"
        "path, resource, tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n"
        "ref = SourceRef(resource_id=resource, type='OS::Nova::Server', path=path.encode())\n"
        "parents = {key: value.encode() for key, value in tokens.items()}\n"
        "point = LibvirtDriver().open_machine(ref, MachineWanted(parent_tokens=parents))\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    tokens = json.dumps({id_: token.decode() for id_, token in kept.tokens.items()})
    command = [sys.executable, "-c", script, kept.ref.path.decode(), kept.ref.resource_id, tokens]
    held = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None and held.stdout.readline() == "open\n"
    return held


@pytest.fixture
def tmpfs(short_path: Path) -> Iterator[Path]:
    """A small file system of the test's own."""
    folder = short_path / "scratch"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=56m,mode=0711", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
