"""A restore never writes outside of its folder: hostile trees, through the engine and at the target, and live attacks.

The corpus is every hostile layout we know, once as a restore point that the engine restores into a real folder and once
handed to the target directly, past the checks of the manifest. Beside the folder lie things with the very names that an
escape would hit; after each case everything outside of the folder is compared to the last attribute. Then the same
while another process swaps folders for links that lead outside, hundreds of thousands of times.
"""

import os
import random
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fault_streams import LONG_AGO_NS, MemoryFile
from fault_world import MONITOR, create, no_fence
from reliability import report
from source_trees import differences, listing, plain_entry
from test_sources_tree_target import HOSTILE, open_target, put_file, put_folder, put_link

from strongroom.base.errors import Corrupt, InvalidRequest, SourceError
from strongroom.base.streams import NO_ATTRIBUTES, Attributes, Entry, Skipped
from strongroom.base.streams import Path as Names
from strongroom.engine import BackupRequest, backup, restore_tree
from strongroom.engine.store.memory import MemoryStore
from strongroom.sources.folder import FolderTarget

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
ROUNDS_SHORT, ROUNDS_LONG = 12, 1500
FOLDER, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
DEEP = 300  # names of 20 bytes: beyond PATH_MAX
REFUSALS = (SourceError, Corrupt, InvalidRequest)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One entry of a hostile restore point. data: of a file; to: of a link."""

    path: Names
    mode: int = FILE
    data: bytes = b"evil"
    to: bytes = b""
    links: int = 1
    number: int = 0
    device: int = 0
    size: int | None = None

    def entry(self) -> Entry:
        size = self.size if self.size is not None else len(self.data) if stat.S_ISREG(self.mode) else 0
        return Entry(
            self.path[-1], self.mode, 0, 0, LONG_AGO_NS, size, LONG_AGO_NS, self.number or hash(self.path) % 10**6, 1,
            self.links, self.device, False,
        )  # fmt: skip


def folder(*path: bytes, mode: int = FOLDER) -> Thing:
    return Thing(path=path, mode=mode)


def link(*path: bytes, to: bytes) -> Thing:
    return Thing(path=path, mode=LINK, to=to)


def file(*path: bytes, **more: int) -> Thing:
    return Thing(path=path, **more)  # type: ignore[arg-type]


TREES: dict[str, Sequence[Thing]] = {
    "a name of dots": [file(b"..")],
    "below dots": [folder(b".."), file(b"..", b"canary")],
    "far below dots": [folder(b".."), folder(b"..", b".."), file(b"..", b"..", b"canary")],
    "dots inside": [folder(b"a"), file(b"a", b"..", b"..", b"canary")],
    "a dot": [file(b".")],
    "an empty name": [file(b"")],
    "a slash": [file(b"../canary")],
    "an absolute name": [file(b"/tmp/strongroom-evil")],
    "an absolute folder": [folder(b"/tmp"), file(b"/tmp", b"strongroom-evil")],
    "a nul": [file(b"a\0/../../canary")],
    "a name of 256 bytes": [file(b"x" * 256)],
    "a name of 5000 bytes": [file(b"x" * 5000)],
    "the staging place": [folder(b".strongroom-t1"), file(b".strongroom-t1", b"journal")],
    "another staging place": [folder(b".strongroom-t2"), file(b".strongroom-t2", b"journal")],
    "below a link up": [link(b"l", to=b".."), file(b"l", b"canary")],
    "below a link far up": [link(b"l", to=b"../../../.."), file(b"l", b"tmp", b"strongroom-evil")],
    "below an absolute link": [link(b"l", to=b"/tmp"), file(b"l", b"strongroom-evil")],
    "below a link to the root's parent through itself": [link(b"l", to=b"./l/.."), file(b"l", b"canary")],
    "a folder over a link": [link(b"l", to=b".."), folder(b"l"), file(b"l", b"canary")],
    "a file over a link": [link(b"l", to=b"../canary"), file(b"l")],
    "a link over a folder": [folder(b"d"), link(b"d", to=b".."), file(b"d", b"canary")],
    "a link over a file": [file(b"d"), link(b"d", to=b"../canary")],
    "a folder twice": [folder(b"d"), folder(b"d"), file(b"d", b"x")],
    "a file twice": [file(b"f"), file(b"f")],
    "a file as a folder": [file(b"f"), file(b"f", b"x")],
    "names that differ in case": [file(b"Name"), file(b"name"), link(b"NAME", to=b"../canary")],
    "names that are equal when composed": [file("é".encode()), file("e\u0301".encode())],
    "a folder and a link that differ in case": [folder(b"D"), link(b"d", to=b".."), file(b"D", b"canary")],
    "no folder above": [file(b"never", b"made", b"canary")],
    "a hard link to what is outside": [file(b"l", links=2, number=7), file(b"..", b"canary", links=2, number=7)],
    "a hard link below a link": [link(b"l", to=b".."), file(b"a", links=2, number=7), file(b"l", b"b", links=2)],
    "a hard link to another file": [file(b"a", links=2, number=7), Thing(path=(b"b",), data=b"b", links=2, number=7)],
    "hard links without end": [file(b"a", links=1 << 62, number=7), file(b"b", links=1 << 62, number=7)],
    "a disk of the machine": [Thing(path=(b"sda",), mode=stat.S_IFBLK | 0o666, device=os.makedev(8, 0))],
    "the memory of the machine": [Thing(path=(b"mem",), mode=stat.S_IFCHR | 0o666, device=os.makedev(1, 1))],
    "a pipe": [Thing(path=(b"pipe",), mode=stat.S_IFIFO | 0o666)],
    "a socket": [Thing(path=(b"sock",), mode=stat.S_IFSOCK | 0o666)],
    "a kind that is none": [Thing(path=(b"odd",), mode=0o644)],
    "every bit of a mode": [Thing(path=(b"odd",), mode=0xFFFFFFFF)],
    "a program of root": [Thing(path=(b"su",), mode=stat.S_IFREG | 0o6755)],
    "an endless file": [file(b"f", size=(1 << 63) - 1)],
    "less content than it says": [file(b"f", size=1 << 40)],
    "a chain that is too deep": [folder(*[b"d" * 20] * depth) for depth in range(1, DEEP)],
    "a thousand names": [file(b"%05d" % number) for number in range(1000)],
}  # fmt: skip


class HostileFolder:
    """One folder of a tree that no file system has."""

    def __init__(self, path: Names, things: Sequence[Thing]) -> None:
        self.path = path
        self.entries = [thing.entry() for thing in things]
        self.skipped: Sequence[Skipped] = ()
        self._things = {id(entry): thing for entry, thing in zip(self.entries, things, strict=True)}

    def attributes(self, entry: Entry) -> Attributes:
        return Attributes(target=self._things[id(entry)].to)

    def open(self, entry: Entry) -> MemoryFile:
        return MemoryFile(entry, self._things[id(entry)].data)


class HostileTree:
    """A source that hands over what it is told, in the order it is told."""

    unchanged_before_ns = LONG_AGO_NS + 1

    def __init__(self, things: Sequence[Thing]) -> None:
        self._things = things

    def root(self) -> tuple[Entry, Attributes]:
        return plain_entry(b"", FOLDER), NO_ATTRIBUTES

    def folders(self) -> Iterator[HostileFolder]:
        paths = dict.fromkeys([(), *(thing.path[:-1] for thing in self._things)])
        for path in paths:
            yield HostileFolder(path, [thing for thing in self._things if thing.path[:-1] == path])


@contextmanager
def surroundings(base: Path) -> Iterator[Path]:
    """A folder to restore into, with victims round it; on leaving, nothing outside of it is any different."""
    target = base / "a" / "b" / "target"
    target.mkdir(parents=True)
    (target / "live").write_text("live")
    for place in (base, base / "a", base / "a" / "b"):
        for name in ("canary", "evil", "journal", "x"):
            (place / name).write_text("untouched")
            (place / name).chmod(0o640)
    before, before_tmp = outside(base), set(os.listdir("/tmp"))
    yield target
    assert differences(before, outside(base)) == []
    assert not [name for name in set(os.listdir("/tmp")) - before_tmp if "evil" in name]


def outside(base: Path) -> dict:
    """All there is but the folder itself; its own times are those of the staging place that came and went."""
    found = {path: seen for path, seen in listing(base).items() if path[:3] != (b"a", b"b", b"target")}
    assert found
    return found


def through_engine(name: str, target: Path, *, same_resource: bool) -> bool:
    """A restore point of this tree is made and restored. True when it was refused."""
    repository = create(MemoryStore())
    try:
        request = BackupRequest(backup_id="evil", generation=1)
        backup(repository, HostileTree(TREES[name]), request, MONITOR, no_fence)
        with open_target(target, same_resource=same_resource) as opened:
            restore_tree(repository, "evil.1", opened.stream)
            opened.finish()
    except REFUSALS:
        return True
    return False


def at_target(name: str, target: Path) -> bool:
    """The same tree handed over past the manifest. True when it was refused."""
    try:
        with open_target(target) as opened:
            put_folder(opened, ())
            for thing in TREES[name]:
                hand_over(opened, thing)
            opened.finish()
    except REFUSALS:
        return True
    return False


def hand_over(opened: FolderTarget, thing: Thing) -> None:
    entry = thing.entry()
    if stat.S_ISDIR(thing.mode):
        opened.stream.folder(thing.path, entry, NO_ATTRIBUTES)
    elif stat.S_ISREG(thing.mode):
        made = opened.stream.file(thing.path, entry, NO_ATTRIBUTES)
        made.write(0, memoryview(thing.data))
        made.close()
    else:
        opened.stream.node(thing.path, entry, Attributes(target=thing.to))


def corpus(base: Path) -> dict[str, int]:
    """Every case, each in surroundings of its own."""
    counts = {"refused": 0, "restored inside": 0}
    for number, name in enumerate(TREES):
        for way in ("engine", "engine, other resource", "target"):
            place = base / f"{number}-{way[-6:]}"
            with surroundings(place) as target:
                if way == "target":
                    refused = at_target(name, target)
                else:
                    refused = through_engine(name, target, same_resource=way == "engine")
                counts["refused" if refused else "restored inside"] += 1
                assert not refused or os.listdir(target) == ["live"], (name, way)
            subprocess.run(["rm", "-rf", place], check=True)
    for number, name in enumerate(HOSTILE):
        with surroundings(base / f"unit-{number}") as target:
            with pytest.raises(REFUSALS):
                with open_target(target) as opened:
                    put_folder(opened, ())
                    HOSTILE[name](opened)
                    opened.finish()
            counts["refused"] += 1
    return counts


def test_no_hostile_tree_writes_outside(tmp_path: Path) -> None:
    """Every layout, through the engine and at the target: refused with the folder as it was, or restored inside."""
    counts = corpus(tmp_path)
    total = sum(counts.values())
    print(f"{total} hostile trees: {counts}")
    assert total > 150
    report("confinement corpus", count=total, seed=SEED, refused=counts["refused"], written_outside=0)


# --- live attacks ---


@contextmanager
def adversary() -> Iterator[subprocess.Popen[str]]:
    program = str(Path(__file__).parent / "swapping_adversary.py")
    command = [sys.executable, "-S", "-E", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.close()
        process.wait(20)


def battlefield(base: Path) -> Path:
    """A live folder to be replaced, and outside of it the same names, so that a write that strays hits something."""
    for root in (base / "target", base / "outside"):
        for number in range(4):
            (root / f"d{number}" / "e").mkdir(parents=True)
            for name in ("f", "e/g"):
                (root / f"d{number}" / name).write_text("live" if root.name == "target" else "untouched")
    return base / "target"


def fight(process: subprocess.Popen[str], base: Path, restore: object) -> tuple[bool, int]:
    """One restore under attack: (did it end without an error, how many swaps were made meanwhile)."""
    assert process.stdin is not None
    assert process.stdout is not None
    target = battlefield(base)
    before = listing(base / "outside")
    process.stdin.write(f"{base}\n")
    process.stdin.flush()
    ended = True
    try:
        restore(target)  # type: ignore[operator]
    except (*REFUSALS, OSError):
        ended = False
    process.stdin.write("\n")
    process.stdin.flush()
    swaps = int(process.stdout.readline())
    assert differences(before, listing(base / "outside")) == [], base
    return ended, swaps


def confined_restore(target: Path) -> None:
    with open_target(target) as opened:
        put_folder(opened, ())
        for number in range(4):
            put_folder(opened, (b"d%d" % number,))
            put_file(opened, (b"d%d" % number, b"f"), b"new" * 1000)
            put_folder(opened, (b"d%d" % number, b"e"))
            put_file(opened, (b"d%d" % number, b"e", b"g"), b"new" * 1000)
            put_link(opened, (b"d%d" % number, b"l"), b"f")
        opened.finish()


def careless_restore(target: Path) -> None:
    """What a program does that puts paths together."""
    chance = random.Random(1)
    for _ in range(200):
        number = chance.randrange(4)
        (target / f"d{number}" / "e" / "g").write_text("new")
        (target / f"d{number}" / "f").write_text("new")


def rounds(base: Path, count: int) -> tuple[int, int]:
    ended = swaps = 0
    with adversary() as process:
        for number in range(count):
            place = base / str(number)
            done, made = fight(process, place, confined_restore)
            ended += done
            swaps += made
            subprocess.run(["rm", "-rf", place], check=True)
    print(f"{count} restores under attack, {swaps} swaps, {ended} restores ended well, none wrote outside")
    assert swaps > count
    return ended, swaps


def test_a_folder_swapped_for_a_link_leads_nobody_out(tmp_path: Path) -> None:
    """Another process swaps every folder of a restore for a link that leads outside, all the time."""
    rounds(tmp_path, ROUNDS_SHORT)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_restores_under_attack(tmp_path: Path) -> None:
    """The same for a long time."""
    ended, swaps = rounds(tmp_path, ROUNDS_LONG)
    report("confinement under attack", count=ROUNDS_LONG, seed=SEED, swaps=swaps, ended_well=ended, written_outside=0)


def test_the_adversary_leads_a_careless_program_out(tmp_path: Path) -> None:
    """Paths that are put together do lead outside under this attack: the suite would notice."""
    with adversary() as process, pytest.raises(AssertionError):
        for number in range(50):
            fight(process, tmp_path / str(number), careless_restore)
