"""A backup through an agent, without a server: two ends of a channel, and an agent that lies."""

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strongroom.agent.backup import run_backup
from strongroom.agent.policy import Policy
from strongroom.base.clock import SystemClock
from strongroom.base.errors import SourceChanged, SourceError, SourceUnreachable
from strongroom.base.ids import new_id
from strongroom.base.streams import NO_ATTRIBUTES, Entry, SilentMonitor
from strongroom.base.units import MIB
from strongroom.engine import (
    BackupReport,
    BackupRequest,
    DomainSettings,
    MasterKey,
    Repository,
    backup,
    create_repository,
)
from strongroom.engine.content import ROW
from strongroom.engine.manifest import count_stats, open_stream, pack_stats
from strongroom.engine.store.open import open_store
from strongroom.sources.base import PointWanted, SourceRef
from strongroom.sources.folder import FolderDriver
from strongroom.sources.hosts import messages as m
from strongroom.sources.hosts.channel import Channel
from strongroom.sources.hosts.target import HostTree as PouredTree
from strongroom.sources.hosts.tree import HostTree
from strongroom.sources.hosts.wire import Frame, Kind


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    store = open_store(f"file://{tmp_path}/store")
    return create_repository(store, "vault", MasterKey.create(tmp_path / "master.key"), DomainSettings())


class Joined:
    """What is sent arrives at the other channel at once."""

    def __init__(self, other: Channel) -> None:
        self.other = other

    def send(self, kind: int, payload: bytes = b"", *, seq: int = 0, ack: int = 0) -> None:
        self.other.feed(Frame(kind, seq, ack, bytes(payload)))

    def close(self) -> None:
        return None


def joined() -> tuple[Channel, Channel]:
    one, other = Channel(b"s"), Channel(b"s")
    one.attach(Joined(other), 0)  # type: ignore[arg-type]
    other.attach(Joined(one), 0)  # type: ignore[arg-type]
    return one, other


def through_agent(repository: Repository, folder: Path, parent: str | None = None) -> tuple[BackupReport, int]:
    """Back up a folder as a host's only path; the report, and the bytes of content that travelled."""
    here, there = joined()
    policy = Policy(paths=(os.fsencode(folder),), restore=False, restore_paths=())
    job = m.BackupJob((m.Root(os.fsencode(folder)),), (), False, None, None, False)
    agent = threading.Thread(target=run_backup, args=(there, job, policy, SystemClock()))
    agent.start()
    try:
        payload = here.take(20)
        assert payload is not None
        tree = HostTree(here, m.from_agent(payload).head)
        request = BackupRequest(backup_id=new_id(), generation=1, parent=parent)
        report = backup(repository, tree, request, SilentMonitor(), lambda: None)
        here.send(m.pack(m.Commit()))
    finally:
        there_ends = threading.Timer(20, lambda: there.end(SourceUnreachable(reason="the test is over")))
        there_ends.start()
        agent.join(25)
        there_ends.cancel()
    return report, tree.sent_bytes


def make(folder: Path) -> None:
    """Small, large, empty, sparse files, an image in blocks, a large folder."""
    rng = random.Random(4)
    (folder / "many").mkdir(parents=True)
    for i in range(5000):  # more than a part of a folder
        (folder / "many" / f"{i:05}").write_bytes(rng.randbytes(i % 300))
    (folder / "large").write_bytes(rng.randbytes(9 * MIB) + bytes(3 * MIB) + rng.randbytes(100_000))
    (folder / "empty").write_bytes(b"")
    (folder / "zeros").write_bytes(bytes(50_000))
    for name, size in (("sparse", 40 * MIB), ("disk.img", 600 * MIB + 1234)):
        with (folder / name).open("wb") as out:
            out.truncate(size)
            for at in (0, 5 * MIB + 77, size - 70_000):
                out.seek(at)
                out.write(rng.randbytes(70_000))
    os.link(folder / "large", folder / "second-name")
    os.symlink("large", folder / "link")


def test_what_an_agent_cuts_is_what_the_engine_cuts(repository: Repository, tmp_path: Path) -> None:
    """A folder that was backed up from the server's disk sends nothing when an agent backs it up, images included."""
    folder = tmp_path / "data"
    make(folder)
    with FolderDriver().open_point(
        SourceRef(resource_id="r", type="OS::Sfs::Turbo", path=os.fsencode(folder)), PointWanted()
    ) as point:
        first = backup(
            repository, point.stream, BackupRequest(backup_id=new_id(), generation=1), SilentMonitor(), lambda: None
        )
    report, sent = through_agent(repository, folder)
    assert first.bytes_new > 9 * MIB
    assert (report.bytes_new, sent) == (0, 0)
    assert report.bytes_total == first.bytes_total


def test_only_what_changed_is_read_and_only_new_chunks_travel(repository: Repository, tmp_path: Path) -> None:
    """The parent's record answers for what is unchanged, however many folders there are."""
    folder = tmp_path / "data"
    make(folder)
    first, sent = through_agent(repository, folder)
    assert sent == first.bytes_new
    (folder / "many" / "00007").write_bytes(b"new")
    again, sent = through_agent(repository, folder, parent=first.root)
    assert (sent, again.bytes_new) == (3, 3)
    assert again.entries == first.entries


def test_a_listing_is_spelled_as_records_spell_it() -> None:
    """Two encoders, one spelling: else an unchanged folder would be decoded and compared entry by entry each time."""
    numbers = [
        0,
        1,
        -1,
        -32,
        -33,
        127,
        128,
        255,
        256,
        65_535,
        65_536,
        2**32 - 1,
        2**32,
        -(2**31) - 1,
        2**63 - 1,
        2**64 - 1,
    ]
    for count in (0, 1, 15, 16, 4096, 70_000):
        entries = [
            Entry(b"n" * (i % 256), *(numbers[(i + k) % len(numbers)] for k in range(10)), bool(i % 2))
            for i in range(count)
        ]
        assert m.pack_entries(entries) == pack_stats(entries)
        assert count_stats(pack_stats(entries)) == count
        assert m.unpack_entries(pack_stats(entries)) == entries


# --- an agent that lies ---

FILE = Entry(b"f", 0o100644, 0, 0, 1, 10, 1, 5, 1, 1, 0, False)
ROOT = Entry(b"", 0o040755, 0, 0, 1, 0, 1, 2, 1, 2, 0, False)
OPENED = m.PointOpened(b"", 0, 0, None, {}, ROOT, NO_ATTRIBUTES)


class Liar:
    """Feeds prepared messages to the server's end, as if an agent had sent them."""

    def __init__(self) -> None:
        self.channel = Channel(b"s")
        self.number = 0

    def says(self, message: m.Message, *tail: bytes) -> "Liar":
        self.number += 1
        self.channel.feed(Frame(Kind.DATA, self.number, 0, m.pack(message, *tail)))
        return self

    def walks(self, *folders: m.WalkedFolder) -> "Liar":
        return self.says(m.Walked(0, len(folders), True), m.pack_folders(list(folders)))

    def backup(self, repository: Repository) -> BackupReport:
        self.channel.detach(SimpleNamespace())  # type: ignore[arg-type]
        request = BackupRequest(backup_id=new_id(), generation=1)
        return backup(repository, HostTree(self.channel, OPENED), request, SilentMonitor(), lambda: None)


def walked(*entries: Entry, path: tuple[bytes, ...] = ()) -> m.WalkedFolder:
    return m.WalkedFolder(path, m.pack_entries(entries), ())


def offer(chunk_id: bytes, length: int, *, pieces: int = 1, entry: Entry = FILE) -> tuple[Any, bytes]:
    end = m.FileEnd(True, False, NO_ATTRIBUTES)
    return m.Offer(1, 1, (m.Part(0, pieces, entry, end),)), ROW.pack(chunk_id, length) * pieces


@pytest.fixture(params=["bytes", "length", "short", "long", "unasked"])
def lie(request: pytest.FixtureRequest) -> Iterator[Liar]:
    liar = Liar().walks(walked(FILE))
    false = b"\x07" * 32
    if request.param == "bytes":  # the bytes of a chunk that is called something else
        liar.says(*offer(false, 10)).says(m.Chunks(1, 1), b"0123456789")
    elif request.param == "length":
        liar.says(*offer(false, 10)).says(m.Chunks(1, 1), b"012345")
    elif request.param == "short":
        liar.says(*offer(false, 4)).says(m.Chunks(1, 1), b"0123")
    elif request.param == "long":
        liar.says(*offer(bytes(32), 11))
    else:
        liar.says(m.Chunks(1, 9), b"0123456789")
    yield liar


def test_a_chunk_under_a_false_name_is_refused(repository: Repository, lie: Liar) -> None:
    """What a host sends is named again, so it cannot spoil what others of its vault share."""
    with pytest.raises((SourceChanged, SourceUnreachable)):
        lie.backup(repository)


@pytest.mark.parametrize("born", ["before", "now", "metadata"])
def test_a_known_chunk_of_another_length_or_kind_is_refused(repository: Repository, born: str) -> None:
    """A restore point that describes what is stored wrongly would be reported, and could not be restored."""
    data = b"0123456789"
    with repository.session("backup", None) as session:
        chunker = session.chunker
    chunk_id, entry = chunker.data_id(data), FILE
    second, short = FILE._replace(name=b"g", ino=6), FILE._replace(name=b"h", ino=7, size=4)
    end = m.FileEnd(True, False, NO_ATTRIBUTES)
    parts = [m.Part(0, 1, entry, end), m.Part(1, 1, second, end)]
    rows = ROW.pack(chunk_id, 10) * 2
    both = walked(entry, second)
    honest = Liar().walks(both).says(m.Offer(1, 1, tuple(parts[:1])), rows[:40]).says(m.Chunks(1, 1), data)
    assert honest.says(m.Offer(1, 2, tuple(parts[1:])), rows[40:]).backup(repository).bytes_new == 10
    again = Liar().walks(both).says(m.Offer(1, 1, tuple(parts)), rows).backup(repository)
    assert again.bytes_new == 0

    liar = Liar()
    if born == "before":
        liar.walks(walked(short)).says(*offer(chunk_id, 4, entry=short))
    elif born == "now":  # in a pack that is being filled
        fresh = chunker.data_id(b"9876543210")
        liar.walks(walked(entry, short))
        liar.says(m.Offer(1, 1, (m.Part(0, 1, entry, end),)), ROW.pack(fresh, 10)).says(m.Chunks(1, 1), b"9876543210")
        liar.says(m.Offer(1, 2, (m.Part(1, 1, short, end),)), ROW.pack(fresh, 4))
    else:  # the host knows how metadata is named, and may guess some
        with repository.session("restore", again.root) as session:
            row = next(open_stream(session.load_root(again.root), session.metadata).chunks())
        page = FILE._replace(size=row.length)
        liar.walks(walked(page)).says(*offer(row.id, row.length, entry=page))
    with pytest.raises(SourceChanged, match="not stored"):
        liar.backup(repository)


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"a\0b", b"x" * 256])
def test_names_that_are_none_are_refused(repository: Repository, name: bytes) -> None:
    """A restore point must not hold what leads out of its folder."""
    with pytest.raises(SourceError):
        Liar().walks(walked(FILE._replace(name=name))).backup(repository)
    with pytest.raises(SourceError):
        Liar().walks(walked(), walked(path=(name,))).backup(repository)


def test_folders_out_of_order_are_refused(repository: Repository) -> None:
    """The merge with the parent relies on the order of the walk."""
    for walk in (
        [walked(path=(b"a",))],
        [walked(FILE, FILE)],
        [walked(), walked(path=(b"b",)), walked(path=(b"a",))],
    ):
        with pytest.raises(SourceUnreachable):
            Liar().walks(*walk).backup(repository)


@pytest.mark.parametrize("between", [0, 1])
def test_parts_of_a_folder_out_of_order_are_refused(repository: Repository, between: int) -> None:
    """Also with a part between them of which nothing was left."""
    late = FILE._replace(name=b"z")
    liar = Liar().walks(walked(late), *[walked()] * between, walked(FILE)).says(*offer(bytes(32), 10, entry=late))
    with pytest.raises(SourceUnreachable) as refused:
        liar.backup(repository)
    assert refused.value.detail == "folders not in their order"


def test_mutated_messages_are_refused_with_one_error() -> None:
    """Nothing but SourceUnreachable comes out of the decoders, whatever the bytes are. The seed is fixed."""
    rng = random.Random(11)
    sound = [
        m.pack(*offer(b"\x07" * 32, 10)),
        m.pack(m.Walked(0, 1, True), m.pack_folders([walked(FILE, path=(b"a",))])),
        m.pack(OPENED),
        m.pack(m.Failed("SourceGone", "gone")),
        m.pack(m.Pour((m.MakeFolder((b"a",), ROOT, NO_ATTRIBUTES), m.Bytes(1, 2, 3))), b"123"),
        m.pack(m.RestoreJob("t", (b"/srv",), True, False, 1, 1, ((b"a",),), None, (), False)),
    ]
    for _ in range(6000):
        data = bytearray(rng.choice(sound))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        for decode in (m.from_agent, m.from_server):
            try:
                found = decode(bytes(data))
                if isinstance(found.head, m.Walked):
                    for folder in m.unpack_folders(found.tail):
                        m.unpack_entries(folder.listing)
            except SourceUnreachable:
                continue


def test_a_restore_tells_the_first_failure_and_not_what_followed_from_it() -> None:
    """Steps were under way when the host gave up, and it answers each; several threads hear of it."""
    host = Liar().says(m.Failed("TargetBusy", "The disk is in use.")).says(m.Failed("SourceError", "That is no job."))
    tree = PouredTree(SimpleNamespace(channel=host.channel))  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(SourceError, match="in use"):
            tree.finish()
