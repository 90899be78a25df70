"""Random trees and operations: a restore always makes the folder equal to what was backed up, and nothing more."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from source_trees import ACL, differences, listing, pump

from strongroom.base.ids import new_id
from strongroom.sources.base import PointWanted, RestoreWanted, SourceRef
from strongroom.sources.folder import FolderDriver

NAMES = [b"a", b"b", b"a.b", b"\xff", b"n\nl", b"-", b"ab", b"z" * 200]
Operation = tuple[str, tuple[bytes, ...], int]

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple)
kinds = ["folder", "write", "sparse", "link", "hard", "fifo", "mode", "xattr", "time", "remove", "rename", "acl"]
operations = st.lists(st.tuples(st.sampled_from(kinds), paths, st.integers(0, 1 << 16)), max_size=30)


def apply(root: bytes, operation: Operation) -> None:
    """One change as a user would make it; what the state does not allow is left."""
    kind, path, number = operation
    place = b"/".join((root, *path))
    try:
        _apply(root, kind, place, number)
    except (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
        return
    except OSError as err:
        note(f"{operation}: {err}")


def _apply(root: bytes, kind: str, place: bytes, number: int) -> None:
    if os.path.exists(place) and stat.S_ISFIFO(os.stat(place).st_mode) and kind in ("write", "sparse"):
        return  # opening it would wait for a reader
    if kind == "folder":
        os.makedirs(place)
    elif kind == "write":
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as out:
            out.write(b"%d" % number * (number % 700))
    elif kind == "sparse":
        with open(place, "r+b") as out:
            out.truncate(number * 64)
            out.seek(number * 32)
            out.write(b"data")
    elif kind == "link":
        os.symlink(NAMES[number % len(NAMES)], place)
    elif kind == "hard":
        os.link(b"/".join((root, NAMES[number % len(NAMES)])), place, follow_symlinks=False)
    elif kind == "fifo":
        os.mkfifo(place)
    elif os.path.islink(place):
        return
    elif kind == "mode":
        os.chmod(place, number % 0o1000 | 0o400)
    elif kind == "xattr":
        os.setxattr(place, b"user.%d" % (number % 3), b"%d" % number)
    elif kind == "acl":
        os.setxattr(place, "system.posix_acl_access", ACL)
    elif kind == "time":
        os.utime(place, ns=(1, number * 1_000_003))
    elif kind == "remove":
        shutil.rmtree(place) if os.path.isdir(place) else os.unlink(place)
    elif kind == "rename":
        os.rename(place, b"/".join((root, NAMES[number % len(NAMES)])))


def ref(path: Path) -> SourceRef:
    return SourceRef(resource_id="r", type="OS::Sfs::Turbo", path=os.fsencode(path))


def restore(source: Path, target: Path, selection: tuple[tuple[bytes, ...], ...] = ()) -> None:
    driver = FolderDriver()
    wanted = RestoreWanted(
        task_id=new_id(), target=ref(target), same_resource=True, kind="tree", size_bytes=0, selection=selection
    )
    with driver.open_point(ref(source), PointWanted()) as point:
        with driver.open_target(driver.plan_restore(wanted)) as opened:
            stream = Selected(point.stream, selection) if selection else point.stream
            pump(stream, opened.stream)  # type: ignore[arg-type]
            report = opened.finish()
    assert report.left_out == ()
    assert report.warnings == ()


class Selected:
    """The part of a stream that an engine hands over for a selection."""

    def __init__(self, stream, selection) -> None:  # type: ignore[no-untyped-def]
        self._stream, self._selection, self.root = stream, selection, stream.root

    def folders(self):  # type: ignore[no-untyped-def]
        for folder in self._stream.folders():
            folder.entries = [entry for entry in folder.entries if self._takes((*folder.path, entry.name))]
            yield folder

    def _takes(self, path: tuple[bytes, ...]) -> bool:
        return any(path == s[: len(path)] or path[: len(s)] == s for s in self._selection)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(st.lists(st.tuples(operations, operations), min_size=1, max_size=3))
def test_a_restore_makes_any_folder_equal_to_any_other(rounds: list[tuple[list[Operation], list[Operation]]]) -> None:
    """Source and target both change at random between restores; after each they are equal."""
    with tempfile.TemporaryDirectory() as base:
        source, target = Path(base, "source"), Path(base, "target")
        source.mkdir()
        target.mkdir()
        for mine, theirs in rounds:
            for operation in mine:
                apply(os.fsencode(source), operation)
            for operation in theirs:
                apply(os.fsencode(target), operation)
            restore(source, target)
            assert differences(listing(source), listing(target)) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(operations, operations, st.integers(0, 1 << 16))
def test_a_selected_path_is_restored_and_nothing_else_is_touched(
    mine: list[Operation], theirs: list[Operation], choice: int
) -> None:
    """Below the selected path the target equals the source, everywhere else it is as it was."""
    with tempfile.TemporaryDirectory() as base:
        source, target = Path(base, "source"), Path(base, "target")
        source.mkdir()
        target.mkdir()
        for operation in [("write", (b"a", b"b"), 7), *mine]:
            apply(os.fsencode(source), operation)
        for operation in theirs:
            apply(os.fsencode(target), operation)
        wanted, before = listing(source), listing(target)
        candidates = sorted(path for path in wanted if path)
        assume(candidates)  # the operations may have removed all of it
        path = candidates[choice % len(candidates)]
        if any(above in before and not _is_folder(before[above]) for above in _above(path)):
            return  # refused: the subject of another test
        restore(source, target, (path,))
        after = listing(target)
        inside = {at: seen for at, seen in after.items() if at[: len(path)] == path}
        expected = {at: seen for at, seen in wanted.items() if at[: len(path)] == path}
        assert _without_links(expected) == _without_links(inside)
        others = {at: seen for at, seen in before.items() if at[: len(path)] != path and at not in _above(path)}
        now = {at: seen for at, seen in after.items() if at in others}
        assert _without_links(others) == _without_links(now)
        made = after.keys() - inside.keys() - others.keys()
        assert made <= set(_above(path))


def _above(path: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
    return [path[:length] for length in range(len(path))]


def _is_folder(seen: dict[str, object]) -> bool:
    return stat.S_ISDIR(int(str(seen["mode"]), 8))


def _without_links(found: dict) -> dict:
    """Names of one file may lie inside and outside of what was selected."""
    return {path: {key: value for key, value in seen.items() if key != "hard"} for path, seen in found.items()}
