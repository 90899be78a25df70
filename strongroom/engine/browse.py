"""Looking into a restore point once: one folder, one entry, one file. Who looks often opens a reader (reader.py).

Each call is a reader of its own, so a session; the root is loaded after the pin is set, and no prune takes it apart. A
folder costs one page a level of the stream's index and the chunks of its records.
"""

from collections.abc import Iterator

from strongroom.base.streams import Path
from strongroom.engine.model import CHUNK_BYTES_MAX, BrowsedEntry
from strongroom.engine.reader import open_reader
from strongroom.engine.repository import Repository


def list_entries(
    repository: Repository, root: str, path: Path, after: bytes | None = None, limit: int = 1000
) -> list[BrowsedEntry]:
    """At most `limit` entries of the folder at `path`, by name, those after the name `after`. Raises EntryNotFound."""
    with open_reader(repository, root) as reader:
        return reader.list(path, after, limit)


def entry(repository: Repository, root: str, path: Path) -> BrowsedEntry:
    """One entry below the root. Raises EntryNotFound."""
    with open_reader(repository, root) as reader:
        return reader.stat(path)


def read_file(
    repository: Repository, root: str, path: Path, offset: int = 0, length: int | None = None
) -> Iterator[bytes]:
    """Bytes [offset, offset + length) of a regular file, or of a disk (path `()`), in pieces of at most a chunk.

    Raises EntryNotFound for what is no regular file, at the first piece. The session lasts until the iterator ends or
    is closed.
    """
    with open_reader(repository, root) as reader:
        file = reader.open(path)
        end = file.size if length is None else min(file.size, offset + length)
        for at in range(offset, end, CHUNK_BYTES_MAX):
            yield file.read(at, min(CHUNK_BYTES_MAX, end - at))
