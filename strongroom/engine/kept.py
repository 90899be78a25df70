"""Until when the store keeps which pack, as far as this machine has been told: what saves one request a pack a backup.

    <folder>/<domain>.kept = magic | rows of (pack id, seconds since 1970 by the store's clock) | keyed BLAKE3 over it

It is only a memory: whoever finds none, or one that is damaged or foreign, asks the store again. Times only grow, packs
never change and their ids are never used again, so what was true of one stays true of it. A bucket that was put back
from elsewhere without its locks is the exception; a prune therefore believes nothing of this and asks (retain.py).
"""

import contextlib
import os
import struct
from collections.abc import Mapping

from blake3 import blake3

from strongroom.engine.seal import OBJECT_ID_BYTES

BYTES_MAX = 64 << 20  # 2.8 million packs, some 90 TiB; beyond, the store is asked

_MAGIC = b"SRKEPT01"
_ROW = struct.Struct(f"<{OBJECT_ID_BYTES}sQ")
_MAC_BYTES = 32
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_MODE = 0o600


class KeptTimes:
    """The file of one domain. `path` None: nothing is remembered. key: 32 bytes, of this domain only."""

    def __init__(self, path: str | None, key: bytes) -> None:
        self._path = path
        self._key = key

    def load(self) -> dict[bytes, int]:
        """Pack id -> time. Empty for what is not, wholly and provably, of this domain."""
        if self._path is None:
            return {}
        try:
            with open(os.open(self._path, _READ_FLAGS), "rb") as file:
                data = file.read(BYTES_MAX + 1)
        except OSError:
            return {}
        from hmac import compare_digest  # loaded where there is a file

        body, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        sound = len(data) <= BYTES_MAX and compare_digest(mac, blake3(body, key=self._key).digest())
        if not sound or not body.startswith(_MAGIC) or (len(body) - len(_MAGIC)) % _ROW.size:
            return {}
        return dict(_ROW.iter_unpack(body[len(_MAGIC) :]))

    def add(self, times: Mapping[bytes, int], now: int) -> None:
        """Remember these too; what is over by `now` is forgotten. Another writer's at this moment may be lost, and a
        disk that takes nothing costs requests, no more."""
        if self._path is None or not times:
            return
        known = {pack: at for pack, at in (self.load() | dict(times)).items() if at > now}
        body = _MAGIC + b"".join(_ROW.pack(pack, at) for pack, at in known.items())
        if len(body) + _MAC_BYTES > BYTES_MAX:
            return
        new = f"{self._path}.{os.urandom(8).hex()}"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            try:
                with open(os.open(new, _CREATE_FLAGS, _FILE_MODE), "wb") as file:
                    file.write(body + blake3(body, key=self._key).digest())
                os.rename(new, self._path)
            except OSError:
                os.unlink(new)
                raise
