"""Restores of domains: onto their own disks, disk by disk, to a new machine, and after a death at any step."""

import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from libvirt_world import Guest, Hypervisor, Kept, guest, remove_domain

from strongroom.base.errors import SourceDenied, TargetBusy, TargetDenied, TargetTooSmall
from strongroom.base.units import MIB
from strongroom.sources.base import SourceRef
from strongroom.sources.machines.base import DiskWanted, MachineRestoreWanted, MachineTarget
from strongroom.sources.machines.libvirt.driver import LibvirtDriver

DRIVER = LibvirtDriver()

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def saved(hypervisor: Hypervisor) -> Iterator[tuple[Guest, Kept]]:
    """A machine that was backed up, and that went on."""
    with guest(hypervisor, {"vda": "qcow2", "vdb": "raw"}) as made:
        kept = Kept(ref=made.ref())
        kept.back_up()
        made.write_some()
        yield made, kept


def wanted(made: Guest, kept: Kept, devices: Sequence[str] = ("vda", "vdb"), **more: object) -> MachineRestoreWanted:
    disks = tuple(
        DiskWanted(
            source_id=kept.names[device],
            name=device,
            size_bytes=len(kept.of(device)),
            target_id=None if more.get("new_name") else kept.names[device],
        )
        for device in devices
    )
    values = {"task_id": str(uuid.uuid4()), "target": kept.ref, "same_resource": True, "disks": disks} | more
    return MachineRestoreWanted(**values)  # type: ignore[arg-type]


def pour(target: MachineTarget, kept: Kept) -> None:
    for source_id, disk in target.disks.items():
        content = kept.content[source_id]
        half = len(content) // 2
        disk.write(0, memoryview(content)[:half])
        disk.zero(half, disk.size - half)
        disk.write(half, memoryview(content)[half:])


def restore(asked: MachineRestoreWanted, kept: Kept) -> tuple[str, ...]:
    with DRIVER.open_target(DRIVER.plan_restore(asked), {}) as target:
        pour(target, kept)
        return target.finish().warnings


def content_of(image: Path) -> bytes:
    """As a guest would see it. The image is not in use."""
    raw = image.with_suffix(".seen")
    subprocess.run(["qemu-img", "convert", "-O", "raw", "-f", _format(image), image, raw], check=True)
    found = raw.read_bytes()
    raw.unlink()
    return found


def _format(image: Path) -> str:
    return "qcow2" if image.suffix == ".qcow2" else "raw"


def test_a_machine_comes_back_to_itself(saved: tuple[Guest, Kept]) -> None:
    """Refused while it runs; forced it is stopped, both disks are as they were, and it runs again."""
    made, kept = saved
    refused = DRIVER.plan_restore(wanted(made, kept))
    assert any("runs" in conflict for conflict in refused.conflicts)
    with pytest.raises(TargetBusy, match="Switch it off"):
        DRIVER.open_target(refused, {})
    owner = os.stat(made.image("vda"))
    restore(wanted(made, kept, force=True, power_on=True), kept)
    assert made.domain.isActive()
    now = os.stat(made.image("vda"))
    assert (now.st_mode, now.st_uid, now.st_gid) == (owner.st_mode, owner.st_uid, owner.st_gid)
    assert made.domain.listAllCheckpoints() == [], "they were of the old disks"
    made.domain.destroy()
    for device in ("vda", "vdb"):
        assert content_of(made.image(device)) == kept.of(device)
    assert staged(made.folder) == []


def test_the_backup_after_a_restore_is_full_and_right(saved: tuple[Guest, Kept]) -> None:
    """The old chain of changes says nothing of the new images."""
    made, kept = saved
    made.domain.destroy()
    restore(wanted(made, kept), kept)
    assert not made.domain.isActive(), "it is left as it was asked for"
    made.domain.create()
    for device in made.content:
        made.content[device] = bytearray(kept.of(device))
    made.write_some()
    _, reasons = kept.back_up()
    assert all(reasons.values())
    for device, content in made.content.items():
        assert kept.of(device) == bytes(content)


def test_one_disk_comes_back_alone(saved: tuple[Guest, Kept]) -> None:
    made, kept = saved
    made.domain.destroy()
    before = content_of(made.image("vdb"))
    restore(wanted(made, kept, ["vda"]), kept)
    assert content_of(made.image("vda")) == kept.of("vda")
    assert content_of(made.image("vdb")) == before


def test_a_disk_of_another_machine_must_be_large_enough(saved: tuple[Guest, Kept], hypervisor: Hypervisor) -> None:
    """A smaller one is a conflict; a larger one keeps its size."""
    made, kept = saved
    for size, fits in ((4 * MIB, False), (12 * MIB, True)):
        with guest(hypervisor, {"vda": "qcow2"}, size=size, start=False) as other:
            found = DRIVER.inspect(other.ref())
            disk = DiskWanted(source_id=kept.names["vda"], name="vda", size_bytes=8 * MIB, target_id=found.disks[0].id)
            asked = wanted(made, kept, target=other.ref(), same_resource=False, disks=(disk,))
            if not fits:
                with pytest.raises(TargetTooSmall):
                    DRIVER.open_target(DRIVER.plan_restore(asked), {})
                continue
            restore(asked, kept)
            assert content_of(other.image("vda")) == kept.of("vda") + bytes(4 * MIB)


def test_a_new_machine_is_a_copy_with_an_identity_of_its_own(saved: tuple[Guest, Kept], tmp_path: Path) -> None:
    """Other name, UUID and network addresses, disks in their own files; the old machine runs on undisturbed."""
    made, kept = saved
    with kept.open() as point:
        definition = point.definition
    name = f"n{uuid.uuid4().hex[:8]}"
    ref = made.ref(f"?images={tmp_path}")
    asked = wanted(made, kept, target=ref, definition=definition, new_name=name, power_on=True)
    restore(asked, kept)
    try:
        new = made.hypervisor.connection.lookupByName(name)
        assert new.isActive() and made.domain.isActive()
        assert new.UUIDString() != made.domain.UUIDString()
        again = DRIVER.plan_restore(asked)
        assert any("already" in conflict for conflict in again.conflicts)
        with pytest.raises(TargetDenied):
            DRIVER.open_target(again, {})
        new.destroy()
        assert content_of(tmp_path / f"{name}-vda.qcow2") == kept.of("vda")
        assert content_of(tmp_path / f"{name}-vdb.img") == kept.of("vdb")
        assert staged(tmp_path) == []
    finally:
        remove_domain(made.hypervisor, name)


def test_a_new_machine_that_libvirt_refuses_leaves_no_file(saved: tuple[Guest, Kept], tmp_path: Path) -> None:
    made, kept = saved
    definition = (
        b"<domain type='qemu'><name>x</name><uuid>%s</uuid><memory>1</memory><os><type arch='vax'>hvm</type></os>"
    )
    definition = definition % str(uuid.uuid4()).encode() + b"<devices/></domain>"
    asked = wanted(made, kept, target=made.ref(f"?images={tmp_path}"), definition=definition, new_name="never")
    with pytest.raises(Exception, match="define the new machine"):
        restore(asked, kept)
    assert os.listdir(tmp_path) == []


def test_death_before_the_mark_leaves_the_old_disks(saved: tuple[Guest, Kept]) -> None:
    """What was staged goes, by the next attempt or by `recover`."""
    made, kept = saved
    made.domain.destroy()
    before = [content_of(made.image(device)) for device in ("vda", "vdb")]
    asked = wanted(made, kept)
    died = die(asked, kept, "before")
    assert died == -9 and staged(made.folder)
    settled = DRIVER.recover(kept.ref, frozenset({asked.task_id}))
    assert [found.outcome for found in settled] == ["back"]
    assert staged(made.folder) == []
    assert [content_of(made.image(device)) for device in ("vda", "vdb")] == before


def test_death_between_two_disks_goes_forward(saved: tuple[Guest, Kept]) -> None:
    """After the mark the restore is finished, whoever does it: never one disk new and one old."""
    made, kept = saved
    made.domain.destroy()
    asked = wanted(made, kept)
    died = die(asked, kept, "between")
    assert died == -9 and staged(made.folder)
    settled = DRIVER.recover(kept.ref, frozenset({asked.task_id}))
    assert [found.outcome for found in settled] == ["forward"]
    for device in ("vda", "vdb"):
        assert content_of(made.image(device)) == kept.of(device)
    assert staged(made.folder) == []
    assert DRIVER.recover(kept.ref, frozenset({asked.task_id})) == ()


def test_death_before_a_new_machine_is_defined_leaves_nothing(saved: tuple[Guest, Kept], tmp_path: Path) -> None:
    """Its images have their names already, but no machine has them: both names go."""
    made, kept = saved
    with kept.open() as point:
        definition = point.definition
    ref = made.ref(f"?images={tmp_path}")
    asked = wanted(made, kept, target=ref, definition=definition, new_name="never")
    assert die(asked, kept, "link") == -9
    assert (tmp_path / "never-vda.qcow2").exists() and staged(tmp_path)
    settled = DRIVER.recover(ref, frozenset({asked.task_id}))
    assert [found.outcome for found in settled] == ["back"]
    assert os.listdir(tmp_path) == []


def test_a_machine_of_another_system_is_not_written_to(hypervisor: Hypervisor) -> None:
    extra = "<metadata><o:vm xmlns:o='http://ovirt.org/vm/1.0'/></metadata>"
    with guest(hypervisor, {"vda": "qcow2"}, extra=extra, start=False) as made:
        kept = Kept(ref=made.ref("?foreign=yes"))
        kept.back_up()
        with pytest.raises(SourceDenied):
            DRIVER.open_target(DRIVER.plan_restore(wanted(made, kept, ["vda"], target=made.ref())), {})


def staged(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith(".strongroom-") and "scratch" not in name)


def die(asked: MachineRestoreWanted, kept: Kept, when: str) -> int:
    """Restore in a process of its own that is killed: before the mark, between the moves of two images, or of links."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        count = 0
        rename = os.rename

        def dying(source: str, target: str, **more: int) -> None:
            nonlocal count
            count += 1
            if (when, count) in (("before", 1), ("between", 3)):  # the mark, the first image, the second
                os.kill(os.getpid(), 9)
            rename(source, target, **more)

        link = os.link

        def dying_link(source: str, target: str) -> None:
            nonlocal count
            count += 1
            if (when, count) == ("link", 2):
                os.kill(os.getpid(), 9)
            link(source, target)

        os.rename = dying  # type: ignore[assignment]
        os.link = dying_link  # type: ignore[assignment]
        restore(asked, kept)
    finally:
        os._exit(1)


def test_addresses_are_of_this_host(hypervisor: Hypervisor) -> None:
    """A machine elsewhere is told where its worker must be."""
    ref = SourceRef(resource_id="x", type="OS::Nova::Server", path=b"libvirt:qemu://far.example/system#web")
    with pytest.raises(Exception, match="Run a worker on that host"):
        DRIVER.inspect(ref)
