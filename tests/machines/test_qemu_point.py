"""Points of a QEMU machine, without a guest: what is read, what changed, and what is left behind."""

import json
import random
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from nbd_world import wait_until
from qemu_world import DISK_BYTES, HALT, MIB, Machine, image_bytes, make_image, read_point, reasons, tokens, wanted

from strongroom.base.errors import InvalidRequest, SourceError, SourceGone
from strongroom.base.streams import ExtentKind
from strongroom.sources.machines.qemu import QemuDriver
from strongroom.sources.machines.qemu_point import QemuPoint
from strongroom.sources.open import driver_for

DRIVER = QemuDriver(partial(driver_for, "OS::Cinder::Volume"))


@pytest.fixture
def machine(short_path: Path) -> Iterator[Machine]:
    with Machine.with_noise(short_path, "qcow2", "qcow2") as machine:
        yield machine


def contents(machine: Machine) -> dict[str, bytes]:
    return {name: bytes(content) for name, content in machine.content.items()}


def back_up(
    machine: Machine, parents: dict[str, bytes], before: dict[str, bytes] | None, *, commit: bool = True
) -> tuple[dict[str, bytes], dict[str, bytes], dict[str, str | None]]:
    """(tokens, contents, reasons) of a point that was read and committed."""
    with DRIVER.open_machine(machine.ref(), wanted(parents)) as point:
        read = read_point(point, before)
        if commit:
            point.commit()
        return tokens(point), read, reasons(point)


def die(point: QemuPoint) -> None:
    """As the kernel does to a process that dies: the monitor is gone first, so nothing in QEMU is undone."""
    point._monitor.close()
    point.abort()


def test_all_disks_are_read_as_they_were_while_the_machine_writes(machine: Machine) -> None:
    """The point is the moment of its opening, whatever is written later, and it leaves nothing behind."""
    back_up(machine, {}, None)
    files = machine.open_files()
    with DRIVER.open_machine(machine.ref(), wanted()) as point:
        was = contents(machine)
        for disk in ("vd0", "vd1"):
            machine.write(disk, 0, 3 * MIB, 77)
            machine.write(disk, 9 * MIB, MIB, 78)
        assert machine.status() == "running"
        assert read_point(point) == was != contents(machine)
        assert point.consistency == "crash_consistent"
        assert "no channel to a guest's agent" in str(point.consistency_reason)
        assert {disk.disk.name: disk.disk.is_boot for disk in point.disks} == {"vd0": True, "vd1": False}
        assert int(str(point.disks[0].metadata["scratch_bytes"])) >= 3 * MIB
        point.commit()
    assert machine.ours() == []
    assert [len(machine.bitmaps(disk)) for disk in ("vd0", "vd1")] == [1, 1]
    wait_until(lambda: machine.open_files() <= files, "no file of the scratch stays open")
    assert machine.status() == "running"


def test_an_increment_holds_exactly_what_changed(machine: Machine) -> None:
    """Full, then increments: each equals the disks at its point, and reads little more than what was written."""
    chance = random.Random(3)
    parents, read, why = back_up(machine, {}, None)
    assert why == dict.fromkeys(("vd0", "vd1"), "It is the first backup of this disk in the vault.")
    for _ in range(5):
        changed = 0
        for disk in ("vd0", "vd1"):
            for _ in range(8):
                at = chance.randrange(0, DISK_BYTES - 65536) // 4096 * 4096
                machine.write(disk, at, 65536, chance.randrange(1, 255))
                changed += 65536
        with DRIVER.open_machine(machine.ref(), wanted(parents)) as point:
            machine.write("vd0", 0, 65536, 3)
            after = contents(machine)
            after["vd0"] = read["vd0"]  # is compared below, with what it was before that write
            read_now = read_point(point, read)
            read_bytes = sum(int(str(disk.metadata["read_bytes"])) for disk in point.disks)
            assert reasons(point) == {"vd0": None, "vd1": None}
            assert read_bytes <= 2.2 * changed
            assert read_now["vd1"] == after["vd1"]
            point.commit()
            parents, read = tokens(point), read_now
    parents, read, why = back_up(machine, parents, read)
    assert read == contents(machine) and why == {"vd0": None, "vd1": None}


def test_an_increment_of_nothing_reads_nothing(machine: Machine) -> None:
    """All is the same."""
    parents, _, _ = back_up(machine, {}, None)
    with DRIVER.open_machine(machine.ref(), wanted(parents)) as point:
        for disk in point.disks:
            assert [extent.kind for extent in disk.stream.extents()] == [ExtentKind.SAME]


def test_a_point_that_is_given_up_loses_nothing(machine: Machine) -> None:
    """What changed before and during an aborted attempt is in the next increment of the same parent."""
    parents, read, _ = back_up(machine, {}, None)
    machine.write("vd0", MIB, 65536, 31)
    back_up(machine, parents, read, commit=False)
    machine.write("vd1", 3 * MIB, 65536, 32)
    with pytest.raises(RuntimeError), DRIVER.open_machine(machine.ref(), wanted(parents)) as point:
        machine.write("vd0", 6 * MIB, 65536, 33)
        raise RuntimeError
    assert machine.ours() == []
    _, read, why = back_up(machine, parents, read)
    assert read == contents(machine) and why == {"vd0": None, "vd1": None}
    del point


def test_a_commit_that_nobody_carried_out_is_made_good(machine: Machine) -> None:
    """Rows stand, the process died before commit(): either token is a parent without loss, and one bitmap stays."""
    first, read, _ = back_up(machine, {}, None)
    machine.write("vd0", MIB, 65536, 41)
    point = DRIVER.open_machine(machine.ref(), wanted(first))
    second, read_second = tokens(point), read_point(point, read)
    machine.write("vd1", 2 * MIB, 65536, 42)
    die(point)
    machine.write("vd1", 3 * MIB, 65536, 43)
    assert machine.ours() != []
    with DRIVER.open_machine(machine.ref(), wanted(second)) as point:  # the new bitmap was never enabled for good
        assert read_point(point, read_second) == contents(machine)
        assert reasons(point) == {"vd0": None, "vd1": None}
        point.commit()
    assert [len(machine.bitmaps(disk)) for disk in ("vd0", "vd1")] == [1, 1]


@pytest.mark.parametrize("parent", ["first", "dead"])
def test_leftovers_of_a_dead_process_are_settled_by_recover(machine: Machine, parent: str) -> None:
    """Exports, filters, scratch files and bitmaps go, the guest's disks work, and the next increment is right."""
    first, read, _ = back_up(machine, {}, None)
    machine.write("vd0", MIB, 65536, 51)
    point = DRIVER.open_machine(machine.ref(), wanted(first))
    read_dead = read_point(point, read)
    assert read_dead == contents(machine)
    die(point)
    machine.write("vd0", 5 * MIB, 65536, 52)
    files = machine.open_files()
    DRIVER.recover(machine.ref(), frozenset())
    assert machine.ours() == [] and machine.open_files() < files
    DRIVER.recover(machine.ref(), frozenset())
    machine.write("vd0", 6 * MIB, 65536, 53)
    chosen = (first, read) if parent == "first" else (tokens(point), read_dead)
    _, read, why = back_up(machine, *chosen)
    assert read == contents(machine) and why == {"vd0": None, "vd1": None}
    assert machine.failed_writes() == 0


def test_one_at_a_time(machine: Machine) -> None:
    """While a point is open nobody else gets at the machine, nor takes its point for a leftover."""
    with DRIVER.open_machine(machine.ref(), wanted()) as point:
        found = DRIVER.inspect(machine.ref())
        assert found.exists and not found.readable and "Another client" in str(found.reason)
        assert read_point(point) == contents(machine)
    assert machine.ours() == []


def test_a_clean_stop_keeps_the_list_of_changes_and_a_kill_does_not(machine: Machine) -> None:
    """After quit an increment; after SIGKILL everything, with the reason; then increments again. Always equal."""
    parents, read, _ = back_up(machine, {}, None)
    machine.write("vd0", MIB, 65536, 61)
    machine.quit()
    machine.start()
    machine.write("vd1", MIB, 65536, 62)
    parents, read, why = back_up(machine, parents, read)
    assert read == contents(machine) and why == {"vd0": None, "vd1": None}
    machine.write("vd0", 2 * MIB, 65536, 63)
    for disk in ("vd0", "vd1"):
        machine.io(disk, "flush")
    machine.kill()
    machine.start()
    parents, read, why = back_up(machine, parents, read)
    assert read == contents(machine)
    assert all("not ended cleanly" in str(reason) for reason in why.values())
    machine.quit()  # the bitmaps are stored now, so that they are found broken after the next kill
    machine.start()
    machine.kill()
    machine.start()
    parents, read, why = back_up(machine, parents, read)
    assert read == contents(machine)
    assert all("was killed" in str(reason) for reason in why.values())
    machine.write("vd0", 3 * MIB, 65536, 64)
    _, read, why = back_up(machine, parents, read)
    assert read == contents(machine) and why == {"vd0": None, "vd1": None}
    assert [len(machine.bitmaps(disk)) for disk in ("vd0", "vd1")] == [1, 1]


def test_a_disk_added_later_is_read_whole_and_the_others_are_not(machine: Machine, short_path: Path) -> None:
    """Full and incremental are decided per disk, by disk."""
    parents, read, _ = back_up(machine, {}, None)
    machine.content["vd2"] = bytearray(b"\x09" * DISK_BYTES)
    new = make_image(short_path / "vd2.qcow2", bytes(machine.content["vd2"]))
    machine.qmp("blockdev-add", **machine.node("vd2", new))
    machine.qmp("device_add", driver="virtio-blk-pci", drive="node-vd2", id="vd2")
    parents, read, why = back_up(machine, parents, read)
    assert read == contents(machine)
    assert why == {"vd0": None, "vd1": None, "vd2": "It is the first backup of this disk in the vault."}
    machine.write("vd2", 0, 4096, 5)
    _, read, why = back_up(machine, parents, read)
    assert read == contents(machine) and set(why.values()) == {None}


def test_a_resized_disk_is_read_whole_once(machine: Machine) -> None:
    """The other goes on, and so does this one at the next backup."""
    parents, read, _ = back_up(machine, {}, None)
    machine.qmp("block_resize", node_name="node-vd0", size=DISK_BYTES + 4 * MIB)
    machine.content["vd0"] += bytes(4 * MIB)
    machine.write("vd0", DISK_BYTES + MIB, 65536, 6)
    parents, read, why = back_up(machine, parents, read)
    assert read == contents(machine)
    assert why == {"vd0": "The disk had another size at the last backup.", "vd1": None}
    machine.write("vd0", DISK_BYTES + 2 * MIB, 65536, 7)
    _, read, why = back_up(machine, parents, read)
    assert read == contents(machine) and set(why.values()) == {None}


def test_an_internal_snapshot_changes_nothing(machine: Machine) -> None:
    """Taken between two backups: the increment is right. Going back to it is refused by QEMU while a list is kept."""
    parents, read, _ = back_up(machine, {}, None)
    machine.write("vd0", MIB, 65536, 71)
    for disk in ("vd0", "vd1"):
        machine.qmp("blockdev-snapshot-internal-sync", device=f"node-{disk}", name="s1")
    machine.write("vd0", 2 * MIB, 65536, 72)
    _, read, why = back_up(machine, parents, read)
    assert read == contents(machine) and set(why.values()) == {None}
    assert "Device has active dirty bitmaps" in machine.hmp("loadvm s1") or "Error" in machine.hmp("loadvm s1")


def test_a_list_that_somebody_stopped_or_removed_is_not_trusted(machine: Machine) -> None:
    """Each disk for itself."""
    parents, read, _ = back_up(machine, {}, None)
    (first,), (second,) = machine.bitmaps("vd0"), machine.bitmaps("vd1")
    machine.qmp("block-dirty-bitmap-disable", node="node-vd0", name=first)
    machine.qmp("block-dirty-bitmap-remove", node="node-vd1", name=second)
    for disk in ("vd0", "vd1"):
        machine.write(disk, MIB, 65536, 81)
    _, read, why = back_up(machine, parents, read)
    assert read == contents(machine)
    assert "Another program" in str(why["vd0"]) and "no list of what changed" in str(why["vd1"])


def test_a_raw_image_has_increments_as_long_as_qemu_runs(short_path: Path) -> None:
    """Its list lives in QEMU's memory; after a restart everything is read, with the reason."""
    with Machine.with_noise(short_path, "raw", "qcow2") as machine:
        parents, read, _ = back_up(machine, {}, None)
        machine.write("vd0", MIB, 65536, 91)
        parents, read, why = back_up(machine, parents, read)
        assert read == contents(machine) and set(why.values()) == {None}
        machine.quit()
        machine.start()
        _, read, why = back_up(machine, parents, read)
        assert read == contents(machine)
        assert "cannot keep a list" in str(why["vd0"]) and why["vd1"] is None


def test_disks_are_chosen_and_a_full_backup_trusts_nothing(machine: Machine) -> None:
    """Left out disks are named, and the parent of a full backup that fails is still good."""
    parents, read, _ = back_up(machine, {}, None)
    first, second = (disk.id for disk in DRIVER.inspect(machine.ref()).disks)
    with DRIVER.open_machine(machine.ref(), wanted(parents, full=True, excluded=frozenset({second}))) as point:
        assert reasons(point) == {"vd0": "A full backup was asked for."}
        assert [disk.id for disk in point.left_out] == [second]
        assert read_point(point) == {"vd0": contents(machine)["vd0"]}
    with DRIVER.open_machine(machine.ref(), wanted(parents, included=frozenset({second}))) as point:
        assert reasons(point) == {"vd1": None}
    assert set(back_up(machine, parents, read)[2].values()) == {None}
    assert first != second


def test_two_resources_on_one_machine_leave_each_other_alone(machine: Machine) -> None:
    """Each has its own list of changes."""
    parents, read, _ = back_up(machine, {}, None)
    other = machine.ref(resource_id="6f3c1a52-0000-4000-8000-00000000bbbb")
    with DRIVER.open_machine(other, wanted()) as point:
        assert set(reasons(point).values()) == {"It is the first backup of this disk in the vault."}
        point.commit()
    machine.write("vd0", MIB, 65536, 99)
    _, read, why = back_up(machine, parents, read)
    assert read == contents(machine) and set(why.values()) == {None}


def test_what_is_not_there_is_told(machine: Machine, short_path: Path) -> None:
    """A machine that does not run, an address that is none, a scratch folder that is missing."""
    with pytest.raises(SourceError, match="No scratch file"):
        DRIVER.open_machine(machine.ref(scratch=Path("/nowhere")), wanted())
    assert machine.ours() == []
    machine.quit()
    found = DRIVER.inspect(machine.ref())
    assert not found.exists and "does not run" in str(found.reason)
    with pytest.raises(SourceGone):
        DRIVER.open_machine(machine.ref(), wanted())
    assert DRIVER.recover(machine.ref(), frozenset()) == ()
    for path in (b"qemu:relative", b"qemu:/a?scratch=b", b"qemu:/a?what=/b", b"/a"):
        with pytest.raises(InvalidRequest):
            DRIVER.open_machine(type(machine.ref())(resource_id="x", type="OS::Nova::Server", path=path), wanted())
    assert image_bytes(machine.disks["vd0"], short_path) == contents(machine)["vd0"]


def test_the_nbd_server_of_somebody_else_is_left_alone(machine: Machine, short_path: Path) -> None:
    """QEMU has one: the backup fails with a sentence, and that server goes on."""
    path = str(short_path / "theirs")
    machine.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
    machine.qmp("block-export-add", type="nbd", id="theirs", node_name="node-vd1", name="theirs")
    with pytest.raises(SourceError, match="NBD server is in use"):
        DRIVER.open_machine(machine.ref(), wanted())
    assert machine.ours() == []
    assert [each["id"] for each in machine.qmp("query-block-exports")] == ["theirs"]


@pytest.fixture
def small_disk(short_path: Path) -> Iterator[Path]:
    """A mounted file system of 4 MiB."""
    folder = short_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_scratch_fails_the_backup_and_never_the_guest(machine: Machine, small_disk: Path) -> None:
    """All writes of the guest succeed, the backup says what to do, and the next one is right."""
    parents, read, _ = back_up(machine, {}, None)
    machine.write("vd0", MIB, 65536, 21)
    with DRIVER.open_machine(machine.ref(scratch=small_disk), wanted(parents)) as point:
        for at in range(16):
            machine.write("vd0", at * MIB, MIB, 100 + at)
        machine.write("vd1", 0, 65536, 22)
        with pytest.raises(SourceError, match=r"scratch folder ran full .* The machine took no harm") as caught:
            read_point(point, read)
        assert "scratch=" in caught.value.message
    assert machine.failed_writes() == 0
    assert machine.status() == "running" and machine.ours() == []
    for disk in ("vd0", "vd1"):
        machine.io(disk, f"read -P {machine.content[disk][0]} 0 65536")
    assert "Pattern verification failed" not in machine.log.read_text()
    parents, read, why = back_up(machine, parents, read)
    assert read == contents(machine) and set(why.values()) == {None}


def test_a_machine_that_ends_in_the_middle_is_told(machine: Machine) -> None:
    """The backup fails at once, nothing hangs, and the next one is right."""
    with pytest.raises(SourceGone), DRIVER.open_machine(machine.ref(), wanted()) as point:
        machine.kill()
        read_point(point)
    machine.start()
    _, read, why = back_up(machine, tokens(point), None)
    assert read == contents(machine) and all("not ended cleanly" in str(reason) for reason in why.values())


def test_disks_of_different_moments_are_no_point(machine: Machine) -> None:
    """Somebody lets the machine run while its disks are switched: the backup fails, and leaves nothing behind."""
    ended = threading.Event()

    def let_run() -> None:
        while not ended.is_set():
            machine.qmp("cont")

    thread = threading.Thread(target=let_run)
    thread.start()
    try:
        with pytest.raises(SourceError, match="went on before all its disks"):
            DRIVER.open_machine(machine.ref(), wanted())
    finally:
        ended.set()
        thread.join()
    assert machine.ours() == [] and machine.bitmaps("vd0") == [] and machine.status() == "running"


def test_a_paused_machine_stays_paused(machine: Machine) -> None:
    """Nobody but the service's own pause is ended by it."""
    machine.qmp("stop")
    _, read, _ = back_up(machine, {}, None)
    assert read == contents(machine) and machine.status() == "paused"


def test_disks_of_every_kind_are_moved_under_a_filter_and_back(short_path: Path) -> None:
    """SCSI, drives of the old command line, a boot order. Discs, firmware and what is read-only are no disks of it."""
    image = make_image(short_path / "old.qcow2", b"\7" * DISK_BYTES)
    scsi = make_image(short_path / "scsi.raw", b"\6" * DISK_BYTES)
    first = make_image(short_path / "first.qcow2", b"\5" * DISK_BYTES)
    firmware, shared = short_path / "firmware.fd", short_path / "shared.raw"
    firmware.write_bytes(HALT)
    shared.write_bytes(bytes(MIB))
    options = [
        *("-device", "virtio-scsi-pci,id=scsi0"),
        *("-blockdev", json.dumps(Machine.node("scsi", scsi)), "-device", "scsi-hd,drive=node-scsi,id=scsi"),
        *("-blockdev", json.dumps(Machine.node("first", first))),
        *("-device", "virtio-blk-pci,drive=node-first,id=first,bootindex=1"),
        *("-drive", f"file={image},if=virtio,format=qcow2", "-device", "ide-cd"),
        *("-drive", f"file={firmware},if=pflash,unit=0,format=raw"),
        *("-drive", f"file={shared},if=virtio,format=raw,readonly=on"),
    ]
    with Machine(short_path, {}, *options) as machine:
        machine.firmware = b""  # but that of the flash
        machine.start()
        parents, read, _ = back_up(machine, {}, None)
        assert {name: content[:1] for name, content in read.items()} == {
            "scsi": b"\6",
            "first": b"\5",
            "virtio0": b"\7",
        }
        found = DRIVER.inspect(machine.ref())
        assert found.readable, found.reason
        disks = found.disks
        assert [disk.name for disk in disks if disk.is_boot] == ["first"]
        assert {Path(disk.place) for disk in disks} == {image, scsi, first}
        for disk in ("scsi", "first/virtio-backend"):
            machine.hmp(f'qemu-io -d /machine/peripheral/{disk} "write -P 9 1M 64k"')
        with DRIVER.open_machine(machine.ref(), wanted(parents)) as point:
            now = read_point(point, read)
            assert set(reasons(point).values()) == {None}
        assert now["scsi"][MIB : MIB + 2] == now["first"][MIB : MIB + 2] == b"\x09\x09"
        assert now["virtio0"] == read["virtio0"]
        assert machine.ours() == []


def test_a_machine_that_a_cut_backup_could_end_is_refused(short_path: Path) -> None:
    """QEMU before 9.0 with I/O threads: a sentence, at the disk and at its controller."""
    disk = make_image(short_path / "disk.qcow2", bytes(DISK_BYTES))
    for device in (
        ["-device", "virtio-blk-pci,drive=node-disk,id=disk,iothread=io0"],
        ["-device", "virtio-scsi-pci,id=scsi0,iothread=io0", "-device", "scsi-hd,drive=node-disk,id=disk"],
    ):
        options = ["-object", "iothread,id=io0", "-blockdev", json.dumps(Machine.node("disk", disk)), *device]
        with Machine(short_path, {}, *options) as machine:
            machine.start()
            version = machine.qmp("query-version")["qemu"]["major"]
            if version >= 9:
                _, read, _ = back_up(machine, {}, None)
                assert read == {"disk": bytes(DISK_BYTES)}
                continue
            with pytest.raises(SourceError, match="Disks disk have I/O threads"):
                DRIVER.open_machine(machine.ref(), wanted())
            assert machine.ours() == []
