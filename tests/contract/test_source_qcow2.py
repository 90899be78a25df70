"""qcow2 images: the disk inside is what is protected, increments follow its bitmaps, and no other file is ever read."""

import fcntl
import json
import os
import random
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from descriptors import open_paths
from harness import wait_until
from source_mounts import mounted
from source_points import Points, make_points

from strongroom.base.errors import SourceDenied, SourceError
from strongroom.sources.abilities import abilities
from strongroom.sources.base import RestoreWanted, SourceRef
from strongroom.sources.image import ImageDriver
from strongroom.sources.open import driver_for
from strongroom.sources.qcow2 import Qcow2Driver
from strongroom.sources.qcow2_header import MAGIC, SIZE_BYTES_MAX, parse_header
from strongroom.sources.qemu_tools import is_written, qcow2_of, served

BLOCK = 64 << 10
SIZE = 400 * BLOCK


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@pytest.fixture(params=["plain", "sharing"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Points]:
    """An image of 25 MiB, half of it data; on a file system that shares blocks and on any."""
    if request.param == "plain":
        yield make_disk(tmp_path, tmp_path)
        return
    if os.geteuid() != 0:
        pytest.skip("loop mounts need root")
    with mounted("xfs", tmp_path) as point:
        yield make_disk(point, tmp_path)


@pytest.fixture
def plain(tmp_path: Path) -> Points:
    return make_disk(tmp_path, tmp_path)


def make_disk(folder: Path, base: Path) -> Points:
    raw, path = base / "raw", folder / "disk.qcow2"
    with raw.open("wb") as out:
        out.truncate(SIZE)
        out.write(random.Random(1).randbytes(SIZE // 2))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    return make_points(Qcow2Driver(), path, base / "repository")


def path_of(points: Points) -> Path:
    return Path(os.fsdecode(points.ref.path))


def disk_of(path: Path) -> bytes:
    """What a machine would see."""
    raw = path.parent / "seen.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def bitmaps(path: Path) -> list[str]:
    data = json.loads(run("qemu-img", "info", "--output=json", path))["format-specific"]["data"]
    return [item["name"] for item in data.get("bitmaps", [])]


def beside(path: Path) -> list[str]:
    return [name for name in os.listdir(path.parent) if name.startswith(".strongroom-")]


def scribble(path: Path, seed: int, count: int = 20) -> int:
    """Write pieces of 4 KiB as QEMU does, and drop one; bytes of the 64 KiB blocks they touch."""
    chance, touched, orders = random.Random(seed), set(), []
    for number in range(count):
        at = chance.randrange(SIZE // 4096) * 4096
        orders += ["-c", f"{'write -z' if number == 0 else f'write -P {chance.randrange(1, 256)}'} {at} 4k"]
        touched.add(at // BLOCK)
    run("qemu-io", "-f", "qcow2", *orders, path)
    return len(touched) * BLOCK


@contextmanager
def running(path: Path) -> Iterator[None]:
    """A QEMU that has the image open for writing, as a machine has."""
    process = subprocess.Popen(["qemu-nbd", "--persistent", "-f", "qcow2", f"--socket={path.parent}/machine", path])
    try:
        with path.open("rb") as image:
            wait_until(lambda: is_written(image.fileno()), "QEMU has the image open")
        yield
    finally:
        process.kill()
        process.wait()
        (path.parent / "machine").unlink()


def is_read(fd: int) -> bool:
    """Whether a QEMU has the image open at all: it then forbids others to write."""
    asked = struct.pack("hhiqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 201, 1, 0)
    return struct.unpack("hhiqqi4x", fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK


# --- backups --------------------------------------------------------------------------------------------------------


def test_increments_of_a_qcow2_disk_read_what_changed_and_give_its_state_back(disk: Points) -> None:
    """Full and four increments: each restores to the disk at its point, zeros and dropped ranges included."""
    path, states, before = path_of(disk), [], open_paths()
    for number in range(5):
        changed = scribble(path, number) if number else SIZE
        states.append(disk_of(path))
        made = disk.take()
        if number:
            assert made.metadata["read_whole"] is None
            assert made.metadata["changed_bytes"] == changed
            assert made.report.bytes_read <= 2.2 * changed
        assert len(bitmaps(path)) == 1
        assert beside(path) == []
    assert [disk.content(made) for made in disk.made] == states
    assert not open_paths() - before


def test_only_allocated_clusters_are_read(disk: Points) -> None:
    assert disk.take().report.bytes_read <= SIZE // 2 + BLOCK


def test_what_an_aborted_point_of_a_qcow2_disk_saw_is_in_the_next_one(disk: Points) -> None:
    path = path_of(disk)
    disk.take()
    kept = bitmaps(path)
    scribble(path, 1)
    with pytest.raises(ZeroDivisionError), disk.open():
        raise ZeroDivisionError
    assert bitmaps(path) == kept
    made = disk.take()
    assert made.metadata["read_whole"] is None
    assert disk.content(made) == disk_of(path)


KILLED = """
    import os, signal, sys
    from strongroom.sources.base import PointWanted, SourceRef
    from strongroom.sources.open import driver_for
    ref = SourceRef(resource_id=sys.argv[2], type="OS::Cinder::Volume", path=os.fsencode(sys.argv[1]))
    point = driver_for(ref.type, ref.path).open_point(ref, PointWanted(parent_token=bytes.fromhex(sys.argv[3])))
    assert point.token
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_backup_of_a_qcow2_disk_left_goes_with_the_next_one(disk: Points) -> None:
    """Its bitmap, its copy and its qemu-nbd; and the parent's bitmap still tells what changed."""
    path = path_of(disk)
    disk.take()
    scribble(path, 3)
    arguments = [str(path), disk.ref.resource_id, disk.made[-1].token.hex()]
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    with path.open("rb") as image:  # the killed one's qemu-nbd ends when it sees that its client is gone
        wait_until(lambda: not is_read(image.fileno()), "qemu-nbd has ended")
    made = disk.take()
    assert made.metadata["read_whole"] is None
    assert disk.content(made) == disk_of(path)
    assert len(bitmaps(path)) == 1
    assert beside(path) == []


@pytest.mark.parametrize("harm", ["removed", "disabled", "broken"])
def test_a_bitmap_that_may_have_missed_a_write_is_not_believed(plain: Points, harm: str) -> None:
    """Gone, disabled, or not closed cleanly (QEMU was killed): everything is read, and the reason says so."""
    path = path_of(plain)
    plain.take()
    name = bitmaps(path)[0]
    if harm == "removed":
        run("qemu-img", "bitmap", "--remove", path, name)
    elif harm == "disabled":
        run("qemu-img", "bitmap", "--disable", path, name)
    else:
        with running(path):
            run("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", f"nbd+unix:///?socket={path.parent}/machine")
    scribble(path, 2)
    made = plain.take()
    assert "list of changed blocks" in str(made.metadata["read_whole"])
    assert plain.content(made) == disk_of(path)
    scribble(path, 3)
    again = plain.take()
    assert again.metadata["read_whole"] is None
    assert plain.content(again) == disk_of(path)


def test_a_qcow2_disk_that_grew_is_read_whole(plain: Points) -> None:
    path = path_of(plain)
    plain.take()
    run("qemu-img", "resize", path, str(SIZE + BLOCK))
    made = plain.take()
    assert made.full_reason is not None
    assert plain.content(made) == disk_of(path)


def test_an_image_of_version_2_has_no_increments(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-o", "compat=0.10", path, str(SIZE))
    points = make_points(Qcow2Driver(), path, tmp_path / "repository")
    points.take()
    scribble(path, 1)
    made = points.take()
    assert made.metadata["read_whole"] is not None
    assert points.content(made) == disk_of(path)


# --- images that a machine has open ---------------------------------------------------------------------------------


def test_a_disk_in_use_is_refused_where_no_copy_can_be_made(plain: Points) -> None:
    """And the sentence says what to do; afterwards all is as before."""
    path = path_of(plain)
    plain.take()
    assert [(each.name, each.works) for each in abilities(plain.ref)] == [("consistency", True), ("incremental", True)]
    with running(path), pytest.raises(SourceDenied, match="Register the machine"), plain.open():
        pass
    with running(path):
        assert [(each.name, each.works) for each in abilities(plain.ref)] == [("readable", False)]
    assert plain.driver.inspect(plain.ref).readable
    assert plain.content(plain.take()) == disk_of(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="loop mounts need root")
def test_a_disk_in_use_is_read_from_a_copy_where_one_can_be_made(tmp_path: Path) -> None:
    """What the machine flushed is in it; the machine is not disturbed; nothing is believed of its bitmaps."""
    with mounted("xfs", tmp_path) as folder:
        disk = make_disk(folder, tmp_path)
        path = path_of(disk)
        disk.take()
        with running(path):
            url = f"nbd+unix:///?socket={folder}/machine"
            run("qemu-io", "-f", "raw", "-c", "write -P 9 1M 1M", "-c", "flush", url)
            made = disk.take()
            run("qemu-io", "-f", "raw", "-c", "write -P 8 1M 1M", "-c", "flush", url)
        assert "open" in str(made.metadata["read_whole"])
        assert disk.content(made)[1 << 20 : 2 << 20] == b"\x09" * (1 << 20)
        assert beside(path) == []
        assert disk.content(disk.take()) == disk_of(path)


def test_a_machine_may_start_while_a_copy_is_read(tmp_path: Path) -> None:
    """On a file system that shares blocks the image itself is not locked."""
    if os.geteuid() != 0:
        pytest.skip("loop mounts need root")
    with mounted("btrfs", tmp_path) as folder:
        disk = make_disk(folder, tmp_path)
        path = path_of(disk)
        state = disk_of(path)
        with disk.open() as point:
            scribble(path, 5)
            made = disk.write(point)
        assert disk.content(made) == state
        again = disk.take()
        assert again.metadata["read_whole"] is None
        assert disk.content(again) == disk_of(path)


# --- images that name other files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("evil", ["backing", "backing-raw", "data-file", "encrypted", "corrupt", "future"])
def test_an_image_that_is_not_a_disk_of_its_own_is_refused(tmp_path: Path, evil: str) -> None:
    """A backing file, an external data file, QEMU's encryption: told, with what to do, before any tool opens it."""
    path, secret = tmp_path / "evil.qcow2", tmp_path / "shadow"
    secret.write_bytes(b"root:secret" * 10_000)
    options: list[str] = []
    if evil == "backing":
        run("qemu-img", "create", "-f", "qcow2", secret.with_name("base"), "1M")
        options = ["-b", str(secret.with_name("base")), "-F", "qcow2"]
    elif evil == "backing-raw":
        options = ["-b", str(secret), "-F", "raw"]
    elif evil == "data-file":
        options = ["-o", f"data_file={secret},data_file_raw=on"]
    elif evil == "encrypted":
        options = [
            "--object",
            "secret,id=s,data=x",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        ]
    run("qemu-img", "create", "-f", "qcow2", *options, path, "1M")
    if evil in ("corrupt", "future"):
        with path.open("r+b") as out:
            out.seek(72)
            out.write(struct.pack(">Q", 2 if evil == "corrupt" else 1 << 40))
    driver = driver_for("OS::Cinder::Volume", os.fsencode(path))
    ref = SourceRef(resource_id="r", type="OS::Cinder::Volume", path=os.fsencode(path))
    look = driver.inspect(ref)
    assert not look.readable
    assert look.reason is not None
    with pytest.raises(SourceError) as refused:
        make_points(driver, path, tmp_path / "repository").take()
    assert refused.value.message == look.reason


def test_a_header_that_turns_evil_after_the_look_is_not_followed(tmp_path: Path) -> None:
    """The tool is told that there is no backing file, whatever the header says by then."""
    secret, path = tmp_path / "shadow", tmp_path / "evil.qcow2"
    secret.write_bytes(b"root:secret" * 100_000)
    run("qemu-img", "create", "-f", "qcow2", "-b", secret, "-F", "raw", path)
    fd = os.open(path, os.O_RDONLY)
    with served(qcow2_of(fd), [fd]) as serving:
        buffer = memoryview(bytearray(4096))
        serving.client.read_into(0, buffer)
        assert not any(buffer)
    os.close(fd)


@pytest.mark.parametrize("size", [0, SIZE_BYTES_MAX + 512, 1 << 63])
def test_a_size_that_cannot_be_is_refused(size: int) -> None:
    """It costs nothing to write into a header, and would be asked about to its end."""
    raw = struct.pack(">4sIQIIQIIQQIIQQQQII", MAGIC, 3, 0, 0, 16, size, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 4, 104)
    with pytest.raises(SourceError, match="says it has"):
        parse_header(raw, b"/disk")


def test_any_header_is_a_disk_or_an_error_of_ours() -> None:
    """Random and cut off ones: never another exception."""
    chance = random.Random(3)
    sound = struct.pack(">4sIQIIQIIQQIIQQQQII", MAGIC, 3, 0, 0, 16, SIZE, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 4, 104)
    assert parse_header(sound, b"/disk").size_bytes == SIZE
    for _ in range(3000):
        raw = bytearray(sound)
        for _ in range(chance.randrange(1, 5)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            header = parse_header(bytes(raw[: chance.choice([len(raw), chance.randrange(len(raw))])]), b"/disk")
        except SourceError:
            continue
        assert 0 < header.size_bytes <= SIZE_BYTES_MAX
        assert 512 <= header.cluster_bytes <= 2 << 20


# --- restores -------------------------------------------------------------------------------------------------------


def test_a_qcow2_disk_is_restored_as_one(disk: Points) -> None:
    """Same virtual size and clusters, sparse, owner and mode kept, checked by QEMU; the next backup is right."""
    path = path_of(disk)
    path.chmod(0o640)
    state = disk_of(path)
    made = disk.take()
    scribble(path, 1, 200)
    disk.restore(made, disk.ref)
    assert disk_of(path) == state
    run("qemu-img", "check", path)
    info = json.loads(run("qemu-img", "info", "--output=json", path))
    assert (info["format"], info["virtual-size"]) == ("qcow2", SIZE)
    assert info["actual-size"] < SIZE * 3 // 4
    assert path.stat().st_mode & 0o777 == 0o640
    assert beside(path) == []
    again = disk.take()
    assert again.metadata["read_whole"] is not None
    assert disk.content(again) == state


def test_a_restore_that_does_not_finish_leaves_the_old_image(plain: Points) -> None:
    path = path_of(plain)
    made = plain.take()
    scribble(path, 1)
    state = path.read_bytes()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            plan = plain.driver.plan_restore(_wanted(plain, made.report.bytes_total))
            with plain.driver.open_target(plan) as target:
                target.stream.write(0, memoryview(b"x" * BLOCK))  # type: ignore[union-attr]
                raise ZeroDivisionError
        assert path.read_bytes() == state
        assert beside(path) == []


def _wanted(points: Points, size: int) -> RestoreWanted:
    return RestoreWanted(task_id="t1", target=points.ref, same_resource=True, kind="block", size_bytes=size)


def test_disks_are_restored_into_any_kind_of_disk(plain: Points, tmp_path: Path) -> None:
    """qcow2 into raw, raw into qcow2, and into a qcow2 that is not there any more."""
    path, raw = path_of(plain), tmp_path / "other.img"
    state = disk_of(path)
    made = plain.take()
    raw.write_bytes(b"old" * 100)
    raws = Points(driver=ImageDriver(), ref=_ref(raw), repository=plain.repository)
    raws.restore(made, raws.ref)
    assert raw.read_bytes() == state
    from_raw = raws.take()
    path.unlink()
    again = Points(driver=driver_for("OS::Cinder::Volume", plain.ref.path), ref=plain.ref, repository=plain.repository)
    assert again.driver.type == "OS::Cinder::Volume"
    again.restore(from_raw, plain.ref)
    assert disk_of(path) == state
    smaller = tmp_path / "smaller.qcow2"
    run("qemu-img", "create", "-f", "qcow2", smaller, "1M")
    with pytest.raises(SourceError, match="Choose a larger one"):
        again.restore(made, _ref(smaller), same_resource=False)
    larger = tmp_path / "larger.qcow2"
    run("qemu-img", "create", "-f", "qcow2", larger, str(2 * SIZE))
    again.restore(made, _ref(larger), same_resource=False)
    assert disk_of(larger) == state + bytes(SIZE)


def test_a_machine_that_runs_is_not_restored_over(plain: Points) -> None:
    path = path_of(plain)
    made = plain.take()
    with running(path), pytest.raises(SourceError, match=r"has .* open"):
        plain.restore(made, plain.ref)


def _ref(path: Path) -> SourceRef:
    return SourceRef(resource_id=path.name, type="OS::Cinder::Volume", path=os.fsencode(path))
