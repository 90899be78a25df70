"""Random trees and disks come back as they were: through the engine in memory, and from folder to folder.

Each example is two generations, the second an increment of the first, and both are restored. Trees have sparse files,
hard links, attributes and names that no editor likes; disks have any size, extents of any kind that are true, and
changed-block lists that say at least what changed.
"""

import itertools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath

import engine_streams as streams
import pytest
from fault_world import MASTER, MONITOR, POOL, PREFIX, no_fence
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from reliability import report
from source_trees import differences, listing
from test_sources_property import Operation, apply, operations, ref

from strongroom.base.ids import new_id
from strongroom.base.streams import Extent, ExtentKind, Path
from strongroom.base.units import MIB
from strongroom.engine import (
    BackupRequest,
    DomainSettings,
    Repository,
    backup,
    create_repository,
    restore_block,
    restore_tree,
)
from strongroom.engine.files import changed_extents
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify
from strongroom.sources.base import PointWanted, RestoreWanted
from strongroom.sources.folder import FolderDriver

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
BLOCK = 65536
DISK_BYTES_MAX = 1300 * MIB  # three pages of blocks; almost all of it holes
TREES, DISKS, FOLDERS = 60, 60, 12
TREES_LONG, DISKS_LONG, FOLDERS_LONG = 1500, 1500, 150

NAMES = (
    b"a",
    b"b",
    b"A",
    b"a.b",
    b"\xff\xfe",
    b"new\nline",
    b"-rf",
    b" ",
    b"\x01",
    b"z" * 255,
    "é".encode(),
    b"a\\b",
    b"~",
)
PIECES = (
    b"", b"x", bytes(5), bytes(70_000), b"text " * 900, bytes(range(256)) * 40, os.urandom(3000), os.urandom(140_000),
    os.urandom(40_000) + bytes(300_000) + os.urandom(90_000),
)  # fmt: skip


def quick(examples: int) -> settings:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=checks, print_blob=True)


def repository() -> Repository:
    return create_repository(MemoryStore(), PREFIX, MASTER, DomainSettings(), pool=POOL)


def request(number: int, *, full: bool = False) -> BackupRequest:
    return BackupRequest(backup_id=f"b{number}", generation=1, parent=f"b{number - 1}.1" if number else None, full=full)


# --- trees ---


@st.composite
def nodes(draw: st.DrawFn) -> streams.Node:
    kind = draw(st.sampled_from(["file", "file", "file", "folder", "link"]))
    mode, owner = draw(st.integers(0, 0o7777)), draw(st.integers(0, 70_000))
    times = draw(st.integers(1, 1 << 62))
    xattrs = tuple(
        sorted(
            draw(st.dictionaries(st.sampled_from([b"user.a", b"user.b"]), st.binary(max_size=40), max_size=2)).items()
        )
    )
    if kind == "folder":
        return streams.Node(mode=mode, uid=owner, xattrs=xattrs, mtime_ns=times)
    if kind == "link":
        return streams.Node(target=draw(st.binary(min_size=1, max_size=300)), mode=0o777, uid=owner, mtime_ns=times)
    data = draw(st.sampled_from(PIECES)) + draw(st.binary(max_size=20))
    return streams.Node(data=data, mode=mode, uid=owner, xattrs=xattrs, mtime_ns=times, holes=zeros_of(data))


def zeros_of(data: bytes) -> tuple[tuple[int, int], ...]:
    """Where a file system might have made holes: whole pages of zeros in the middle."""
    pages = [at for at in range(0, len(data), 4096) if not any(data[at : at + 4096]) and len(data) > 8192]
    runs: list[list[int]] = []
    for at in pages:
        end = min(at + 4096, len(data))
        if runs and runs[-1][1] == at:
            runs[-1][1] = end
        else:
            runs.append([at, end])
    return tuple((start, end) for start, end in runs)


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple)
trees = st.dictionaries(paths, nodes(), max_size=14)


def possible(wild: dict[Path, streams.Node], links: Sequence[int]) -> streams.Tree:
    """A tree that a file system could hold: nothing lies below a file, and some files have two names."""
    tree: streams.Tree = {}
    for path in sorted(wild):
        above = [path[:depth] for depth in range(1, len(path))]
        if all(up not in wild or (wild[up].data is None and not wild[up].target) for up in above):
            node = wild[path]
            tree[path] = replace(node, ino=100 + len(tree), sparse=bool(node.holes))
    files = [path for path, node in tree.items() if node.data is not None]
    for number, choice in enumerate(links):
        if files:
            first = files[choice % len(files)]
            second = (b"hard-%d" % number,)
            tree[first] = replace(tree[first], nlink=2)
            tree[second] = tree[first]
            files.remove(first)
    return tree


def check_trees(first: streams.Tree, second: streams.Tree, full: bool) -> None:
    """Both generations come back, the increment stores nothing twice, and verify agrees."""
    made = repository()
    for number, tree in enumerate((first, second)):
        backup(made, streams.MemoryTree(tree), request(number, full=full and number == 1), MONITOR, no_fence)
    for number, tree in enumerate((first, second)):
        target = streams.MemoryTarget()
        restore_tree(made, f"b{number}.1", target)
        assert target.tree == streams.plain(tree)
        assert target.finished
    assert verify(made, None, deep=True, monitor=MONITOR).findings == ()


def grown(tree: streams.Tree, more: streams.Tree, fate: Sequence[bool]) -> streams.Tree:
    """The next generation: of each entry the old or the new one; what differs has another change time and inode."""
    wild: dict[Path, streams.Node] = {}
    for number, path in enumerate(sorted(tree.keys() | more.keys())):
        chosen = more if fate[number % len(fate)] else tree
        if path in chosen:
            node = chosen[path]
            wild[path] = node if chosen is tree else replace(node, ctime_ns=node.ctime_ns + 1000 + number, nlink=1)
    return possible({path: replace(node, nlink=1) for path, node in wild.items()}, [])


tree_examples = (
    trees,
    trees,
    st.lists(st.integers(0, 99), max_size=3),
    st.lists(st.booleans(), min_size=1),
    st.booleans(),
)


def check_tree_example(one: dict, two: dict, links: list[int], fate: list[bool], full: bool) -> None:  # type: ignore[type-arg]
    first = possible(one, links)
    check_trees(first, grown(first, possible(two, []), fate), full)


@seed(SEED)
@quick(TREES)
@given(*tree_examples)
def test_random_trees_come_back(one: dict, two: dict, links: list[int], fate: list[bool], full: bool) -> None:  # type: ignore[type-arg]
    """Two generations of a random tree, incremental or full: equal to the last attribute."""
    check_tree_example(one, two, links, fate, full)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_thousands_of_random_trees_come_back() -> None:
    """The same, many times."""
    run = seed(SEED)(quick(TREES_LONG)(given(*tree_examples)(check_tree_example)))
    run()
    report("round trips of trees", count=2 * TREES_LONG, seed=SEED, mismatches=0)


# --- disks ---


class HolyDisk:
    """A disk that holds only its blocks that are not zeros, as a source with true extents and as a target."""

    def __init__(self, size: int, blocks: dict[int, bytes], extents: Sequence[Extent] = ()) -> None:
        self.size = size
        self.blocks = {number: data for number, data in blocks.items() if any(data)}
        self._extents = extents
        self.flushed = False

    def extents(self):  # type: ignore[no-untyped-def]
        yield from self._extents

    def read_into(self, offset: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            number, at = divmod(offset + done, BLOCK)
            block = self.blocks.get(number, b"").ljust(BLOCK, b"\0")
            piece = block[at : at + len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        return done

    def write(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            number, at = divmod(offset + done, BLOCK)
            piece = bytes(data[done : done + BLOCK - at])
            block = bytearray(self.blocks.get(number, b"").ljust(BLOCK, b"\0"))
            block[at : at + len(piece)] = piece
            self.blocks[number] = bytes(block)
            done += len(piece)

    def zero(self, offset: int, length: int) -> None:
        for number in [number for number in self.blocks if offset <= number * BLOCK < offset + length]:
            last = min(length, offset + length - number * BLOCK)
            self.blocks[number] = bytes(min(last, BLOCK)) + self.blocks[number][min(last, BLOCK) :]

    def flush(self) -> None:
        self.flushed = True

    def content(self) -> dict[int, bytes]:
        return {number: data.ljust(BLOCK, b"\0") for number, data in self.blocks.items() if any(data)}


@st.composite
def disks(draw: st.DrawFn) -> tuple[int, dict[int, bytes], dict[int, bytes], list[int], int, bool]:
    """(size, blocks before, blocks that change, cuts of extents, what the tracker says too much, full)."""
    size = draw(st.one_of(st.integers(1, 12 * BLOCK), st.integers(1, DISK_BYTES_MAX)))
    last = (size - 1) // BLOCK
    tail = size - last * BLOCK
    data = st.one_of(st.sampled_from([b"same " * 50, bytes(BLOCK), b"\1" * BLOCK]), st.binary(min_size=1, max_size=60))
    numbers = st.one_of(st.integers(0, last), st.sampled_from([0, last, min(8191, last), min(8192, last)]))
    blocks = st.dictionaries(numbers, data, max_size=8)

    def fit(found: dict[int, bytes]) -> dict[int, bytes]:
        return {number: block[: tail if number == last else BLOCK] for number, block in found.items()}

    cuts = draw(st.lists(st.integers(1, size), max_size=5))
    return size, fit(draw(blocks)), fit(draw(blocks)), cuts, draw(st.integers(0, 3)), draw(st.booleans())


def true_extents(size: int, blocks: dict[int, bytes], cuts: list[int]) -> list[Extent]:
    """DATA where there is some, ZERO elsewhere, cut at odd places too."""
    borders = sorted({0, size, *cuts, *(n * BLOCK for n in blocks), *(min((n + 1) * BLOCK, size) for n in blocks)})
    extents = []
    for start, end in itertools.pairwise(borders):
        kind = ExtentKind.DATA if start // BLOCK in blocks else ExtentKind.ZERO
        extents.append(Extent(start, end - start, kind))
    return extents


def check_disks(example: tuple[int, dict[int, bytes], dict[int, bytes], list[int], int, bool]) -> None:
    size, old, changes, cuts, extra, full = example
    new = old | changes
    first = HolyDisk(size, old, true_extents(size, old, cuts))
    tracked = [(min(number * BLOCK + 7, size - 1), 1) for number in changes] + [
        (number * BLOCK, 3 * BLOCK) for number in [*old][:extra]
    ]
    second = HolyDisk(size, new, list(changed_extents(tracked, size)))
    made = repository()
    for number, disk in enumerate((first, second)):
        backup(made, disk, request(number, full=full and number == 1), MONITOR, no_fence)
    for number, disk in enumerate((first, second)):
        target = HolyDisk(size, {n: b"\7" * min(BLOCK, size - n * BLOCK) for n in (*new, 0, (size - 1) // BLOCK)})
        restore_block(made, f"b{number}.1", target, MONITOR)
        assert target.content() == disk.content()
        assert target.flushed
    assert verify(made, None, deep=True, monitor=MONITOR).findings == ()


@seed(SEED)
@quick(DISKS)
@given(disks())
def test_random_disks_come_back(example: tuple) -> None:  # type: ignore[type-arg]
    """Two generations of a random disk with true extents and a true changed-block list: equal in every byte."""
    check_disks(example)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_thousands_of_random_disks_come_back() -> None:
    """The same, many times."""
    run = seed(SEED)(quick(DISKS_LONG)(given(disks())(check_disks)))
    run()
    report("round trips of disks", count=2 * DISKS_LONG, seed=SEED, mismatches=0)


# --- folders ---


def check_folders(first: list[Operation], second: list[Operation]) -> None:
    """A real folder through the whole way: driver, engine, driver; a restore of each generation is equal."""
    made, driver = repository(), FolderDriver()
    with tempfile.TemporaryDirectory() as base:
        source = FilePath(base, "source")
        source.mkdir()
        seen = []
        for number, changes in enumerate((first, second)):
            for operation in changes:
                apply(os.fsencode(source), operation)
            with driver.open_point(ref(source), PointWanted()) as point:
                backup(made, point.stream, request(number), MONITOR, no_fence)  # type: ignore[arg-type]
            seen.append(listing(source))
        for number, before in enumerate(seen):
            target = FilePath(base, f"target-{number}")
            target.mkdir()
            wanted = RestoreWanted(task_id=new_id(), target=ref(target), same_resource=True, kind="tree", size_bytes=0)
            with driver.open_target(driver.plan_restore(wanted)) as opened:
                restore_tree(made, f"b{number}.1", opened.stream)  # type: ignore[arg-type]
                opened.finish()
            assert differences(before, listing(target)) == []


@seed(SEED)
@quick(FOLDERS)
@given(operations, operations)
def test_random_folders_come_back(first: list[Operation], second: list[Operation]) -> None:
    """Two generations of a folder that somebody works in, restored into empty ones: no user could tell them apart."""
    check_folders(first, second)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_hundreds_of_random_folders_come_back() -> None:
    """The same, many times."""
    run = seed(SEED)(quick(FOLDERS_LONG)(given(operations, operations)(check_folders)))
    run()
    report("round trips of folders", count=2 * FOLDERS_LONG, seed=SEED, mismatches=0)
