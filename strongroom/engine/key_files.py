"""Key files that open a store without its server: the master key, or the keys of one vault for hand-over.

    strongroom-master-key-v1 <32 bytes in hex>
    strongroom-vault-key-v1 <domain id> <data key> <dedup key> <chunker seed> <level>      one line a domain

Both are text with mode 0600. A vault's key opens that vault's restore points and nothing else: it is derived from no
other key and tells nothing of the master key. docs/KEYS.md has the whole story.
"""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from strongroom.base.clock import SystemClock
from strongroom.base.errors import ConfigError, KeyWrong
from strongroom.base.units import KIB
from strongroom.engine.keys import LEVELS, Domain, MasterKey
from strongroom.engine.open import open_repository
from strongroom.engine.pool import Pool
from strongroom.engine.repository import Repository
from strongroom.engine.store.base import Store

_MASTER = b"strongroom-master-key-v1 "
_VAULT = re.compile(rb"strongroom-vault-key-v1 ([0-9a-f]{32}) ([0-9a-f]{64}) ([0-9a-f]{64}) ([0-9]{1,19}) ([0-9])")
_FILE_BYTES_MAX = 64 * KIB  # some 300 domains; a vault has one of its own, and one for each vault it was copied from
_SEED_MAX = 1 << 62


@dataclass(frozen=True, kw_only=True)
class VaultKey:
    """The keys of one vault's domains, without a master key."""

    domains: tuple[Domain, ...] = field(repr=False)


def load_key(path: str | os.PathLike[str]) -> MasterKey | VaultKey:
    """Read a key file of either kind. Raises ConfigError when it is missing, malformed or readable by others."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read(_FILE_BYTES_MAX + 1)
    except OSError as err:
        raise ConfigError(reason=f"The key file {name} cannot be read: {err.strerror}.") from err
    if text.startswith(_MASTER):
        return MasterKey.load(path)
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(reason=f"Others may read the key file {name}: run `chmod 600 {name}`.")
    found = [_VAULT.fullmatch(line) for line in text.splitlines()]
    if not found or len(text) > _FILE_BYTES_MAX or not all(found):
        raise ConfigError(reason=f"The file {name} holds neither a master key nor a vault's key.")
    return VaultKey(domains=tuple(_domain(name, match) for match in found if match))


def _domain(name: str, match: re.Match[bytes]) -> Domain:
    identity, data_key, dedup_key = (bytes.fromhex(match[i].decode()) for i in (1, 2, 3))
    seed, level = int(match[4]), int(match[5])
    if not 0 < seed < _SEED_MAX or level not in LEVELS:
        raise ConfigError(reason=f"The vault's key in {name} has values that none can have.")
    return Domain(id=identity, data_key=data_key, dedup_key=dedup_key, chunker_seed=seed, level=level)


def vault_key_text(domains: Sequence[Domain]) -> bytes:
    """The content of a file with the keys of these domains."""
    lines = [
        f"strongroom-vault-key-v1 {d.id.hex()} {d.data_key.hex()} {d.dedup_key.hex()} {d.chunker_seed} {d.level}\n"
        for d in domains
    ]
    return "".join(lines).encode()


def open_domain(
    store: Store, prefix: str, domain_id: bytes, key: MasterKey | VaultKey, *, pool: Pool | None = None
) -> Repository:
    """A domain below `prefix` with either kind of key; its sessions are known to this process only.

    Raises KeyWrong, ObjectMissing when the store has no wrapped keys, FormatUnknown or Corrupt.
    """
    if isinstance(key, MasterKey):
        return open_repository(store, prefix, key, domain_id=domain_id, pool=pool)
    for domain in key.domains:
        if domain.id == domain_id:
            below = f"{prefix}domains/{domain_id.hex()}/"
            return Repository(store, below, domain, pool=pool, sessions=None, clock=SystemClock())
    raise KeyWrong(reason=f"the key file has no key of domain {domain_id.hex()}")
