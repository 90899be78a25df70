"""Folders on ZFS datasets, by zfs-fuse: this machine's kernel need not have ZFS."""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import wait_until
from lifeline import end_with_starter
from source_points import Points, make_points

from strongroom.base.ids import new_id
from strongroom.sources.base import SourceRef
from strongroom.sources.folder import FolderDriver

pytestmark = pytest.mark.long

POOL_BYTES = 256 << 20


def run(*command: str | Path) -> str:
    words = [str(part) for part in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def destroy(*command: str) -> None:
    """zfs-fuse learns late that a file was closed, and calls its dataset busy until then."""
    wait_until(lambda: subprocess.run(command, capture_output=True).returncode == 0, f"{command}")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A pool in a file. zfs-fuse has one socket a machine: where one runs already the tests use that one."""
    if shutil.which("zfs-fuse") is None or os.geteuid() != 0:
        pytest.skip("zfs-fuse is not installed, or this is not root")
    place = tmp_path_factory.mktemp("zfs")
    daemon = subprocess.Popen(
        ["zfs-fuse", "--no-daemon", "--no-kstat-mount"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=end_with_starter,  # noqa: PLW1509
    )
    name = f"t{new_id()[-8:]}"
    try:
        with (place / "disk").open("wb") as disk:
            disk.truncate(POOL_BYTES)
        wait_until(lambda: subprocess.run(["zpool", "list"], capture_output=True).returncode == 0, "zfs-fuse answers")
        run("zpool", "create", "-m", place / "pool", name, place / "disk")
        yield name
        destroy("zpool", "destroy", "-f", name)
    finally:
        daemon.terminate()
        daemon.wait()


@pytest.fixture
def tree(pool: str, tmp_path: Path) -> Iterator[Points]:
    dataset, folder = f"{pool}/{new_id()[-8:]}", tmp_path / "data"
    run("zfs", "create", "-o", f"mountpoint={folder}", dataset)
    (folder / "share" / "deep").mkdir(parents=True)
    for number in range(40):
        (folder / "share" / "deep" / f"{number}").write_text(f"{number}" * 500)
    yield make_points(FolderDriver(), folder / "share", tmp_path / "repository")
    destroy("zfs", "destroy", "-r", dataset)


def seen(folder: Path) -> dict[str, tuple[int, int, bytes | None]]:
    """Mode, modification time and content by name: zfs-fuse has neither inode flags nor a list of attributes."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mode,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in sorted(folder.rglob("*"))
    }


def left(pool: str) -> list[str]:
    names = run("zfs", "list", "-H", "-t", "snapshot,filesystem", "-o", "name", "-r", pool).split()
    return [name for name in names if "strongroom." in name] + [
        name for name in os.listdir("/run") if name.startswith("strongroom-mount-")
    ]


def test_a_folder_on_zfs_is_of_one_moment(pool: str, tree: Points, tmp_path: Path) -> None:
    """What is written, moved and removed after the point was opened is not in it."""
    folder = Path(os.fsdecode(tree.ref.path))
    before = seen(folder)
    with tree.open() as point:
        for number in range(20):
            (folder / "deep" / f"{number}").rename(folder / f"moved-{number}")
        (folder / "deep" / "30").write_text("later")
        made = tree.write(point)
    assert made.consistency == "filesystem_consistent"
    assert made.metadata["snapshot"] == "ZFS"
    assert left(pool) == []
    target = tmp_path / "target"
    target.mkdir()
    tree.restore(made, SourceRef(resource_id="t", type="OS::Sfs::Turbo", path=os.fsencode(target)))
    assert seen(target) == before


def test_an_unchanged_folder_on_zfs_is_not_read_again(tree: Points) -> None:
    folder = Path(os.fsdecode(tree.ref.path))
    tree.take()
    subprocess.run(["sleep", "3.1"], check=True)  # times of the last seconds prove nothing (RULINGS 15)
    tree.take()
    again = tree.take()
    assert again.full_reason is None
    assert again.report.bytes_read == 0
    (folder / "deep" / "7").write_text("changed")
    assert 0 < tree.take().report.bytes_read < 5000


KILLED = """
    import os, signal, sys
    from strongroom.sources.base import PointWanted, SourceRef
    from strongroom.sources.open import driver_for
    ref = SourceRef(resource_id=sys.argv[2], type="OS::Sfs::Turbo", path=os.fsencode(sys.argv[1]))
    point = driver_for(ref.type, ref.path).open_point(ref, PointWanted())
    assert point.consistency == "filesystem_consistent"
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_backup_left_on_zfs_is_released(pool: str, tree: Points) -> None:
    """By recover, and by the next backup; what a living process walks stays."""
    arguments = [os.fsdecode(tree.ref.path), tree.ref.resource_id]
    for settle in (lambda: tree.driver.recover(tree.ref, frozenset()), tree.take):
        ended = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], capture_output=True)
        assert ended.returncode == -9, ended.stderr
        assert len(left(pool)) == 3
        settle()
        assert left(pool) == []
    with tree.open():
        tree.driver.recover(tree.ref, frozenset())
        assert len(left(pool)) == 3
    assert left(pool) == []


def test_a_dataset_below_the_folder_is_read_live(pool: str, tree: Points) -> None:
    """A snapshot would miss it: everything is in the backup, and the reason names the place."""
    folder = Path(os.fsdecode(tree.ref.path))
    run("zfs", "create", "-o", f"mountpoint={folder}/inside", f"{pool}/inside")
    try:
        (folder / "inside" / "file").write_text("x")
        made = tree.take()
        assert made.metadata["snapshot"] is None
        assert "inside" in str(made.metadata["snapshot_reason"])
        assert made.report.entries + 1 == 1 + len(seen(folder))
    finally:
        destroy("zfs", "destroy", f"{pool}/inside")
