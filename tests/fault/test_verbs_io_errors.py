"""The N-th system call of a backup and of a prune fails, on the folder store: EIO, a full disk, a short write.

One level below test_verbs_fault.py: here the store itself has to say the truth about what the kernel told it.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_world import MONITOR, World, base, reopen, run_backup
from reliability import report

from strongroom.base.errors import Corrupt, StoreError, StoreFull
from strongroom.engine import Repository
from strongroom.engine.store.posix import TEMPORARY_PREFIX, PosixStore
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
CALLS = ("open", "mkdir", "pwrite", "pread", "preadv", "link", "unlink", "fsync", "fstat")


class Failing:
    """The `at`-th call fails with `code`, or writes only half (code 0), once or from there on."""

    def __init__(self, at: int, code: int, *, onwards: bool = False) -> None:
        self.at = at
        self.code = code
        self.onwards = onwards
        self.count = 0

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            self.count += 1
            if self.count == self.at or (self.onwards and self.count > self.at):
                if self.code:
                    raise OSError(self.code, os.strerror(self.code))
                if real.__name__ == "pwrite":
                    file, data, offset = args
                    return real(file, memoryview(data)[: max(len(data) // 2, 1)], offset)
            return real(*args, **keywords)

        return call


def laid_out(folder: Path) -> PosixStore:
    """The objects of the world in a folder, copied without fsync: only what comes after matters."""
    _, original = base()
    for info in original.list(""):
        path = folder / info.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(original.read(info.name))
    return PosixStore(str(folder))


def run_prune(world: World, repository: Repository) -> None:
    world.prune(repository)


def attempt(
    folder: Path, verb: Callable[[World, Repository], None], failing: Failing
) -> tuple[World, PosixStore, bool]:
    world = base()[0].copy()
    store = laid_out(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, failing.wrap(getattr(os, name)))
        try:
            verb(world, reopen(store))
        except (StoreError, Corrupt) as err:
            if failing.code == errno.ENOSPC and isinstance(err, StoreError):
                assert isinstance(err, StoreFull), err
            return world, store, True
    return world, store, False


def sweep(tmp_path: Path, verb: Callable[[World, Repository], None], every: int) -> None:
    """After an error nothing acknowledged is lost and the verb runs again to its end; a success is one."""
    counter = Failing(0, 0)
    attempt(tmp_path / "count", verb, counter)
    failed = trials = 0
    for at in range(1 + SEED % every, counter.count + 1, every):
        code = (errno.EIO, errno.ENOSPC, 0, errno.EIO)[at % 4]
        folder = tmp_path / str(at)
        world, store, error = attempt(folder, verb, Failing(at, code, onwards=at % 4 == 3))
        trials += 1
        failed += error
        assert not error or code, "a short write is no error"
        repository = reopen(store)
        assert world.problems(repository) == [], (at, code)
        assert verify(repository, None, deep=True, monitor=MONITOR).findings == (), (at, code)
        verb(world, repository)
        world.prune(repository)
        assert world.problems(repository) == [], (at, code)
        assert world.prune(repository).packs_deleted == 0
        assert list(folder.rglob(f"{TEMPORARY_PREFIX}*")) == [], (at, code)
    print(f"{verb.__name__}: {trials} calls, {failed} failed the verb")
    if every == 1:
        report("system calls", count=trials, seed=SEED, failed=failed)
    assert failed > trials // 4


@pytest.mark.parametrize("verb", [run_backup, run_prune])
def test_a_call_fails(tmp_path: Path, verb: Callable[[World, Repository], None]) -> None:
    """Every fifth call, in one of the ways."""
    sweep(tmp_path, verb, every=5)


@pytest.mark.long
@pytest.mark.timeout(1200)  # some 400 runs of a prune, each read back whole: minutes on a busy machine
@pytest.mark.parametrize("verb", [run_backup, run_prune])
def test_every_call_fails(tmp_path: Path, verb: Callable[[World, Repository], None]) -> None:
    """Every call."""
    sweep(tmp_path, verb, every=1)
