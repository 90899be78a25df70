"""The chunks that a file had in the parent, taken in step with its new bytes: most of them need not be cut again.

    parent   |  a  |   b   | c |    d    |  e  |
    now      |  a  |   b   | x   |    d    |  e  |       a, b: hashed at their old lengths, and equal
                             ^ cut until a chunk is one of the next old ones, then in step again

A chunk is cut by its own bytes alone, from its first to its last. So bytes that have the id of an old chunk would have
been cut as that chunk, and searching them for a border again is the work that is saved. It does not hold for a chunk
that ended because its extent did: before a hole, and at the end.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from strongroom.base.errors import Corrupt, ObjectMissing
from strongroom.engine.chunker import HOLE

AHEAD_ROWS = 512  # of 128 KiB: a piece of up to 64 MiB may be cut out of a file before it is cut from there on
LOST_CHUNKS_MAX = 4096  # then it is another file under the same name, and asking ends

Row = tuple[bytes, int, int]  # id, length, offset, as `iter_rows` gives them


class Former:
    """Which chunk comes next, if the file goes on as it was. `rows` is read only as far as needed; for one thread."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.in_step = True
        self._rows = _cut_by_content(rows)
        self._ahead: deque[tuple[bytes, int]] = deque()
        self._number = 0  # of the first row ahead
        self._numbers: dict[bytes, int] = {}  # of the first row ahead of each id
        self._lost = 0

    @property
    def is_useful(self) -> bool:
        """False once nothing is to be hoped for."""
        return self._lost <= LOST_CHUNKS_MAX

    def expected(self) -> tuple[bytes, int] | None:
        """(id, length) of the chunk that comes next; None when it was not cut by its bytes alone, or there is none."""
        self._fill()
        chunk_id, length = self._ahead[0] if self._ahead else (HOLE, 0)
        return (chunk_id, length) if length else None

    def took(self) -> None:
        """The expected chunk is there."""
        self._pop()
        self._lost = 0

    def lose(self) -> None:
        """It is not: now the file has to be cut, and `meets` be asked of each chunk."""
        self.in_step = False

    def meets(self, chunk_id: bytes) -> bool:
        """Whether a chunk that was cut is one of the next old ones; then the file is in step again behind it."""
        self._fill()
        number = self._numbers.get(chunk_id)
        if number is None:
            self._lost += 1
            return False
        while self._number <= number:
            self._pop()
        self._lost = 0
        self.in_step = True
        return True

    def _pop(self) -> None:
        chunk_id, _ = self._ahead.popleft()
        if self._numbers.get(chunk_id) == self._number:
            del self._numbers[chunk_id]
        self._number += 1

    def _fill(self) -> None:
        while len(self._ahead) < AHEAD_ROWS:
            try:
                row = next(self._rows, None)
            except (Corrupt, ObjectMissing):
                row = None  # only an aid is lost: without it the file is cut
            if row is None:
                self._rows = iter(())
                return
            self._numbers.setdefault(row[0], self._number + len(self._ahead))
            self._ahead.append(row)


def _cut_by_content(rows: Iterable[Row]) -> Iterator[tuple[bytes, int]]:
    """(id, length) of each chunk; length 0 for one whose end was no border of its bytes."""
    before: tuple[bytes, int] | None = None
    for chunk_id, length, _ in rows:
        hole = chunk_id == HOLE
        if before is not None:
            yield (before[0], 0) if hole else before
        before = None if hole else (chunk_id, length)
    if before is not None:
        yield before[0], 0
