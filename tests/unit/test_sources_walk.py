"""The walk over a folder: order, depth, what is left out, and what happens when the tree changes under it."""

import os
import socket
import stat
import time
from pathlib import Path

import pytest
from descriptors import open_paths

from strongroom.base.errors import SourceDenied, SourceError, SourceGone
from strongroom.base.streams import FOLDER_PART_ENTRIES_MAX, ExtentKind
from strongroom.sources.base import PointWanted, SourceOptions, SourceRef
from strongroom.sources.files import FolderTree
from strongroom.sources.folder import FolderDriver, FolderPoint
from strongroom.sources.removal import remove_tree


def ref(path: Path, **options: object) -> SourceRef:
    made = SourceOptions(**options)  # type: ignore[arg-type]
    return SourceRef(resource_id="r", type="OS::Sfs::Turbo", path=os.fsencode(path), options=made)


def point(path: Path, **options: object) -> FolderPoint:
    return FolderDriver().open_point(ref(path, **options), PointWanted())


def walk(tree: FolderTree) -> list[tuple[tuple[bytes, ...], list[bytes]]]:
    return [(folder.path, [entry.name for entry in folder.entries]) for folder in tree.folders()]


def test_folders_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """Pre-order with siblings sorted by their bytes: the order of path tuples."""
    for name in ("b", "a/z", "a.b/c", "a-b", "é/x", "B"):
        (tmp_path / name).mkdir(parents=True)
    os.mkdir(os.path.join(os.fsencode(tmp_path), b"\xff"))
    with point(tmp_path) as opened:
        seen = walk(opened.stream)
    paths = [path for path, _ in seen]
    assert paths == sorted(paths)
    assert len(paths) == 11
    assert all(names == sorted(names) for _, names in seen)


def test_a_large_folder_comes_in_parts(tmp_path: Path) -> None:
    """Parts follow each other with ascending names, and sub-folders come after the last part."""
    count = FOLDER_PART_ENTRIES_MAX * 2 + 10
    for number in range(count):
        (tmp_path / f"f{number:06}").touch()
    (tmp_path / "f000000-folder").mkdir()
    with point(tmp_path) as opened:
        seen = walk(opened.stream)
    assert [path for path, _ in seen] == [(), (), (), (b"f000000-folder",)]
    assert all(len(names) <= FOLDER_PART_ENTRIES_MAX for _, names in seen)
    together = [name for path, names in seen if not path for name in names]
    assert together == sorted(together)
    assert len(together) == count + 1


def test_a_tree_of_thousands_of_levels_needs_few_descriptors(tmp_path: Path) -> None:
    """1500 levels deep with a sibling on each: everything is found, with a bounded number of open descriptors."""
    levels = 1500  # beyond any limit on recursion
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(levels):
        for name in (b"d", b"e"):
            os.mkdir(name, dir_fd=fd)
        below = os.open(b"d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    before = open_paths()
    most = folders = 0
    with point(tmp_path) as opened:
        for folder in opened.stream.folders():
            folders += 1
            if folders % 500 == 0:
                most = max(most, (open_paths() - before).total())
            deepest = len(folder.path)
    assert folders == 2 * levels + 1
    assert deepest == 1
    assert 0 < most < 50
    assert not open_paths() - before
    top = os.open(tmp_path, os.O_RDONLY)
    remove_tree(top, b"d")
    os.close(top)
    assert not (tmp_path / "d").exists()


def test_sockets_are_listed_and_our_own_places_are_not_seen(tmp_path: Path) -> None:
    """A socket is skipped with a reason; names of staging places are left out silently, at any depth."""
    (tmp_path / "file").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".strongroom-x").mkdir()
    (tmp_path / ".strongroom-y").touch()
    with socket.socket(socket.AF_UNIX) as unix:
        fd = os.open(tmp_path, os.O_RDONLY)
        unix.bind(f"/proc/self/fd/{fd}/sock")
        os.close(fd)
        with point(tmp_path) as opened:
            folders = list(opened.stream.folders())
    assert [entry.name for entry in folders[0].entries] == [b"file", b"sub"]
    assert [(item.path, "socket" in item.reason) for item in folders[0].skipped] == [((b"sock",), True)]
    assert folders[1].entries == []


def test_excluded_names_are_left_out_with_all_below(tmp_path: Path) -> None:
    """An excluded folder is not entered."""
    for name in ("keep/cache/x", "cache/y", "keep/a.tmp", "keep/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with point(tmp_path, exclude=("/cache/", "*.tmp")) as opened:
        seen = walk(opened.stream)
    assert seen == [((), [b"keep"]), ((b"keep",), [b"b", b"cache"]), ((b"keep", b"cache"), [b"x"])]


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/self/stat").exists(), reason="needs a second file system")
def test_one_file_system_does_not_enter_others(tmp_path: Path) -> None:
    """The mount point itself is kept, its content is skipped with a reason."""
    with point(Path("/"), one_file_system=True, exclude=("/*/*",)) as opened:
        first = next(iter(opened.stream.folders()))
    assert b"proc" in [entry.name for entry in first.entries]
    assert (b"proc",) in [item.path for item in first.skipped]


def test_folders_that_vanish_during_the_walk_are_left_out(tmp_path: Path) -> None:
    """Removed, replaced by a file or by a link after they were listed: the walk goes on."""
    for name in "abcd":
        (tmp_path / name / "in").mkdir(parents=True)
    with point(tmp_path) as opened:
        folders = opened.stream.folders()
        next(folders)
        (tmp_path / "a" / "in").rmdir()
        (tmp_path / "a").rmdir()
        (tmp_path / "b").rename(tmp_path / "moved")
        (tmp_path / "b").touch()
        (tmp_path / "c").rename(tmp_path / "moved-too")
        (tmp_path / "c").symlink_to("/etc")
        assert [folder.path for folder in folders] == [(b"d",), (b"d", b"in")]


def test_a_branch_moved_away_during_a_deep_walk_ends_quietly(tmp_path: Path) -> None:
    """Folders above whose descriptors were closed and that cannot be found again are left out; the rest is walked."""
    deep = tmp_path
    for _ in range(100):
        deep = deep / "d"
        deep.mkdir()
        (deep / "e").mkdir()
    (tmp_path / "z").mkdir()
    with point(tmp_path) as opened:
        folders = opened.stream.folders()
        for folder in folders:
            if len(folder.path) == 100:
                break
        (tmp_path / "d" / "d" / "d").rename(tmp_path.parent / f"{tmp_path.name}-away")
        rest = [folder.path for folder in folders]
    assert rest[-1] == (b"z",)


def test_files_are_read_by_extents_and_tell_when_they_changed(tmp_path: Path) -> None:
    """Holes are ZERO, data is DATA, without gaps; a change after the opening is noticed."""
    with open(tmp_path / "f", "wb") as out:
        out.truncate(1 << 20)
        out.seek(512 << 10)
        out.write(b"x" * 4096)
    with point(tmp_path) as opened:
        folders = opened.stream.folders()  # a folder is valid as long as its walk
        folder = next(folders)
        entry = folder.entries[0]
        assert entry.sparse
        with folder.open(entry) as data:
            extents = data.extents()
            assert [item.kind for item in extents] == [ExtentKind.ZERO, ExtentKind.DATA, ExtentKind.ZERO]
            assert extents[0].offset == 0
            assert sum(item.length for item in extents) == 1 << 20
            assert data.read_into(512 << 10, memoryview(bytearray(4096))) == 4096
            assert data.read_into((1 << 20) - 10, memoryview(bytearray(4096))) == 10
            assert not data.changed()
            with open(tmp_path / "f", "r+b") as out:
                out.write(b"y")
            assert data.changed()


def test_a_name_that_became_something_else_is_gone(tmp_path: Path) -> None:
    """A file that was replaced by a fifo, a link or nothing is not opened."""
    for name in "abc":
        (tmp_path / name).write_text("x")
    with point(tmp_path) as opened:
        folders = opened.stream.folders()  # a folder is valid as long as its walk
        folder = next(folders)
        for name in "abc":
            (tmp_path / name).unlink()
        os.mkfifo(tmp_path / "a")
        (tmp_path / "b").symlink_to("/etc/passwd")
        for entry in folder.entries:
            with pytest.raises(SourceGone):
                folder.open(entry)


def test_reading_does_not_change_access_times(tmp_path: Path) -> None:
    """O_NOATIME where it is allowed: a backup leaves no trace on the files."""
    (tmp_path / "f").write_text("x")
    os.utime(tmp_path / "f", ns=(5, 10**18))
    with point(tmp_path) as opened:
        folders = opened.stream.folders()  # a folder is valid as long as its walk
        folder = next(folders)
        folder.attributes(folder.entries[0])
        with folder.open(folder.entries[0]) as data:
            data.read_into(0, memoryview(bytearray(1)))
    assert os.stat(tmp_path / "f").st_atime_ns == 5


def test_a_registered_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """Missing: SourceGone. A symbolic link or a file: SourceError. Each sentence names the path."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    driver = FolderDriver()
    for name, error in (("missing", SourceGone), ("file", SourceError), ("link", SourceError)):
        with pytest.raises(error, match=name):
            driver.open_point(ref(tmp_path / name), PointWanted())
        inspection = driver.inspect(ref(tmp_path / name))
        assert not inspection.readable
        assert inspection.exists == (name != "missing")
        assert name in (inspection.reason or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_unreadable_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A backup that cannot see a part of the tree does not pass for a whole one."""
    (tmp_path / "open" / "shut").mkdir(parents=True)
    (tmp_path / "open" / "shut").chmod(0)
    fd = os.open(tmp_path, os.O_RDONLY)
    tree = FolderTree(fd, os.fsencode(tmp_path), SourceOptions(), 0)
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(SourceDenied, match="shut"):
            walk(tree)
    finally:
        os.seteuid(0)
        os.close(fd)


def test_unchanged_has_to_be_earned(tmp_path: Path) -> None:
    """What was changed less than 2 s before the walk may not be taken as unchanged by the next run."""
    (tmp_path / "fresh").touch()
    with point(tmp_path) as opened:
        entry = next(iter(opened.stream.folders())).entries[0]
        assert entry.ctime_ns >= opened.stream.unchanged_before_ns
        assert opened.stream.unchanged_before_ns <= time.time_ns() - 2_000_000_000


def test_the_token_tells_another_folder_apart(tmp_path: Path) -> None:
    """The parent counts for the same folder only, and never for a full backup."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    driver = FolderDriver()
    with driver.open_point(ref(tmp_path / "a"), PointWanted()) as first:
        assert first.full_reason is not None
        token = first.token
        first.commit()
        first.commit()
    with driver.open_point(ref(tmp_path / "a"), PointWanted(parent_token=token)) as again:
        assert again.full_reason is None
    with driver.open_point(ref(tmp_path / "b"), PointWanted(parent_token=token)) as other:
        assert "another folder" in (other.full_reason or "")
    with driver.open_point(ref(tmp_path / "a"), PointWanted(parent_token=token, full=True)) as full:
        assert full.full_reason is not None
    with driver.open_point(ref(tmp_path / "a"), PointWanted(parent_token=b"\xff{")) as odd:
        assert odd.full_reason is not None


def test_measuring_sums_file_sizes(tmp_path: Path) -> None:
    """Only when asked for; it is what a listing shows."""
    (tmp_path / "a").write_bytes(b"x" * 1000)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "b").write_bytes(b"x" * 24)
    driver = FolderDriver()
    assert driver.inspect(ref(tmp_path)).size_bytes is None
    assert driver.inspect(ref(tmp_path), measure=True).size_bytes == 1024
    assert stat.S_ISDIR(os.stat(tmp_path).st_mode)
