"""A real process, killed with SIGKILL at its N-th store call, on a real folder with locks of its own.

What only the kernel can show: locks of a dead process are gone, its temporary files are told from those of the living,
and its pin on the index does not hold the next prune up.
"""

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_world import BACKUPS, MASTER, MONITOR, POOL, PREFIX, base, restored
from lifeline import end_with_starter
from reliability import report

from strongroom.engine import FlockSessions, Repository, open_repository
from strongroom.engine.store.posix import TEMPORARY_PREFIX, PosixStore
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
TRIALS_LONG = 200  # of one verb; together they are most of the kills that the page counts
AGAIN = 2  # times that what takes up the work of a killed one is killed too, if it has not ended before
HERE = Path(__file__).parent

# A Python that has imported all and started no thread yet. It forks a process for each line `folder, verb, N`, which
# dies at its N-th system call, and answers with its exit code; before it, of one that came to its end, how many calls.
STARTER = """
import os, pickle, signal, sys, traceback
sys.path[:0] = sys.argv[2:]
import concurrent.futures.thread
from fault_world import BACKUPS
from test_verbs_killed import opened

with open(sys.argv[1], "rb") as file:
    world = pickle.load(file)

def run(folder, verb, at):
    count = 0
    def counted(real):
        def call(*args, **keywords):
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **keywords)
        return call
    repository = opened(folder)
    for name in ("open", "mkdir", "pwrite", "preadv", "pread", "link", "unlink", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    if verb == "prune":
        world.prune(repository)
    else:
        BACKUPS[verb].run(world, repository)
    os.write(1, b"%d " % count)

for line in sys.stdin:
    folder, verb, at = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        try:
            run(folder, verb, int(at))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Starter:
    """Processes to be killed; see above."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, folder: Path, verb: str, at: int) -> tuple[int, int]:
        """(exit code, calls made; 0 if it was killed). at 0: it is not killed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{folder}\t{verb}\t{at}\n")
        self._process.stdin.flush()
        *calls, code = self._process.stdout.readline().split()
        assert int(code) in (0, -signal.SIGKILL), "its own words are on stderr"
        return int(code), int(calls[0]) if calls else 0


@contextmanager
def starter(folder: Path) -> Iterator[Starter]:
    """It only needs the names of its world; the objects, with the keys and ids in them, are this process's."""
    world = folder / "world"
    world.write_bytes(pickle.dumps(base()[0]))
    command = [sys.executable, "-c", STARTER, str(world), str(HERE), str(HERE.parent)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
    ) as process:
        yield Starter(process)


def opened(folder: str | Path) -> Repository:
    """As a program without a service opens it: sessions are locks beside the store."""
    store = PosixStore(f"{folder}/store")
    return open_repository(store, PREFIX, MASTER, pool=POOL, sessions=FlockSessions(f"{folder}/sessions"))


def lay_out(folder: Path) -> None:
    _, original = base()
    for info in original.list(""):
        path = folder / "store" / info.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(original.read(info.name))


def sweep(folder: Path, processes: Starter, verb: str, trials: int) -> int:
    """Kill it, and kill what takes up its work; then nothing is lost and nothing is left. How many were killed."""
    folder.mkdir()
    lay_out(folder / "clean")
    _, calls = processes.run(folder / "clean", verb, 0)
    chance = random.Random(SEED)
    killed = 0
    for at in sorted(chance.sample(range(1, calls + 1), min(trials, calls))):
        place = folder / str(at)
        lay_out(place)
        for number in (at, *(chance.randint(1, at) for _ in range(AGAIN))):
            code, _ = processes.run(place, verb, number)
            killed += code != 0
        world = base()[0].copy()
        repository = opened(place)
        assert repository.sessions.oldest_pinned() is None
        assert world.problems(repository) == [], at
        for name in repository.root_names():
            if name.startswith("new."):
                world.kept[name] = restored(repository, name)
        assert verify(repository, None, deep=True, monitor=MONITOR).findings == (), at
        world.prune(repository)
        assert world.problems(repository) == [], at
        again = world.prune(repository)
        assert (again.packs_deleted, again.packs_waiting) == (0, 0), at
        assert list(place.rglob(f"{TEMPORARY_PREFIX}*")) == [], at
        shutil.rmtree(place)
    print(f"{verb}: {killed} kills at {calls} calls, seed {SEED}")
    assert killed >= min(trials, calls)
    return killed


def test_a_killed_process_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """A sample of calls."""
    with starter(tmp_path) as processes:
        for verb in ("incremental tree", "prune"):
            sweep(tmp_path / verb, processes, verb, trials=3)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", [*BACKUPS, "prune"])
def test_a_process_killed_anywhere(tmp_path: Path, verb: str) -> None:
    """Many calls."""
    with starter(tmp_path) as processes:
        killed = sweep(tmp_path / verb, processes, verb, trials=TRIALS_LONG)
    report("kills", count=killed, seed=SEED)
