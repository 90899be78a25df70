"""Reading the image beside QEMU: whatever the guest does meanwhile, the bytes are those of the point."""

import itertools
import json
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from qemu_world import DISK_BYTES, MIB, Machine, make_image, read_point, wanted

from strongroom.base.errors import SourceError
from strongroom.sources.machines.image_map import ImageMap, Qcow2Map, Run
from strongroom.sources.machines.image_reads import PointReader
from strongroom.sources.machines.qemu import QemuDriver
from strongroom.sources.machines.qemu_point import QemuDiskPoint
from strongroom.sources.open import driver_for

DRIVER = QemuDriver(partial(driver_for, "OS::Cinder::Volume"))
FORMATS = {"vd0": "qcow2", "vd1": "raw"}


@pytest.fixture
def machine(short_path: Path) -> Iterator[Machine]:
    """Both kinds of image, 4 MiB of data at 1 MiB in each."""
    with Machine.with_noise(short_path, *FORMATS.values()) as machine:
        yield machine


@contextmanager
def points(machine: Machine) -> Iterator[dict[str, QemuDiskPoint]]:
    with DRIVER.open_machine(machine.ref(), wanted()) as point:
        yield {disk.disk.name: disk for disk in point.disks}  # type: ignore[misc]


def reader(point: QemuDiskPoint, seen: Callable[[ImageMap], ImageMap]) -> PointReader:
    """Of a disk of a point that is open, by what `seen` makes of its map."""
    found = point._image
    assert found is not None
    return PointReader(point._client, point._reader._scratch, replace(found, image=seen(found.image)))


class Interrupted:
    """A map; when all was read by it and nothing is looked at yet, the guest comes in between."""

    def __init__(self, image: ImageMap, come: Callable[[], None]) -> None:
        self._image = image
        self._come = come

    def runs(self, offset: int, length: int) -> Iterator[Run]:
        yield from self._image.runs(offset, length)
        self._come()


@pytest.mark.parametrize("disk", FORMATS)
def test_what_is_written_before_during_and_after_a_read_is_not_read(machine: Machine, disk: str) -> None:
    """Data over data, data over zeros, zeros over data, each before the file is read and between that and the look."""
    was = bytes(machine.content[disk])
    with points(machine) as disks:
        machine.write(disk, 1 * MIB, 65536, 99)
        machine.write(disk, 8 * MIB, 65536, 98)  # of zeros no copy is kept: only QEMU knows that they were there
        machine.io(disk, f"write -z {2 * MIB} 65536")

        def come() -> None:
            machine.write(disk, 3 * MIB, 65536, 97)
            machine.write(disk, 9 * MIB, 65536, 96)
            machine.io(disk, f"write -z -u {4 * MIB} 65536")

        found = bytearray(DISK_BYTES)
        reads = reader(disks[disk], lambda image: Interrupted(image, come))
        with memoryview(found) as view:
            reads.read_image(0, view)
        assert found == was
        assert 0 < reads.again_bytes < DISK_BYTES
        assert machine.failed_writes() == 0


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.long if seed > 1 else ()) for seed in range(20)])
def test_a_guest_that_writes_all_the_time_is_read_as_it_was(machine: Machine, seed: int) -> None:
    """Data, zeros and discards at random places, as fast as QEMU takes them, while full points are read: with copies
    that can be seen in the scratch file, and in memory (tmpfs), where they cannot."""
    chance, stop = random.Random(seed), threading.Event()

    def write() -> None:
        while not stop.is_set():
            at, length = chance.randrange(DISK_BYTES // 4096 - 64) * 4096, chance.randrange(1, 64) * 4096
            what = chance.choice([f"write -P {chance.randrange(1, 255)}", "write -z", "write -z -u", "discard"])
            machine.io(chance.choice(list(FORMATS)), f"{what} {at} {length}")

    def kept() -> dict[str, bytes]:
        """What the images hold while nobody writes, by another program."""
        command = ["qemu-img", "convert", "-U", "-O", "raw"]
        for name, path in machine.disks.items():
            subprocess.run([*command, "-f", FORMATS[name], path, machine.folder / name], check=True)
        return {name: (machine.folder / name).read_bytes() for name in machine.disks}

    scratch = Path("/dev/shm") if seed % 2 else machine.folder
    of_images = 0
    for _ in range(4):
        machine.qmp("stop")
        before = kept()
        with DRIVER.open_machine(machine.ref(scratch), wanted()) as point:
            writer = threading.Thread(target=write)
            writer.start()
            try:
                assert read_point(point) == before
            finally:
                stop.set()
                writer.join()
            of_images += sum(int(str(disk.metadata["image_read_bytes"])) for disk in point.disks)
        stop.clear()
    assert machine.failed_writes() == 0
    assert (of_images > 0) == (scratch == machine.folder)


def test_another_file_under_the_name_is_not_read(machine: Machine, short_path: Path) -> None:
    """Moved away while QEMU has it open: QEMU is asked for everything."""
    for name, path in machine.disks.items():
        path.rename(short_path / f"{name}.moved")
        make_image(path, bytes(DISK_BYTES))
    with DRIVER.open_machine(machine.ref(), wanted()) as point:
        assert read_point(point) == machine.content
        assert [disk.metadata["image_read_bytes"] for disk in point.disks] == [0, 0]


def test_two_images_that_changed_names_are_told(short_path: Path) -> None:
    """QEMU has both open, so only what they hold tells them apart."""
    with Machine.with_noise(short_path, "raw", "raw") as machine:
        first, second = machine.disks.values()
        os.rename(first, short_path / "moved")
        os.rename(second, first)
        os.rename(short_path / "moved", second)
        with (
            DRIVER.open_machine(machine.ref(), wanted()) as point,
            pytest.raises(SourceError, match="another one lies"),
        ):
            read_point(point)


def test_the_map_of_a_qcow2_image_is_qemus(short_path: Path) -> None:
    """Data in the clear is told as qemu-img tells it. Compressed, zero, shared clusters and backing files are not."""
    chance = random.Random(5)
    base, image = make_image(short_path / "base.qcow2", os.urandom(2 * MIB)), short_path / "disk.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image, "600M"]
    subprocess.run(create, check=True)
    writes = [f"write -P 1 {chance.randrange(600 * 16) * 65536} {chance.randrange(1, 4) * 65536}" for _ in range(200)]
    writes += [f"write -c {at * 65536} 65536" for at in (7, 70, 700)] + ["write -z 30M 1M", "write -P 5 31M 3M"]
    script = itertools.chain.from_iterable(("-c", each) for each in writes)
    subprocess.run(["qemu-io", *script, image], check=True, stdout=subprocess.DEVNULL)
    told = subprocess.run(["qemu-img", "map", "--output=json", image], check=True, capture_output=True).stdout
    expected = {
        (at, each["offset"] + at - each["start"])
        for each in json.loads(told)
        if each["data"] and each["depth"] == 0 and "offset" in each
        for at in range(each["start"], each["start"] + each["length"], 65536)
    }
    fd = os.open(image, os.O_RDONLY)
    try:
        found = Qcow2Map.open(fd)
        assert found is not None
        runs = list(found.runs(0, 600 * MIB))
        assert [run.offset for run in runs] == [0, *(run.offset + run.length for run in runs)][:-1]
        assert sum(run.length for run in runs) == 600 * MIB
        mapped = [(run, at) for run in runs if run.place is not None for at in range(0, run.length, 65536)]
        assert {(run.offset + at, run.place + at) for run, at in mapped if run.place is not None} == expected
        (one,) = found.runs(32 * MIB + 4096, 8192)
        assert one.place is not None and os.pread(fd, one.length, one.place) == bytes([5]) * 8192
        subprocess.run(["qemu-img", "snapshot", "-c", "here", image], check=True)
        assert Qcow2Map.open(fd) is None
        assert all(run.place is None for run in Qcow2Map(fd, 16, *found._l1).runs(0, 600 * MIB))
    finally:
        os.close(fd)
