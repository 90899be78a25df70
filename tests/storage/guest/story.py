"""What runs inside the guest: points of logical volumes, each compared with the volume at its moment.

It prints `PASS <name>` or `FAIL <name>` and a traceback for each; the test outside reads that on the console.
"""

import os
import random
import signal
import stat
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from strongroom.agent.disks import OpenDisk, is_disk
from strongroom.base.errors import SourceError
from strongroom.base.streams import ExtentKind
from strongroom.sources.base import PointWanted, SourceRef
from strongroom.sources.device import DeviceDriver
from strongroom.sources.folder import FolderDriver
from strongroom.sources.pace import Pace
from strongroom.sources.snapshots.choose import choose_for_device

BLOCK = 64 << 10
SIZE = 32 << 20
MAPPER = "/dev/mapper"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
    return done.stdout


def lvm(*command: str) -> str:
    return run("lvm", *command)


def snapshots() -> list[str]:
    names = lvm("lvs", "--noheadings", "-o", "lv_name", "v-g").split()
    return [name for name in names if name.startswith("strongroom.")]


def content(path: str) -> bytes:
    os.sync()
    with open(path, "rb") as device:
        return device.read()


def scribble(path: str, seed: int, count: int = 12) -> int:
    """Write pieces of 4 KiB; bytes of the 64 KiB blocks they touch."""
    chance, touched = random.Random(seed), set()
    with open(path, "r+b", buffering=0) as device:
        for _ in range(count):
            at = chance.randrange(SIZE // 4096) * 4096
            device.seek(at)
            device.write(chance.randbytes(4096))
            touched.add(at // BLOCK)
        os.fsync(device.fileno())
    return len(touched) * BLOCK


class Chain:
    """Backups of one volume, as the engine makes them: SAME is taken from the parent, the rest is read."""

    def __init__(self, path: str, resource: str) -> None:
        self.path = path
        self.ref = SourceRef(resource_id=resource, type="OS::Cinder::Volume", path=path.encode())
        self.token: bytes | None = None
        self.state = b""
        self.bytes_read = 0
        self.metadata: dict[str, object] = {}

    @contextmanager
    def open(self) -> Iterator[object]:
        with DeviceDriver().open_point(self.ref, PointWanted(parent_token=self.token)) as point:
            yield point

    def read(self, point: object) -> bytes:
        stream = point.stream  # type: ignore[attr-defined]
        state, self.bytes_read = bytearray(stream.size), 0
        for offset, length, kind in stream.extents():
            if kind == ExtentKind.SAME:
                state[offset : offset + length] = self.state[offset : offset + length]
                continue
            for at in range(offset, offset + length, 1 << 20):
                size = min(1 << 20, offset + length - at)
                stream.read_into(at, memoryview(state)[at : at + size])
                self.bytes_read += size
        self.metadata = dict(point.metadata)  # type: ignore[attr-defined]
        return bytes(state)

    def take(self, meanwhile: Callable[[], object] = lambda: None) -> bytes:
        with self.open() as point:
            meanwhile()
            self.state = self.read(point)
            self.token = point.token  # type: ignore[attr-defined]
            point.commit()  # type: ignore[attr-defined]
        return self.state


def prepare() -> None:
    lvm("pvcreate", "-q", "/dev/vda")
    lvm("vgcreate", "-q", "v-g", "/dev/vda")
    lvm("lvcreate", "-q", "-y", "-L", "160M", "-T", "v-g/pool-1", "-c", "64k")


def volume(name: str, *options: str) -> str:
    lvm("lvcreate", "-q", "-y", "-Wn", *options, "-n", name, "v-g")
    path = f"{MAPPER}/v--g-{name.replace('-', '--')}"
    with open(path, "r+b", buffering=0) as device:
        device.write(random.Random(1).randbytes(SIZE // 2))
    return path


def thin(name: str) -> str:
    lvm("lvcreate", "-q", "-y", "-V", f"{SIZE}b", "-T", "v-g/pool-1", "-n", name)
    path = f"{MAPPER}/v--g-{name.replace('-', '--')}"
    with open(path, "r+b", buffering=0) as device:
        device.write(random.Random(1).randbytes(SIZE // 2))
    return path


def remove(path: str) -> None:
    for name in snapshots():
        lvm("lvremove", "-f", "-y", f"v-g/{name}")
    lvm("lvremove", "-f", "-y", path)


def thin_increments_read_what_changed() -> None:
    path = thin("thin-1")
    chain, before = Chain(path, "thin"), 0
    for number in range(5):
        changed = scribble(path, number) if number else SIZE
        expected, later = content(path), 0

        def meanwhile(seed: int = 100 + number) -> None:
            nonlocal later
            later = scribble(path, seed)

        assert chain.take(meanwhile) == expected, f"backup {number} is not the volume at its moment"
        assert chain.metadata["snapshot"] == "LVM thin"
        if number:
            assert chain.metadata["read_whole"] is None, chain.metadata
            assert chain.bytes_read <= 2.2 * (changed + before), (chain.bytes_read, changed, before)
        before = later
        assert len(snapshots()) == 1, snapshots()
    print("FIGURES thin increment read", chain.bytes_read, "of", changed + before, "changed")
    remove(path)


def thin_aborted_and_killed_points_lose_nothing() -> None:
    path = thin("thin-2")
    chain = Chain(path, "abort")
    chain.take()
    kept = snapshots()
    scribble(path, 1)
    try:
        with chain.open():
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert snapshots() == kept
    child = os.fork()
    if child == 0:
        DeviceDriver().open_point(chain.ref, PointWanted(parent_token=chain.token)).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(snapshots()) == 2, snapshots()
    expected = content(path)
    assert chain.take() == expected
    assert chain.metadata["read_whole"] is None, chain.metadata
    assert len(snapshots()) == 1, snapshots()
    remove(path)


def thin_snapshots_that_were_made_again_are_not_believed() -> None:
    path = thin("thin-3")
    chain = Chain(path, "again")
    chain.take()
    name = snapshots()[0]
    lvm("lvremove", "-f", "-y", f"v-g/{name}")
    scribble(path, 2)
    lvm("lvcreate", "-q", "-y", "-s", "-kn", "-n", name, "v-g/thin-3")
    expected = content(path)
    assert chain.take() == expected
    assert "last backup" in str(chain.metadata["read_whole"]), chain.metadata
    remove(path)


def thin_metadata_is_given_back() -> None:
    path = thin("thin-4")
    chain = Chain(path, "meta")
    chain.take()
    scribble(path, 3)
    run("dmsetup", "message", "v--g-pool--1-tpool", "0", "reserve_metadata_snap")
    expected = content(path)
    assert chain.take() == expected
    assert "does not tell" in str(chain.metadata["read_whole"]), "another program's freeze was taken for ours"
    run("dmsetup", "message", "v--g-pool--1-tpool", "0", "release_metadata_snap")
    chain.take()
    assert chain.metadata["read_whole"] is None, chain.metadata
    run("dmsetup", "message", "v--g-pool--1-tpool", "0", "reserve_metadata_snap")
    with open("/run/lock/strongroom-v--g-pool--1", "w") as mark:
        mark.write("1")  # as a process of ours that died leaves it
    chain.take()
    assert chain.metadata["read_whole"] is None, chain.metadata
    status = run("dmsetup", "status", "v--g-pool--1-tpool").split()
    assert status[6] == "-", f"the metadata is still frozen: {status}"
    remove(path)


def classic_points_are_of_one_moment() -> None:
    path = volume("classic", "-L", f"{SIZE}b")
    chain = Chain(path, "classic")
    for number in range(2):
        expected = content(path)
        assert chain.take(lambda seed=number: scribble(path, seed)) == expected  # type: ignore[misc]
        assert chain.metadata["snapshot"] == "LVM"
        assert snapshots() == []
    child = os.fork()
    if child == 0:
        DeviceDriver().open_point(chain.ref, PointWanted()).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(snapshots()) == 1
    chain.take()
    assert snapshots() == []
    remove(path)


def a_classic_snapshot_that_ran_full_fails_the_backup() -> None:
    path = volume("full", "-L", "64M")
    chain = Chain(path, "full")
    try:
        with chain.open() as point:
            with open(path, "r+b", buffering=0) as device:
                for at in range(0, 64 << 20, 1 << 20):
                    device.seek(at)
                    device.write(os.urandom(1 << 20))
                os.fsync(device.fileno())
            chain.read(point)
        raise AssertionError("a backup was made of a snapshot that ran full")
    except SourceError as err:
        assert "ran full" in err.message, err
    assert snapshots() == []
    expected = content(path)
    assert chain.take() == expected
    remove(path)


def a_disk_of_a_host_is_read_by_its_agent_as_it_was() -> None:
    """A snapshot is read, thin or classic. It goes with the backup, that of a dead agent with the next one."""
    for path in (thin("thin-5"), volume("classic-5", "-L", f"{SIZE}b")):
        given = path.encode()
        assert is_disk(given), given
        expected = content(path)
        disk = OpenDisk(given, 1_000_000_007, Pace(None))
        assert "snapshot" in disk.reason and disk.entry.size == SIZE, disk.reason
        scribble(path, 5)
        found = bytearray(SIZE)
        for at in range(0, SIZE, 1 << 20):
            disk.read_into(at, memoryview(found)[at : at + (1 << 20)])
        disk.verify()
        assert found == expected, path
        child = os.fork()
        if not child:
            OpenDisk(given, 1_000_000_009, Pace(None))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        disk.close()
        assert len(snapshots()) == 1, snapshots()
        OpenDisk(given, 1_000_000_011, Pace(None)).close()
        assert snapshots() == []
        remove(path)


def without_room_the_volume_is_read_live() -> None:
    path = volume("live", "-L", f"{SIZE}b")
    lvm("lvcreate", "-q", "-y", "-Wn", "-l", "100%FREE", "-n", "filler", "v-g")
    provider, reason = choose_for_device(path.encode())
    assert provider is None
    assert "no room" in reason
    chain = Chain(path, "live")
    assert chain.take() == content(path)
    assert chain.metadata["snapshot"] is None
    lvm("lvremove", "-f", "-y", "v-g/filler")
    remove(path)


def tree(folder: str) -> dict[str, str]:
    """Content by name, of the files below."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name)) as file:
                found[os.path.relpath(os.path.join(place, name), folder)] = file.read()
    return found


def folder_on(device: str, kind: str) -> None:
    run(f"mkfs.{kind}", "-q", device)
    run("mount", "-t", kind, device, "/mnt")
    try:
        os.makedirs("/mnt/share/deep")
        for number in range(40):
            with open(f"/mnt/share/deep/{number}", "w") as file:
                file.write(f"{number}" * 500)
        ref = SourceRef(resource_id=f"folder{kind}", type="OS::Sfs::Turbo", path=b"/mnt/share")
        before = tree("/mnt/share")
        driver = FolderDriver()
        with driver.open_point(ref, PointWanted()) as point:
            assert point.consistency == "filesystem_consistent", point.metadata
            for number in range(20):
                os.rename(f"/mnt/share/deep/{number}", f"/mnt/share/moved-{number}")
            with open("/mnt/share/deep/30", "w") as file:
                file.write("later")
            found = {}
            for folder in point.stream.folders():  # type: ignore[union-attr]
                for entry in folder.entries:
                    if stat.S_ISREG(entry.mode):
                        with folder.open(entry) as data:
                            buffer = memoryview(bytearray(entry.size))
                            data.read_into(0, buffer)
                        found[b"/".join((*folder.path, entry.name)).decode()] = bytes(buffer).decode()
                        live = f"/mnt/share/deep/{entry.name.decode()}"
                        if entry.name != b"30" and os.path.exists(live):
                            info = os.stat(live)
                            assert (info.st_ino, info.st_ctime_ns) == (entry.ino, entry.ctime_ns)
            assert found == before
            assert driver.recover(ref, frozenset()) == ()
            assert len(snapshots()) == 1, "a snapshot that is read was released"
        assert snapshots() == []
        child = os.fork()
        if child == 0:
            driver.open_point(ref, PointWanted()).__enter__()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(snapshots()) == 1
        driver.recover(ref, frozenset())
        assert snapshots() == []
        assert [name for name in os.listdir("/run") if name.startswith("strongroom")] == []
        os.mkdir("/mnt/share/other")
        run("mount", "-t", "tmpfs", "none", "/mnt/share/other")
        try:
            with driver.open_point(ref, PointWanted()) as point:
                assert point.consistency == "crash_consistent"
                assert "other" in str(point.metadata["snapshot_reason"])
        finally:
            run("umount", "/mnt/share/other")
    finally:
        run("umount", "/mnt")


def folders_on_volumes_are_of_one_moment() -> None:
    path = thin("thin-5")
    folder_on(path, "ext4")
    remove(path)
    path = volume("tree", "-L", "64M")
    folder_on(path, "ext4")
    remove(path)


def folders_on_xfs_are_of_one_moment() -> None:
    lvm("lvcreate", "-q", "-y", "-V", "320M", "-T", "v-g/pool-1", "-n", "thin-6")
    path = f"{MAPPER}/v--g-thin--6"
    folder_on(path, "xfs")
    remove(path)


STORIES = (
    thin_increments_read_what_changed,
    thin_aborted_and_killed_points_lose_nothing,
    thin_snapshots_that_were_made_again_are_not_believed,
    thin_metadata_is_given_back,
    classic_points_are_of_one_moment,
    a_classic_snapshot_that_ran_full_fails_the_backup,
    a_disk_of_a_host_is_read_by_its_agent_as_it_was,
    without_room_the_volume_is_read_live,
    folders_on_volumes_are_of_one_moment,
    folders_on_xfs_are_of_one_moment,
)

if __name__ == "__main__":
    prepare()
    for story in STORIES:
        try:
            story()
            print("PASS", story.__name__, flush=True)
        except (Exception, SystemExit):  # noqa: BLE001 -- it is told, and the next story is another one
            print("FAIL", story.__name__, traceback.format_exc(), flush=True)
            subprocess.run(["lvm", "lvs", "-a", "-o", "lv_name,lv_attr,data_percent"])
