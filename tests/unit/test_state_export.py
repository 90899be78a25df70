"""That the master key was exported is known to every process that shares the key, not to one state folder."""

from pathlib import Path

import pytest

from strongroom.base.errors import ConfigError
from strongroom.config import Settings, load_settings
from strongroom.engine.keys import MasterKey
from strongroom.state import export_mark
from strongroom.upkeep import export_key


def shared(folder: Path, name: str) -> Settings:
    """Settings of one of many processes with one key."""
    return load_settings({"state": str(folder / name)}, {"STRONGROOM_MASTER_KEY_FILE": str(folder / "keys/master.key")})


def test_one_export_is_enough_for_all_processes(tmp_path: Path) -> None:
    """The mark names the key, lies beside it, and goes along when the folder does."""
    (tmp_path / "keys").mkdir()
    key = MasterKey.create(tmp_path / "keys/master.key")
    assert not export_mark(shared(tmp_path, "api")).exists()
    export_key(shared(tmp_path, "worker"), tmp_path / "kept")
    assert export_mark(shared(tmp_path, "api")).read_text() == key.key_id.hex()
    assert (tmp_path / "kept").read_bytes() == (tmp_path / "keys/master.key").read_bytes()


def test_an_export_that_cannot_be_noted_says_that_the_copy_is_complete(tmp_path: Path) -> None:
    (tmp_path / "keys/master.key.exported").mkdir(parents=True)
    MasterKey.create(tmp_path / "keys/master.key")
    with pytest.raises(ConfigError, match="is written and complete"):
        export_key(shared(tmp_path, "worker"), tmp_path / "kept")
    assert (tmp_path / "kept").exists()
