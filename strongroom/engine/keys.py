"""The master key, and the keys of a domain that it wraps (RULINGS 11 and 12).

    keys/<n> = object id 16 | format version u16 | master key id 16 | domain id 16 | box at 50

The box holds a msgpack map of the domain. Rotating the master key adds keys/<n+1>; the domain's own keys stay.
A master key is a text file of one line with mode 0600. Nothing here is ever logged: reprs show ids only.
"""

import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any

import msgpack

from strongroom.base.errors import ConfigError, Corrupt, FormatUnknown, KeyWrong
from strongroom.engine.seal import FORMAT_VERSION, KEYS, OBJECT_ID_BYTES, Box, derive_key, new_object_id

KEY_BYTES = 32
DOMAIN_ID_BYTES = 16
KEYS_OBJECT_BYTES_MAX = 4096  # a wrap has some 250 bytes
CHUNKER_SEED_END = 1 << 62
LEVELS = (1, 3)  # what the measurements of the design cover

_KEY_ID_BYTES = 16
_OWN_HEADER_BYTES = OBJECT_ID_BYTES + 2 + _KEY_ID_BYTES
_HEADER_BYTES = _OWN_HEADER_BYTES + DOMAIN_ID_BYTES
NO_DOMAIN = bytes(DOMAIN_ID_BYTES)  # in the AAD of what belongs to the installation itself
_LINE = re.compile(rb"strongroom-master-key-v1 ([0-9a-f]{64})\n?")
_FILE_BYTES_MAX = 256


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What shares chunks and keys.

    id            16 random bytes          data_key    32 bytes, material of every object key
    dedup_key     32 bytes, key of the chunk ids
    chunker_seed  of the gear table; a parameter, not a secret
    level         zstd level of every segment
    """

    id: bytes
    data_key: bytes = field(repr=False)
    dedup_key: bytes = field(repr=False)
    chunker_seed: int
    level: int

    @classmethod
    def create(cls, level: int) -> "Domain":
        if level not in LEVELS:
            raise ConfigError(reason=f"The compression level is one of {', '.join(map(str, LEVELS))}, not {level}.")
        from secrets import randbelow  # 5 ms of a start, needed once in a repository's life

        return cls(
            id=os.urandom(DOMAIN_ID_BYTES),
            data_key=os.urandom(KEY_BYTES),
            dedup_key=os.urandom(KEY_BYTES),
            chunker_seed=1 + randbelow(CHUNKER_SEED_END - 1),
            level=level,
        )


class MasterKey:
    """Wraps the keys of domains. `key_id` tells keys apart and gives nothing away."""

    __slots__ = ("_secret", "key_id")

    def __init__(self, secret: bytes) -> None:
        assert len(secret) == KEY_BYTES
        self._secret = secret
        self.key_id = derive_key("master key id", secret)[:_KEY_ID_BYTES]

    def __repr__(self) -> str:
        return f"MasterKey({self.key_id.hex()})"

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> "MasterKey":
        """A new key in a new file of mode 0600, durable on return. Raises ConfigError when the file exists."""
        secret = os.urandom(KEY_BYTES)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as err:
            reason = f"The master key file {os.fspath(path)} cannot be made: {err.strerror}."
            raise ConfigError(reason=reason) from err
        with os.fdopen(file, "wb") as stream:
            stream.write(b"strongroom-master-key-v1 " + secret.hex().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return cls(secret)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MasterKey":
        """Read a key file. Raises ConfigError when it is missing, malformed or readable by others."""
        name = os.fspath(path)
        try:
            with open(path, "rb") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                text = stream.read(_FILE_BYTES_MAX)
        except OSError as err:
            raise ConfigError(reason=f"The master key file {name} cannot be read: {err.strerror}.") from err
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigError(reason=f"Others may read the master key file {name}: run `chmod 600 {name}`.")
        found = _LINE.fullmatch(text)
        if found is None:
            raise ConfigError(reason=f"The file {name} does not hold a master key.")
        return cls(bytes.fromhex(found[1].decode()))

    def wrap(self, domain: Domain) -> bytes:
        """The object keys/<n> of a domain."""
        header = new_object_id() + FORMAT_VERSION.to_bytes(2, "little") + self.key_id + domain.id
        body = {
            "data_key": domain.data_key,
            "dedup_key": domain.dedup_key,
            "chunker_seed": domain.chunker_seed,
            "level": domain.level,
        }
        return header + self._box(header, domain.id).seal(len(header), msgpack.packb(body))

    def unwrap(self, data: bytes) -> Domain:
        """The domain in an object keys/<n>. Raises FormatUnknown, KeyWrong or Corrupt."""
        if not _HEADER_BYTES < len(data) <= KEYS_OBJECT_BYTES_MAX:
            raise Corrupt(reason="an object of wrapped keys has a wrong size", detail=f"{len(data)} bytes")
        _require_format(data)
        self._require_own(data)
        domain_id = data[_HEADER_BYTES - DOMAIN_ID_BYTES : _HEADER_BYTES]
        body = self._box(data, domain_id).open(_HEADER_BYTES, memoryview(data)[_HEADER_BYTES:])
        return _domain(domain_id, body)

    def seal(self, kind: str, payload: bytes, more: bytes = b"") -> bytes:
        """An object of the installation itself: object id 16 | format version u16 | master key id 16 | box at 34."""
        header = new_object_id() + FORMAT_VERSION.to_bytes(2, "little") + self.key_id
        return header + Box(self._secret, NO_DOMAIN, kind, header[:OBJECT_ID_BYTES], more).seal(len(header), payload)

    def open(self, kind: str, data: bytes, more: bytes = b"") -> bytes:
        """The payload of `seal`. Raises FormatUnknown, KeyWrong or Corrupt."""
        if len(data) < _OWN_HEADER_BYTES:
            raise Corrupt(reason=f"a {kind} is shorter than its header", detail=f"{len(data)} bytes")
        _require_format(data)
        self._require_own(data)
        box = Box(self._secret, NO_DOMAIN, kind, data[:OBJECT_ID_BYTES], more)
        return box.open(_OWN_HEADER_BYTES, memoryview(data)[_OWN_HEADER_BYTES:])

    def _require_own(self, data: bytes) -> None:
        key_id = data[OBJECT_ID_BYTES + 2 : OBJECT_ID_BYTES + 2 + _KEY_ID_BYTES]
        if key_id != self.key_id:
            raise KeyWrong(reason=f"it is wrapped by master key {key_id.hex()}, the key given is {self.key_id.hex()}")

    def _box(self, header: bytes, domain_id: bytes) -> Box:
        return Box(self._secret, domain_id, KEYS, header[:OBJECT_ID_BYTES])


def _require_format(data: bytes) -> None:
    version = int.from_bytes(data[OBJECT_ID_BYTES : OBJECT_ID_BYTES + 2], "little")
    if version != FORMAT_VERSION:
        raise FormatUnknown(reason=f"it has format {version}, this program reads {FORMAT_VERSION}")


def _domain(domain_id: bytes, body: bytes) -> Domain:
    try:
        fields = msgpack.unpackb(body)
        domain = Domain(id=domain_id, **fields)
    except (ValueError, TypeError) as err:
        raise FormatUnknown(reason="its keys carry fields this program does not know", detail=str(err)) from err
    keys: tuple[Any, ...] = domain.data_key, domain.dedup_key
    seed: Any = domain.chunker_seed
    if (
        not all(isinstance(key, bytes) and len(key) == KEY_BYTES for key in keys)
        or not isinstance(seed, int)
        or not 0 < seed < CHUNKER_SEED_END
        or domain.level not in LEVELS
    ):
        raise FormatUnknown(reason="its keys have values this program does not know")
    return domain
