"""Our NBD client on real servers."""

import random
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nbd_world import qemu_nbd, tcp

from strongroom.base.errors import SourceDenied, SourceError, SourceGone, SourceShort
from strongroom.base.streams import Extent, ExtentKind
from strongroom.sources.machines.nbd import NbdClient
from strongroom.sources.machines.nbd_wire import UnixAddress

MIB = 1 << 20
KINDS = {ExtentKind.DATA: "D", ExtentKind.ZERO: "z", ExtentKind.SAME: "s"}


def image_of(path: Path, content: bytes, *, bitmap: str | None = None) -> Path:
    """A qcow2 image; with a dirty bitmap that has seen nothing yet."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    raw.unlink()
    if bitmap:
        subprocess.run(["qemu-img", "bitmap", "--add", "-g", "64k", path, bitmap], check=True)
    return path


def filled(size: int, seed: int = 1) -> bytes:
    """Noise with a MiB of zeros at 2 MiB."""
    content = bytearray(random.Random(seed).randbytes(size))
    content[2 * MIB : 3 * MIB] = bytes(MIB)
    return bytes(content)


def read_all(client: NbdClient, size: int) -> bytes:
    buffer = bytearray(size)
    assert client.read_into(0, memoryview(buffer)) == size
    return bytes(buffer)


def test_a_disk_is_read_whole_and_its_zeros_are_known(short_path: Path) -> None:
    """What is read equals the disk, over a unix socket and over TCP, and zeros are not read at all."""
    content = filled(8 * MIB)
    image = image_of(short_path / "disk.qcow2", content)
    for address in (UnixAddress(path=str(short_path / "nbd")), tcp()):
        with qemu_nbd(image, "--read-only", address=address), NbdClient.connect(address, "disk") as client:
            assert client.size == 8 * MIB
            assert client.read_only
            assert read_all(client, 8 * MIB) == content
            assert list(client.extents()) == [
                Extent(0, 2 * MIB, ExtentKind.DATA),
                Extent(2 * MIB, MIB, ExtentKind.ZERO),
                Extent(3 * MIB, 5 * MIB, ExtentKind.DATA),
            ]
            with pytest.raises(SourceDenied):
                client.write(0, memoryview(b"x" * 512))
            with pytest.raises(SourceShort):
                client.read_into(8 * MIB - 512, memoryview(bytearray(1024)))


def test_many_threads_read_at_once(short_path: Path) -> None:
    """Each reader gets its own bytes, whatever is in flight beside it."""
    content = filled(16 * MIB)
    address = UnixAddress(path=str(short_path / "nbd"))
    image = image_of(short_path / "disk.qcow2", content)
    chance = random.Random(7)
    pieces = [(chance.randrange(0, 12 * MIB), chance.choice((1, 512, 4096, 70_000, 3 * MIB + 5))) for _ in range(300)]

    def read(piece: tuple[int, int]) -> bool:
        buffer = bytearray(piece[1])
        client.read_into(piece[0], memoryview(buffer))
        return bytes(buffer) == content[piece[0] : sum(piece)]

    with qemu_nbd(image, "--read-only", address=address), NbdClient.connect(address, "disk") as client:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(read, pieces))


def test_a_bitmap_tells_what_is_the_same(short_path: Path) -> None:
    """SAME is exactly what was not written since the bitmap was made; a written zero is told as one."""
    content = filled(8 * MIB)
    image = image_of(short_path / "disk.qcow2", content, bitmap="b0")
    write = ["qemu-io", "-c", "write -P 7 1M 64k", "-c", "write -z 5M 128k", "-c", "write -P 8 7M 1000", str(image)]
    subprocess.run(write, check=True, stdout=subprocess.DEVNULL)
    address = UnixAddress(path=str(short_path / "nbd"))
    with qemu_nbd(image, "--read-only", "--bitmap=b0", address=address):
        with NbdClient.connect(address, "disk", bitmap="b0") as client:
            found = [(extent.offset, extent.length, KINDS[extent.kind]) for extent in client.extents()]
            buffer = bytearray(64 << 10)
            client.read_into(MIB, memoryview(buffer))
            assert bytes(buffer) == b"\7" * len(buffer)
        with pytest.raises(SourceError, match="Run a full backup"):
            NbdClient.connect(address, "disk", bitmap="of somebody else")
    assert [(offset, length) for offset, length, kind in found if kind == "D"] == [(MIB, 64 << 10), (7 * MIB, 64 << 10)]
    assert [(offset, length) for offset, length, kind in found if kind == "z"] == [(5 * MIB, 128 << 10)]
    assert sum(length for _, length, _ in found) == 8 * MIB
    assert [offset for offset, _, _ in found] == [0, *(offset + length for offset, length, _ in found[:-1])]


def test_what_is_written_is_there(short_path: Path) -> None:
    """Writes, zeros and flushes of several threads give the image that was meant, with its zeros as holes."""
    image = image_of(short_path / "disk.qcow2", b"\xaa" * 8 * MIB)
    want = filled(8 * MIB, 3)
    address = UnixAddress(path=str(short_path / "nbd"))
    with qemu_nbd(image, "--discard=unmap", address=address), NbdClient.connect(address, "disk") as client:

        def write(at: int) -> None:
            if at == 2 * MIB:
                client.zero(at, MIB)
            else:
                client.write(at, memoryview(want)[at : at + MIB])

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(write, range(0, 8 * MIB, MIB)))
        client.flush()
        assert Extent(2 * MIB, MIB, ExtentKind.ZERO) in list(client.extents())
        with pytest.raises(SourceShort):
            client.zero(8 * MIB, 1)
    raw = short_path / "out.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    assert raw.read_bytes() == want


def test_no_server_and_no_export_are_told_apart_from_trouble(short_path: Path) -> None:
    """SourceGone, with a sentence that says what is missing."""
    address = UnixAddress(path=str(short_path / "nbd"))
    with pytest.raises(SourceGone, match="No NBD server listens"):
        NbdClient.connect(address, "disk")
    with pytest.raises(SourceGone, match="No NBD server listens"):
        NbdClient.connect(tcp(), "disk")
    with qemu_nbd(image_of(short_path / "disk.qcow2", bytes(MIB)), address=address):
        with pytest.raises(SourceGone, match="has no export 'other'"):
            NbdClient.connect(address, "other")


def test_a_server_that_dies_fails_every_reader(short_path: Path) -> None:
    """Readers get an error, none waits, and the connection stays broken."""
    address = UnixAddress(path=str(short_path / "nbd"))
    image = image_of(short_path / "disk.qcow2", filled(8 * MIB))
    errors: list[SourceError] = []
    read_once = threading.Barrier(5)

    def read_on() -> None:
        buffer = memoryview(bytearray(MIB))
        client.read_into(0, buffer)
        read_once.wait()
        try:
            while True:
                client.read_into(MIB, buffer)
        except SourceError as err:
            errors.append(err)

    with qemu_nbd(image, address=address) as server, NbdClient.connect(address, "disk") as client:
        threads = [threading.Thread(target=read_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        read_once.wait()
        server.kill()
        for thread in threads:
            thread.join(30)
        assert len(errors) == 4
        with pytest.raises(SourceError):
            list(client.extents())
    client.close()


def test_an_empty_disk_has_no_extents(short_path: Path) -> None:
    """Nothing of nothing."""
    image = short_path / "disk.raw"
    image.touch()
    address = UnixAddress(path=str(short_path / "nbd"))
    with qemu_nbd(image, address=address, fmt="raw"), NbdClient.connect(address, "disk") as client:
        assert client.size == 0
        assert list(client.extents()) == []
        client.flush()
