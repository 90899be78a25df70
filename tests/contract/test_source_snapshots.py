"""Snapshots of images and folders on real file systems: one moment, only what changed, and nothing left behind."""

import ctypes
import mmap
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_mounts import mounted
from source_points import Points, make_points
from source_trees import differences, listing, loosen_all, make_tree

from strongroom.base.streams import ExtentKind
from strongroom.sources.abilities import abilities
from strongroom.sources.base import SourceOptions, SourceRef
from strongroom.sources.files import open_root
from strongroom.sources.folder import FolderDriver
from strongroom.sources.image import ImageDriver
from strongroom.sources.snapshots.choose import choose_for_folder, choose_for_image
from strongroom.sources.snapshots.fiemap import changed_ranges
from strongroom.sources.snapshots.reflink import Reflink

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop mounts need root")

BLOCK = 64 << 10
SIZE = 400 * BLOCK


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def sharing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that shares blocks between files."""
    with mounted(request.param, tmp_path_factory.mktemp("sharing")) as point:
        yield point


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted("btrfs", tmp_path_factory.mktemp("btrfs")) as point:
        yield point


@pytest.fixture
def disk(sharing: Path, tmp_path: Path) -> Iterator[Points]:
    """An image of 25 MiB, half of it data, and its chain of backups."""
    folder = sharing / tmp_path.name
    folder.mkdir()
    path = folder / "disk.img"
    with path.open("wb") as out:
        out.truncate(SIZE)
        out.write(random.Random(1).randbytes(SIZE // 2))
    yield make_points(ImageDriver(), path, tmp_path / "repository")
    subprocess.run(["rm", "-r", str(folder)], check=True)


def path_of(points: Points) -> Path:
    return Path(os.fsdecode(points.ref.path))


def beside(points: Points) -> list[str]:
    return sorted(name for name in os.listdir(path_of(points).parent) if name.startswith(".strongroom-"))


def scribble(path: Path, seed: int, count: int = 20) -> int:
    """Write `count` pieces of 4 KiB at random places; bytes of the 64 KiB blocks they touch."""
    chance, touched = random.Random(seed), set()
    with path.open("r+b") as out:
        for _ in range(count):
            at = chance.randrange(SIZE // 4096) * 4096
            out.seek(at)
            out.write(chance.randbytes(4096))
            touched.add(at // BLOCK)
    return len(touched) * BLOCK


# --- images ---------------------------------------------------------------------------------------------------------


def test_increments_of_an_image_read_what_changed_and_give_its_state_back(disk: Points) -> None:
    """Full and five increments, written to while each is read: every one restores to the state at its point."""
    path, states = path_of(disk), []
    for number in range(6):
        changed = scribble(path, number) if number else SIZE
        states.append(path.read_bytes())
        with disk.open() as point:
            scribble(path, 100 + number)  # after the point: none of it is in this backup, all of it in the next
            made = disk.write(point)
        if number:
            assert made.metadata["read_whole"] is None
            assert made.report.bytes_read <= 2.2 * (changed + 20 * BLOCK)
            assert made.report.bytes_read < SIZE // 4
        assert made.metadata["snapshot"] == "reflink"
        assert made.metadata["changed_while_read"] is False
        assert len(beside(disk)) == 1
    assert [disk.content(made) for made in disk.made] == states


def test_an_increment_after_nothing_changed_reads_nothing(disk: Points) -> None:
    disk.take()
    assert disk.take().report.bytes_read == 0


def test_what_an_aborted_point_saw_is_in_the_next_one(disk: Points) -> None:
    """The parent's snapshot stays the parent: the changes are given back."""
    path = path_of(disk)
    disk.take()
    kept = beside(disk)
    scribble(path, 1)
    with pytest.raises(ZeroDivisionError), disk.open() as point:
        assert ExtentKind.SAME in {extent.kind for extent in point.stream.extents()}  # type: ignore[union-attr]
        raise ZeroDivisionError
    assert beside(disk) == kept
    made = disk.take()
    assert made.metadata["read_whole"] is None
    assert disk.content(made) == path.read_bytes()


@pytest.mark.parametrize("harm", ["removed", "replaced", "written"])
def test_without_its_parents_copy_the_disk_is_read_whole(disk: Points, harm: str) -> None:
    """Gone, another file or changed: never believed, and the reason says so."""
    path = path_of(disk)
    disk.take()
    copy = path.parent / beside(disk)[0]
    if harm == "written":
        copy.chmod(0o600)
        with copy.open("r+b") as out:
            out.write(b"x")
    else:
        copy.unlink()
        if harm == "replaced":
            subprocess.run(["cp", "--reflink", path, copy], check=True)
    scribble(path, 2)
    made = disk.take()
    assert "last backup" in str(made.metadata["read_whole"])
    assert disk.content(made) == path.read_bytes()
    assert len(beside(disk)) == 1


def test_a_disk_that_grew_is_read_whole(disk: Points) -> None:
    path = path_of(disk)
    disk.take()
    os.truncate(path, SIZE + BLOCK)
    made = disk.take()
    assert made.full_reason is not None
    assert disk.content(made) == path.read_bytes()


KILLED = """
    import os, signal, sys
    from strongroom.sources.base import PointWanted, SourceRef
    from strongroom.sources.open import driver_for
    kind, path, resource = sys.argv[1:4]
    token = bytes.fromhex(sys.argv[4]) or None
    ref = SourceRef(resource_id=resource, type=kind, path=os.fsencode(path))
    point = driver_for(kind, ref.path).open_point(ref, PointWanted(parent_token=token))
    assert point.token
    os.kill(os.getpid(), signal.SIGKILL)
"""


def die_with_an_open_point(points: Points) -> None:
    """A process of its own opens the next point and is killed."""
    token = points.made[-1].token.hex() if points.made else ""
    arguments = [points.driver.type, os.fsdecode(points.ref.path), points.ref.resource_id, token]
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr


def test_what_a_killed_backup_left_goes_with_the_next_one(disk: Points) -> None:
    """And the parent's copy is still good: the next backup reads only what changed."""
    path = path_of(disk)
    disk.take()
    scribble(path, 3)
    die_with_an_open_point(disk)
    assert len(beside(disk)) == 2
    made = disk.take()
    assert made.metadata["read_whole"] is None
    assert disk.content(made) == path.read_bytes()
    assert len(beside(disk)) == 1


def test_snapshots_of_another_resource_are_left_alone(disk: Points, tmp_path: Path) -> None:
    """The same image in another project: each keeps its own."""
    other = make_points(ImageDriver(), path_of(disk), tmp_path / "other")
    disk.take()
    other.take()
    assert len(beside(disk)) == 2
    scribble(path_of(disk), 4)
    assert disk.take().metadata["read_whole"] is None
    assert other.take().metadata["read_whole"] is None
    assert len(beside(disk)) == 2


def test_another_resources_token_is_not_believed(disk: Points, tmp_path: Path) -> None:
    """A token names a snapshot; one of another resource is neither read nor released."""
    other = make_points(ImageDriver(), path_of(disk), tmp_path / "other")
    other.take()
    with disk.driver.open_point(disk.ref, other.wanted()) as point:
        assert point.metadata["read_whole"] is not None or point.full_reason is not None
    assert len(beside(disk)) == 1


def test_an_image_without_shared_blocks_is_read_as_it_is(tmp_path: Path) -> None:
    """ext4: no copy, and the reason says which file systems can."""
    with mounted("ext4", tmp_path) as point:
        (point / "disk").write_bytes(b"x" * BLOCK)
        provider, reason = choose_for_image(os.fsencode(point / "disk"))
        assert provider is None
        assert "XFS" in reason
        made = make_points(ImageDriver(), point / "disk", tmp_path / "repository").take()
        assert made.metadata["snapshot"] is None
        assert made.metadata["snapshot_reason"] == reason
        assert os.listdir(point) == ["lost+found", "disk"] or sorted(os.listdir(point)) == ["disk", "lost+found"]


# --- which blocks changed -------------------------------------------------------------------------------------------


def change(fd: int, path: Path, chance: random.Random) -> None:
    """One change of any kind that a file can have without becoming another size."""
    libc = ctypes.CDLL(None, use_errno=True)
    offset = chance.randrange(SIZE)
    length = min(chance.choice([1, 100, 4096, 10_000, BLOCK, 300_000]), SIZE - offset)
    kind = chance.choice(["write", "write", "punch", "zero", "unwritten", "map", "sync", "clone"])
    if kind == "write":
        os.pwrite(fd, chance.randbytes(length), offset)
    elif kind in ("punch", "zero", "unwritten"):
        mode = {"punch": 3, "zero": 0x11, "unwritten": 1}[kind]  # PUNCH | KEEP, ZERO | KEEP, KEEP
        libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    elif kind == "map":
        with mmap.mmap(fd, SIZE) as view:
            view[offset : offset + length] = chance.randbytes(length)
    elif kind == "sync":
        os.fsync(fd)
    else:
        source = chance.randrange(SIZE // BLOCK) * BLOCK
        target = chance.randrange(SIZE // BLOCK) * BLOCK
        if source != target:
            subprocess.run(
                ["xfs_io", "-c", f"reflink {path} {source} {target} {BLOCK}", str(path)], capture_output=True
            )


@pytest.mark.parametrize("variant", ["xfs", "btrfs", "btrfs-compressed", "btrfs-nodatacow"])
def test_no_change_is_missed(variant: str, tmp_path: Path) -> None:
    """Random changes of every kind between two copies: whatever differs lies in the ranges that are named."""
    kind, _, option = variant.partition("-")
    options = "loop" + {"": "", "compressed": ",compress-force=zstd", "nodatacow": ",nodatacow"}[option]
    with mounted(kind, tmp_path, options) as point:
        path, chance = point / "disk", random.Random(7)
        path.touch()
        provider = Reflink()
        with path.open("r+b", buffering=0) as disk:
            disk.truncate(SIZE)
            disk.write(chance.randbytes(SIZE // 3))
            named = 0
            old = provider.create(os.fsencode(path), "strongroom.r.0")
            for number in range(1, 12):
                for _ in range(chance.randrange(1, 12)):
                    change(disk.fileno(), path, chance)
                new = provider.create(os.fsencode(path), f"strongroom.r.{number:x}")
                before, after = (Path(os.fsdecode(copy.path)).read_bytes() for copy in (old, new))
                ranges = changed_ranges(old.fd, new.fd, SIZE)
                assert ranges is not None
                assert list(ranges) == sorted(ranges)
                covered = bytearray(before)
                for offset, length in ranges:
                    covered[offset : offset + length] = after[offset : offset + length]
                    named += length
                assert covered == after
                old.close()
                provider.release(os.fsencode(path), old.name)
                old = new
            old.close()
            assert named < 11 * SIZE, "everything was named: nothing was shown"


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(btrfs: Path, tmp_path: Path) -> Iterator[Points]:
    """A subvolume with a few files."""
    folder = btrfs / tmp_path.name
    subprocess.run(["btrfs", "subvolume", "create", str(folder)], check=True, capture_output=True)
    (folder / "d").mkdir()
    for number in range(50):
        (folder / "d" / f"{number}").write_text(f"{number}" * 1000)
    yield make_points(FolderDriver(), folder, tmp_path / "tree-repository")
    loosen_all(folder)
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def leftovers(points: Points) -> list[str]:
    return [name for name in os.listdir(points.ref.path) if name.startswith(b".strongroom-")]  # type: ignore[misc]


def test_a_folder_is_of_one_moment(tree: Points, tmp_path: Path) -> None:
    """What is written, moved and removed after the point was opened is not in it."""
    folder = path_of(tree)
    before = listing(folder)
    with tree.open() as point:
        for number in range(25):
            (folder / "d" / f"{number}").rename(folder / f"moved-{number}")
        (folder / "d" / "30").write_text("later")
        (folder / "d" / "31").unlink()
        made = tree.write(point)
    assert made.consistency == "filesystem_consistent"
    assert made.metadata["snapshot"] == "btrfs"
    assert made.report.vanished == 0
    assert made.report.changed_while_read == ()
    assert leftovers(tree) == []
    target = tmp_path / "target"
    target.mkdir()
    tree.restore(made, SourceRef(resource_id="t", type="OS::Sfs::Turbo", path=os.fsencode(target)))
    found = listing(target)
    for seen in (before, found):
        for entry in seen.values():
            entry.pop("flags")
    assert differences(before, found) == []


def test_an_unchanged_folder_is_not_read_again_from_its_next_snapshot(tree: Points) -> None:
    """Inodes and change times are equal in every snapshot; the device's number, which is not, does not count."""
    folder = path_of(tree)
    for path in (folder / "d").iterdir():
        os.utime(path, ns=(1, 1))
    tree.take()
    subprocess.run(["sleep", "2.1"], check=True)  # times of the last two seconds prove nothing (RULINGS 15)
    tree.take()
    again = tree.take()
    assert again.full_reason is None
    assert again.report.bytes_read == 0
    (folder / "d" / "7").write_text("changed")
    assert 0 < tree.take().report.bytes_read < 5000


def test_the_torture_tree_comes_back_from_a_snapshot(tree: Points, tmp_path: Path) -> None:
    """Every kind of entry and attribute, through the engine, back onto the same file system; in place."""
    folder = path_of(tree) / "torture"
    make_tree(folder)
    inner = make_points(FolderDriver(), folder, tmp_path / "inner")
    before = listing(folder)
    made = inner.take()
    assert made.metadata["snapshot"] == "btrfs"
    (folder / "plain").write_text("damaged")
    (folder / "stale").write_text("new since")
    report = inner.restore(made, inner.ref, force=True)  # 5 GiB of holes
    assert report.left_out == ()
    assert differences(before, listing(folder)) == []


def test_making_a_snapshot_leaves_the_folders_times(tree: Points) -> None:
    """It lies in the subvolume for a moment; the user did nothing to his folder."""
    before = os.stat(tree.ref.path).st_mtime_ns
    tree.take()
    assert os.stat(tree.ref.path).st_mtime_ns == before


def test_snapshots_of_a_killed_backup_of_a_folder_go_with_the_next_one(tree: Points) -> None:
    die_with_an_open_point(tree)
    assert len(leftovers(tree)) == 1
    with tree.open():
        assert len(leftovers(tree)) == 1
    assert leftovers(tree) == []


def test_recover_releases_what_a_killed_backup_of_a_folder_left(tree: Points) -> None:
    """Without a next backup too; a snapshot that a living process reads stays."""
    die_with_an_open_point(tree)
    tree.driver.recover(tree.ref, frozenset())
    assert leftovers(tree) == []
    with tree.open():
        tree.driver.recover(tree.ref, frozenset())
        assert len(leftovers(tree)) == 1


@pytest.mark.parametrize("below", ["subvolume", "mount"])
def test_what_a_snapshot_would_miss_is_read_live(tree: Points, below: str) -> None:
    """A subvolume or a mount inside of the folder: everything is in the backup, and the reason names the place."""
    inside = path_of(tree) / "d" / "inside"
    if below == "subvolume":
        subprocess.run(["btrfs", "subvolume", "create", str(inside)], check=True, capture_output=True)
    else:
        inside.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(inside)], check=True)
    try:
        (inside / "file").write_text("x")
        made = tree.take()
        assert made.metadata["snapshot"] is None
        assert "inside" in str(made.metadata["snapshot_reason"])
        assert made.consistency == "crash_consistent"
        assert made.report.entries + 1 == len(listing(path_of(tree)))  # the folder itself
        alone = choose_for_folder(tree.ref.path, one_file_system=True)
        assert alone.provider is not None
        beside_it = path_of(tree) / "e"
        beside_it.mkdir()
        assert choose_for_folder(os.fsencode(beside_it)).provider is not None
    finally:
        if below == "mount":
            subprocess.run(["umount", str(inside)], check=True)


def test_a_part_of_a_subvolume_cannot_have_a_snapshot(tree: Points, tmp_path: Path) -> None:
    """A bind mount of a folder inside: the subvolume's root is out of reach, so the folder is read live."""
    bound = tmp_path / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", str(path_of(tree) / "d"), str(bound)], check=True)
    try:
        provider, reason = choose_for_folder(os.fsencode(bound))
        assert provider is None
        assert "part of the subvolume" in reason
    finally:
        subprocess.run(["umount", str(bound)], check=True)


def test_options_of_a_folder_hold_in_its_snapshot(tree: Points) -> None:
    """Exclude patterns are those of the live tree."""
    ref = SourceRef(
        resource_id="r", type="OS::Sfs::Turbo", path=tree.ref.path, options=SourceOptions(exclude=("/d/1*",))
    )
    with tree.driver.open_point(ref, tree.wanted()) as point:
        names = {entry.name for folder in point.stream.folders() for entry in folder.entries}  # type: ignore[union-attr]
    assert b"2" in names
    assert b"10" not in names
    os.close(open_root(tree.ref.path))


# --- told before the first backup -----------------------------------------------------------------------------------


def test_abilities_say_what_the_next_backup_will_do(tree: Points, disk: Points, tmp_path: Path) -> None:
    """Consistency and increments, of each kind of place, with a reason; nothing is left behind by the look."""
    told = {ability.name: ability for ability in abilities(tree.ref)}
    assert told["consistency"].works
    assert told["incremental"].works
    told = {ability.name: ability for ability in abilities(disk.ref)}
    assert told["consistency"].works
    assert told["incremental"].works
    assert beside(disk) == []
    assert leftovers(tree) == []
    plain = tmp_path / "plain"
    plain.write_bytes(b"x" * BLOCK)
    told = {ability.name: ability for ability in abilities(_disk(plain))}
    assert not told["consistency"].works
    assert not told["incremental"].works
    cloud = SourceRef(resource_id="c", type="OS::Cinder::Volume", path=b"cinder:cloud/volume")
    assert [(ability.name, ability.works) for ability in abilities(cloud)] == [
        ("consistency", True),
        ("incremental", False),
    ]
    gone = abilities(_disk(tmp_path / "gone"))
    assert [(ability.name, ability.works) for ability in gone] == [("readable", False)]
    assert "gone" in gone[0].reason


def _disk(path: Path) -> SourceRef:
    return SourceRef(resource_id="r", type="OS::Cinder::Volume", path=os.fsencode(path))
