"""What marking finds and reads: as much as reading every root whole finds; of a later root little but its change."""

import random
from collections.abc import Iterator

import pytest
from engine_streams import MemoryTree, Node, Tree, with_parents

from strongroom.base.errors import ManifestCorrupt
from strongroom.base.streams import SilentMonitor
from strongroom.engine import BackupRequest, DomainSettings, MasterKey, Pool, Repository, backup, create_repository
from strongroom.engine.chunker import ID_BYTES
from strongroom.engine.mark import Marks, Seen, root_ids
from strongroom.engine.repository import Session
from strongroom.engine.store.memory import MemoryStore
from strongroom.engine.usage import Usage

FOLDERS, FILES, POINTS = 200, 60, 4  # a stream of some 1.7 MB: many chunks, wherever they are cut
MONITOR = SilentMonitor()


@pytest.fixture
def repository() -> Iterator[Repository]:
    pool = Pool(threads=2)
    yield create_repository(MemoryStore(), "v/", MasterKey(bytes(32)), DomainSettings(), pool=pool)
    pool.close()


def back_up(repository: Repository, name: str, tree: Tree, parent: str | None = None) -> None:
    request = BackupRequest(backup_id=name, generation=1, parent=parent)
    backup(repository, MemoryTree(with_parents(tree)), request, MONITOR, lambda: None)


def some_tree(seed: int) -> Tree:
    chance = random.Random(seed)
    return {
        (b"folder-%d" % folder, b"file-%d" % number): Node(data=chance.randbytes(40), ino=1000 * folder + number)
        for folder in range(FOLDERS)
        for number in range(FILES)
    }


def changed(tree: Tree, seed: int) -> Tree:
    """In one folder a file is gone and another came."""
    chance = random.Random(seed)
    after = dict(tree)
    gone = chance.choice(sorted(after))
    del after[gone]
    after[gone[0], b"new-%d" % seed] = Node(data=chance.randbytes(50), ino=90_000 + seed)
    return after


class CountedSession(Session):
    """Counts the metadata chunks that are read."""

    reads = 0

    def metadata(self, chunk_id: bytes) -> bytes:
        self.reads += 1
        return super().metadata(chunk_id)


def everything(session: Session, names: list[str]) -> set[bytes]:
    found: set[bytes] = set()
    for name in names:
        for ids in root_ids(session, session.repository.load_root(name), MONITOR):
            found |= {ids[at : at + ID_BYTES] for at in range(0, len(ids), ID_BYTES)}
    return found


@pytest.mark.parametrize("slots", [1 << 16, 7])
def test_later_roots_are_marked_by_what_they_changed(repository: Repository, slots: int) -> None:
    """Some restore points: all that they need is marked, and with room to remember each costs fewer reads."""
    tree, names = some_tree(1), ["point-0.1"]
    back_up(repository, "point-0", tree)
    for number in range(1, POINTS):
        tree = changed(tree, number)
        back_up(repository, f"point-{number}", tree, parent=names[-1])
        names.append(f"point-{number}.1")
    with repository.session("verify") as pinned:
        session = CountedSession(repository, pinned.index, pinned.token)
        marks, reads = Marks(slots=slots, portion_ids=100), []
        for name in names:
            before = session.reads
            marks.add(session, repository.load_root(name), MONITOR)
            reads.append(session.reads - before)
        usage = Usage(session.index, marks)
        needed = everything(session, names)
    assert sum(usage.chunks_of(pack)[1] for pack in usage.packs) == len(needed)
    assert len(usage.unknown.first) == 0
    assert reads[0] > 8
    if slots > 1000:
        print(reads)
        assert sum(reads[1:]) * 4 < (POINTS - 1) * reads[0] * 3, reads  # what changed, and its neighbours


def test_a_part_that_could_not_be_read_is_not_taken_for_marked(repository: Repository) -> None:
    """Two roots share what is damaged: the second one fails too."""
    tree = some_tree(2)
    back_up(repository, "one", tree)
    back_up(repository, "two", tree, parent="one.1")
    with repository.session("verify") as pinned:

        class Damaged(CountedSession):
            def metadata(self, chunk_id: bytes) -> bytes:
                if self.reads == 5:
                    raise ManifestCorrupt(reason="damaged for the test")
                return super().metadata(chunk_id)

        session, marks = Damaged(repository, pinned.index, pinned.token), Marks(slots=1 << 12)
        for name in ("one.1", "two.1"):
            session.reads = 0
            with pytest.raises(ManifestCorrupt):
                marks.add(session, repository.load_root(name), MONITOR)
        assert not marks.roots
        session.reads = 6
        marks.add(session, repository.load_root("two.1"), MONITOR)
        usage = Usage(session.index, marks)
        needed = everything(session, ["two.1"])
    assert sum(usage.chunks_of(pack)[1] for pack in usage.packs) == len(needed)


def test_seen_forgets_and_never_invents() -> None:
    """What it says came before came before, in however little room; a digest of zeros is no empty place."""
    chance, seen, came = random.Random(3), Seen(slots=5), set()
    right = 0
    assert not seen.before(bytes(16))
    assert not seen.before(bytes(16))
    for _ in range(2000):
        digest = chance.randrange(12).to_bytes(1, "big") * 16
        if seen.before(digest):
            assert digest in came
            right += 1
        came.add(digest)
    assert right > 100
