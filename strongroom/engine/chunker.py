"""Where a stream is cut, and what a piece is called.

Boundaries are format: two runs must cut equal bytes at equal places, whatever the sizes of the buffers they read.
Golden vectors in the tests keep pyfastcdc from drifting. Ids are keyed, so that they confirm nothing to who has no key,
and metadata has a key of its own: a file that looks like a manifest never meets one.
"""

from typing import TYPE_CHECKING

from blake3 import blake3

from strongroom.base.units import KIB
from strongroom.engine.keys import Domain
from strongroom.engine.model import CHUNK_BYTES_AVG, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
from strongroom.engine.seal import derive_key

if TYPE_CHECKING:  # loaded by the first cut: 10 ms that a run without one does not need
    from pyfastcdc import FastCDC

ID_BYTES = 32
KEY_BYTES = 16  # of an id in the index
HOLE = bytes(ID_BYTES)  # the id that stands for zeros

METADATA_BYTES_MIN, METADATA_BYTES_AVG, METADATA_BYTES_MAX = 16 * KIB, 64 * KIB, 256 * KIB
ZEROS = bytes(CHUNK_BYTES_MAX)


class DataChunker:
    """Cuts and names the chunks of files: all that a host needs to know of a domain. Not for several threads."""

    def __init__(self, key: bytes, seed: int) -> None:
        self._key = key
        self._files = _Cutter(seed, CHUNK_BYTES_MIN, CHUNK_BYTES_AVG, CHUNK_BYTES_MAX)

    def data_id(self, chunk: bytes | bytearray | memoryview) -> bytes:
        return blake3(chunk, key=self._key).digest()

    def cut_data(self, buffer: memoryview, *, at_end: bool) -> list[int]:
        """Lengths of the whole chunks at the start of `buffer`; what is left over begins the next call's buffer."""
        return self._files.lengths(buffer, at_end)


class Chunker:
    """Cuts and names chunks for one session. Not for several threads."""

    def __init__(self, domain: Domain) -> None:
        self._metadata_key = derive_key("metadata ids", domain.dedup_key)
        self._data = DataChunker(domain.dedup_key, domain.chunker_seed)
        self._metadata = _Cutter(domain.chunker_seed, METADATA_BYTES_MIN, METADATA_BYTES_AVG, METADATA_BYTES_MAX)
        self.data_id = self._data.data_id
        self.cut_data = self._data.cut_data

    def metadata_id(self, chunk: bytes | bytearray | memoryview) -> bytes:
        return blake3(chunk, key=self._metadata_key).digest()

    def cut_metadata(self, buffer: memoryview, *, at_end: bool) -> list[int]:
        return self._metadata.lengths(buffer, at_end)


class _Cutter:
    """FastCDC of one kind of stream."""

    def __init__(self, seed: int, least: int, average: int, most: int) -> None:
        self._seed, self._least, self._average, self._most = seed, least, average, most
        self._made: FastCDC | None = None

    def lengths(self, buffer: memoryview, at_end: bool) -> list[int]:
        """A chunk that ends with the buffer may only have run out of bytes, so it is not whole before the end."""
        if at_end and len(buffer) <= self._least:  # FastCDC cuts nothing off so little
            return [len(buffer)] if buffer else []
        if self._made is None:
            from pyfastcdc import FastCDC

            self._made = FastCDC(self._average, min_size=self._least, max_size=self._most, seed=self._seed)
        lengths = [chunk.length for chunk in self._made.cut_buf(buffer)]
        if not at_end and lengths:
            lengths.pop()
        return lengths


def is_zero(buffer: bytearray, start: int, length: int) -> bool:
    """True when buffer[start : start + length] is all zeros. Most data fails at its ends, so those are asked first."""
    if not length or buffer[start] or buffer[start + length - 1]:
        return not length
    return buffer.startswith(ZEROS if length == CHUNK_BYTES_MAX else ZEROS[:length], start)
