"""Hostile bytes under every parser: only the documented errors come out, in bounded memory and time.

Each input follows from the seed. The short run has some thousand for each parser, the long one a million; what broke a
parser is kept in test_hostile_values.py as the rule it broke.
"""

import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fuzz_targets import Target, remove_folder, targets
from reliability import report

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
EXECUTIONS = int(os.environ.get("STRONGROOM_FUZZ_EXECUTIONS", "1000000"))
SHORT_EXECUTIONS = 2500
MEMORY_BYTES_MAX = 256 << 20  # what one input may make the process ask for beyond what it has
INPUT_S_MAX = 2.0  # CPU of one input; the slowest honest one is a page of a million rows
SHOWN_BYTES_MAX = 4096

NAMES = (
    "changed blocks", "compressed frame", "content", "digest", "directory records", "index list", "index object",
    "journal", "key file", "labels", "pack footer", "page of the stream", "root", "sealed object", "token",
    "wrapped keys, plain", "wrapped keys, sealed",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _no_folder_stays() -> Iterator[None]:
    yield
    remove_folder()


@contextmanager
def bounded_memory() -> Iterator[None]:
    """The process gets no more than MEMORY_BYTES_MAX beyond what it has now: what asks for more raises MemoryError."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES_MAX, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def attempt(target: Target, data: bytes) -> bool:
    """True when the input was refused. Anything but a documented error is the finding."""
    try:
        target.run(data)
    except target.errors:
        return True
    return False


def fuzz(name: str, executions: int) -> tuple[int, float]:
    """(how many inputs were refused, CPU seconds of the slowest)."""
    target = targets()[name]
    for seed in target.seeds[:1]:
        attempt(target, seed)  # what is loaded at first use is no cost of an input
    chance = random.Random(f"{SEED} {name}")
    refused, slowest = 0, 0.0
    with bounded_memory():
        for number in range(executions):
            data = target.seeds[chance.randrange(len(target.seeds))]
            for _ in range(1 + (chance.getrandbits(2) == 0)):
                data = target.mutate(chance, data)
            began = time.thread_time()
            try:
                refused += attempt(target, data)
            except BaseException as err:
                shown = data[:SHOWN_BYTES_MAX].hex()
                raise AssertionError(
                    f"{name}, seed {SEED}, input {number}: {err!r}\n{len(data)} bytes: {shown}"
                ) from err
            slowest = max(slowest, time.thread_time() - began)
    assert slowest < INPUT_S_MAX, f"{name}: an input took {slowest:.1f} s"
    return refused, slowest


def test_every_parser_is_named() -> None:
    """The list of parametrized tests is that of the targets."""
    assert sorted(targets()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_sound_bytes_are_taken(name: str) -> None:
    """What the engine wrote passes its own parser, so that a refusal means something."""
    target = targets()[name]
    if name == "compressed frame":  # bombs are among them
        assert [attempt(target, seed) for seed in target.seeds].count(True) == 2
        return
    assert [attempt(target, seed) for seed in target.seeds] == [False] * len(target.seeds)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_bytes_are_refused_with_a_documented_error(name: str) -> None:
    """Some thousand damaged inputs: an error of the parser's own class or a usable value, never anything else."""
    refused, _ = fuzz(name, SHORT_EXECUTIONS)
    assert refused > SHORT_EXECUTIONS // 10 or name == "token"


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("name", NAMES)
def test_a_million_hostile_inputs(name: str) -> None:
    """The same, a million times."""
    began = time.process_time()
    refused, slowest = fuzz(name, EXECUTIONS)
    rate = EXECUTIONS / (time.process_time() - began)
    print(f"{name}: {EXECUTIONS} executions, {refused} refused, {rate:.0f}/s, slowest {slowest:.3f} s, seed {SEED}")
    report(f"fuzz {name}", count=EXECUTIONS, seed=SEED, refused=refused, per_second=round(rate))
