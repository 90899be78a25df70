"""Restoring into a folder: hostile trees stay inside, selections go to their place, the rest is listed."""

import os
import resource
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from source_trees import ACL, CAPABILITY, differences, listing, plain_entry, pump

from strongroom.base.errors import EntryNotFound, InvalidRequest, SourceError, TargetBusy, TargetDenied, TargetTooSmall
from strongroom.base.streams import NO_ATTRIBUTES, Attributes
from strongroom.sources.base import PointWanted, RestoreWanted, SourceOptions, SourceRef
from strongroom.sources.folder import FolderDriver, FolderTarget

FOLDER = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644
LINK = stat.S_IFLNK | 0o777
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def wanted(target: Path, **fields: object) -> RestoreWanted:
    options = fields.pop("options", SourceOptions())
    values: dict = {"task_id": "t1", "same_resource": True, "kind": "tree", "size_bytes": 10, **fields}
    place = SourceRef(resource_id="r", type="OS::Sfs::Turbo", path=os.fsencode(target), options=options)  # type: ignore[arg-type]
    return RestoreWanted(target=place, **values)


def open_target(target: Path, **fields: object) -> FolderTarget:
    driver = FolderDriver()
    return driver.open_target(driver.plan_restore(wanted(target, **fields)))


def put_file(target: FolderTarget, path: tuple[bytes, ...], data: bytes = b"x", mode: int = FILE) -> None:
    file = target.stream.file(path, plain_entry(path[-1] if path else b"", mode, size=len(data)), NO_ATTRIBUTES)
    file.write(0, memoryview(data))
    file.close()


def put_folder(target: FolderTarget, path: tuple[bytes, ...], mode: int = FOLDER) -> None:
    target.stream.folder(path, plain_entry(path[-1] if path else b"", mode), NO_ATTRIBUTES)


def put_link(target: FolderTarget, path: tuple[bytes, ...], to: bytes) -> None:
    target.stream.node(path, plain_entry(path[-1], LINK), Attributes(target=to))


# --- hostile trees --------------------------------------------------------------------------------------------------


def file_at(*path: bytes) -> Callable[[FolderTarget], None]:
    return lambda target: put_file(target, path)


def through_link(to: bytes, last: Callable[[FolderTarget], None]) -> Callable[[FolderTarget], None]:
    def act(target: FolderTarget) -> None:
        put_link(target, (b"l",), to)
        last(target)

    return act


HOSTILE = {
    "dots": file_at(b"..", b"evil"),
    "more dots": file_at(b"..", b"..", b"..", b"evil"),
    "dots as a name": file_at(b".."),
    "a dot": file_at(b"."),
    "empty name": file_at(b""),
    "empty part": file_at(b"", b"evil"),
    "slash in a name": file_at(b"a/../../evil"),
    "absolute name": file_at(b"/tmp/evil"),
    "nul": file_at(b"a\0b"),
    "name too long": file_at(b"x" * 256),
    "a staging place": file_at(b".strongroom-t1"),
    "inside a staging place": file_at(b".strongroom-t1", b"journal"),
    "root as a file": file_at(),
    "folder up": lambda target: put_folder(target, (b"..",)),
    "folder up then file": lambda target: put_folder(target, (b"a", b"..", b"..")),
    "file in no folder": file_at(b"never-made", b"x"),
    "twice": lambda target: (put_file(target, (b"a",)), put_file(target, (b"a",))),
    "folder twice": lambda target: (put_folder(target, (b"a",)), put_folder(target, (b"a",))),
    "file then below it": lambda target: (put_file(target, (b"a",)), put_file(target, (b"a", b"b"))),
    "through an absolute link": through_link(b"/tmp", file_at(b"l", b"evil")),
    "through a link up": through_link(b"../../..", file_at(b"l", b"evil")),
    "over a link": through_link(b"/etc/passwd", file_at(b"l")),
    "folder over a link": through_link(b"/tmp", lambda target: put_folder(target, (b"l",))),
    "link below a link": through_link(b"/tmp", lambda target: put_link(target, (b"l", b"evil"), b"x")),
    "folder below a link": through_link(b"/tmp", lambda target: put_folder(target, (b"l", b"evil"))),
    "link without a target": lambda target: put_link(target, (b"l",), b""),
    "link with a nul": lambda target: put_link(target, (b"l",), b"a\0b"),
    "hard link up": lambda target: target.stream.link((b"a",), (b"..", b"x"), plain_entry(b"a", FILE), NO_ATTRIBUTES),
    "hard link to a folder": lambda target: (
        put_folder(target, (b"d",)),
        target.stream.link((b"a",), (b"d",), plain_entry(b"a", FILE), NO_ATTRIBUTES),
    ),
    "hard link below a link": through_link(
        b"/tmp", lambda t: t.stream.link((b"l", b"evil"), (b"l",), plain_entry(b"a", FILE), NO_ATTRIBUTES)
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tree_is_refused_and_changes_nothing(name: str, tmp_path: Path) -> None:
    """Dots, slashes, links, doubles: TargetDenied, the live folder stays, and nothing appears beside it."""
    target = tmp_path / "a" / "b" / "target"
    target.mkdir(parents=True)
    (target / "live").write_text("live")
    outside = listing(tmp_path / "a")
    before_tmp = set(os.listdir("/tmp"))
    with pytest.raises(TargetDenied):
        with open_target(target) as opened:
            put_folder(opened, ())
            HOSTILE[name](opened)
            opened.finish()
    now = listing(tmp_path / "a")
    for seen in (outside, now):
        seen[(b"b", b"target")].pop("mtime")  # a staging place came and went
    assert differences(outside, now) == []
    assert not {"evil"} & (set(os.listdir("/tmp")) - before_tmp)


def test_a_hard_link_through_a_link_is_not_made(tmp_path: Path) -> None:
    """The first name of a hard link is looked for in restored folders only; otherwise the file is written."""
    (tmp_path / "secret").write_text("secret")
    target = tmp_path / "target"
    target.mkdir()
    with open_target(target) as opened:
        put_link(opened, (b"l",), os.fsencode(tmp_path))
        assert not opened.stream.link((b"a",), (b"l", b"secret"), plain_entry(b"a", FILE), NO_ATTRIBUTES)
        assert not opened.stream.link((b"a",), (b"nothing",), plain_entry(b"a", FILE), NO_ATTRIBUTES)


@root_only
def test_a_link_that_replaces_a_live_parent_is_not_followed(tmp_path: Path) -> None:
    """A selected path below a live link is refused: the restore would leave the folder."""
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (target / "d").symlink_to(outside)
    with pytest.raises(TargetDenied, match="not a folder now"):
        open_target(target, selection=((b"d", b"f"),))
    (target / "d").unlink()
    (target / "d").mkdir()
    with pytest.raises(TargetDenied):
        with open_target(target, selection=((b"d", b"f"),)) as opened:
            put_file(opened, (b"d", b"f"))
            (target / "d").rmdir()
            (target / "d").symlink_to(outside)  # while the restore runs
            opened.finish()
    assert list(outside.iterdir()) == []


# --- what goes where ------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    for name in ("top", "a/one", "a/two", "a/b/three", "c/four"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"new {name}")
    (path / "a" / "b").chmod(0o710)
    return path


def run(source: Path, target: Path, **fields: object) -> None:
    selection = fields.get("selection", ())
    driver = FolderDriver()
    with driver.open_point(wanted(source).target, PointWanted()) as point, open_target(target, **fields) as opened:
        pump(_Part(point.stream, selection), opened.stream)
        opened.finish()


class _Part:
    """What an engine hands over for a selection: full paths, the folders above included."""

    def __init__(self, stream: object, selection: object) -> None:
        self._stream, self._selection, self.root = stream, selection, stream.root  # type: ignore[attr-defined]

    def folders(self):  # type: ignore[no-untyped-def]
        for folder in self._stream.folders():  # type: ignore[attr-defined]
            if self._selection:
                folder.entries = [entry for entry in folder.entries if self._takes((*folder.path, entry.name))]
            yield folder

    def _takes(self, path: tuple[bytes, ...]) -> bool:
        return any(path == s[: len(path)] or path[: len(s)] == s for s in self._selection)  # type: ignore[attr-defined]


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_all_makes_the_folder_equal_but_keeps_excluded_names_and_sockets(source: Path, tmp_path: Path) -> None:
    """What the restore point lacks goes; what it can never hold stays at the top of the folder."""
    target = tmp_path / "target"
    (target / "cache").mkdir(parents=True)
    (target / "cache" / "x").write_text("kept")
    (target / "old").write_text("goes")
    with socket.socket(socket.AF_UNIX) as unix:
        fd = os.open(target, os.O_RDONLY)
        unix.bind(f"/proc/self/fd/{fd}/sock")
        os.close(fd)
    run(source, target, options=SourceOptions(exclude=("/cache",)))
    assert files(target) == files(source) | {"cache/x": "kept"}
    assert sorted(os.listdir(target)) == ["a", "c", "cache", "sock", "top"]


def test_a_selected_path_goes_back_to_its_place(source: Path, tmp_path: Path) -> None:
    """Its neighbours stay as they are; missing folders above it are made as they were."""
    target = tmp_path / "target"
    (target / "a").mkdir(parents=True)
    (target / "a" / "one").write_text("live")
    (target / "a" / "two").write_text("live")
    run(source, target, selection=((b"a", b"two"), (b"a", b"b", b"three")))
    assert files(target) == {"a/one": "live", "a/two": "new a/two", "a/b/three": "new a/b/three"}
    assert stat.S_IMODE((target / "a" / "b").stat().st_mode) == 0o710


def test_a_selected_folder_replaces_the_live_one(source: Path, tmp_path: Path) -> None:
    """A folder is moved as a whole: what it did not hold goes."""
    target = tmp_path / "target"
    (target / "a").mkdir(parents=True)
    (target / "a" / "extra").write_text("goes")
    (target / "top").write_text("live")
    run(source, target, selection=((b"a",),))
    assert files(target) == {"a/one": "new a/one", "a/two": "new a/two", "a/b/three": "new a/b/three", "top": "live"}


def test_a_selection_can_go_into_another_folder(source: Path, tmp_path: Path) -> None:
    """Under its last name, below `sub_path`, which is made when it is missing."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "top").write_text("live")
    run(source, target, selection=((b"a", b"b"), (b"c", b"four")), sub_path=(b"restored", b"here"))
    assert files(target) == {
        "top": "live",
        "restored/here/b/three": "new a/b/three",
        "restored/here/four": "new c/four",
    }


def test_everything_can_go_into_a_sub_folder(source: Path, tmp_path: Path) -> None:
    """The whole tree beside the live content."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "top").write_text("live")
    run(source, target, sub_path=(b"restored",))
    assert files(target) == {"top": "live"} | {f"restored/{name}": text for name, text in files(source).items()}
    assert stat.S_IMODE((target / "restored").stat().st_mode) == stat.S_IMODE(source.stat().st_mode)


def test_what_was_not_selected_is_refused(tmp_path: Path) -> None:
    """A stream that hands over more than was asked for does not get it written."""
    target = tmp_path / "target"
    target.mkdir()
    with open_target(target, selection=((b"a", b"b"),)) as opened:
        put_folder(opened, (b"a",))
        with pytest.raises(TargetDenied, match="not selected"):
            put_file(opened, (b"a", b"c"))


def test_a_selection_that_the_restore_point_lacks_is_an_error(tmp_path: Path) -> None:
    """Nothing handed over: EntryNotFound naming the path, and nothing changed."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").write_text("live")
    with pytest.raises(EntryNotFound, match="a"):
        with open_target(target, selection=((b"a",),)) as opened:
            opened.finish()
    assert files(target) == {"a": "live"}


@pytest.mark.parametrize(
    ("selection", "sub_path", "error"),
    [
        (((b"a", b"x"), (b"b", b"x")), (b"to",), InvalidRequest),
        (((b"..", b"x"),), None, TargetDenied),
        (((b"a",),), (b"..",), TargetDenied),
        ((), (b"a", b"/"), TargetDenied),
    ],
)
def test_a_selection_that_cannot_be_is_refused(
    selection: tuple, sub_path: tuple | None, error: type, tmp_path: Path
) -> None:
    """Two with one name, and paths that lead out."""
    with pytest.raises(error):
        FolderDriver().plan_restore(wanted(tmp_path, selection=selection, sub_path=sub_path))


# --- what may be set ------------------------------------------------------------------------------------------------


@root_only
def test_another_resource_gets_no_devices_setid_or_trusted_attributes(tmp_path: Path) -> None:
    """RULINGS 17: left out and listed, unless the target is registered as privileged."""
    trusted = Attributes(xattrs=((b"security.capability", CAPABILITY), (b"trusted.t", b"1"), (b"user.u", b"2")))
    for privileged in (False, True):
        target = tmp_path / f"target-{privileged}"
        target.mkdir()
        options = SourceOptions(privileged=privileged)
        with open_target(target, same_resource=False, options=options) as opened:
            opened.stream.node(
                (b"dev",), plain_entry(b"dev", stat.S_IFCHR | 0o600, rdev=os.makedev(1, 3)), NO_ATTRIBUTES
            )
            put_file(opened, (b"suid",), mode=stat.S_IFREG | 0o4755)
            put_folder(opened, (b"sgid",), mode=stat.S_IFDIR | 0o2755)
            opened.stream.file((b"x",), plain_entry(b"x", FILE), trusted).close()
            report = opened.finish()
        assert (target / "dev").exists() == privileged
        assert (target / "suid").stat().st_mode & 0o7777 == (0o4755 if privileged else 0o755)
        assert (target / "sgid").stat().st_mode & 0o7777 == (0o2755 if privileged else 0o755)
        assert set(os.listxattr(target / "x")) == {"user.u"} | (
            {"security.capability", "trusted.t"} if privileged else set()
        )
        listed = [item.path for item in report.left_out]
        assert listed == ([] if privileged else [(b"dev",), (b"sgid",), (b"suid",), (b"x",), (b"x",)])


@root_only
def test_without_root_owners_are_listed_and_setuid_is_never_given(tmp_path: Path) -> None:
    """A file that stays the service's own must not become setuid; read-only folders still move into place."""
    target = tmp_path / "target"
    target.mkdir()
    for path in (target, tmp_path):
        os.chown(path, 65534, 65534)
    for parent in tmp_path.parents:
        if parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(0o755)
    os.setegid(65534)
    os.seteuid(65534)
    try:
        for _ in range(2):  # the second one moves the first one's closed folder away
            with open_target(target) as opened:
                put_folder(opened, (), mode=stat.S_IFDIR | 0o750)
                put_folder(opened, (b"closed",), mode=stat.S_IFDIR | 0o500)
                put_file(opened, (b"closed", b"in"), mode=stat.S_IFREG)
                file = opened.stream.file((b"suid",), plain_entry(b"suid", stat.S_IFREG | 0o4755, uid=0), NO_ATTRIBUTES)
                file.close()
                opened.stream.node(
                    (b"dev",), plain_entry(b"dev", stat.S_IFCHR | 0o600, rdev=os.makedev(1, 3)), NO_ATTRIBUTES
                )
                report = opened.finish()
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert report.warnings == ()
    assert (target / "suid").stat().st_mode & 0o7777 == 0o755
    assert (target / "closed").stat().st_mode & 0o7777 == 0o500
    assert {item.path for item in report.left_out} == {(b"suid",), (b"dev",)}
    assert sorted(os.listdir(target)) == ["closed", "suid"]


@root_only
def test_inherited_acls_of_the_root_do_not_leak_into_restored_files(tmp_path: Path) -> None:
    """A default ACL of the live folder is not passed on to what is staged in it."""
    target = tmp_path / "target"
    target.mkdir()
    os.setxattr(target, "system.posix_acl_default", ACL)
    with open_target(target) as opened:
        put_folder(opened, (b"d",))
        put_file(opened, (b"d", b"f"))
        opened.finish()
    assert os.listxattr(target / "d") == []
    assert os.listxattr(target / "d" / "f") == []
    assert os.listxattr(target) == ["system.posix_acl_default"]  # no root record was handed over


# --- conflicts ------------------------------------------------------------------------------------------------------


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """Bytes and inodes beside the live files; the plan has the sentence, open_target raises."""
    driver = FolderDriver()
    for much in (wanted(tmp_path, size_bytes=1 << 60), wanted(tmp_path, entries=1 << 40)):
        plan = driver.plan_restore(much)
        assert len(plan.conflicts) >= 1
        assert plan.staging == os.fsencode(tmp_path / ".strongroom-t1")
        with pytest.raises(TargetTooSmall, match="free"):
            driver.open_target(plan)
    assert os.listdir(tmp_path) == []


@root_only
def test_a_file_system_mounted_inside_is_not_removed_with_the_old_files(tmp_path: Path) -> None:
    """Restoring all is refused; selected paths elsewhere go."""
    inside = tmp_path / "d" / "mounted here"
    inside.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "none", str(inside)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        with pytest.raises(TargetDenied, match="mounted inside"):
            open_target(tmp_path)
        for selection in (((b"d",),), ((b"d", b"mounted here"),)):
            with pytest.raises(TargetDenied, match="mounted inside"):
                open_target(tmp_path, selection=selection)
        with pytest.raises(TargetDenied, match="another file system"):
            open_target(tmp_path, selection=((b"d", b"mounted here", b"x"),))
        with open_target(tmp_path, selection=((b"e",),)):
            pass
    finally:
        subprocess.run(["umount", str(inside)], check=True)


def test_two_attempts_of_one_task_do_not_meet(tmp_path: Path) -> None:
    """The second is refused while the first lives, and settles what it left when it is dead."""
    with open_target(tmp_path):
        with pytest.raises(TargetBusy):
            open_target(tmp_path)
    with open_target(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_disk_does_not_go_into_a_folder(tmp_path: Path) -> None:
    """The kind is checked."""
    with pytest.raises(TargetDenied, match="folder"):
        open_target(tmp_path, kind="block")


def test_an_odd_task_id_is_refused(tmp_path: Path) -> None:
    """It becomes a name."""
    with pytest.raises(InvalidRequest):
        open_target(tmp_path, task_id="../x")


# --- threads, sizes, odd file systems -------------------------------------------------------------------------------


def test_files_may_be_written_by_several_threads_and_in_any_order(tmp_path: Path) -> None:
    """Four threads, files of pieces from the end to the start; holes stay holes, sizes are exact."""
    target = tmp_path / "target"
    target.mkdir()
    piece, pieces, count = 8192, 8, 40
    errors: list[BaseException] = []
    with open_target(target) as opened:
        for number in range(count):
            put_folder(opened, (b"%d" % number,))

        def work(mine: int) -> None:
            try:
                for number in range(mine, count, 4):
                    size = piece * pieces * 2
                    entry = plain_entry(b"f", FILE, size=size)
                    file = opened.stream.file((b"%d" % number, b"f"), entry, NO_ATTRIBUTES)
                    for at in reversed(range(pieces)):
                        file.write(at * piece, memoryview(b"%02d" % at * (piece // 2)))
                    file.close()
            except (OSError, SourceError) as err:
                errors.append(err)

        threads = [threading.Thread(target=work, args=(mine,)) for mine in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        opened.finish()
    assert errors == []
    expected = b"".join(b"%02d" % at * (piece // 2) for at in range(pieces)) + bytes(piece * pieces)
    assert all((target / str(number) / "f").read_bytes() == expected for number in range(count))


def test_what_this_file_system_cannot_have_is_listed(tmp_path: Path) -> None:
    """A link that is too long for it, as those beyond 1024 bytes are on XFS: left out, and the restore goes on."""
    with open_target(tmp_path) as opened:
        put_link(opened, (b"long",), b"y" * 5000)
        put_file(opened, (b"f",))
        report = opened.finish()
    assert [item.path for item in report.left_out] == [(b"long",)]
    assert os.listdir(tmp_path) == ["f"]


def test_no_room_is_a_sentence_that_says_so(tmp_path: Path) -> None:
    """A write that finds no room: SourceError about room, and the live folder is as it was."""
    (tmp_path / "live").write_text("live")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(SourceError, match="no room"):
            with open_target(tmp_path) as opened:
                put_file(opened, (b"f",), bytes(1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["live"]


# --- owner and mode at birth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
@pytest.mark.parametrize("setgid", [False, True])
def test_modes_are_exact_whatever_the_process_and_the_folder_pass_on(tmp_path: Path, umask: int, setgid: bool) -> None:
    """Neither umask nor a setgid bit of the root changes a mode, of the first entry of its kind or a later one."""
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o2755 if setgid else 0o755)
    modes = (0o644, 0o600, 0o777, 0o444, 0o640, 0o000, 0o4755, 0o1644)
    before = os.umask(umask)
    try:
        with open_target(root) as target:
            for folder in (b"a", b"b"):
                put_folder(target, (folder,))
                for mode in (0o755, 0o700, 0o500, 0o2775, 0o1777):
                    for twice in (b"1", b"2"):
                        put_folder(target, (folder, b"%o-%s" % (mode, twice)), stat.S_IFDIR | mode)
                for mode in modes:
                    for twice in (b"1", b"2"):
                        put_file(target, (folder, b"f%o-%s" % (mode, twice)), mode=stat.S_IFREG | mode)
            target.finish()
    finally:
        os.umask(before)
    for folder in ("a", "b"):
        for entry in (root / folder).iterdir():
            wanted_mode = int(entry.name.split("-")[0].lstrip("f"), 8)
            assert stat.S_IMODE(entry.stat().st_mode) == wanted_mode, entry


@root_only
def test_owners_are_exact_for_each_of_a_kind(tmp_path: Path) -> None:
    """Files and folders of other owners get them, those of ours keep ours, in any order."""
    owners = [(0, 0), (1000, 1000), (0, 1000), (1000, 0)]
    with open_target(tmp_path) as target:
        for number, (uid, gid) in enumerate(owners * 3):
            name = b"%d" % number
            entry = plain_entry(name, FOLDER)._replace(uid=uid, gid=gid)
            target.stream.folder((b"d" + name,), entry, NO_ATTRIBUTES)
            target.stream.folder((b"d" + name, b"inside"), entry, NO_ATTRIBUTES)
            file = target.stream.file(
                (name,), plain_entry(name, FILE, size=0)._replace(uid=uid, gid=gid), NO_ATTRIBUTES
            )
            file.close()
        target.finish()
    for number, owner in enumerate(owners * 3):
        for path in (tmp_path / str(number), tmp_path / f"d{number}", tmp_path / f"d{number}" / "inside"):
            found = path.stat()
            assert (found.st_uid, found.st_gid) == owner, path
