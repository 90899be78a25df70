"""The way out: the server and its database are gone; the store and one key file bring everything back."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_line import PROCESS, strongroom
from harness import Client, Server, contents, make_tree

pytestmark = pytest.mark.e2e


class Saved(NamedTuple):
    """What is left after the disaster, and what was there before."""

    store: Path
    key: Path
    tree: dict[str, tuple[int, bytes | str | None]]
    disk: bytes
    tree_vault: str
    disk_vault: str


def recover(saved: Saved, *argv: str, key: Path | None = None, code: int = 0, process: bool = False) -> Any:
    options = ["--store", f"file://{saved.store}", "--key", str(key or saved.key)]
    done = strongroom("recover", *options, *argv, "--json", code=code, process=process)
    return json.loads(done.stdout.splitlines()[-1] if argv[0] == "restore" else done.stdout) if done.stdout else None


def backed_up(client: Client, kind: str, path: Path, times: int) -> str:
    resource = client.register(kind, path.name, path)
    vault = client.vault(f"vault-{path.stem}", kind, [resource])
    for _ in range(times):
        assert client.settled(client.checkpoint(vault))["status"] == "available"
    return vault


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Two vaults are backed up by a real server; then its state folder is destroyed, sources included."""
    base = tmp_path_factory.mktemp("recover")
    tree, disk, store, key = base / "tree", base / "disk.img", base / "kept", base / "kept.key"
    make_tree(tree, 3)
    image = os.urandom(2_000_000) + bytes(3_000_000) + os.urandom(242_880)
    disk.write_bytes(image)
    server = Server(base / "state", store_url=f"file://{store}").start()
    with server.client() as client:
        tree_vault = backed_up(client, "turbo", tree, 1)
        (tree / "later").write_bytes(b"second generation")
        assert client.settled(client.checkpoint(tree_vault))["status"] == "available"
        disk_vault = backed_up(client, "disk", disk, 1)
    server.kill()
    strongroom("export-key", str(key), "--state", str(server.state))
    kept = Saved(store, key, contents(tree), image, tree_vault, disk_vault)
    shutil.rmtree(server.state, ignore_errors=True)  # its PostgreSQL may still be dying
    shutil.rmtree(tree)
    disk.unlink()
    return kept


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def newest(saved: Saved, vault: str, **more: Path) -> dict[str, Any]:
    return recover(saved, "list", "--vault", vault, **more)[-1]


def test_everything_is_listed_with_its_labels(saved: Saved) -> None:
    """Names, paths and times come from the roots; checked, all are complete."""
    rows = recover(saved, "list", "--check")
    assert len(rows) == 3
    assert {row["state"] for row in rows} == {"complete"}
    assert {row["vault"] for row in rows} == {saved.tree_vault, saved.disk_vault}
    assert {row["resource_name"] for row in rows} == {"tree", "disk.img"}
    assert all(row["path"].startswith("/") and row["counts"] for row in rows)
    shown = recover(saved, "show", rows[0]["backup"])
    assert shown["labels"]["vault_name"] == "vault-tree"


def test_a_folder_comes_back_byte_for_byte(saved: Saved, tmp_path: Path) -> None:
    """Modes, links and contents, from store and key alone; the store is not changed."""
    before = files_of(saved.store)
    done = recover(saved, "restore", newest(saved, saved.tree_vault)["backup"], str(tmp_path / "new"), **PROCESS)
    assert done["exit_code"] == 0
    assert contents(tmp_path / "new") == saved.tree
    assert files_of(saved.store) == before


def test_a_disk_comes_back_byte_for_byte(saved: Saved, tmp_path: Path) -> None:
    """As an image file."""
    recover(saved, "restore", newest(saved, "vault-disk")["backup"], str(tmp_path / "new.img"))
    assert (tmp_path / "new.img").read_bytes() == saved.disk


def test_one_path_comes_back(saved: Saved, tmp_path: Path) -> None:
    """A folder of a restore point, and nothing beside it."""
    recover(saved, "restore", newest(saved, saved.tree_vault)["backup"], str(tmp_path / "new"), "--path", "/d1/e1")
    found = contents(tmp_path / "new")
    assert found == {name: saved.tree[name] for name in saved.tree if name == "d1" or (name + "/").startswith("d1/e1/")}


def test_a_lost_index_is_rebuilt_in_memory(saved: Saved, tmp_path: Path) -> None:
    """Without any index object the same comes back; `reindex` puts it into the store when it is asked to."""
    store = tmp_path / "store"
    shutil.copytree(saved.store, store)
    for folder in store.rglob("index"):
        shutil.rmtree(folder)
    hurt = saved._replace(store=store)
    before = files_of(store)
    recover(hurt, "restore", newest(hurt, saved.tree_vault)["backup"], str(tmp_path / "new"))
    assert contents(tmp_path / "new") == saved.tree
    assert files_of(store) == before
    assert [row["was_sound"] for row in recover(hurt, "reindex")] == [False, False]
    assert [row["was_sound"] for row in recover(hurt, "reindex")] == [True, True]


def test_a_damaged_restore_point_is_told_and_nothing_wrong_is_restored(saved: Saved, tmp_path: Path) -> None:
    """With a flipped bit in every pack the restore fails, and no content is left behind."""
    store = tmp_path / "store"
    shutil.copytree(saved.store, store)
    for pack in store.rglob("packs/*"):
        data = bytearray(pack.read_bytes())
        data[len(data) // 3] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(data)
    hurt = saved._replace(store=store)
    backup = newest(hurt, saved.disk_vault)["backup"]
    recover(hurt, "restore", backup, str(tmp_path / "new.img"), code=1)
    assert not (tmp_path / "new.img").exists()


def test_nothing_is_overwritten(saved: Saved, tmp_path: Path) -> None:
    """A folder that holds something and a file that exists are refused."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("stays")
    tree, disk = (newest(saved, vault)["backup"] for vault in (saved.tree_vault, saved.disk_vault))
    recover(saved, "restore", tree, str(tmp_path / "full"), code=1)
    recover(saved, "restore", disk, str(tmp_path / "full" / "mine"), code=1)
    assert (tmp_path / "full" / "mine").read_text() == "stays"


def test_another_key_opens_nothing(saved: Saved, tmp_path: Path) -> None:
    """The sentence names the keys, not a stack of Python."""
    other = tmp_path / "other.key"
    other.write_text(f"strongroom-master-key-v1 {'5' * 64}\n")
    other.chmod(0o600)
    done = strongroom("recover", "--store", str(saved.store), "--key", str(other), "list", code=1)
    assert b"does not open this repository" in done.stderr
    other.chmod(0o644)
    assert (
        b"chmod 600" in strongroom("recover", "--store", str(saved.store), "--key", str(other), "list", code=1).stderr
    )


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, saved: Saved) -> None:
    """A mistyped path is an error."""
    strongroom("recover", "--store", str(tmp_path / "typo"), "--key", str(saved.key), "list", code=1, **PROCESS)
    assert not (tmp_path / "typo").exists()
