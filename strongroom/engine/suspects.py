"""What a session could not read makes its packs suspect from the next index list on (RULINGS 14).

So the next backup of the same content stores it again, and restore points that were hit come back. Noting comes after
the work, good or bad, and never changes what becomes of it: a store that takes no list is as damaged as before, and
verify tells.
"""

import contextlib
import threading
from collections.abc import Collection, Iterable
from typing import Protocol

from strongroom.base.errors import Corrupt, ObjectMissing, PackCorrupt, StoreError
from strongroom.engine.index import Index
from strongroom.engine.pack import SegmentPlace, SegmentReader, scratch

FAILED_MAX = 256  # segments a session notes as failed: a gigabyte read again at its end


class Notebook(Protocol):
    """A repository."""

    segments: SegmentReader

    def note_suspects(self, found: Collection[bytes], cleared: Collection[bytes] = ()) -> None: ...


class Failures:
    """Of one session. `add` from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: set[SegmentPlace] = set()
        self._wrong: set[bytes] = set()  # packs with chunks of other bytes than their ids say

    def __bool__(self) -> bool:
        return bool(self._places)

    @property
    def packs(self) -> set[bytes]:
        with self._lock:
            return {place.pack for place in self._places}

    def add(self, place: SegmentPlace, indexes: Iterable[Index], *, wrong: bool) -> None:
        """A segment did not open, or gave a wrong chunk; in these indexes its pack is bad from now on."""
        with self._lock:
            if len(self._places) < FAILED_MAX:
                self._places.add(place)
                if wrong:
                    self._wrong.add(place.pack)
            for index in indexes:
                if place.pack not in index.bad:
                    index.bad |= {place.pack}

    def take(self) -> "Failures":
        """What was added so far, moved to another one."""
        taken = Failures()
        with self._lock:
            taken._places, self._places = self._places, set()
            taken._wrong, self._wrong = self._wrong, set()
        return taken

    def give(self, other: "Failures") -> None:
        """Add what another one has."""
        with self._lock:
            self._places |= other._places
            self._wrong |= other._wrong

    def note(self, notebook: Notebook) -> None:
        """Make suspect what does not read now either: a bit that flipped on the way is no damage."""
        if not self:
            return
        with contextlib.suppress(StoreError, Corrupt):
            found = {place.pack for place in self._places if _fails_again(notebook.segments, place)} | self._wrong
            if found:
                notebook.note_suspects(found)


def _fails_again(segments: SegmentReader, place: SegmentPlace) -> bool:
    try:
        segments.read_into(place, scratch("plain", place.raw))
    except PackCorrupt:
        return True
    except ObjectMissing:
        return False  # writers see by themselves that it is gone
    return False
