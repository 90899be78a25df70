"""Backups of domains that are switched off: their images, by the bitmaps that lie in them."""

import pytest
from libvirt_world import Guest, Hypervisor, Kept, guest

from strongroom.base.errors import SourceChanged, SourceError
from strongroom.base.streams import ExtentKind

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def test_a_machine_that_is_off_goes_on_incrementally(hypervisor: Hypervisor) -> None:
    """On, off, off, on: one chain of changes, each restore point what the disks held."""
    with guest(hypervisor, {"vda": "qcow2", "vdb": "qcow2"}) as made:
        kept = Kept(ref=made.ref())
        kept.back_up()
        made.write_some()
        made.domain.destroy()
        for _ in range(2):
            read, reasons = kept.back_up()
            assert set(reasons.values()) == {None}
            assert max(read.values()) < len(made.content["vda"]) // 2
            assert_same(kept, made)
        made.domain.create()
        made.write_some()
        _, reasons = kept.back_up()
        assert set(reasons.values()) == {None}
        assert_same(kept, made)


def test_images_without_a_bitmap_are_read_whole(hypervisor: Hypervisor) -> None:
    """Raw ones, and those of a machine that was never backed up running; holes are not read."""
    with guest(hypervisor, {"vda": "qcow2", "vdb": "raw"}, start=False) as made:
        kept = Kept(ref=made.ref())
        read, _ = kept.back_up()
        assert_same(kept, made)
        assert max(read.values()) < len(made.content["vda"])
        _, reasons = kept.back_up()
        assert all(reasons.values())
        assert_same(kept, made)
        made.domain.create()
        made.write_some()
        _, reasons = kept.back_up()
        assert all(reasons.values())
        assert_same(kept, made)


def test_a_bitmap_of_a_killed_qemu_is_not_trusted(hypervisor: Hypervisor) -> None:
    """It lies in the image as broken, or not at all: everything is read."""
    with guest(hypervisor, {"vda": "qcow2"}) as made:
        kept = Kept(ref=made.ref())
        kept.back_up()
        made.domain.destroy()
        made.domain.create()
        made.write_some()
        made.qemu_io("vda", "flush")
        made.kill()
        _, reasons = kept.back_up()
        assert reasons["vda"] is not None and "no list" in reasons["vda"]
        assert_same(kept, made)


def test_a_machine_may_be_started_while_it_is_read(hypervisor: Hypervisor) -> None:
    """The backup never keeps it from starting: it fails itself, with a sentence."""
    with guest(hypervisor, {"vda": "qcow2"}, start=False) as made:
        kept = Kept(ref=made.ref())
        with kept.open() as point:
            disk = point.disks[0]
            data = next(extent for extent in disk.stream.extents() if extent.kind == ExtentKind.DATA)
            made.domain.create()
            made.write("vda", 0, 4096)
            made.qemu_io("vda", "flush")
            with pytest.raises(SourceChanged, match="was started"):
                disk.stream.read_into(data.offset, memoryview(bytearray(4096)))


def test_it_is_known_whether_it_was_shut_down(hypervisor: Hypervisor) -> None:
    """A machine that was pulled from its power is no more consistent than one that runs."""
    with guest(hypervisor, {"vda": "qcow2"}) as made:
        made.domain.destroy()
        with Kept(ref=made.ref()).open() as point:
            assert point.consistency == "crash_consistent" and point.consistency_reason is not None
            assert point.metadata["power"] == "off"


def test_what_is_no_file_needs_a_running_machine(hypervisor: Hypervisor) -> None:
    """Said before the first backup, by `source check`, and by the backup."""
    with guest(hypervisor, {"vda": "qcow2"}, start=False) as made:
        made.domain.attachDeviceFlags(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/>"
            "<source protocol='nbd' name='x'><host name='127.0.0.1' port='1'/></source>"
            "<target dev='vdb' bus='virtio'/></disk>",
            2,
        )
        kept = Kept(ref=made.ref())
        assert not kept.driver.inspect(kept.ref).readable
        with pytest.raises(SourceError):
            kept.open()


def assert_same(kept: Kept, made: Guest) -> None:
    for device, content in made.content.items():
        assert kept.of(device) == bytes(content), device
