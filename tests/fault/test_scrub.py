"""The scrub without a key: everything that is not what was written is found, and nothing else."""

import random
from datetime import UTC, datetime

import pytest
from fault_store import copy_of
from fault_world import MASTER, MONITOR, POOL, PREFIX, World, create, reopen
from test_damage import DAMAGES, SEED, damaged_world, write
from test_golden_damage import golden, opened
from test_prune_meets import View, base

from strongroom.base.clock import SystemClock
from strongroom.base.errors import InvalidRequest
from strongroom.engine.keys import MasterKey
from strongroom.engine.prune import prune
from strongroom.engine.rebuild import rebuild
from strongroom.engine.rotate import drop_wraps, rewrap
from strongroom.engine.scrub import ScrubReport, scrub
from strongroom.engine.store.base import Store
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.verify import verify


def scrubbed(store: Store, sample: float = 1.0) -> ScrubReport:
    return scrub(store, PREFIX, sample=sample, pool=POOL)


def named(report: ScrubReport) -> set[str]:
    """Everything a report says is not proven or not right."""
    return {f.name for f in report.findings} | {name for name, _ in report.unproven} | set(report.strays)


def test_all_that_was_written_is_proven() -> None:
    """Backups, labels put later, a prune: every object has a digest, is read, and is what was written."""
    _, store = damaged_world()
    report = scrubbed(store)
    assert named(report) == set()
    others = [info for info in store.list("") if "/digests/" not in info.name]
    assert report.objects == len(others)
    assert report.packs == report.packs_read == sum("/packs/" in info.name for info in others)
    assert report.bytes == sum(info.size for info in others) - 32  # but for the object `domain`


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_damage_is_found_without_the_key(damage: str) -> None:
    """Each object, damaged in each way, is named; nothing that was not touched is."""
    _, store = damaged_world()
    random.seed(SEED)
    for name in [info.name for info in store.list("")]:
        broken = copy_of(store)
        DAMAGES[damage](broken, name)
        changed = {info.name for info in store.list("")} - {
            info.name for info in broken.list("") if broken.read(info.name) == store.read(info.name)
        }
        report = scrubbed(broken)
        found = {finding.name for finding in report.findings}
        if "/digests/" in name and damage in ("delete", "foreign"):
            assert named(report), name  # then its object has none, or one that does not fit
            continue
        assert changed <= found, (name, damage)
        assert found <= changed, (name, damage)


def test_every_region_of_a_pack_counts() -> None:
    """One bit of any part, of the first and the last byte of each, is found and its place is told."""
    _, store = damaged_world()
    pack = next(info for info in store.list("") if "/packs/" in info.name and info.size > 100_000)
    rng = random.Random(SEED)
    for at in {
        0,
        15,
        16,
        pack.size - 13,
        pack.size - 12,
        pack.size - 1,
        *(rng.randrange(pack.size) for _ in range(40)),
    }:
        broken = copy_of(store)
        data = bytearray(store.read(pack.name))
        data[at] ^= 1 << rng.randrange(8)
        write(broken, pack.name, bytes(data))
        (finding,) = scrubbed(broken).findings
        start, end = (int(part) for part in finding.reason.partition("[")[2].strip(")").split(", "))
        assert (finding.kind, finding.name) == ("changed", pack.name)
        assert start <= at < end


def test_what_prune_deletes_is_no_loss_at_any_of_its_calls() -> None:
    """A scrub that runs whole between any two store calls of a prune finds nothing missing or changed."""
    world, disk = base()
    reports: list[ScrubReport] = []

    def before(kind: str, name: str) -> None:
        reports.append(scrubbed(disk))

    repository = reopen(View(disk, before))
    dead = [name for name in repository.root_names() if name not in world.kept]
    reports.clear()
    prune(repository, dead=dead, monitor=MONITOR)
    assert len(reports) > 30
    assert [finding for report in reports for finding in report.findings] == []
    assert named(scrubbed(disk)) == set()
    assert world.problems(reopen(disk)) == []


def test_a_scrub_that_meets_a_prune_calls_nothing_lost() -> None:
    """A whole prune between any two store calls of a scrub: what vanished meanwhile is no finding."""
    calls = 0
    while True:
        world, disk = base()
        seen = 0

        def before(kind: str, name: str, world: World = world, disk: MemoryStore = disk, at: int = calls) -> None:
            nonlocal seen
            seen += 1
            if seen == at + 1:
                world.prune(reopen(disk))

        report = scrubbed(View(disk, before))
        assert report.findings == (), calls
        if seen <= calls:
            break
        calls += 1
    assert calls > 10


def test_a_repository_without_digests_gets_them_from_a_deep_verify() -> None:
    """What an early version wrote is not proven, and no finding; a verify with the key makes it provable."""
    store = copy_of(golden())
    before = scrub(store, pool=POOL)
    assert before.findings == ()
    assert before.unproven_count == sum(info.name != "domain" for info in store.list(""))
    repository = opened(store)
    report = verify(repository, None, deep=True, monitor=MONITOR)
    assert report.findings == ()
    assert report.digests_added > 0
    after = scrub(store, pool=POOL)
    assert named(after) == set()
    assert after.packs_read == before.unproven_count - sum("/packs/" not in name for name, _ in before.unproven)
    assert verify(repository, None, deep=True, monitor=MONITOR).digests_added == 0


def test_a_damaged_digest_is_made_again_by_a_deep_verify() -> None:
    """Digests lost, cut off or swapped: after a deep verify the scrub proves everything again."""
    world, store = damaged_world()
    for name in [info.name for info in store.list("") if "/digests/" in info.name]:
        for damage in ("delete", "flip middle", "swap", "foreign"):
            broken = copy_of(store)
            random.seed(SEED)
            DAMAGES[damage](broken, name)
            assert verify(reopen(broken), None, deep=True, monitor=MONITOR).findings == ()
            assert named(scrubbed(broken)) == set(), (name, damage)
    assert world.problems(reopen(store)) == []


def test_a_rebuilt_index_keeps_the_digests() -> None:
    """Index objects lost or damaged and made again from footers: their packs are still proven without a deep verify."""
    for damage in ("delete", "flip middle"):
        world, store = damaged_world()
        for info in [i for i in store.list("") if "/index/" in i.name and "." in i.name.rpartition("/")[2]]:
            DAMAGES[damage](store, info.name)
        assert scrubbed(store).findings != ()
        assert not rebuild(reopen(store)).was_sound
        assert named(scrubbed(store)) == set()
        assert world.problems(reopen(store)) == []


def test_a_rotation_of_the_key_keeps_the_digests() -> None:
    """The new wrap has one, the wrap that was dropped is no loss."""
    _, store = damaged_world()
    new = MasterKey(bytes(range(1, 33)))
    rewrap(store, MASTER, new, MONITOR)
    assert named(scrubbed(store)) == set()
    assert drop_wraps(store, new, MONITOR).removed == 1
    assert named(scrubbed(store)) == set()


class Day(SystemClock):
    """Some seconds after midnight of a day since 1970."""

    def __init__(self, day: int) -> None:
        self._day = day

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._day * 86_400 + 5, UTC)


def test_samples_of_a_tenth_read_every_pack_in_ten_days() -> None:
    """Whatever day one begins; a day reads its share only, and a changed size is found on any day."""
    store, world = MemoryStore(), World()
    repository = create(store)
    for number in range(12):
        world.backup(repository, f"disk{number}.1", random.Random(number).randbytes(70_000))
    packs = {info.name for info in store.list("") if "/packs/" in info.name}
    days = []
    for day in range(20_000, 20_010):
        report = scrub(store, PREFIX, sample=0.1, clock=Day(day), pool=POOL)
        assert named(report) == set()
        days.append(report.packs_read)
    assert sum(days) == len(packs)
    assert max(days) < len(packs)
    victim = min(packs)
    DAMAGES["cut last"](store, victim)
    assert {f.name for f in scrub(store, PREFIX, sample=0.01, pool=POOL).findings} == {victim}
    with pytest.raises(InvalidRequest):
        scrub(store, PREFIX, sample=0, pool=POOL)
