"""When packs were last proven: what a full backup relies on, and what a sample reads first."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from fault_store import copy_of
from fault_streams import random_files
from fault_world import MASTER, MONITOR, POOL, PREFIX, World, create
from test_damage import DAMAGES, SEED, flip
from test_suspects import packs_of

from strongroom.base.clock import SystemClock
from strongroom.base.errors import InvalidRequest, PackCorrupt
from strongroom.engine import Repository, open_repository
from strongroom.engine import pack as pack_module
from strongroom.engine.checks import OBJECTS_MAX, load_checks, note_checked, trusted_packs
from strongroom.engine.chunker import Chunker
from strongroom.engine.pack import RAW, SegmentPlace, require_sound
from strongroom.engine.scrub import scrub
from strongroom.engine.seal import SEGMENT, Box
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify


class Later(SystemClock):
    """So many days after a fixed morning."""

    def __init__(self, days: float = 0) -> None:
        self.days = days

    def now(self) -> datetime:
        return datetime(2026, 3, 1, 6, tzinfo=UTC) + timedelta(days=self.days)


def at(store: MemoryStore, clock: Later) -> Repository:
    return open_repository(store, PREFIX, MASTER, pool=POOL, clock=clock)


def one_tree() -> tuple[World, MemoryStore]:
    store, world = MemoryStore(), World()
    world.backup(create(store), "one.1", random_files(SEED, bytes_max=200_000))
    return world, store


def test_a_full_backup_relies_on_packs_proven_in_the_last_thirty_days() -> None:
    """After a deep verify it stores nothing new; 31 days later all of it; what it stored itself counts as proven."""
    world, store = one_tree()
    clock = Later()
    repository = at(store, clock)
    content = world.kept["one.1"]
    assert verify(repository, None, deep=True, monitor=MONITOR).packs_recent == 2
    clock.days = 29.9
    report = world.backup(repository, "full.1", content, parent="one.1", full=True)
    assert report.bytes_new == 0
    assert report.full_reason == "a full backup was asked for"
    packs = packs_of(store)
    clock.days = 31
    report = world.backup(repository, "full.2", content, parent="full.1", full=True)
    assert report.bytes_new == repository.load_root("one.1").report.bytes_new > 0
    assert report.full_reason is not None
    assert "2 of 2 packs were not verified in the last 30 days" in report.full_reason
    assert len(packs_of(store)) == len(packs) + 2
    report = world.backup(repository, "full.3", content, parent="full.2", full=True)
    assert report.bytes_new == 0
    assert world.problems(repository) == []
    assert verify(repository, None, deep=True, monitor=MONITOR).findings == ()
    world.prune(repository)
    assert world.problems(repository) == []


def test_a_full_backup_distrusts_what_nobody_proved() -> None:
    """Without any verify it stores everything again, and an undetected rot hits the old restore point only."""
    world, store = one_tree()
    flip(lambda _: 20)(store, max(packs_of(store), key=store.size))
    repository = at(store, Later())
    world.backup(repository, "full.1", world.kept["one.1"], full=True)
    del world.kept["one.1"]
    repository.delete_root("one.1")
    assert world.problems(repository) == []


def test_a_damaged_pack_is_not_proven() -> None:
    """A deep verify notes what passed, never what failed."""
    _, store = one_tree()
    damaged = max(packs_of(store), key=store.size)
    flip(lambda _: 20)(store, damaged)
    repository = at(store, Later())
    report = verify(repository, None, deep=True, monitor=MONITOR)
    assert (report.packs, report.packs_recent) == (2, 1)
    assert damaged.rpartition("/")[2] not in {pack.hex() for pack in trusted_packs(repository)}


def test_a_clock_of_the_future_proves_nothing() -> None:
    """A check that was noted years ahead does not count before that day."""
    repository = at(one_tree()[1], Later())
    note_checked(repository, [bytes(16)], datetime(2040, 1, 1, tzinfo=UTC))
    assert trusted_packs(repository) == frozenset()


def test_daily_samples_read_everything_in_time() -> None:
    """A tenth a day: after ten days every pack is proven, the longest unproven first, and damage is found by then."""
    store, world = MemoryStore(), World()
    repository = create(store)
    for number in range(20):
        world.backup(repository, f"disk{number}.1", random.Random(number).randbytes(70_000))
    packs = len(packs_of(store))
    clock = Later()
    repository = at(store, clock)
    read = 0
    for day in range(11):
        clock.days = day
        report = verify(repository, None, deep=True, monitor=MONITOR, sample=0.1, seed=day)
        assert report.findings == ()
        assert report.packs == packs
        assert 0 < report.objects < packs / 4
        read += report.objects
        assert report.packs_recent == min(read, packs)
    assert report.packs_recent == packs
    victim = random.Random(SEED).choice(packs_of(store))
    flip(lambda _: 20)(store, victim)
    found = []
    for day in range(11, 22):
        clock.days = day
        found += verify(repository, None, deep=True, monitor=MONITOR, sample=0.1, seed=day).findings
    assert {finding.name for finding in found if finding.kind == "pack"} == {victim}
    with pytest.raises(InvalidRequest):
        verify(repository, None, deep=False, monitor=MONITOR, sample=0.1)


def test_a_sample_sees_what_is_missing_anywhere() -> None:
    """However small the sample: a pack that is gone or cut off is found on the same day."""
    _, store = one_tree()
    for damage in ("delete", "cut last", "longer"):
        for name in packs_of(store):
            broken = copy_of(store)
            DAMAGES[damage](broken, name)
            report = verify(at(broken, Later()), None, deep=True, monitor=MONITOR, sample=0.001)
            assert name in {finding.name for finding in report.findings}


def test_the_notes_stay_few_and_forget_what_is_gone() -> None:
    """A hundred checks leave a handful of objects, with the latest time of each pack that is there."""
    _, store = one_tree()
    clock = Later()
    repository = at(store, clock)
    mine = [bytes.fromhex(name.rpartition("/")[2]) for name in packs_of(store)]
    for day in range(100):
        clock.days = day
        note_checked(repository, [*mine, random.Random(day).randbytes(16)], clock.now())
        assert sum("/checks/" in info.name for info in store.list("")) <= OBJECTS_MAX + 1
    found = load_checks(repository)
    assert [found[pack] for pack in mine] == [int(clock.now().timestamp())] * 2
    assert len(found) <= 2 + OBJECTS_MAX + 1
    assert scrub(store, PREFIX, pool=POOL).findings == ()
    assert scrub(store, PREFIX, pool=POOL).unproven == ()


def test_damaged_notes_only_lower_trust() -> None:
    """Each damage of a note: no error, and at most fewer packs are trusted."""
    world, store = one_tree()
    verify(at(store, Later()), None, deep=True, monitor=MONITOR)
    (name,) = [info.name for info in store.list("") if "/checks/" in info.name]
    for damage in ("flip first", "flip middle", "cut half", "cut all", "delete", "longer"):
        broken = copy_of(store)
        DAMAGES[damage](broken, name)
        repository = at(broken, Later())
        assert trusted_packs(repository) == frozenset()
        then = world.copy()
        then.backup(repository, "full.1", world.kept["one.1"], full=True)
        assert then.problems(repository) == []


@pytest.mark.parametrize("codec", [RAW, pack_module.ZSTD])
def test_what_does_not_open_again_is_not_stored(codec: int) -> None:
    """A bit that flips after hashing, in the seal or in the chunk, is noticed before a full backup stores it."""
    domain = create(MemoryStore()).domain
    namer = Chunker(domain).data_id
    plain = bytes(5000) if codec else random.Random(1).randbytes(5000)
    payload = pack_module.compress_segment(memoryview(plain), 3)[1] if codec else plain
    box = Box(domain.data_key, domain.id, SEGMENT, bytes(16))
    sealed = bytearray(box.seal(16, bytes(payload)))
    place = SegmentPlace(bytes(16), 16, len(sealed), 5000, codec)
    ids = [namer(plain[:2000]), namer(plain[2000:])]
    require_sound(box, place, memoryview(sealed), ids, [2000, 3000], namer)
    sealed[len(sealed) // 2] ^= 4
    with pytest.raises(PackCorrupt):
        require_sound(box, place, memoryview(sealed), ids, [2000, 3000], namer)
    sealed[len(sealed) // 2] ^= 4
    with pytest.raises(PackCorrupt):
        require_sound(box, place, memoryview(sealed), [ids[0], ids[0]], [2000, 3000], namer)
