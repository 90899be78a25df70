"""Key files: what they hold, and what is refused."""

from pathlib import Path

import pytest

from strongroom.base.errors import ConfigError, KeyWrong
from strongroom.engine import DomainSettings, MasterKey, create_repository
from strongroom.engine.key_files import VaultKey, load_key, open_domain, vault_key_text
from strongroom.engine.keys import KEY_BYTES, Domain
from strongroom.engine.store.memory import MemoryStore


def written(tmp_path: Path, data: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_both_kinds_come_back(tmp_path: Path) -> None:
    """A master key as it was made; a vault's key with every domain."""
    made = MasterKey.create(tmp_path / "master")
    loaded = load_key(tmp_path / "master")
    assert isinstance(loaded, MasterKey)
    assert loaded.key_id == made.key_id
    domains = (Domain.create(3), Domain.create(1))
    assert load_key(written(tmp_path, vault_key_text(domains))) == VaultKey(domains=domains)


def test_a_vaults_key_opens_its_own_domain_only() -> None:
    """Without the wrapped keys, and not the domain beside it."""
    store, master = MemoryStore(), MasterKey(b"m" * KEY_BYTES)
    one, two = (create_repository(store, f"vaults/p/{name}/", master, DomainSettings()) for name in ("one", "two"))
    key = VaultKey(domains=(one.domain,))
    for name in [info.name for info in store.list("") if "/keys/" in info.name]:
        store.delete(name)
    assert open_domain(store, "vaults/p/one/", one.domain.id, key).load_index_list().number == 0
    with pytest.raises(KeyWrong):
        open_domain(store, "vaults/p/two/", two.domain.id, key)


GOOD = vault_key_text([Domain(id=bytes(16), data_key=bytes(32), dedup_key=bytes(32), chunker_seed=1, level=3)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"something else\n",
        GOOD[:-3],
        GOOD + b"more\n",
        GOOD.replace(b" 1 3", b" 0 3"),
        GOOD.replace(b" 1 3", b" 1 9"),
        GOOD.replace(b" 1 3", b" 9999999999999999999 3"),
        GOOD.replace(b"00", b"zz", 1),
        GOOD * 400,
        b"strongroom-master-key-v1 " + b"0" * 63,
    ],
    ids=range(11),
)
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    """With a sentence that names the file, whatever is in it."""
    with pytest.raises(ConfigError, match="key"):
        load_key(written(tmp_path, data))


@pytest.mark.parametrize("data", [GOOD, b"strongroom-master-key-v1 " + b"0" * 64])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, data: bytes) -> None:
    """The sentence says how to close it."""
    with pytest.raises(ConfigError, match="chmod 600"):
        load_key(written(tmp_path, data, 0o640))


def test_keys_are_not_shown() -> None:
    """No secret in a repr, so none in a log."""
    domain = Domain.create(3)
    shown = repr(VaultKey(domains=(domain,))) + repr(domain)
    assert domain.data_key.hex() not in shown
    assert repr(domain.data_key) not in shown
