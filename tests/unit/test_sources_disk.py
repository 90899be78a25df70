"""Disk images and block devices: what is read, when the parent counts, and how a restore replaces them."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from strongroom.base.errors import SourceError, SourceGone, SourceShort, TargetBusy, TargetDenied, TargetTooSmall
from strongroom.base.streams import BlockTarget, ExtentKind
from strongroom.sources.base import PointWanted, RestoreWanted, SourceOptions, SourceRef
from strongroom.sources.device import DeviceDriver
from strongroom.sources.device_target import COMPARE_BYTES, DeviceWriter, OpenDevice
from strongroom.sources.image import ImageDriver
from strongroom.sources.open import driver_for

BLOCK = 64 << 10
SIZE = 64 * BLOCK
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class FixedClock:
    """A clock that says how far after now it is."""

    def __init__(self, ahead_s: float = 0) -> None:
        self._ahead_s = ahead_s

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self._ahead_s)

    def monotonic_s(self) -> float:
        return 0.0


LATER = FixedClock(10)  # a backup ten seconds from now: what is written now is old enough to be trusted


def ref(path: Path, **options: object) -> SourceRef:
    made = SourceOptions(**options)  # type: ignore[arg-type]
    return SourceRef(resource_id="r", type="OS::Cinder::Volume", path=os.fsencode(path), options=made)


def wanted(path: Path, **fields: object) -> RestoreWanted:
    values: dict = {"task_id": "t1", "same_resource": True, "kind": "block", "size_bytes": SIZE, **fields}
    return RestoreWanted(target=ref(path), **values)


def make_image(path: Path, size: int = SIZE) -> bytes:
    """A sparse disk with data at its start, in the middle and at the end; returns its content."""
    with open(path, "wb") as out:
        out.truncate(size)
        for at in (0, size // 2, size - 512):
            out.seek(at)
            out.write(os.urandom(512))
    return path.read_bytes()


def pour(content: bytes, target: BlockTarget) -> None:
    """As an engine would: blocks of data, zeros as zeros."""
    for at in range(0, len(content), BLOCK):
        piece = content[at : at + BLOCK]
        if piece.strip(b"\0"):
            target.write(at, memoryview(piece))
        else:
            target.zero(at, len(piece))


# --- reading images -------------------------------------------------------------------------------------------------


def test_an_image_is_read_by_its_extents(tmp_path: Path) -> None:
    """DATA and ZERO cover all of it without gaps; reading the DATA and zeros gives the content."""
    content = make_image(tmp_path / "disk")
    with ImageDriver().open_point(ref(tmp_path / "disk"), PointWanted()) as point:
        stream = point.stream
        extents = list(stream.extents())
        found = bytearray(stream.size)
        at = 0
        for extent in extents:
            assert extent.offset == at
            at += extent.length
            if extent.kind == ExtentKind.DATA:
                view = memoryview(found)[extent.offset : at]
                assert stream.read_into(extent.offset, view) == extent.length
        assert at == stream.size == SIZE
        assert found == content
        assert {extent.kind for extent in extents} == {ExtentKind.DATA, ExtentKind.ZERO}
        assert point.metadata["changed_while_read"] is False


def test_an_unchanged_image_is_not_read_again(tmp_path: Path) -> None:
    """Same file, size and times, and the times are old enough: everything is SAME."""
    make_image(tmp_path / "disk")
    driver = ImageDriver(clock=LATER)
    with driver.open_point(ref(tmp_path / "disk"), PointWanted()) as first:
        assert first.full_reason is not None
        token = first.token
    with driver.open_point(ref(tmp_path / "disk"), PointWanted(parent_token=token)) as again:
        assert again.full_reason is None
        assert [extent.kind for extent in again.stream.extents()] == [ExtentKind.SAME]
        assert again.metadata["read_whole"] is None
    with driver.open_point(ref(tmp_path / "disk"), PointWanted(parent_token=token, full=True)) as full:
        assert full.full_reason is not None
        assert ExtentKind.SAME not in {extent.kind for extent in full.stream.extents()}


def test_unchanged_has_to_be_earned(tmp_path: Path) -> None:
    """An image that was written less than 2 s before the last backup is read again although its times are equal."""
    make_image(tmp_path / "disk")
    driver = ImageDriver()
    with driver.open_point(ref(tmp_path / "disk"), PointWanted()) as first:
        token = first.token
    with driver.open_point(ref(tmp_path / "disk"), PointWanted(parent_token=token)) as again:
        assert again.full_reason is None
        assert "shortly before" in str(again.metadata["read_whole"])
        assert ExtentKind.SAME not in {extent.kind for extent in again.stream.extents()}


@pytest.mark.parametrize("change", ["write", "utime", "replace", "grow", "token"])
def test_any_sign_of_a_change_makes_the_image_be_read(change: str, tmp_path: Path) -> None:
    """Also a write whose mtime was set back, and another file of the same name."""
    path = tmp_path / "disk"
    make_image(path)
    info = path.stat()
    driver = ImageDriver(clock=LATER)
    with driver.open_point(ref(path), PointWanted()) as first:
        token = first.token
    if change in ("write", "utime"):
        with open(path, "r+b") as out:
            out.write(b"y")
        if change == "utime":
            os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    elif change == "replace":
        content = path.read_bytes()
        path.rename(tmp_path / "old")
        path.write_bytes(content)
    elif change == "grow":
        os.truncate(path, SIZE + BLOCK)
    else:
        token = token.replace(b"image", b"device")
    with driver.open_point(ref(path), PointWanted(parent_token=token)) as again:
        assert ExtentKind.SAME not in {extent.kind for extent in again.stream.extents()}
        assert (again.full_reason is None) == (change in ("write", "utime"))
        assert again.metadata["read_whole"]


def test_a_live_image_says_that_it_changed(tmp_path: Path) -> None:
    """It cannot be read again, so the metadata tells it; a shrunk one is an error."""
    make_image(tmp_path / "disk")
    with ImageDriver().open_point(ref(tmp_path / "disk"), PointWanted()) as point:
        with open(tmp_path / "disk", "r+b") as out:
            out.write(b"y" * 4096)
        assert point.metadata["changed_while_read"] is True
        os.truncate(tmp_path / "disk", BLOCK)
        with pytest.raises(SourceShort, match="shorter"):
            point.stream.read_into(SIZE - BLOCK, memoryview(bytearray(BLOCK)))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, a link, a fifo: the sentence names the path, and nothing blocks."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    driver = ImageDriver()
    for name in ("missing", "folder", "link", "fifo"):
        with pytest.raises(SourceGone if name == "missing" else SourceError, match=name):
            driver.open_point(ref(tmp_path / name), PointWanted())
        assert not driver.inspect(ref(tmp_path / name)).readable


def test_inspect_tells_size_and_format(tmp_path: Path) -> None:
    """A qcow2 file is backed up as the file it is, and says so."""
    make_image(tmp_path / "raw")
    (tmp_path / "qcow2").write_bytes(b"QFI\xfb" + bytes(100))
    driver = ImageDriver()
    assert driver.inspect(ref(tmp_path / "raw")).size_bytes == SIZE
    assert driver.inspect(ref(tmp_path / "raw")).detail["format"] == "raw"
    assert driver.inspect(ref(tmp_path / "qcow2")).detail["format"] == "qcow2"


# --- restoring images -----------------------------------------------------------------------------------------------


def test_an_image_is_replaced_at_finish_and_not_before(tmp_path: Path) -> None:
    """The old content stays until finish; owner, mode and attributes are those of the old image, holes are holes."""
    content = make_image(tmp_path / "backup")
    path = tmp_path / "disk"
    path.write_bytes(b"old" * 1000)
    path.chmod(0o640)
    os.setxattr(path, "user.label", b"x")
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    driver = ImageDriver()
    with driver.open_target(driver.plan_restore(wanted(path))) as target:
        pour(content, target.stream)
        assert path.read_bytes() == b"old" * 1000
        report = target.finish()
    assert path.read_bytes() == content
    info = path.stat()
    assert stat.S_IMODE(info.st_mode) == 0o640
    assert info.st_blocks * 512 < SIZE
    assert os.getxattr(path, "user.label") == b"x"
    assert os.geteuid() != 0 or (info.st_uid, info.st_gid) == (1234, 4321)
    assert report.warnings == ()
    assert report.written_bytes == 3 * BLOCK
    assert sorted(os.listdir(tmp_path)) == ["backup", "disk"]


def test_leaving_without_finish_keeps_the_old_image(tmp_path: Path) -> None:
    """An error while writing rolls back."""
    path = tmp_path / "disk"
    path.write_bytes(b"old")
    driver = ImageDriver()
    with pytest.raises(ZeroDivisionError):
        with driver.open_target(driver.plan_restore(wanted(path))) as target:
            target.stream.write(0, memoryview(b"new"))
            raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["disk"]


def test_a_lost_image_is_made_again(tmp_path: Path) -> None:
    """The file is gone, the folder is there: the restore works and says whose the new file is."""
    content = make_image(tmp_path / "backup")
    driver = ImageDriver()
    plan = driver.plan_restore(wanted(tmp_path / "disk"))
    assert "not there" in plan.warnings[0]
    with driver.open_target(plan) as target:
        pour(content, target.stream)
        assert target.finish().warnings
    assert (tmp_path / "disk").read_bytes() == content
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o600


def test_zeros_over_written_bytes_are_zeros(tmp_path: Path) -> None:
    """The order of calls does not matter to what is read back."""
    path = tmp_path / "disk"
    path.touch()
    driver = ImageDriver()
    with driver.open_target(driver.plan_restore(wanted(path))) as target:
        target.stream.write(0, memoryview(b"x" * SIZE))
        target.stream.zero(100, SIZE - 200)
        target.finish()
    assert path.read_bytes() == b"x" * 100 + bytes(SIZE - 200) + b"x" * 100


def test_an_image_that_is_open_elsewhere_is_refused_unless_forced(tmp_path: Path) -> None:
    """The other process would go on with the old file."""
    content = make_image(tmp_path / "backup")
    path = tmp_path / "disk"
    path.write_bytes(b"old")
    driver = ImageDriver()
    code = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        plan = driver.plan_restore(wanted(path))
        assert len(plan.conflicts) == 1
        with pytest.raises(TargetBusy) as caught:
            driver.open_target(plan)
        assert str(other.pid) in caught.value.detail
        with driver.open_target(driver.plan_restore(wanted(path, force=True))) as target:
            pour(content, target.stream)
            target.finish()
        other.stdin.close()
    assert path.read_bytes() == content


def test_an_image_opened_during_the_restore_is_refused_at_finish(tmp_path: Path) -> None:
    """The check is made again right before the rename."""
    path = tmp_path / "disk"
    path.write_bytes(b"old")
    driver = ImageDriver()
    code = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with driver.open_target(driver.plan_restore(wanted(path))) as target:
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert other.stdin is not None
            other.stdout.readline()
            with pytest.raises(TargetBusy):
                target.finish()
            other.stdin.close()
    assert path.read_bytes() == b"old"


def test_the_size_of_another_image_is_minded(tmp_path: Path) -> None:
    """Smaller: refused unless forced. Larger: keeps its size. Empty: made for this. The own one: as backed up."""
    content = make_image(tmp_path / "backup")
    driver = ImageDriver()
    for size, same, force, result in (
        (SIZE // 2, False, False, None),
        (SIZE // 2, False, True, SIZE),
        (SIZE * 2, False, False, SIZE * 2),
        (0, False, False, SIZE),
        (SIZE // 2, True, False, SIZE),
        (SIZE * 2, True, False, SIZE),
    ):
        path = tmp_path / "disk"
        path.write_bytes(bytes(size))
        plan = driver.plan_restore(wanted(path, same_resource=same, force=force))
        if result is None:
            with pytest.raises(TargetTooSmall, match="larger"):
                driver.open_target(plan)
            continue
        with driver.open_target(plan) as target:
            assert target.stream.size == result
            pour(content, target.stream)
            target.finish()
        assert path.read_bytes() == content + bytes(result - SIZE)


@pytest.mark.parametrize("step", [1, 2])
def test_an_image_restore_killed_at_its_steps_is_old_or_new(step: int, tmp_path: Path) -> None:
    """Before the rename the old one stands and recover removes the rest; after it the new one stands."""
    content = make_image(tmp_path / "backup")
    path = tmp_path / "disk"
    path.write_bytes(b"old")
    count = 0

    def trace(_: str) -> None:
        nonlocal count
        count += 1
        if count == step:
            os._exit(9)

    pid = os.fork()
    if pid == 0:
        driver = ImageDriver(trace=trace)
        target = driver.open_target(driver.plan_restore(wanted(path)))
        pour(content, target.stream)
        target.finish()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    settled = ImageDriver().recover(ref(path), frozenset({"t1", "t2"}))
    assert [item.outcome for item in settled] == (["back"] if step == 1 else [])
    assert path.read_bytes() == (b"old" if step == 1 else content)
    assert ImageDriver().recover(ref(path), frozenset({"t1"})) == ()
    assert sorted(os.listdir(tmp_path)) == ["backup", "disk"]


def test_leftovers_of_the_living_and_of_others_stay(tmp_path: Path) -> None:
    """recover removes what dead tasks of ours left, nothing else; a second attempt waits for the first."""
    path = tmp_path / "disk"
    path.write_bytes(b"old")
    (tmp_path / ".strongroom-t2").mkdir()
    (tmp_path / ".strongroom-t3").touch()
    driver = ImageDriver()
    with driver.open_target(driver.plan_restore(wanted(path))):
        assert driver.recover(ref(path), frozenset({"t1", "t2"})) == ()
        with pytest.raises(TargetBusy):
            driver.open_target(driver.plan_restore(wanted(path)))
    with pytest.raises(TargetDenied):
        driver.open_target(driver.plan_restore(wanted(path, task_id="t2")))
    assert sorted(os.listdir(tmp_path)) == [".strongroom-t2", ".strongroom-t3", "disk"]


def test_a_backup_that_goes_beyond_the_target_is_refused(tmp_path: Path) -> None:
    """No write outside of [0, size)."""
    path = tmp_path / "disk"
    path.touch()
    driver = ImageDriver()
    with driver.open_target(driver.plan_restore(wanted(path))) as target:
        for offset in (SIZE, SIZE - 1, -1):
            with pytest.raises(TargetTooSmall):
                target.stream.write(offset, memoryview(b"xy"))
            with pytest.raises(TargetTooSmall):
                target.stream.zero(offset, 2)


# --- devices --------------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(device, its backing file), of SIZE bytes."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    backing = tmp_path / "backing"
    make_image(backing)
    made = subprocess.run(["losetup", "-f", "--show", str(backing)], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device, backing
    subprocess.run(["losetup", "-d", str(device)], check=True)


def test_a_device_is_read_whole(loop: tuple[Path, Path]) -> None:
    """Size by the kernel, all DATA, also with a parent: nothing proves which blocks changed."""
    device, backing = loop
    driver = DeviceDriver()
    with driver.open_point(ref(device), PointWanted()) as point:
        assert point.full_reason
        found = bytearray(point.stream.size)
        point.stream.read_into(0, memoryview(found))
        assert found == backing.read_bytes()
        token = point.token
    with driver.open_point(ref(device), PointWanted(parent_token=token)) as again:
        assert again.full_reason is None
        assert [extent.kind for extent in again.stream.extents()] == [ExtentKind.DATA]
        assert again.metadata["read_whole"]
    smaller = token.replace(str(SIZE).encode(), b"512")
    with driver.open_point(ref(device), PointWanted(parent_token=smaller)) as other:
        assert "size" in (other.full_reason or "")
    assert driver.inspect(ref(device)).size_bytes == SIZE


def test_a_device_gets_only_the_blocks_that_differ(loop: tuple[Path, Path]) -> None:
    """What is equal is not written; what was written is read back, and every range is told when it is durable."""
    device, backing = loop
    content = bytearray(backing.read_bytes())
    content[10 * BLOCK : 10 * BLOCK + 5] = b"other"
    content[SIZE // 2 : SIZE // 2 + 512] = bytes(512)
    done: list[tuple[int, int]] = []
    driver = DeviceDriver()
    plan = driver.plan_restore(wanted(device))
    assert plan.staging is None
    with driver.open_target(plan, lambda offset, length: done.append((offset, length))) as target:
        pour(bytes(content), target.stream)
        report = target.finish()
    assert backing.read_bytes() == content
    assert report.written_bytes == 2 * BLOCK
    assert done == [(0, SIZE)]


def test_a_device_restore_resumes(loop: tuple[Path, Path]) -> None:
    """Ranges that an earlier attempt reported are not touched again."""
    device, backing = loop
    before = backing.read_bytes()
    driver = DeviceDriver()
    plan = driver.plan_restore(wanted(device, done_ranges=((0, BLOCK), (BLOCK, SIZE // 2))))
    with driver.open_target(plan) as target:
        pour(b"n" * SIZE, target.stream)
        target.finish()
    kept = BLOCK + SIZE // 2
    assert backing.read_bytes() == before[:kept] + b"n" * (SIZE - kept)


def test_a_device_in_use_or_too_small_is_refused(loop: tuple[Path, Path], tmp_path: Path) -> None:
    """Mounted, open elsewhere, smaller than the backup; a larger one keeps its rest and says so."""
    device, _ = loop
    driver = DeviceDriver()
    with pytest.raises(TargetTooSmall, match="larger"):
        driver.open_target(driver.plan_restore(wanted(device, size_bytes=SIZE + 1)))
    with driver.open_target(driver.plan_restore(wanted(device, size_bytes=SIZE - BLOCK))) as target:
        assert "not touched" in target.finish().warnings[0]
    subprocess.run(["mkfs.ext4", "-q", "-F", str(device)], check=True)
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mount", str(device), str(tmp_path / "mnt")], check=True)
    try:
        with pytest.raises(TargetBusy, match="in use"):
            driver.open_target(driver.plan_restore(wanted(device)))
    finally:
        subprocess.run(["umount", str(tmp_path / "mnt")], check=True)


def test_an_image_behind_a_loop_device_is_in_use(loop: tuple[Path, Path]) -> None:
    """The kernel has it open, which /proc does not show."""
    _, backing = loop
    driver = ImageDriver()
    with pytest.raises(TargetBusy) as caught:
        driver.open_target(driver.plan_restore(wanted(backing)))
    assert "loop" in caught.value.detail


def test_a_device_that_forgets_is_found_out(tmp_path: Path) -> None:
    """What is read back is compared: somebody who writes over the restore while it runs does not stay unseen."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    fd = os.open(path, os.O_RDWR)
    try:
        writer = DeviceWriter(OpenDevice(fd), os.fsencode(path), SIZE, (), None)
        writer.write(BLOCK, memoryview(b"n" * BLOCK))
        with open(path, "r+b") as other:
            other.seek(BLOCK + 5)
            other.write(b"x")
        with pytest.raises(SourceError, match=f"byte {BLOCK}"):
            writer.flush()
    finally:
        os.close(fd)


def test_windows_are_read_back_as_they_fill(tmp_path: Path) -> None:
    """Ranges are reported window by window, merged, and only after they are durable."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    fd = os.open(path, os.O_RDWR)
    done: list[tuple[int, int]] = []
    try:
        writer = DeviceWriter(
            OpenDevice(fd),
            os.fsencode(path),
            SIZE,
            (),
            lambda *found: done.append(found),
            window_bytes=4 * COMPARE_BYTES,
        )
        for at in range(0, 10 * COMPARE_BYTES, COMPARE_BYTES):
            writer.write(at, memoryview(b"n" * COMPARE_BYTES))
        assert done == [(0, 4 * COMPARE_BYTES), (4 * COMPARE_BYTES, 4 * COMPARE_BYTES)]
        writer.flush()
        assert done[2:] == [(8 * COMPARE_BYTES, 2 * COMPARE_BYTES)]
    finally:
        os.close(fd)


def test_the_driver_is_chosen_by_type_and_path(loop: tuple[Path, Path], tmp_path: Path) -> None:
    """A device is recognised by what it is, also through a link; a missing one by where it was."""
    device, backing = loop
    (tmp_path / "by-id").symlink_to(device)
    kinds = {
        os.fsencode(device): DeviceDriver,
        os.fsencode(tmp_path / "by-id"): DeviceDriver,
        b"/dev/is-not-there": DeviceDriver,
        os.fsencode(backing): ImageDriver,
        os.fsencode(tmp_path / "missing"): ImageDriver,
    }
    assert {path: type(driver_for("OS::Cinder::Volume", path)) for path in kinds} == kinds
