"""A real process, killed with SIGKILL at its N-th store call, on a real folder with locks of its own.

What only the kernel can show: locks of a dead process are gone, its temporary files are told from those of the living,
and its pin on the index does not hold the next prune up.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fault_world import MASTER, MONITOR, POOL, PREFIX, base, restored
from reliability import report

from strongroom.engine import FlockSessions, Repository, open_repository
from strongroom.engine.store.posix import TEMPORARY_PREFIX, PosixStore
from strongroom.engine.verify import verify

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
KILLS_LONG = 80
HERE = Path(__file__).parent

CHILD = """
import os, signal, sys
folder, verb, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path[:0] = sys.argv[4:]
from test_verbs_killed import opened
from fault_world import run_backup, World, base
import fault_world

world = base()[0].copy()
count = 0
for name in ("open", "mkdir", "pwrite", "preadv", "pread", "link", "unlink", "fsync"):
    def wrap(real):
        def call(*args, **keywords):
            global count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **keywords)
        return call
    setattr(os, name, wrap(getattr(os, name)))
repository = opened(folder)
count = 0
if verb == "backup":
    run_backup(world, repository)
else:
    world.prune(repository)
print(count, flush=True)
"""


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


def run_child(folder: Path, verb: str, at: int) -> tuple[int, str]:
    """(return code, what it printed)."""
    arguments = [sys.executable, "-c", CHILD, str(folder), verb, str(at), str(HERE), str(HERE.parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout


def sweep(folder: Path, verb: str, kills: int) -> None:
    # The child only needs the names of its world; the objects, with the keys and ids in them, are the parent's.
    lay_out(folder / "clean")
    _, printed = run_child(folder / "clean", verb, 0)
    calls = int(printed)
    chance = random.Random(SEED)
    killed = 0
    for at in sorted(chance.sample(range(1, calls + 1), min(kills, calls))):
        place = folder / str(at)
        lay_out(place)
        code, _ = run_child(place, verb, at)
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
    print(f"{verb}: {killed} kills at {calls} calls, seed {SEED}")
    if kills >= KILLS_LONG:
        report("kills", count=killed, seed=SEED)
    assert killed >= kills // 2


@pytest.mark.parametrize("verb", ["backup", "prune"])
def test_a_killed_process_leaves_nothing_in_the_way(tmp_path: Path, verb: str) -> None:
    """A sample of calls."""
    sweep(tmp_path, verb, kills=6)


@pytest.mark.long
@pytest.mark.parametrize("verb", ["backup", "prune"])
def test_a_process_killed_anywhere(tmp_path: Path, verb: str) -> None:
    """Many calls."""
    sweep(tmp_path, verb, kills=KILLS_LONG)
