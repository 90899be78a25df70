"""Two attempts of one restore at one staging place: one that was frozen wakes up while its successor begins."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from strongroom.base.errors import AttemptAlive
from strongroom.sources.image_target import make_staged
from strongroom.sources.stage import Stage, stage_name

NAME = stage_name("0123-task")
CALLS = ("mkdir", "open", "rename", "rmdir", "unlink", "stat", "fstat", "fsync", "scandir")
POINTS_MAX = 200


@pytest.fixture
def root_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


class Preempted:
    """Runs `other` once, before the n-th system call of whoever is at work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, other: Callable[[], object]) -> None:
        self.left, self.other = number, other
        self.got: object = None
        for module, names in ((os, CALLS), (fcntl, ("flock",))):
            for name in names:
                monkeypatch.setattr(module, name, self._before(getattr(module, name)))

    def _before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.got = self.other()
            return call(*args, **options)

        return counted


def begin(root_fd: int) -> Stage | None:
    """What a restore does first; None: another one is at it."""
    try:
        left = Stage.find(root_fd, NAME)
        if left is not None:
            left.remove()
        return Stage.make(root_fd, NAME)
    except AttemptAlive:
        return None


def begin_image(root_fd: int) -> int | None:
    try:
        return make_staged(root_fd, NAME)
    except AttemptAlive:
        return None


def each_point(
    root_fd: int, first: Callable[[], object], second: Callable[[], object], prepare: Callable[[], object]
) -> Iterator[tuple[object, object]]:
    """What both got, with the second as a whole before the n-th call of the first, for every n."""
    for number in range(1, POINTS_MAX):
        prepare()
        with pytest.MonkeyPatch.context() as patch:
            preempted = Preempted(patch, number, second)
            mine = first()
        if preempted.left > 0:
            assert number > 3, "nothing was counted"
            return
        yield mine, preempted.got
    raise AssertionError("there is no end to it")


@pytest.mark.parametrize("left_over", [False, True])
def test_only_one_of_two_attempts_gets_the_staging_place(root_fd: int, left_over: bool) -> None:
    """The other one is told to come again, and then gets it: neither fails, whatever is between them."""

    def prepare() -> None:
        stage = begin(root_fd)
        assert stage is not None
        if left_over:
            stage.close()
        else:
            stage.remove()

    for mine, others in each_point(root_fd, lambda: begin(root_fd), lambda: begin(root_fd), prepare):
        holders = [stage for stage in (mine, others) if isinstance(stage, Stage) and alive(root_fd, stage)]
        assert len(holders) <= 1
        for stage in (mine, others):
            if isinstance(stage, Stage):
                stage.close()
        again = begin(root_fd)
        assert again is not None
        again.remove()
        assert os.listdir(root_fd) == []


def alive(root_fd: int, stage: Stage) -> bool:
    """Whether it is the one that lies there."""
    return os.path.samestat(os.fstat(stage.fd), os.stat(NAME, dir_fd=root_fd))


def let_go(held: list[Stage]) -> None:
    held[0].remove()


def test_an_attempt_that_begins_while_the_last_one_cleans_up_does_not_fail(root_fd: int) -> None:
    """The last one holds the lock until it has removed it; what is left then, both may remove."""
    held: list[Stage] = []

    def prepare() -> None:
        stage = begin(root_fd)
        assert stage is not None
        held[:] = [stage]

    for _, others in each_point(root_fd, lambda: let_go(held), lambda: begin(root_fd), prepare):
        held[0].close()
        if isinstance(others, Stage):
            assert alive(root_fd, others), "the one that went took the new one with it"
            others.close()
        again = begin(root_fd)
        assert again is not None
        again.remove()


def test_only_one_of_two_attempts_gets_the_new_image(root_fd: int) -> None:
    """As for a folder: never two that write, and who did not get it may come again."""

    def prepare() -> None:
        for name in os.listdir(root_fd):
            os.unlink(name, dir_fd=root_fd)
        os.close(os.open(NAME, os.O_CREAT, 0o600, dir_fd=root_fd))

    for mine, others in each_point(root_fd, lambda: begin_image(root_fd), lambda: begin_image(root_fd), prepare):
        fds = [fd for fd in (mine, others) if isinstance(fd, int)]
        assert len(fds) <= 1 or not os.path.samestat(os.fstat(fds[0]), os.fstat(fds[1]))
        for fd in fds:
            os.close(fd)
        again = begin_image(root_fd)
        assert again is not None
        os.close(again)
