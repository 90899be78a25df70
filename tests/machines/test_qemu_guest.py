"""A booted guest that writes all the time: what its restore points hold, and that nobody ever hurts it."""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from guest_world import DISK_BYTES, Guest, Looked
from nbd_world import wait_until
from qemu_world import MIB, read_point, reasons, tokens, wanted
from worker_world import worker

from strongroom.base.errors import SourceError
from strongroom.base.streams import SilentMonitor
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    MasterKey,
    Pool,
    Repository,
    backup,
    create_repository,
    restore_block,
)
from strongroom.engine.store.posix import PosixStore
from strongroom.sources.machines.base import MachinePoint
from strongroom.sources.machines.qemu import QemuDriver
from strongroom.sources.open import driver_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
DRIVER = QemuDriver(partial(driver_for, "OS::Cinder::Volume"))
INCREMENTS = 10


def booted(hooks: bool) -> Iterator[Guest]:
    folder = Path(tempfile.mkdtemp(prefix="sr-"))
    with Guest(folder, hooks=hooks) as guest:
        guest.start()
        yield guest
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    yield from booted(hooks=False)


def whole(point: MachinePoint) -> dict[str, bytes]:
    """All of the disks at the point, however little of it changed."""
    found = {}
    for disk in point.disks:
        content = bytearray(disk.stream.size)
        with memoryview(content) as view:
            for at in range(0, len(content), MIB):
                disk.stream.read_into(at, view[at : at + MIB])
        found[disk.disk.name] = bytes(content)
    return found


def require_right(guest: Guest, content: dict[str, bytes]) -> tuple[Looked, Looked]:
    """Sound file systems after at most a replay of the journal, and both disks of one moment."""
    first, second = (Looked(content[name], guest.folder) for name in ("vd0", "vd1"))
    assert first.sound, first.complaint
    assert second.sound, second.complaint
    assert 0 <= first.count - second.count <= 1
    return first, second


def back_up(guest: Guest, **more: object) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(tokens, contents) of a committed point."""
    with DRIVER.open_machine(guest.ref(), wanted(**more)) as point:  # type: ignore[arg-type]
        read = read_point(point)
        point.commit()
        return tokens(point), read


class Memory:
    """A disk that a restore writes into."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.content = bytearray(b"\xff" * size)  # what is not written is noticed

    def write(self, offset: int, data: memoryview) -> None:
        self.content[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        return None


def restored(repository: Repository, root: str) -> bytes:
    target = Memory(repository.load_root(root).size)
    restore_block(repository, root, target)
    return bytes(target.content)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    pool = Pool(threads=2)
    yield create_repository(PosixStore(str(tmp_path / "repo")), "", MasterKey(bytes(32)), DomainSettings(), pool=pool)
    pool.close()


def test_a_full_backup_and_ten_increments_of_a_guest_that_writes(guest: Guest, repository: Repository) -> None:
    """Each of the eleven is restored from the repository and equals the disks at its moment, while the guest wrote on.

    Frozen ones are clean; the others need a replay of the journal and nothing else.
    """
    parents: dict[str, bytes] = {}
    roots: dict[str, str] = {}
    points: list[tuple[dict[str, str], dict[str, str], bool]] = []
    reached = []
    for number in range(1 + INCREMENTS):
        freeze = number % 2 == 1
        guest.wait_for_writes()
        with DRIVER.open_machine(guest.ref(), wanted(parents, application=freeze)) as point:
            assert {reason is None for reason in reasons(point).values()} == {number > 0}
            for disk in point.disks:
                name = disk.disk.name
                request = BackupRequest(backup_id=f"{name}-{number}", generation=1, parent=roots.get(name))
                report = backup(repository, disk.stream, request, SilentMonitor(), lambda: None)
                assert report.full_reason is None and (not number or report.bytes_read < DISK_BYTES // 2)
                roots[name] = report.root
            guest.wait_for_writes()
            digests = {name: hashlib.sha256(content).hexdigest() for name, content in whole(point).items()}
            reached.append(point.consistency)
            assert freeze or point.consistency_reason is None
            point.commit()
            parents = tokens(point)
        points.append((dict(roots), digests, point.consistency == "filesystem_consistent"))
    last = clean = 0
    for of_disks, digests, frozen in points:
        content = {name: restored(repository, root) for name, root in of_disks.items()}
        assert {name: hashlib.sha256(each).hexdigest() for name, each in content.items()} == digests
        first, second = require_right(guest, content)
        assert first.count > last
        last = first.count
        if frozen:
            assert first.clean and second.clean
        else:
            clean += first.clean and second.clean
    assert reached.count("filesystem_consistent") >= 3 and clean <= 3, reached
    assert guest.ours() == [] and not guest.said("WRITE-FAILED")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_a_worker_that_dies_with_the_guest_held_does_not_leave_it_so(guest: Guest, end: int) -> None:
    """The process beside it thaws and lets it run; the next point is right."""
    parents, read = back_up(guest)
    with worker(guest.ref(), "held") as at_work:
        assert guest.status() == "paused"
        at_work.end(end)
        wait_until(lambda: guest.status() == "running", "the machine runs again")
        guest.wait_for_writes(5)
        at_work.end()
    with DRIVER.open_machine(guest.ref(), wanted(parents)) as point:
        merged = read_point(point, read)
        assert set(reasons(point).values()) == {None}
        assert whole(point) == merged
    require_right(guest, merged)
    assert guest.ours() == [] and not guest.said("WRITE-FAILED")


def test_when_the_process_beside_it_dies_too_the_next_look_lets_the_guest_go(guest: Guest) -> None:
    """Frozen and paused, both killed: recover thaws and lets it run."""
    with worker(guest.ref(), "held") as at_work:
        os.kill(at_work.helper, signal.SIGKILL)
        at_work.end()
    assert guest.status() == "paused"
    DRIVER.recover(guest.ref(), frozenset())
    assert guest.status() == "running" and guest.ours() == []
    guest.wait_for_writes(5)
    require_right(guest, back_up(guest)[1])


def test_a_worker_that_is_killed_while_it_reads_is_not_noticed(guest: Guest) -> None:
    """The guest writes on, what the dead one held is freed, and the next increment is right."""
    parents, read = back_up(guest)
    with worker(guest.ref(), "reading") as at_work:
        guest.wait_for_writes()
        at_work.end()
    guest.wait_for_writes()
    with DRIVER.open_machine(guest.ref(), wanted(parents)) as point:
        merged = read_point(point, read)
        assert set(reasons(point).values()) == {None} and whole(point) == merged
    assert guest.ours() == [] and not guest.said("WRITE-FAILED")


def test_a_full_scratch_is_not_noticed_by_the_guest(guest: Guest) -> None:
    """No write fails, the backup does, and the next one is right."""
    small = guest.folder / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", small]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with DRIVER.open_machine(guest.ref(scratch=small), wanted(application=False)) as point:
            guest.wait_for_writes(30)
            with pytest.raises(SourceError, match="The machine took no harm"):
                whole(point)
            guest.wait_for_writes(5)
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    guest.wait_for_writes(5)
    assert not guest.said("WRITE-FAILED") and not guest.said("I/O error")
    require_right(guest, back_up(guest)[1])


def test_a_killed_qemu_is_read_whole_and_is_right(guest: Guest) -> None:
    """The machine starts again; its bitmaps are gone, and the reason says so."""
    parents, _ = back_up(guest)
    guest.wait_for_writes()
    guest.kill()
    guest.console.unlink()
    guest.start()
    with DRIVER.open_machine(guest.ref(), wanted(parents)) as point:
        assert all("not ended cleanly" in str(reason) for reason in reasons(point).values())
        require_right(guest, read_point(point))
        point.commit()
        parents = tokens(point)
    guest.wait_for_writes()
    with DRIVER.open_machine(guest.ref(), wanted(parents)) as point:
        assert set(reasons(point).values()) == {None}


def test_hooks_are_run_before_the_point_and_after_it() -> None:
    """Application-consistent, and the hook's mark is on the disk of the point, its second one is not."""
    for guest in booted(hooks=True):
        with DRIVER.open_machine(guest.ref(), wanted()) as point:
            read = read_point(point)
            assert point.consistency == "application_consistent", point.consistency_reason
            assert point.consistency_reason is None
        first, _ = require_right(guest, read)
        assert first.hook == ["freeze"]
        assert [each.works for each in DRIVER.inspect(guest.ref()).abilities] == [True, True, True]
