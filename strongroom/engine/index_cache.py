"""Few tables instead of many, in files that are mapped: memory does not grow with the index, and opening is a look.

    <folder>/<hex>.run = head | names of index objects | table | directory | Bloom filter | keyed BLAKE3 over it all

A run stands for a set of index objects and holds what they hold, merged and sorted; index objects never change, so it
is right as long as each of them is valid. It is only a copy: whoever finds it missing, damaged, foreign or stale
deletes it and makes it again from the sealed objects. It is believed only after all of it was hashed with a key that
the domain's data key gives, because a wrong run could make a writer rely on a chunk that nobody stored.

Tables are merged in the manner of a log-structured tree: a table waits until those smaller than it are half its size,
so each row is merged a few times, however many index objects there are. What cannot be written to the folder goes to an
unlinked temporary file, and what cannot go there stays in memory: a full disk costs memory, never a backup.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterable, Sequence

from blake3 import blake3

from strongroom.base.errors import IndexIncomplete
from strongroom.base.units import MIB
from strongroom.engine.index_table import Guide, Table, bloom_words, directory_bits

TABLES_MAX = 12  # each costs a search a lookup; beyond, the small ones are merged
TABLES_KEPT = 8  # as many are left by a merge, so that the next one comes some sessions later
GROWTH = 2  # a run is merged with smaller tables when these have half its bytes
FRESH_TABLE_BYTES_MAX = 4 * MIB  # index objects below stay in memory: 150 000 chunks, 19 GB of data
FRESH_BYTES_MAX = 16 * MIB  # all of them together
SPOOL_BYTES = 64 * MIB  # index objects that are held in memory before they are merged to a file
FREE_BYTES_MIN = 256 * MIB  # what a run leaves free on its disk: others live there too
NAMES_BYTES_MAX = 64 * MIB
PIECE_BYTES = 4 * MIB  # read and hashed in one go
VERIFIED_MAX = 4096

_MAGIC = b"SRINDEX1"
_HEAD = struct.Struct("<8sIIQ")  # magic, bytes of the names, where the table begins, its bytes
_MAC_BYTES = 32
_ALIGNED = 8
_TEMPORARY, _RUN = ".tmp-", ".run"
_NAME_BYTES = 16
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Load = Callable[[Sequence[str]], Iterable[Table]]

# Files that this process has hashed, by key, inode, size and times: a server opens an index for each job.
_verified: set[tuple[bytes, int, int, int, int, int]] = set()


class IndexCache:
    """The runs of one domain of one repository. `folder` None: nothing outlives the process. For several threads.

    key   32 bytes, of this domain only
    """

    def __init__(self, folder: str | None, key: bytes) -> None:
        self._folder = folder
        self._key = key

    def look(self) -> list[str]:
        """Names of the files there are. Call it before the store is listed: what it finds is then not too new."""
        if self._folder is None:
            return []
        try:
            return os.listdir(self._folder)
        except OSError:
            return []

    def tables(self, found: Collection[str], valid: Collection[str], load: Load) -> list[Table]:
        """Few tables that hold what the valid index objects hold; `load` reads those that no run stands for."""
        tables, covered = self._runs(found, frozenset(valid))
        fresh: list[Table] = []
        for table in load([name for name in valid if name not in covered]):
            fresh.append(table)
            if sum(len(table.data) for table in fresh) > SPOOL_BYTES:
                tables.append(self._spool(fresh))
                fresh = []
        return self.compacted([*tables, *fresh])

    def compacted(self, tables: Sequence[Table]) -> list[Table]:
        """The same rows in few tables, of which few bytes are in memory."""
        kept, pile = plan_merge(tables)
        return [*kept, self._merge(pile)] if pile else list(tables)

    def clear(self) -> None:
        """Remove every run."""
        for name in self.look():
            self._remove(name)

    # --- reading ---

    def _runs(self, found: Collection[str], valid: frozenset[str]) -> tuple[list[Table], set[str]]:
        """The runs to use, none overlapping, and what they stand for. Others are of no use to anybody any more."""
        opened: list[tuple[str, Table]] = []
        for name in found:
            table = self._open(name, valid) if name.endswith(_RUN) else None
            if table is None:
                self._remove(name)
            else:
                opened.append((name, table))
        runs: list[Table] = []
        covered: set[str] = set()
        for name, table in sorted(opened, key=lambda item: (-len(item[1].names), item[0])):
            if covered.isdisjoint(table.names):
                runs.append(table)
                covered |= table.names
            else:
                self._remove(name)
        return runs, covered

    def _open(self, name: str, valid: frozenset[str]) -> Table | None:
        """None for what is stale, and for what is not, wholly and provably, a run of this domain."""
        try:
            file = os.open(f"{self._folder}/{name}", _READ_FLAGS)
        except OSError:
            return None
        try:
            size = os.fstat(file).st_size
            if size <= _HEAD.size + _MAC_BYTES or not _read_names(file) <= valid or not self._is_ours(file, size):
                return None
            table = _mapped(file, size)
            return table if table.names and table.names <= valid else None
        except (OSError, ValueError, struct.error, IndexIncomplete):
            return None
        finally:
            os.close(file)

    def _is_ours(self, file: int, size: int) -> bool:
        found = os.fstat(file)
        known = (self._key, found.st_dev, found.st_ino, size, found.st_mtime_ns, found.st_ctime_ns)
        if not stat.S_ISREG(found.st_mode):
            return False
        if known in _verified:
            return True
        mac = os.pread(file, _MAC_BYTES, size - _MAC_BYTES)
        from hmac import compare_digest  # loaded where there is a run

        if not compare_digest(mac, self._mac(file, size - _MAC_BYTES)):
            return False
        if len(_verified) >= VERIFIED_MAX:
            _verified.clear()
        _verified.add(known)
        return True

    def _mac(self, file: int, size: int) -> bytes:
        """Read, not mapped: what is hashed need not stay in this process's resident memory."""
        hasher = blake3(key=self._key, max_threads=blake3.AUTO)
        buffer = memoryview(bytearray(PIECE_BYTES))
        done = 0
        while done < size:
            got = os.preadv(file, [buffer[: min(PIECE_BYTES, size - done)]], done)
            if not got:
                raise OSError(errno.EIO, "a file became shorter")
            hasher.update(buffer[:got])
            done += got
        return hasher.digest()

    def _remove(self, name: str) -> None:
        """A run, or what a dead writer left; a live writer holds a lock on its file."""
        with contextlib.suppress(OSError):
            path = f"{self._folder}/{name}"
            if name.startswith(_TEMPORARY):
                file = os.open(path, _READ_FLAGS)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                finally:
                    os.close(file)
            os.unlink(path)

    # --- writing ---

    def _merge(self, tables: Sequence[Table]) -> Table:
        """One table for several, in the best place there is room."""
        if self._folder is not None and all(table.names for table in tables):
            with contextlib.suppress(OSError):
                return self._keep(self._folder, tables)
        return self._spool(tables, is_run=True)

    def _spool(self, tables: Sequence[Table], *, is_run: bool = False) -> Table:
        """One table for several that goes with the process: in an unlinked file, in memory if it is small or must."""
        import tempfile

        from strongroom.engine.index_merge import merge_tables

        names = _names(tables)
        if sum(len(table.data) for table in tables) > FRESH_TABLE_BYTES_MAX:
            for folder in (self._folder, tempfile.gettempdir()):
                with contextlib.suppress(OSError):
                    if folder is not None:
                        with tempfile.TemporaryFile(dir=_made(folder), buffering=0) as file:
                            return self._write(file.fileno(), tables, names, is_run=is_run)
        merged = merge_tables(tables)
        return Table(merged.data, names=names, is_run=is_run)

    def _keep(self, folder: str, tables: Sequence[Table]) -> Table:
        """A run in the folder. Raises OSError."""
        temporary = f"{_made(folder)}/{_TEMPORARY}{os.urandom(_NAME_BYTES).hex()}"
        file = os.open(temporary, _CREATE_FLAGS, _FILE_MODE)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            table = self._write(file, tables, _names(tables), is_run=True)
            size = os.fstat(file).st_size
            os.pwrite(file, self._mac(file, size - _MAC_BYTES), size - _MAC_BYTES)
            os.rename(temporary, f"{folder}/{os.urandom(_NAME_BYTES).hex()}{_RUN}")
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(file)
        return table

    def _write(self, file: int, tables: Sequence[Table], names: frozenset[str], *, is_run: bool) -> Table:
        """Everything but the hash, for which room is left; opened as it will be from now on. Raises OSError."""
        from strongroom.engine.index_guide import write_guide
        from strongroom.engine.index_merge import Merge

        merge = Merge(tables)
        text = "\n".join(sorted(names)).encode()
        if len(text) > NAMES_BYTES_MAX:
            raise OSError(errno.EFBIG, "too many index objects for one run")
        table_at = _HEAD.size + len(text)
        table_at += -(table_at + merge.rows_at) % _ALIGNED  # the columns lie at whole words, else numpy copies them
        directory_at, bloom_at, size = _layout(table_at, merge.size, merge.chunks)
        room = os.fstatvfs(file)
        if room.f_bavail * room.f_frsize < size + FREE_BYTES_MIN:
            raise OSError(errno.ENOSPC, "no room for a copy of the index")
        os.posix_fallocate(file, 0, size)  # so that no store through a map ever finds the disk full
        _write_at(file, 0, _HEAD.pack(_MAGIC, len(text), table_at, merge.size) + text)
        merge.write(lambda offset, data: _write_at(file, table_at + offset, data))
        write_guide(file, table_at + merge.rows_at, merge.chunks, directory_at, bloom_at)
        return _mapped(file, size, is_run=is_run)


def plan_merge(tables: Sequence[Table]) -> tuple[list[Table], list[Table]]:
    """(tables that stay, tables to merge: none, or all fresh ones and the runs that are small beside them)."""
    fresh = [table for table in tables if not table.is_run]
    sizes = [len(table.data) for table in fresh]
    few = len(tables) <= TABLES_MAX
    if few and max(sizes, default=0) <= FRESH_TABLE_BYTES_MAX and sum(sizes) <= FRESH_BYTES_MAX:
        return list(tables), []
    runs = sorted((table for table in tables if table.is_run), key=lambda table: len(table.data))
    pile, piled = fresh, sum(sizes)
    while runs and (len(runs[0].data) <= GROWTH * piled or len(runs) >= TABLES_KEPT):
        piled += len(runs[0].data)
        pile.append(runs.pop(0))
    return runs[::-1], pile


def _names(tables: Sequence[Table]) -> frozenset[str]:
    """Of all of them, or none: a table that stands for more than it can say must not be kept."""
    if not all(table.names for table in tables):
        return frozenset()
    return frozenset().union(*(table.names for table in tables))


def _layout(table_at: int, table_bytes: int, chunks: int) -> tuple[int, int, int]:
    """(where the directory begins, where the filter does, size of the file)."""
    directory_at = table_at + table_bytes
    directory_at += -directory_at % _ALIGNED
    bloom_at = directory_at + 4 * ((1 << directory_bits(chunks)) + 1)
    bloom_at += -bloom_at % _ALIGNED
    return directory_at, bloom_at, bloom_at + 8 * bloom_words(chunks) + _MAC_BYTES


def _read_names(file: int) -> frozenset[str]:
    """What a run says it stands for, before it is believed: a stale one need not be hashed. Raises as `_mapped`."""
    _, names_bytes, _, _ = _HEAD.unpack(os.pread(file, _HEAD.size, 0))
    if names_bytes > NAMES_BYTES_MAX:
        raise ValueError("no run")
    return frozenset(os.pread(file, names_bytes, _HEAD.size).decode().split("\n"))


def _mapped(file: int, size: int, *, is_run: bool = True) -> Table:
    """The table of a file whose bytes are believed. Raises ValueError, struct.error or IndexIncomplete."""
    view = memoryview(mmap.mmap(file, size, mmap.MAP_SHARED, mmap.PROT_READ))
    magic, names_bytes, table_at, table_bytes = _HEAD.unpack_from(view)
    if magic != _MAGIC or table_at + table_bytes > size or _HEAD.size + names_bytes > table_at:
        raise ValueError("no run")
    text = bytes(view[_HEAD.size : _HEAD.size + names_bytes]).decode()
    data = view[table_at : table_at + table_bytes]
    table = Table(data, names=frozenset(text.split("\n")) if text else frozenset(), is_run=is_run)
    directory_at, bloom_at, whole = _layout(table_at, table_bytes, table.chunk_count)
    if whole != size:
        raise ValueError("no run")
    bits = directory_bits(table.chunk_count)
    directory = view[directory_at : directory_at + 4 * ((1 << bits) + 1)].cast("I")
    table.guide = Guide(64 - bits, directory, view[bloom_at : size - _MAC_BYTES].cast("Q"))
    return table


def _made(folder: str) -> str:
    """The folder, made with its missing parents. Raises OSError."""
    if not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        if parent and parent != folder:
            _made(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, _FOLDER_MODE)
    return folder


def _write_at(file: int, offset: int, data: bytes | memoryview) -> None:
    """All of it: a call may write less than it was given."""
    left = memoryview(data)
    while left:
        done = os.pwrite(file, left, offset)
        offset += done
        left = left[done:]
