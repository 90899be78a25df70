"""A folder restore that dies or fails at any step leaves the old state or the new one, and nothing of its own."""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from source_trees import GETFLAGS, SETFLAGS, differences, listing, loosen_all, pump

from strongroom.base.errors import SourceError
from strongroom.base.ids import new_id
from strongroom.sources.base import PointWanted, RestoreWanted, SourceOptions, SourceRef
from strongroom.sources.folder import FolderDriver

STEPS_MAX = 400  # a restore that never ends is a fault of the test
DIED = 9


def set_flags(path: Path, flags: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        old = struct.unpack("l", fcntl.ioctl(fd, GETFLAGS, b"\0" * 8))[0]
        fcntl.ioctl(fd, SETFLAGS, struct.pack("l", old | flags))
    finally:
        os.close(fd)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder to be restored into, the tree it shall become, and what both look like."""

    source: Path
    target: Path
    selection: tuple[tuple[bytes, ...], ...] = ()

    def wanted(self, task_id: str) -> RestoreWanted:
        return RestoreWanted(
            task_id=task_id,
            target=ref(self.target),
            same_resource=True,
            kind="tree",
            size_bytes=100,
            selection=self.selection,
        )


def ref(path: Path) -> SourceRef:
    options = SourceOptions(exclude=("cache/",))
    return SourceRef(resource_id="r", type="OS::Sfs::Turbo", path=os.fsencode(path), options=options)


def make_case(base: Path, selection: tuple[tuple[bytes, ...], ...] = ()) -> Case:
    source, target = base / "source", base / "target"
    for root, text in ((source, "new"), (target, "old")):
        (root / "both").mkdir(parents=True)
        (root / "both" / "inside").write_text(text)
        (root / "kept").write_text(text)
        (root / "closed").mkdir()
        (root / "closed" / "x").write_text(text)
    (source / "only-new" / "deep" / "er").mkdir(parents=True)
    (source / "only-new" / "deep" / "er" / "file").write_text("new")
    (source / "only-new" / "deep").chmod(0o750)
    (target / "only-old").write_text("old")
    source.chmod(0o711)
    (target / "pinned").write_text("old")
    for place in (target, target / "both", target / "closed"):
        (place / "cache").mkdir()
        (place / "cache" / "of a user").write_text("kept")
    for root in (source, target):
        (root / "closed").chmod(0o500)
        for path in (root, *root.rglob("*")):
            os.utime(path, ns=(3, 1_111_111_111_000_000_000))
    if os.geteuid() == 0:
        set_flags(target / "pinned", 0x10)
        set_flags(source / "both" / "inside", 0x10)
        set_flags(source / "kept", 0x20)
    return Case(source=source, target=target, selection=selection)


@pytest.fixture
def bases(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    made: list[Path] = []

    def make() -> Path:
        made.append(tmp_path / str(len(made)))
        made[-1].mkdir()
        return made[-1]

    yield make
    loosen_all(tmp_path)


def restore(case: Case, task_id: str, trace: Callable[[str], None]) -> None:
    driver = FolderDriver(trace=trace)
    with driver.open_point(ref(case.source), PointWanted()) as point:
        with driver.open_target(driver.plan_restore(case.wanted(task_id))) as target:
            pump(SelectedStream(point.stream, case.selection), target.stream)
            target.finish()


class SelectedStream:
    """The part of a stream that an engine hands over for a selection: full paths, folders above included."""

    def __init__(self, stream, selection) -> None:
        self._stream, self._selection = stream, selection
        self.root = stream.root

    def folders(self):
        for folder in self._stream.folders():
            if self._selection:
                folder.entries = [e for e in folder.entries if self._takes((*folder.path, e.name))]
            yield folder

    def _takes(self, path) -> bool:
        return any(path == s[: len(path)] or path[: len(s)] == s for s in self._selection)


def dies_at(step: int) -> Callable[[str], None]:
    """A trace that ends the process at the n-th step, without any clean-up."""
    count = 0

    def trace(_: str) -> None:
        nonlocal count
        count += 1
        if count == step:
            os._exit(DIED)

    return trace


def in_child(work: Callable[[], object]) -> bool:
    """True when it ran to its end, False when the process died in it. An error in it fails the test."""
    pid = os.fork()
    if pid == 0:
        code = 77
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, DIED), f"the child failed with {code}"
    return code == 0


def state(case: Case) -> dict:
    """What is there, without the times of live folders that names are moved in and out of."""
    found = listing(case.target)
    for path in ((), *(selected[:-1] for selected in case.selection)):
        found.get(path, {}).pop("mtime", None)
    return found


def check_outcome(case: Case, old: dict, new: dict, step: int) -> str:
    """Old or new, and nothing of ours left."""
    now = state(case)
    for name, wanted in (("old", old), ("new", new)):
        if not differences(wanted, now):
            return name
    pytest.fail(f"step {step}: neither old {differences(old, now)} nor new {differences(new, now)}")


def test_excluded_names_are_kept_in_folders_that_are_replaced(bases) -> None:
    """What no restore point can hold moves over into the new folders, whose times stay."""
    case = make_case(bases())
    restore(case, new_id(), lambda _: None)
    assert {str(path.relative_to(case.target)) for path in case.target.rglob("of a user")} == {
        "cache/of a user",
        "both/cache/of a user",
        "closed/cache/of a user",
    }
    assert (case.target / "both").stat().st_mtime_ns == 1_111_111_111_000_000_000
    assert (case.target / "both" / "inside").read_text() == "new"
    assert not (case.target / "only-old").exists()


def expected(base: Path, selection: tuple[tuple[bytes, ...], ...]) -> tuple[dict, dict]:
    """(old state, new state) of a case."""
    case = make_case(base, selection)
    old = state(case)
    restore(case, new_id(), lambda _: None)
    return old, state(case)


SELECTIONS = [(), ((b"only-new", b"deep", b"er"), (b"both", b"inside"), (b"kept",))]


@pytest.mark.parametrize("selection", SELECTIONS, ids=["all", "selected"])
def test_a_restore_killed_at_any_step_ends_old_or_new_after_recover(bases, selection) -> None:
    """Killed at step n = 1, 2, ...: after recover the folder is all old or all new, and no staging place is left."""
    old, new = expected(bases(), selection)
    outcomes = []
    for step in range(1, STEPS_MAX):
        case, task_id = make_case(bases(), selection), new_id()
        ended = in_child(lambda: restore(case, task_id, dies_at(step)))  # noqa: B023 - runs at once
        settled = FolderDriver().recover(ref(case.target), frozenset({task_id}))
        outcomes.append(check_outcome(case, old, new, step))
        if settled:
            assert settled[0].outcome == {"old": "back", "new": "forward"}[outcomes[-1]]
        assert FolderDriver().recover(ref(case.target), frozenset({task_id})) == ()
        if ended:
            break
    else:
        pytest.fail("the restore never ended")
    assert outcomes == sorted(outcomes, reverse=True), "once it is new, a later death cannot make it old"
    assert set(outcomes) == {"old", "new"}


def test_the_next_attempt_of_the_same_task_needs_no_recover(bases) -> None:
    """Killed at any step, the same restore run again ends in the new state."""
    _, new = expected(bases(), ())
    for step in range(1, STEPS_MAX):
        case, task_id = make_case(bases()), new_id()
        ended = in_child(lambda: restore(case, task_id, dies_at(step)))  # noqa: B023 - runs at once
        restore(case, task_id, lambda _: None)
        assert differences(new, state(case)) == [], f"step {step}"
        if ended:
            return
    pytest.fail("the restore never ended")


def test_recover_killed_at_any_step_is_finished_by_the_next_one(bases) -> None:
    """A crash inside of recover, after a crash in the middle of the swap, still ends in the new state."""
    _, new = expected(bases(), ())
    for step in range(1, STEPS_MAX):
        case, task_id = make_case(bases()), new_id()
        middle = 8  # some units moved, some not
        assert not in_child(lambda: restore(case, task_id, dies_at(middle)))  # noqa: B023 - runs at once
        finished = frozenset({task_id})
        ended = in_child(lambda: FolderDriver(trace=dies_at(step)).recover(ref(case.target), finished))  # noqa: B023
        FolderDriver().recover(ref(case.target), finished)
        assert differences(new, state(case)) == [], f"step {step}"
        if ended:
            assert step > 3
            return
    pytest.fail("recover never ended")


@pytest.mark.parametrize("selection", SELECTIONS, ids=["all", "selected"])
def test_a_step_that_fails_once_is_reported_and_leaves_old_or_new(bases, selection) -> None:
    """An OSError at step n = 1, 2, ...: the restore raises SourceError, and the folder is all old or all new."""
    old, new = expected(bases(), selection)
    outcomes = []
    for step in range(1, STEPS_MAX):
        case, task_id = make_case(bases(), selection), new_id()
        count = 0

        def trace(_: str, step: int = step) -> None:
            nonlocal count
            count += 1
            if count == step:
                raise OSError(errno.EIO, "made up")

        try:
            restore(case, task_id, trace)
        except SourceError:
            FolderDriver().recover(ref(case.target), frozenset({task_id}))
            outcomes.append(check_outcome(case, old, new, step))
        else:
            assert check_outcome(case, old, new, step) == "new"
            break
    else:
        pytest.fail("the restore never ended")
    assert "old" in outcomes


def test_leaving_the_target_without_finish_keeps_the_old_state(bases) -> None:
    """An error while the tree is staged rolls back."""
    old, _ = expected(bases(), ())
    case = make_case(bases())
    driver = FolderDriver()
    with pytest.raises(ZeroDivisionError):
        with driver.open_target(driver.plan_restore(case.wanted(new_id()))) as target:
            with driver.open_point(ref(case.source), PointWanted()) as point:
                pump(point.stream, target.stream)
            raise ZeroDivisionError
    assert differences(old, state(case)) == []


def test_recover_leaves_other_tasks_and_living_processes_alone(bases) -> None:
    """Only staging places of the tasks it is told of, and that nobody holds, are settled."""
    case, mine, other = make_case(bases()), new_id(), new_id()
    driver = FolderDriver()
    with driver.open_target(driver.plan_restore(case.wanted(other))):
        assert driver.recover(ref(case.target), frozenset({mine})) == ()
        assert driver.recover(ref(case.target), frozenset({other})) == ()
        assert (case.target / f".strongroom-{other}").is_dir()


def test_a_journal_that_is_not_ours_is_not_believed(bases) -> None:
    """A staging place that somebody else may write to is left alone."""
    case, task_id = make_case(bases()), new_id()
    place = case.target / f".strongroom-{task_id}"
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    (place / "journal").write_text('{"format": 1, "state": "swapping", "moves": []}')
    assert FolderDriver().recover(ref(case.target), frozenset({task_id})) == ()
    assert place.is_dir()
