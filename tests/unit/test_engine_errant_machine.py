"""A machine whose memory or processor errs: what was just sealed is opened again, and a mismatch stops the backup.

The errors are put below the engine, into the cipher and the compressor that it calls; the engine is the real one.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from engine_streams import MemoryTree, Node, Tree

from strongroom.base.errors import Corrupt, PackCorrupt
from strongroom.base.streams import SilentMonitor
from strongroom.engine import BackupRequest, DomainSettings, MasterKey, Pool, backup, create_repository
from strongroom.engine import pack as pack_module
from strongroom.engine import seal as seal_module
from strongroom.engine.store.memory import MemoryStore

MASTER = MasterKey(bytes(range(32)))
SEGMENT_FROM_BYTES = 20_000  # what is larger is a segment, and no probe of one
NOISE = random.Random(5).randbytes(300_000)
TEXT = b"".join(NOISE[at * 16 : at * 16 + 16] for at in NOISE[:40_000])  # of 256 words: compresses well
METADATA: Tree = {(NOISE[at : at + 20].hex().encode(),): Node(data=b"") for at in range(0, 60_000, 20)}


class BadCipher:
    """AES-GCM of which the first large box has a flipped bit."""

    left = 0

    def __init__(self, key: bytes) -> None:
        self._real = AESGCM(key)

    def encrypt_into(self, nonce: bytes, plain: memoryview, aad: bytes, box: memoryview) -> None:
        self._real.encrypt_into(nonce, plain, aad, box)
        if len(plain) > SEGMENT_FROM_BYTES and BadCipher.left:
            BadCipher.left -= 1
            box[len(plain) // 2] ^= 4

    def decrypt_into(self, nonce: bytes, box: memoryview, aad: bytes, plain: memoryview) -> None:
        self._real.decrypt_into(nonce, box, aad, plain)


class BadMemory(BadCipher):
    """AES-GCM that is right, but of a plain text in which a bit flipped on the way."""

    def encrypt_into(self, nonce: bytes, plain: memoryview, aad: bytes, box: memoryview) -> None:
        if len(plain) > SEGMENT_FROM_BYTES and BadCipher.left:
            BadCipher.left -= 1
            changed = bytearray(plain)
            changed[-1] ^= 1
            plain = memoryview(changed)
        self._real.encrypt_into(nonce, plain, aad, box)


class BadCompressor:
    """zstd that compresses the first large input wrongly: its frame is sound, and holds other bytes."""

    left = 0

    def __init__(self, **options: object) -> None:
        self._real = zstandard.ZstdCompressor(**options)  # type: ignore[arg-type]

    def compress(self, data: memoryview) -> bytes:
        if len(data) > SEGMENT_FROM_BYTES and BadCompressor.left:
            BadCompressor.left -= 1
            changed = bytearray(data)
            changed[len(changed) // 3] ^= 64
            return self._real.compress(changed)
        return self._real.compress(data)


class BadZstd:
    """The zstandard module with the bad compressor."""

    ZstdCompressor = BadCompressor

    def __getattr__(self, name: str) -> object:
        return getattr(zstandard, name)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(threads=2)  # new threads: they have made no compressor yet
    yield pool
    pool.close()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def _tree(files: Tree) -> MemoryTree:
    return MemoryTree({path: replace(node, ino=100 + at) for at, (path, node) in enumerate(sorted(files.items()))})


@pytest.fixture
def run(store: MemoryStore, pool: Pool) -> Callable[..., None]:
    """Back up files, into a repository that is made while the machine is sound."""
    repository = create_repository(store, "vault", MASTER, DomainSettings(), pool=pool)

    def run(files: Tree, **more: object) -> None:
        request = BackupRequest(backup_id="b", generation=1, **more)  # type: ignore[arg-type]
        backup(repository, _tree(files), request, SilentMonitor(), lambda: None)

    return run


def _assert_stopped(store: MemoryStore, run: Callable[..., None], files: Tree, says: str, **more: object) -> None:
    with pytest.raises(PackCorrupt, match=says) as caught:
        run(files, **more)
    assert "memory or processor errs" in caught.value.message
    names = [info.name for info in store.list("vault/")]
    assert not [name for name in names if "/roots/" in name]
    run(files, **more)  # the error was one of a moment: the next attempt stores it


@pytest.mark.parametrize("bad", [BadCipher, BadMemory])
@pytest.mark.parametrize("files", [{(b"n",): Node(data=NOISE)}, {(b"t",): Node(data=TEXT)}, METADATA], ids="ntm")
def test_a_box_that_does_not_open_to_what_was_sealed_is_not_stored(
    monkeypatch: pytest.MonkeyPatch, store: MemoryStore, run: Callable[..., None], files: Tree, bad: type[BadCipher]
) -> None:
    """Of data, compressed or not, and of metadata: one flipped bit in a cipher stops the backup, with no root."""
    monkeypatch.setattr(seal_module, "AESGCM", bad)
    monkeypatch.setattr(BadCipher, "left", 1)
    _assert_stopped(store, run, files, "sealed|changed in memory|does not decompress")


@pytest.mark.parametrize("files", [METADATA, {(b"t",): Node(data=TEXT)}], ids="md")
def test_a_frame_of_other_bytes_is_not_stored(
    monkeypatch: pytest.MonkeyPatch, store: MemoryStore, run: Callable[..., None], files: Tree
) -> None:
    """Metadata always, and data in a full backup, is decompressed again: a compressor that errs stops the backup."""
    monkeypatch.setattr(pack_module, "zstandard", BadZstd())
    monkeypatch.setattr(BadCompressor, "left", 1)
    _assert_stopped(store, run, files, "changed in memory", full=files is not METADATA)


@pytest.mark.parametrize("bad", [BadCipher, BadMemory])
def test_a_small_object_that_does_not_open_is_never_given_out(
    monkeypatch: pytest.MonkeyPatch, bad: type[BadCipher]
) -> None:
    """Roots, index objects, footers and keys are opened again too, before anybody stores them."""
    monkeypatch.setattr(seal_module, "AESGCM", bad)
    monkeypatch.setattr(BadCipher, "left", 1)
    with pytest.raises(Corrupt, match=r"authenticate|opens to other bytes"):
        seal_module.seal_object(bytes(32), bytes(16), seal_module.ROOT, NOISE[:30_000])
    sealed = seal_module.seal_object(bytes(32), bytes(16), seal_module.ROOT, NOISE[:30_000])
    assert seal_module.open_object(bytes(32), bytes(16), seal_module.ROOT, sealed) == NOISE[:30_000]
