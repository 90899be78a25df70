"""A domain in a store: its names, its roots, its index, and the sessions that read and write it.

    <prefix>domain                    id of the own domain in hex: the last object that creation writes
    <prefix>domains/<id>/keys/<n>     wrapped keys         roots/<backup id>.<generation>   commits
    .../packs/<hex>                   chunks               labels/<backup id>.<n>           what changes later
    .../index/<n>, index/<n>.<hex>    see index.py           digests/<kind>.<name>          see digests.py

Invariants, true at any instant: a root refers only to chunks in durable packs; an index object only to packs that exist
or are fossils; without a root a backup does not exist; no object ever changes. Written: packs, index, root. Read: root,
then index. This module writes single objects; the order is kept by backup.py.
"""

import contextlib
import itertools
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import zstandard

from strongroom.base.clock import Clock
from strongroom.base.errors import (
    ChunkCorrupt,
    Corrupt,
    IndexIncomplete,
    InvalidRequest,
    ObjectExists,
    ObjectMissing,
    PackCorrupt,
)
from strongroom.engine.beginning import PACKS_SEEN_MAX, Seen, look
from strongroom.engine.chunker import KEY_BYTES, Chunker
from strongroom.engine.digests import (
    PackDigests,
    delete_object,
    digest_of,
    known_digests,
    merge_digests,
    put_checked_digest,
    put_digest,
)
from strongroom.engine.index import INDEX_BYTES_MAX, INDEX_LIST_BYTES_MAX, NUMBER_DIGITS, Index, IndexList, unread
from strongroom.engine.index_cache import IndexCache
from strongroom.engine.index_table import Table, encode_table
from strongroom.engine.kept import KeptTimes
from strongroom.engine.keys import Domain
from strongroom.engine.labels import LabelsOf
from strongroom.engine.locks import require_unpromised
from strongroom.engine.model import Labels, Root, SessionKind, Sessions
from strongroom.engine.pack import Pack, SegmentPlace, SegmentReader, decompress_bounded
from strongroom.engine.pool import Pool
from strongroom.engine.roots import ROOT_BYTES_MAX, open_root, parse_root_name, seal_root
from strongroom.engine.seal import INDEX, INDEX_LIST, derive_key, new_object_id, open_object, seal_object
from strongroom.engine.sessions import ProcessSessions
from strongroom.engine.small import SEALED_EXTRA_BYTES, read_small
from strongroom.engine.store.base import ObjectInfo, Store
from strongroom.engine.store.remote import at_once
from strongroom.engine.suspects import Failures

INDEX_LEVEL = 1  # half of an index object is random; the rest is easy
TABLES_EXPECTED = 16  # index objects a slow store is told of in advance; a backup's largest have 1.3 MB
SEGMENTS_KEPT = 8  # metadata segments a reader keeps open: 8 MiB
LIST_ATTEMPTS_MAX = 8  # races with a prune over the next list
METADATA_AHEAD = 16  # segments of 1 MiB that a slow store is told of in advance
SESSION_ATTEMPTS_MAX = 16  # a new list appears once a prune, so one repeat is already rare
_LIST_NAME = re.compile(rf"[0-9]{{{NUMBER_DIGITS}}}")
_OBJECT_NAME = re.compile(rf"[0-9]{{{NUMBER_DIGITS}}}\.[0-9a-f]{{32}}")


class Repository:
    """One domain, opened. Cheap to make; the index is read by each session. Methods may be called from any thread.

    prefix   of the domain in the store, with a slash at the end
    cache    folder of this repository for copies of its index (index_cache.py); None: they go with the process
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        domain: Domain,
        *,
        pool: Pool | None,
        sessions: Sessions | None,
        clock: Clock,
        cache: str | None = None,
    ) -> None:
        self.store = store
        self.prefix = prefix
        self.domain = domain
        self.sessions: Sessions = sessions or ProcessSessions()
        self.clock = clock
        self.segments = SegmentReader(store, prefix, domain)
        self._labels = LabelsOf(store=store, prefix=prefix, domain=domain)
        self.wraps: tuple[tuple[int, bytes], ...] = ()  # (n, object keys/<n>) that opened it
        self._pool = pool
        self._owns_pool = pool is None
        folder = None if cache is None else f"{cache}/{domain.id.hex()}"
        self._cache = IndexCache(folder, derive_key("index cache", domain.data_key + domain.id))
        self.kept = KeptTimes(folder and f"{folder}.kept", derive_key("kept times", domain.data_key + domain.id))

    @property
    def pool(self) -> Pool:
        """The process's pool when one was given, else one of its own, made at first use."""
        if self._pool is None:
            self._pool = Pool()
        return self._pool

    # --- roots and labels ---

    def root_names(self) -> list[str]:
        """Names of all committed backups, unsorted in time."""
        return [name for name in self._names("roots/") if parse_root_name(name)]

    def load_root(self, name: str) -> Root:
        """Raises ManifestCorrupt; ObjectMissing when there is no such backup. Labels put later replace those in it."""
        return open_root(self.domain, name, self.read_root(name))

    def read_root(self, name: str) -> bytes:
        if parse_root_name(name) is None:
            raise InvalidRequest(reason="This is no name of a root.", detail=name[:100])
        return self._read(f"roots/{name}", ROOT_BYTES_MAX)

    def put_root(self, root: Root) -> None:
        """The commit: durable on return. Raises ObjectExists."""
        data, name = seal_root(self.domain, root), f"roots/{root.name}"
        self.store.put(self.prefix + name, [data])
        put_checked_digest(self.store, self.prefix, digest_of(name, data))

    def delete_root(self, name: str) -> None:
        """The backup is no more; prune frees its bytes. Idempotent. Raises Conflict when a locked vault keeps it."""
        if parse_root_name(name) is None:
            raise InvalidRequest(reason="This is no name of a root.", detail=name[:100])
        require_unpromised(self.store, self.prefix, lambda: self.readable_labels(self.load_root(name)))
        delete_object(self.store, self.prefix, f"roots/{name}")

    def find_root(self, backup_id: str, generation: int | None = None) -> Root | None:
        """The complete root that an attempt of this backup left, the highest generation if none is given (RULINGS 7).

        Complete: it opens, and every pack its index knows is there with its size.
        """
        parsed = [(parse_root_name(name), name) for name in self.root_names()]
        own = [(key[1], name) for key, name in parsed if key and key[0] == backup_id]
        for number, name in sorted(own, reverse=True):
            if generation in (None, number) and self._is_complete(name):
                return self.load_root(name)
        return None

    def _is_complete(self, name: str) -> bool:
        try:
            root = self.load_root(name)
            with self.session("restore") as session:
                index_list = self.load_index_list()
                doubtful = {*index_list.suspect, *(pack for pack, _ in index_list.fossils)}
                ids = [row[0] for row in root.body.stream[-1]] if root.kind == "tree" else []  # type: ignore[attr-defined]
                places = [next(session.index.places(key[:KEY_BYTES]), None) for key in ids]
                return session.index.bad <= doubtful and None not in places
        except (Corrupt, ObjectMissing):
            return False

    def label_numbers(self) -> dict[str, int]:
        """The highest number of labels put later, by backup id; one LIST."""
        return self._labels.numbers()

    def put_labels(self, backup_id: str, labels: Labels, number: int | None = None) -> None:
        """Replace the labels of a backup, as `number` or the next one. Durable on return. Raises ObjectExists when
        another does so right now."""
        self._labels.put(backup_id, labels, number)

    def change_labels(self, root: Root, members: Labels, number: int | None = None) -> bool:
        """Change these members of the labels that stand. False: they said so already. Raises Unavailable."""
        return self._labels.change(root, members, number)

    def load_labels(self, root: Root, number: int | None = None) -> Labels:
        """The labels that stand: the highest number put later, else those in the root. number: where it is known."""
        return self._labels.load(root, number)

    def readable_labels(self, root: Root, number: int | None = None) -> Labels:
        """The same for who needs some: when those are damaged, the ones in the root."""
        return self._labels.load_readable(root, number)

    # --- index ---

    def load_index_list(self) -> IndexList:
        """The newest list. Raises IndexIncomplete."""
        for _ in range(SESSION_ATTEMPTS_MAX):
            number = self._newest()
            try:
                return self.read_index_list(number)
            except ObjectMissing:
                continue  # a prune has written newer ones since the listing, and deleted this
        raise IndexIncomplete(reason="its index list keeps changing; run the task again")

    def _newest(self) -> int:
        numbers = [int(name) for name in self._names("index/") if _LIST_NAME.fullmatch(name)]
        if not numbers:
            raise IndexIncomplete(reason="it has no list of its index objects; rebuild the index")
        return max(numbers)

    def read_index_list(self, number: int) -> IndexList:
        return self.open_index_list(self._read(f"index/{number:0{NUMBER_DIGITS}d}", INDEX_LIST_BYTES_MAX), number)

    def open_index_list(self, data: bytes, number: int) -> IndexList:
        """`data` is the object of list `number`. Raises Corrupt classes."""
        payload = open_object(self.domain.data_key, self.domain.id, INDEX_LIST, data, str(number).encode())
        return IndexList.decode(decompress_bounded(payload, INDEX_LIST_BYTES_MAX), number)

    def put_index_list(self, index_list: IndexList) -> None:
        """Durable on return. Raises ObjectExists to the loser of a race, who reads again and plans again."""
        number = index_list.number
        payload = zstandard.ZstdCompressor(level=INDEX_LEVEL).compress(index_list.encode())
        data = seal_object(self.domain.data_key, self.domain.id, INDEX_LIST, payload, str(number).encode())
        name = f"index/{number:0{NUMBER_DIGITS}d}"
        self.store.put(self.prefix + name, [data])
        fossils, retired = (pack for pack, _ in index_list.fossils), (name for name, _ in index_list.retired)
        put_checked_digest(self.store, self.prefix, digest_of(name, data, fossils=fossils, retired=retired))

    def put_index_object(
        self, packs: list[Pack], number: int, known: Mapping[bytes, PackDigests] | None = None
    ) -> tuple[str, Table, int]:
        """Make durable packs known: (name, table, sealed bytes). `number` is the list the session pinned.

        known: digests of packs that do not bring their own, as far as there are.
        """
        data = encode_table(packs)
        name, size = self.put_table(Table(data), number, {**(known or {}), **known_digests(packs)})
        return name, Table(data, names=frozenset([name])), size

    def put_table(self, table: Table, number: int, known: Mapping[bytes, PackDigests] | None = None) -> tuple[str, int]:
        """A new index object, durable on return: (name, sealed bytes). known: digests of packs, as far as there are."""
        payload = zstandard.ZstdCompressor(level=INDEX_LEVEL).compress(table.data)
        name = f"{number:0{NUMBER_DIGITS}d}.{new_object_id().hex()}"
        data = seal_object(self.domain.data_key, self.domain.id, INDEX, payload, name.encode())
        self.store.put(f"{self.prefix}index/{name}", [data])
        packs = [known[pack.id] for pack in table.packs if pack.id in known] if known else []
        put_digest(self.store, self.prefix, digest_of(f"index/{name}", data, packs=packs))
        return name, len(data)

    def digests_of(self, names: Iterable[str], gone: frozenset[bytes] = frozenset()) -> dict[bytes, PackDigests]:
        """What is known of the packs of these index objects, those in `gone` left out: for who replaces them."""
        return merge_digests(self.store, self.prefix, (f"index/{name}" for name in names), gone)

    def delete_index(self, name: str) -> None:
        """Delete an index object or a list that nobody can be reading. Idempotent."""
        delete_object(self.store, self.prefix, f"index/{name}")

    def index_object_names(self, index_list: IndexList) -> list[str]:
        """The valid index objects at this list, those added since included. Raises IndexIncomplete when one is lost."""
        return list(self._index_objects(index_list, self.list_index()))

    def list_index(self) -> dict[str, int]:
        """Names and sizes in the folder `index/`."""
        start = len(self.prefix) + len("index/")
        return {info.name[start:]: info.size for info in self.store.list(f"{self.prefix}index/")}

    def _index_objects(self, index_list: IndexList, listed: Mapping[str, int]) -> dict[str, int]:
        """The same with their sizes."""
        retired = frozenset(name for name, _ in index_list.retired)
        valid = {name: size for name, size in listed.items() if _OBJECT_NAME.fullmatch(name) and name not in retired}
        lost = set(index_list.objects).difference(valid)
        if lost:
            raise IndexIncomplete(
                reason="index objects are lost; rebuild the index", detail=", ".join(sorted(lost)[:10])
            )
        return valid

    def load_table(self, name: str) -> Table:
        """One index object. Raises IndexIncomplete."""
        return self._open_table(name, self._read(f"index/{name}", INDEX_BYTES_MAX))

    def _load_tables(self, names: Sequence[str], sizes: dict[str, int]) -> Iterator[Table]:
        """Index objects one after the other; a slow store reads some in advance."""
        for at, name in enumerate(names):
            for following in names[at + TABLES_EXPECTED if at else 0 : at + TABLES_EXPECTED + 1]:
                self.store.expect(f"{self.prefix}index/{following}", 0, sizes[following])
            if sizes[name] > INDEX_BYTES_MAX + SEALED_EXTRA_BYTES:
                raise IndexIncomplete(reason=f"index object {name} is larger than any", detail=f"{sizes[name]} bytes")
            data = bytearray(sizes[name])
            self.store.read_into(f"{self.prefix}index/{name}", 0, memoryview(data))
            yield self._open_table(name, data)

    def _open_table(self, name: str, data: bytes | bytearray) -> Table:
        try:
            payload = open_object(self.domain.data_key, self.domain.id, INDEX, data, name.encode())
            return Table(decompress_bounded(payload, INDEX_BYTES_MAX), names=frozenset([name]))
        except Corrupt as err:
            raise IndexIncomplete(reason=f"index object {name} is damaged", detail=err.detail) from err

    def load_index(self, index_list: IndexList) -> Index:
        """Everything a session needs to know; packs that are missing, of another size, suspect or fossils are bad."""
        runs = self._cache.look()  # before the listing, so that a run which names what is not listed is stale
        return self._load_index(Seen(runs, index_list, self.list_index()))

    def _load_index(self, seen: Seen) -> Index:
        index_list = seen.index_list
        sizes = self._index_objects(index_list, seen.sizes)
        tables = self._cache.tables(seen.runs, list(sizes), lambda names: self._load_tables(names, sizes))
        bad = self.bad_packs(tables, seen.packs)
        if bad and seen.packs is not None:  # listed beside the index: what came between the two is no damage
            bad = self.bad_packs(tables)
        doubtful = {*index_list.suspect, *(pack for pack, _ in index_list.fossils)}
        return Index(index_list.number, tables, bad.union(doubtful), self._cache)

    def bad_packs(self, tables: Sequence[Table], listed: Iterable[ObjectInfo] | None = None) -> frozenset[bytes]:
        """The packs of these tables that the store does not hold with exactly the indexed size; one LIST."""
        count = sum(len(table.packs) for table in tables)
        if not count:
            return frozenset()
        if listed is None:
            listed = self.store.list(f"{self.prefix}packs/")
        if count > PACKS_SEEN_MAX:
            from strongroom.engine.index_search import bad_packs

            return bad_packs(tables, ((info.name.rpartition("/")[2], info.size) for info in listed))
        found = {info.name.rpartition("/")[2]: info.size for info in listed}
        return frozenset(pack.id for table in tables for pack in table.packs if found.get(pack.id.hex()) != pack.size)

    # --- sessions ---

    @contextlib.contextmanager
    def session(self, kind: SessionKind, root: str | None = None) -> Iterator["Session"]:
        """Pin the newest index number and read the index at it; the pin is given back at the end.

        `root` is the backup that will be asked for: where requests take long, it is read on the way.
        """
        token, seen = self._pin(kind, root)
        try:
            session = Session(self, self._load_index(seen), token, seen.roots)
            try:
                yield session
            finally:
                session.failures.note(self)
        finally:
            self.sessions.close(token)

    def note_suspects(self, found: Collection[bytes], cleared: Collection[bytes] = ()) -> None:
        """Writers do not rely on the packs `found` from the next list on, and again on those `cleared` (RULINGS 14).

        Raises StoreError, IndexIncomplete; gives up after as many lost races with a prune as it has attempts.
        """
        for _ in range(LIST_ATTEMPTS_MAX):
            before = self.load_index_list()
            fossils = {pack for pack, _ in before.fossils}  # unknown to writers already, and on their way out
            suspect = (set(before.suspect) - set(cleared)) | (set(found) - fossils)
            if suspect == set(before.suspect):
                return
            with contextlib.suppress(ObjectExists):
                self.put_index_list(replace(before, number=before.number + 1, suspect=tuple(sorted(suspect))))
                return

    def _pin(self, kind: SessionKind, root: str | None) -> tuple[str, Seen]:
        """A pin counts only if its number is still the newest after it was set."""
        for _ in range(SESSION_ATTEMPTS_MAX):
            number = self._newest()
            token = self.sessions.open(kind, number)
            try:
                seen = look(self, self._cache.look(), number, root)
            except BaseException:
                self.sessions.close(token)
                raise
            if seen is not None:
                return token, seen
            self.sessions.close(token)
        raise IndexIncomplete(reason="its index list keeps changing; run the task again")

    def close(self) -> None:
        """Wait for the threads of its own pool, if it has one. A pool that was given stays open."""
        if self._owns_pool and self._pool is not None:
            self._pool.close()
            self._pool = None

    def _names(self, folder: str) -> Iterator[str]:
        start = len(self.prefix) + len(folder)
        for info in self.store.list(f"{self.prefix}{folder}"):
            yield info.name[start:]

    def _read(self, name: str, plain_max: int) -> bytes:
        return read_small(self.store, self.prefix, name, plain_max)


class Session:
    """One reader or writer: a repository, its index at a pinned number, and a way to read metadata. For one thread."""

    def __init__(self, repository: Repository, index: Index, token: str, roots: dict[str, bytes] | None = None) -> None:
        self.repository = repository
        self._roots = roots or {}
        self.index = self._pinned = index
        self.token = token
        self.chunker = Chunker(repository.domain)
        self.failures = Failures()
        self._plain: OrderedDict[SegmentPlace, memoryview] = OrderedDict()
        self._renewed = False

    def fail(self, place: SegmentPlace, *, wrong: bool = False) -> None:
        """A segment did not open, or gave a wrong chunk: from now on this session relies on nothing of its pack.

        Its pack becomes suspect at the end. May be called from any thread.
        """
        self.failures.add(place, (self.index, self._pinned), wrong=wrong)

    def load_root(self, name: str) -> Root:
        """As the repository's, without another request for the one the session began with."""
        data = self._roots.pop(name, None)
        return self.repository.load_root(name) if data is None else open_root(self.repository.domain, name, data)

    def expect(self, ids: Iterable[bytes]) -> None:
        """These metadata chunks are read soon, in this order. Costs nothing where requests are fast."""
        if at_once(self.repository.store) == 1:
            return
        places = (self.index.place(chunk_id[:KEY_BYTES]) for chunk_id in ids)
        segments = dict.fromkeys(place.segment for place in places if place is not None)
        for segment in itertools.islice((found for found in segments if found not in self._plain), METADATA_AHEAD):
            self.repository.segments.expect(segment)

    def metadata(self, chunk_id: bytes) -> bytes:
        """A metadata chunk, checked against its whole id. Raises Corrupt classes."""
        return self._chunk(chunk_id, metadata=True)

    def data(self, chunk_id: bytes) -> bytes:
        """A chunk of a file or disk, checked against its whole id. Raises Corrupt classes."""
        return self._chunk(chunk_id, metadata=False)

    def renew(self) -> bool:
        """Read the newest index once, because a pack was missed. False when that was done already."""
        if self._renewed:
            return False
        self._renewed = True
        self.refresh()
        return True

    def refresh(self) -> None:
        """Read with all that is durable now, also what this session has written."""
        self.index = self.repository.load_index(self.repository.load_index_list())
        self.index.bad |= self.failures.packs

    def _chunk(self, chunk_id: bytes, *, metadata: bool) -> bytes:
        failure: Corrupt | ObjectMissing | None = None
        name = self.chunker.metadata_id if metadata else self.chunker.data_id
        while True:
            for place in self.index.places(chunk_id[:KEY_BYTES]):
                try:
                    plain = self._segment(place.segment)
                except PackCorrupt as err:
                    failure = err
                    self.fail(place.segment)
                    continue
                except ObjectMissing as err:
                    failure = err
                    continue
                chunk = bytes(plain[place.start : place.start + place.length])
                if name(chunk) == chunk_id:
                    return chunk
                self.fail(place.segment, wrong=True)
                failure = ChunkCorrupt(reason=f"chunk {chunk_id.hex()} has other bytes", detail=str(place))
            if not self.renew():
                break
        raise unread(chunk_id, failure)

    def _segment(self, place: SegmentPlace) -> memoryview:
        plain = self._plain.get(place)
        if plain is not None:
            self._plain.move_to_end(place)
            return plain
        kept = memoryview(bytearray(place.raw))
        self.repository.segments.read_into(place, kept)
        self._plain[place] = kept
        if len(self._plain) > SEGMENTS_KEPT:
            self._plain.popitem(last=False)
        return kept
