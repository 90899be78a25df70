"""What an index knows, wherever its tables lie, and that a cached copy of it is never believed but when it is right."""

import errno
import fcntl
import multiprocessing
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strongroom.base.errors import IndexIncomplete
from strongroom.engine import DomainSettings, MasterKey, Pool, create_repository, open_repository
from strongroom.engine import index_cache as cache_module
from strongroom.engine.index import Index
from strongroom.engine.index_cache import TABLES_MAX, IndexCache, plan_merge
from strongroom.engine.index_merge import Merge, merge_tables
from strongroom.engine.index_search import bad_packs, halves
from strongroom.engine.index_table import Table, encode_table
from strongroom.engine.pack import DATA, RAW, Pack, Segment
from strongroom.engine.repository import Repository
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.store.posix import PosixStore

KEY = b"k" * 32
MASTER = MasterKey(bytes(range(32)))
LENGTH = 100
SEGMENT_CHUNKS = 4

Places = dict[bytes, set[bytes]]  # key -> packs that hold it


def make_pack(keys: list[bytes], number: int | None = None) -> Pack:
    pack_id = os.urandom(16) if number is None else number.to_bytes(16, "big")
    segments = []
    for at in range(0, len(keys), SEGMENT_CHUNKS):
        own = [key + bytes(16) for key in keys[at : at + SEGMENT_CHUNKS]]
        raw = LENGTH * len(own)
        segments.append(Segment(16 + 1000 * at, raw + 16, raw, RAW, own, [LENGTH] * len(own)))
    return Pack(id=pack_id, size=10_000_000 + len(keys), kind=DATA, segments=segments)


def make_table(keys: list[bytes], name: str = "", number: int | None = None) -> Table:
    return Table(encode_table([make_pack(keys, number)]), names=frozenset([name] if name else []))


def random_keys(count: int, seed: int) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(16) for _ in range(count)]


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


# --- lookups against a model ---

ALPHABET = [bytes([i % 3]) * 8 + bytes([i // 3]) * 8 for i in range(18)]  # three first halves, six second ones
KEYS = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=12)


def as_columns(keys: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return halves(b"".join(keys))


def check(index: Index, model: Places, bad: frozenset[bytes], asked: list[bytes]) -> None:
    """Single keys and batches say what the model says; a reader's place is one the model has, sound if any is."""
    known = index.knows_many(*as_columns(asked))
    tables, located = index.locate(*as_columns(asked))
    for at, key in enumerate(asked):
        packs = model.get(key, set())
        sound = packs - bad
        assert index.knows(key) == bool(known[at]) == bool(sound)
        assert {place.segment.pack for place in index.places(key)} == packs
        place = index.place(key)
        assert (place is None) == (not packs)
        number, row = int(located.table[at]), int(located.row[at])
        assert (number < 0) == (not packs)
        if place is not None:
            there = tables[number].place(row)
            assert there.length == place.length == LENGTH
            assert {place.segment.pack, there.segment.pack} <= (sound or packs)
            assert key in (ALPHABET if key in ALPHABET else model)


@given(groups=st.lists(KEYS, min_size=1, max_size=6), doubted=st.sets(st.integers(0, 5)), form=st.integers(0, 3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lookups_are_those_of_a_dict(tmp_path: Path, groups: list[list[bytes]], doubted: set[int], form: int) -> None:
    """Duplicates, colliding halves and bad packs included: in memory, merged, in a file, and some of each."""
    tables = [make_table(keys, f"t{number}", number) for number, keys in enumerate(groups)]
    model: Places = {}
    for number, keys in enumerate(groups):
        for key in keys:
            model.setdefault(key, set()).add(number.to_bytes(16, "big"))
    bad = frozenset(number.to_bytes(16, "big") for number in doubted)
    cache = IndexCache(str(tmp_path / "cache"), KEY)
    if form == 1:
        tables = [merge_tables(tables)]
    elif form == 2:
        tables = [cache._merge(tables)]
    elif form == 3:
        tables = [*tables[:1], cache._merge(tables[1:]), *tables[:1]] if tables[1:] else tables
    check(Index(0, tables, bad), model, bad, [*ALPHABET, *random_keys(5, 1)])


@pytest.mark.parametrize("count", [0, 1, 7, 100, 5000, 40_000])
def test_a_file_finds_every_key_and_no_other(tmp_path: Path, count: int) -> None:
    """Sizes around those of directory and filter; batches sorted and not, larger than a slice."""
    keys = random_keys(count, count)
    table = IndexCache(str(tmp_path), KEY)._merge([make_table(keys, "a")])
    index = Index(0, [table])
    assert table.guide is not None
    asked = [*keys, *random_keys(count + 10, count + 1)]
    expected = [True] * count + [False] * (count + 10)
    assert index.knows_many(*as_columns(asked)).tolist() == expected
    order = sorted(range(len(asked)), key=lambda at: int.from_bytes(asked[at][:8], "little"))
    found = index.knows_many(*as_columns([asked[at] for at in order]))
    assert found.tolist() == [expected[at] for at in order]
    assert all(index.knows(key) is want for key, want in zip(asked[:300], expected[:300], strict=True))


def test_keys_all_alike_are_found(tmp_path: Path) -> None:
    """Thousands of keys with one first half defeat directory and slices of a merge, and are still told apart."""
    keys = [bytes(8) + at.to_bytes(8, "little") for at in range(3000)]
    table = IndexCache(str(tmp_path), KEY)._merge([make_table(keys[:2000], "a"), make_table(keys[2000:], "b")])
    index = Index(0, [table])
    assert index.knows_many(*as_columns(keys)).all()
    assert not index.knows(bytes(8) + b"\xff" * 8)
    assert len({index.place(key) for key in keys}) == 3000


def test_few_unknown_keys_pass_the_filter(tmp_path: Path) -> None:
    """At most 2 % of the keys that are in no table are looked up in its columns."""
    from strongroom.engine.index_search import _Searcher

    table = IndexCache(str(tmp_path), KEY)._merge([make_table(random_keys(20_000, 1), "a")])
    passed = _Searcher(table, frozenset())._may_have(*as_columns(random_keys(20_000, 2)))
    assert 0 < len(passed) <= 400 * 1.15


def test_a_merge_is_sorted_and_complete_whatever_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into slices of a few rows, a merge has the rows of all tables but those of packs that are gone."""
    monkeypatch.setattr("strongroom.engine.index_merge.SLICE_ROWS", 7)
    groups = [random_keys(count, count) for count in (1, 50, 200, 3)]
    tables = [make_table(keys, number=number) for number, keys in enumerate(groups)]
    gone = frozenset([(1).to_bytes(16, "big")])
    merged = merge_tables(tables, gone)
    first = np.frombuffer(merged.first, "<u8")
    assert (first[1:] >= first[:-1]).all()
    assert merged.chunk_count == 204
    assert len(merged.packs) == 3
    index = Index(0, [merged])
    assert all(index.knows(key) is (number != 1) for number, keys in enumerate(groups) for key in keys)
    assert all(index.place(key) == Index(0, [tables[2]]).place(key) for key in groups[2])


def test_absurd_tables_are_not_merged() -> None:
    """A table whose rows name segments or packs it does not have is IndexIncomplete, not a wrong run."""
    data = bytearray(encode_table([make_pack(random_keys(3, 1))]))
    for at, value in ((len(data) - 36, 9), (12 + 25, 9)):
        broken = bytearray(data)
        broken[at] = value
        with pytest.raises(IndexIncomplete):
            Merge([Table(bytes(broken))])


@pytest.mark.parametrize("strange", ["", "not hex", "zz" * 16])
def test_many_packs_are_compared_as_few_are(strange: str) -> None:
    """Missing packs, packs of another size and foreign names: arrays find what dicts find."""
    packs = [make_pack(random_keys(number + 1, number), number) for number in range(40)]
    tables = [Table(encode_table(packs[:25])), Table(encode_table(packs[20:]))]
    listed = [(pack.id.hex(), pack.size + (number == 7)) for number, pack in enumerate(packs) if number != 22]
    found = bad_packs(tables, [*listed, (strange, 5), ("00" * 16, 1)])
    assert found == {packs[7].id, packs[22].id}


# --- a session that stores much ---


def test_what_a_session_stores_is_merged_a_few_times() -> None:
    """400 index objects of one session: known at every moment, few tables, and no row is merged over and over."""
    index = Index(0, [])
    merged_rows = 0
    cache = index._cache
    merge = cache._merge

    def counted(tables: list[Table]) -> Table:
        nonlocal merged_rows
        merged_rows += sum(table.chunk_count for table in tables)
        return merge(tables)

    cache._merge = counted  # type: ignore[method-assign,assignment]
    keys = random_keys(4000, 5)
    for at in range(0, len(keys), 10):
        own = keys[at : at + 10]
        for key in own:
            index.bear(key, 1)
        pack = make_pack(own)
        assert index.knows_many(*as_columns(own)).all()
        index.settle(Table(encode_table([pack])), [pack])
        assert index.knows(own[0])
        assert len(index.tables) <= TABLES_MAX
    assert not index._born
    assert all(index.knows(key) for key in keys)
    assert index.knows_many(*as_columns(keys)).all()
    assert merged_rows <= 8 * len(keys)


def test_the_plan_of_a_merge() -> None:
    """Nothing while tables are few and small; then all fresh ones with the runs that are small beside them."""

    def run(count: int, is_run: bool = True) -> Table:
        table = make_table(random_keys(count, count))
        return Table(table.data, is_run=is_run)

    assert plan_merge([run(500), run(1), run(2, False)])[1] == []
    large, small = run(1000), run(10)
    fresh = [run(1, False) for _ in range(TABLES_MAX)]
    kept, pile = plan_merge([small, *fresh, large])
    assert kept == [large]
    assert set(map(id, pile)) == set(map(id, [small, *fresh]))
    runs = [run(5**power) for power in range(2, 6)] * 4  # too many, though each is large beside those before it
    kept, pile = plan_merge([*runs, run(1, False)])
    assert len(kept) < cache_module.TABLES_KEPT


# --- files ---


@pytest.fixture
def everything_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "FRESH_TABLE_BYTES_MAX", 0)
    monkeypatch.setattr(cache_module, "FRESH_BYTES_MAX", 0)
    monkeypatch.setattr(cache_module, "FREE_BYTES_MIN", 0)


class Objects:
    """Index objects by name, and how often each was read."""

    def __init__(self, names: str) -> None:
        self.keys = {name: random_keys(40, ord(name)) for name in names}
        self.read: list[str] = []

    def load(self, names: Sequence[str]) -> Iterator[Table]:
        for name in names:
            self.read.append(name)
            yield make_table(self.keys[name], name)

    def open(self, folder: Path | None, key: bytes = KEY) -> Index:
        """As a new process would; all that is valid must be known, and nothing else."""
        cache_module._verified.clear()
        self.read = []
        cache = IndexCache(None if folder is None else str(folder), key)
        index = Index(0, cache.tables(cache.look(), list(self.keys), self.load), cache=cache)
        keys = [key for some in self.keys.values() for key in some]
        assert all(map(index.knows, keys))
        assert index.knows_many(*as_columns(keys)).all()
        assert not index.knows_many(*as_columns(random_keys(200, 7))).any()
        assert sum(table.chunk_count for table in index.tables) == len(keys)
        return index


@pytest.mark.usefixtures("everything_in_files")
def test_a_run_is_read_instead_of_index_objects(tmp_path: Path) -> None:
    """The second opening reads no index object; what was added since is all that the third reads."""
    folder = tmp_path / "a" / "b"
    objects = Objects("abc")
    objects.open(folder)
    assert sorted(objects.read) == ["a", "b", "c"]
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    assert [(folder / name).stat().st_mode & 0o777 for name in files(folder)] == [0o600]
    objects.open(folder)
    assert objects.read == []
    objects.keys["d"] = random_keys(40, 400)
    objects.open(folder)
    assert objects.read == ["d"]


@pytest.mark.usefixtures("everything_in_files")
def test_damage_anywhere_in_a_run_is_seen(tmp_path: Path) -> None:
    """A bit flipped in any region, a file cut short or extended: thrown away, made again, nothing wrong believed."""
    objects = Objects("ab")
    objects.open(tmp_path)
    (name,) = files(tmp_path)
    whole = (tmp_path / name).read_bytes()
    step = max(len(whole) // 150, 1)
    damaged = [
        whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in (*range(40), *range(40, len(whole), step))
    ]
    damaged += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(len(whole) - 33, len(whole))]
    damaged += [whole[:-1], whole[:100], b"", whole + b"\0", whole[32:], bytes(len(whole))]
    for data in damaged:
        for old in files(tmp_path):
            (tmp_path / old).unlink()
        (tmp_path / name).write_bytes(data)
        objects.open(tmp_path)
        assert objects.read == ["a", "b"]
        (made,) = files(tmp_path)
        assert made != name


@pytest.mark.usefixtures("everything_in_files")
def test_a_run_of_another_domain_is_not_believed(tmp_path: Path) -> None:
    """Its hash is keyed: a whole and sound file of somebody else is thrown away."""
    Objects("ab").open(tmp_path, bytes(32))
    before = files(tmp_path)
    objects = Objects("ab")
    objects.open(tmp_path)
    assert objects.read == ["a", "b"]
    assert set(files(tmp_path)).isdisjoint(before)


@pytest.mark.usefixtures("everything_in_files")
def test_stale_runs_and_leftovers_go(tmp_path: Path) -> None:
    """A run of which one index object is not valid any more, a dead writer's file; not a live writer's."""
    objects = Objects("abc")
    objects.open(tmp_path)
    before = files(tmp_path)
    (tmp_path / ".tmp-dead").write_bytes(b"x")
    (tmp_path / ".tmp-live").write_bytes(b"x")
    (tmp_path / "noise").write_bytes(b"x")
    del objects.keys["b"]
    with (tmp_path / ".tmp-live").open("rb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        objects.open(tmp_path)
    assert objects.read == ["a", "c"]
    now = files(tmp_path)
    assert ".tmp-live" in now
    assert len(now) == 2
    assert set(now).isdisjoint(before)


@pytest.mark.usefixtures("everything_in_files")
def test_runs_that_overlap_count_once(tmp_path: Path) -> None:
    """Two processes that merged at once leave two runs with the same index objects: one is used, one goes."""
    objects = Objects("abcd")
    cache = IndexCache(str(tmp_path), KEY)
    cache._merge(list(objects.load("abc")))
    cache._merge(list(objects.load("cd")))
    objects.open(tmp_path)
    assert objects.read == ["d"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted tmpfs of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small filesystem cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.usefixtures("everything_in_files")
@pytest.mark.parametrize("temporary", ["roomy", "full"])
def test_a_full_disk_costs_memory_only(
    small_disk: Path, tmp_path: Path, temporary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for a run: a temporary file serves; no room there either: memory does. Nothing is left behind."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path if temporary == "roomy" else small_disk))
    objects = Objects("ab")
    objects.keys["a"] = random_keys(5000, 1)
    index = objects.open(small_disk)
    assert files(small_disk) == []
    assert (index.tables[0].guide is not None) == (temporary == "roomy")


@pytest.mark.usefixtures("everything_in_files")
@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "rename", "open"])
def test_a_write_that_fails_costs_nothing(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever call of the writer fails, the index is right, and the next opening finds no rest of it."""
    real = getattr(os, call)

    def failing(*arguments: object, **named: object) -> object:
        if call != "open" or any(isinstance(argument, str) and ".tmp-" in argument for argument in arguments):
            raise OSError(errno.EIO, "failed on purpose")
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        Objects("ab").open(tmp_path)
    assert files(tmp_path) == []
    Objects("ab").open(tmp_path)
    assert len(files(tmp_path)) == 1


@pytest.mark.usefixtures("everything_in_files")
def test_a_folder_that_cannot_be_one_costs_memory_only(tmp_path: Path) -> None:
    """A file where the folder should be: the index is opened all the same."""
    (tmp_path / "cache").write_text("in the way")
    Objects("ab").open(tmp_path / "cache")
    assert (tmp_path / "cache").read_text() == "in the way"


# --- in a repository ---


def _repository(store: MemoryStore | PosixStore, cache: Path | None) -> Repository:
    return open_repository(store, "", MASTER, pool=Pool(threads=1), cache=None if cache is None else str(cache))


def _opens(store_folder: str, cache: str, gate: "multiprocessing.synchronize.Barrier", keys: list[bytes]) -> None:
    for name in ("FRESH_TABLE_BYTES_MAX", "FRESH_BYTES_MAX", "FREE_BYTES_MIN"):
        setattr(cache_module, name, 0)
    repository = _repository(PosixStore(store_folder), Path(cache))
    gate.wait(60)
    for _ in range(5):
        repository._cache.clear()
        with repository.session("restore") as session:
            assert all(session.index.place(key) is not None for key in keys)


def test_two_processes_make_a_run_at_once(tmp_path: Path) -> None:
    """While each also removes what the other made: both see the whole index, and no temporary file stays."""
    store = PosixStore(str(tmp_path / "store"))
    repository = create_repository(store, "", MASTER, DomainSettings(), pool=Pool(threads=1))
    keys = random_keys(600, 3)
    for at in range(0, 600, 40):
        repository.put_index_object([make_pack(keys[at : at + 40])], 0)
    spawn = multiprocessing.get_context("spawn")
    gate = spawn.Barrier(2)
    arguments = (str(tmp_path / "store"), str(tmp_path / "cache"), gate, keys)
    workers = [spawn.Process(target=_opens, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    left = files(tmp_path / "cache" / repository.domain.id.hex())
    assert left == [name for name in left if name.endswith(".run")]


@pytest.mark.usefixtures("everything_in_files")
def test_what_a_prune_replaced_is_not_used(tmp_path: Path) -> None:
    """An index object that a list retires takes its run with it, and its chunks are unknown from then on."""
    from dataclasses import replace

    repository = create_repository(MemoryStore(), "", MASTER, DomainSettings(), pool=Pool(threads=1))
    repository = _repository(repository.store, tmp_path)  # type: ignore[arg-type]
    packs = [make_pack(random_keys(40, seed)) for seed in (1, 2)]
    for pack in packs:
        repository.store.put(f"{repository.prefix}packs/{pack.id.hex()}", [bytes(pack.size)])
    names = [repository.put_index_object([pack], 0)[0] for pack in packs]
    keys = [pack.segments[0].ids[0][:16] for pack in packs]
    for _ in range(2):
        with repository.session("backup") as session:
            assert [session.index.knows(key) for key in keys] == [True, True]
    index_list = repository.load_index_list()
    repository.put_index_list(replace(index_list, number=1, objects=(names[1],), retired=((names[0], 1),)))
    with repository.session("backup") as session:
        assert [session.index.knows(key) for key in keys] == [False, True]
    with repository.session("backup") as session:
        assert [session.index.knows(key) for key in keys] == [False, True]
