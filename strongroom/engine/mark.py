"""Which chunks the roots need, and how much of each pack that is.

Marking reads metadata only: the records of every tree and the pages of every large content, each distinct one once. The
result is numpy columns of index keys, not Python objects: a terabyte of unique data has eight million of them.

A chunk may lie in several packs. One place counts, the one a reader tries first: sound packs before doubtful ones.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from strongroom.base.errors import IndexIncomplete
from strongroom.base.streams import Monitor
from strongroom.engine.chunker import ID_BYTES, KEY_BYTES
from strongroom.engine.content import iter_ids, parse_content
from strongroom.engine.index import Index
from strongroom.engine.manifest import open_stream
from strongroom.engine.model import Root
from strongroom.engine.repository import Session

IDS_BYTES_MAX = 1 << 28  # ids gathered before duplicates are dropped: 8 million

_DIGEST_BYTES = 16
_SEGMENT = np.dtype([("pack", "<u4"), ("offset", "<u4"), ("stored", "<u4"), ("raw", "<u4"), ("codec", "u1")])

Known = Callable[[bytes], bool]
Numbers = npt.NDArray[np.int64]
Halves = npt.NDArray[np.uint64]


class Keys(NamedTuple):
    """Distinct index keys as their two halves, ascending."""

    first: Halves
    second: Halves

    def as_bytes(self) -> set[bytes]:
        joined = np.stack([self.first, self.second], axis=1).tobytes()
        return {joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES)}


class Marks:
    """What has been marked so far. Roots may be added at any time; nothing is ever taken away."""

    def __init__(self) -> None:
        self.roots: set[str] = set()
        self._pages: set[bytes] = set()  # metadata chunks that were opened
        self._records: set[bytes] = set()  # digests of directory records that were read
        self._ids: list[bytes] = []
        self._ids_bytes = 0
        self._keys = Keys(np.empty(0, np.uint64), np.empty(0, np.uint64))

    def add(self, session: Session, root: Root, monitor: Monitor) -> None:
        """Everything a root needs. Raises Corrupt classes when its metadata cannot be read."""
        for ids in root_ids(session, root, monitor, self._is_known, self._is_seen):
            self._ids.append(ids)
            self._ids_bytes += len(ids)
            if self._ids_bytes >= IDS_BYTES_MAX:
                self.keys()
        self.roots.add(root.name)

    def keys(self) -> Keys:
        """The distinct keys of all chunks marked so far."""
        halves = np.frombuffer(b"".join(self._ids), "<u8").reshape(-1, ID_BYTES // 8)
        first = np.concatenate([self._keys.first, halves[:, 0]])
        second = np.concatenate([self._keys.second, halves[:, 1]])
        whole = (first != 0) | (second != 0)  # a page of blocks has ids of zeros where the disk has holes
        first, second = first[whole], second[whole]
        order = np.lexsort((second, first))
        first, second = first[order], second[order]
        distinct = _begins(first, second)
        self._keys = Keys(first[distinct], second[distinct])
        self._ids, self._ids_bytes = [], 0
        return self._keys

    def _is_known(self, page: bytes) -> bool:
        if page in self._pages:
            return True
        self._pages.add(page)
        return False

    def _is_seen(self, record: bytes) -> bool:
        digest = blake3(record).digest(_DIGEST_BYTES)
        if digest in self._records:
            return True
        self._records.add(digest)
        return False


def root_ids(
    session: Session,
    root: Root,
    monitor: Monitor,
    is_known: Known = lambda _: False,
    is_seen: Known = lambda _: False,
) -> Iterator[bytes]:
    """Ids, joined, of every chunk a root needs, metadata included; holes are ids of zeros.

    Pages for which `is_known` and records for which `is_seen` are true are left out with all they refer to.
    """
    get = session.metadata
    if root.kind == "block":
        for _, ids in iter_ids(parse_content(root.body.stream), get, is_known):
            monitor.check()
            yield ids
        return
    stream = open_stream(root, get)
    for _, chunk_id in stream.pages():
        yield chunk_id
    for record, data in stream.records():
        monitor.check()
        if is_seen(data):
            continue
        for content in record.contents:
            if content is not None:
                for _, ids in iter_ids(parse_content(content), get, is_known):
                    yield ids


class Usage:
    """How much of each pack is needed.

    packs    ids of all packs the index names; the columns below go by their position
    stored   sealed bytes of their segments           live  share of them that is needed, by raw bytes
    unknown  keys of needed chunks that no pack holds
    """

    def __init__(self, index: Index, keys: Keys) -> None:
        self.packs: list[bytes] = []
        self._numbers: dict[bytes, int] = {}
        rows = _Rows(index, self._number)
        count = len(self.packs)
        doubtful = np.array([pack in index.bad for pack in self.packs], dtype=bool)
        chosen = rows.choose(doubtful)
        needed, self.unknown = _match(Keys(rows.first[chosen], rows.second[chosen]), keys)
        self._first, self._second = rows.first[chosen[needed]], rows.second[chosen[needed]]
        segment = rows.segment[chosen[needed]]
        self._pack = rows.pack[segment]
        live_raw = np.bincount(segment, rows.length[chosen[needed]], len(rows.raw)).astype(np.int64)
        # Rounded up: a chunk of a few bytes in a segment that compressed well is still a chunk that somebody needs.
        live = -(-rows.stored * np.minimum(live_raw, rows.raw) // np.maximum(rows.raw, 1))
        self.live: Numbers = np.bincount(rows.pack, live, count).astype(np.int64)
        # A pack that two index objects name has its segments twice.
        once = np.unique((rows.pack << 32) | rows.offset, return_index=True)[1]
        self.stored: Numbers = np.bincount(rows.pack[once], rows.stored[once], count).astype(np.int64)

    @property
    def live_bytes(self) -> int:
        """Sealed bytes that are needed, of all packs."""
        return int(self.live.sum())

    def of(self, pack: bytes) -> tuple[int, int]:
        """(stored, live) bytes of a pack; zeros for one that no index object names."""
        number = self._numbers.get(pack)
        return (0, 0) if number is None else (int(self.stored[number]), int(self.live[number]))

    def needed_keys(self, pack: bytes) -> set[bytes]:
        """Keys of the chunks for which this pack is the place that counts."""
        own = self._pack == self._numbers[pack]
        return Keys(self._first[own], self._second[own]).as_bytes()

    def _number(self, pack: bytes) -> int:
        number = self._numbers.setdefault(pack, len(self.packs))
        if number == len(self.packs):
            self.packs.append(pack)
        return number


class _Rows:
    """The columns of all tables of an index, one after the other.

    per chunk    first, second, length, segment (position in the columns below)
    per segment  pack (number), offset, stored, raw
    """

    def __init__(self, index: Index, number: Callable[[bytes], int]) -> None:
        first, second, length, segment = [_U64], [_U64], [_I64], [_I64]
        pack, offset, stored, raw = [_I64], [_I64], [_I64], [_I64]
        base = 0
        for table in index.tables:
            info = np.frombuffer(table.segments, _SEGMENT)
            own = np.array([number(pack.id) for pack in table.packs], dtype=np.int64)
            rows = np.frombuffer(table.segment, "<u4").astype(np.int64)
            if (rows >= len(info)).any() or (info["pack"] >= len(own)).any():
                raise IndexIncomplete(reason="an index object refers to what it does not have")
            first.append(np.frombuffer(table.first, "<u8"))
            second.append(np.frombuffer(table.second, "<u8"))
            length.append(np.frombuffer(table.length, "<u4").astype(np.int64))
            segment.append(rows + base)
            pack.append(own[info["pack"]])
            for column, name in ((offset, "offset"), (stored, "stored"), (raw, "raw")):
                column.append(info[name].astype(np.int64))
            base += len(info)
        self.first, self.second = np.concatenate(first), np.concatenate(second)
        self.length, self.segment = np.concatenate(length), np.concatenate(segment)
        self.pack, self.offset = np.concatenate(pack), np.concatenate(offset)
        self.stored, self.raw = np.concatenate(stored), np.concatenate(raw)

    def choose(self, doubtful: npt.NDArray[np.bool_]) -> Numbers:
        """One row a key, in the order of the keys: that of a sound pack if there is one."""
        last = doubtful[self.pack[self.segment]]
        order = np.lexsort((last, self.second, self.first))
        return order[_begins(self.first[order], self.second[order])]


_U64 = np.empty(0, np.uint64)
_I64 = np.empty(0, np.int64)


def _begins(first: Halves, second: Halves) -> npt.NDArray[np.bool_]:
    """True where a key differs from the one before."""
    begins = np.ones(len(first), dtype=bool)
    begins[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return begins


def _match(known: Keys, wanted: Keys) -> tuple[npt.NDArray[np.bool_], Keys]:
    """(which of `known` are wanted, the wanted keys that are not known). Each side is distinct."""
    first = np.concatenate([known.first, wanted.first])
    second = np.concatenate([known.second, wanted.second])
    order = np.lexsort((second, first))  # stable: of two equal keys the known one comes first
    begins = _begins(first[order], second[order])
    needed = np.zeros(len(known.first), dtype=bool)
    needed[order[np.flatnonzero(~begins) - 1]] = True
    alone = order[begins & (order >= len(known.first))]
    return needed, Keys(first[alone], second[alone])


def mark(session: Session, roots: Iterable[Root], monitor: Monitor) -> Keys:
    """The keys of all chunks the roots need. Raises Corrupt classes."""
    marks = Marks()
    for root in roots:
        marks.add(session, root, monitor)
    return marks.keys()
