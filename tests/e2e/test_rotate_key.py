"""A new master key for a real installation, killed at every step; and one vault's key, handed over."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import Server, contents, make_tree

pytestmark = pytest.mark.e2e


class Made(NamedTuple):
    """A stopped installation with two vaults, and what is in the first one's restore point."""

    state: Path
    tree: dict[str, tuple[int, bytes | str | None]]
    vaults: tuple[str, str]


def strongroom(*argv: str, code: int | None = 0, **settings: str) -> subprocess.CompletedProcess[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    environ |= {f"STRONGROOM_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run([sys.executable, "-m", "strongroom", *argv], env=environ, capture_output=True, timeout=120)
    assert code is None or done.returncode == code, (argv, done.returncode, done.stdout.decode(), done.stderr.decode())
    return done


def listed(state: Path, key: Path, code: int = 0) -> list[dict[str, str]]:
    done = strongroom("recover", "--store", str(state / "store"), "--key", str(key), "list", "--json", code=code)
    return json.loads(done.stdout) if not code else []


def access_key_works(server: Server) -> bool:
    """A request signed with the access key of the first start, whose secret lies sealed in the database."""
    done = strongroom("vault", "list", "--state", str(server.state), "--json")
    return len(json.loads(done.stdout)) == 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("rotate")
    tree = base / "tree"
    make_tree(tree, 5, files=10)
    server = Server(base / "state").start()
    vaults = []
    with server.client() as client:
        for name in ("one", "two"):
            shutil.copytree(tree, base / name, symlinks=True)
            vaults.append(client.vault(name, "turbo", [client.register("turbo", name, base / name)]))
            assert client.settled(client.checkpoint(vaults[-1]))["status"] == "available"
    assert server.stop() == 0
    return Made(server.state, contents(base / "one"), (vaults[0], vaults[1]))


def copied(made: Made, tmp_path: Path) -> Path:
    state = tmp_path / "state"
    shutil.copytree(made.state, state, symlinks=True)
    return state


def test_a_new_key_takes_over_and_the_old_one_ends_when_it_is_forgotten(made: Made, tmp_path: Path) -> None:
    """Access keys go on, both keys open until the old one is forgotten, which waits for an export of the new one."""
    state = copied(made, tmp_path)
    strongroom("export-key", str(tmp_path / "old.key"), "--state", str(state))
    done = json.loads(strongroom("rotate-key", "--state", str(state), "--json").stdout)
    assert (done["domains"], done["secrets"]) == (2, 1)
    assert Path(done["old_file"]).read_bytes() == (tmp_path / "old.key").read_bytes()
    assert len(listed(state, tmp_path / "old.key")) == len(listed(state, state / "master.key")) == 2
    refused = strongroom("rotate-key", "--forget-old", "--state", str(state), code=1)
    assert b"never exported" in refused.stderr
    server = Server(state).start()
    assert not (state / "master.key.exported").exists()
    assert access_key_works(server)
    with server.client() as client:
        assert client.settled(client.checkpoint(made.vaults[0]))["status"] == "available"
    busy = strongroom("rotate-key", "--state", str(state), code=1)
    assert b"in use by process" in busy.stderr
    assert server.stop() == 0
    strongroom("export-key", str(tmp_path / "new.key"), "--state", str(state))
    strongroom("rotate-key", "--forget-old", "--state", str(state))
    assert len(listed(state, tmp_path / "new.key")) == 3
    listed(state, tmp_path / "old.key", code=1)
    server = Server(state).start()
    with server.client() as client:
        assert client.settled(client.checkpoint(made.vaults[1]))["status"] == "available"
    server.stop()


@pytest.mark.parametrize(
    ("kind", "step"),
    [("files", 7), *(pytest.param(*rest, marks=pytest.mark.long) for rest in (("database", 1), ("store", 12)))],
)
def test_killed_on_the_way_it_goes_on_where_it_was(made: Made, tmp_path: Path, kind: str, step: int) -> None:
    """After each kill both vaults open with the old key; a server waits; the second run ends, and all goes on."""
    assert killed_at_every(step, kind, made, tmp_path) >= 2


@pytest.mark.long
@pytest.mark.parametrize("kind", ["files", "store"])
def test_killed_at_every_step_it_goes_on_where_it_was(made: Made, tmp_path: Path, kind: str) -> None:
    """The same at every point there is."""
    assert killed_at_every(1, kind, made, tmp_path) > 5


def killed_at_every(step: int, kind: str, made: Made, tmp_path: Path) -> int:
    """Kill a rotation at every `step`th point of a kind, each in a copy of its own, and check; how many were killed."""
    kills = 0
    for number in range(1, 100, step):
        state = copied(made, tmp_path)
        shutil.copy(state / "master.key", tmp_path / "old.key")
        run = strongroom("rotate-key", "--state", str(state), code=None, kill_at=f"rotate:{kind}:{number}")
        assert len(listed(state, tmp_path / "old.key")) == 2
        if run.returncode == 0:
            break
        kills += 1
        if (state / "master.key.next").exists():
            refused = strongroom("serve", "--state", str(state), "--listen", "127.0.0.1:0", code=1)
            assert b"rotate-key" in refused.stderr
        strongroom("rotate-key", "--state", str(state))
        assert len(listed(state, state / "master.key")) == 2
        if kills == 2:  # starting one takes longer than all the rest
            server = Server(state).start()
            assert access_key_works(server)
            assert server.stop() == 0
        shutil.rmtree(state)
        (tmp_path / "old.key").unlink()
    print(f"rotate-key: {kills} kills at {kind} points")
    return kills


def test_what_cannot_end_does_not_begin(made: Made, tmp_path: Path) -> None:
    """A vault of another installation in the store: it is named, and nothing is changed."""
    state = copied(made, tmp_path)
    strongroom("engine", "init", str(tmp_path / "other"))
    shutil.copytree(tmp_path / "other", state / "store" / "vaults" / "p" / "foreign")
    before = (state / "master.key").read_bytes()
    refused = strongroom("rotate-key", "--state", str(state), code=1)
    assert b"vaults/p/foreign/" in refused.stderr
    assert not list(state.glob("master.key.*"))
    assert (state / "master.key").read_bytes() == before
    shutil.rmtree(state / "store" / "vaults" / "p" / "foreign")
    strongroom("rotate-key", "--state", str(state))


def test_a_vaults_key_is_handed_over(made: Made, tmp_path: Path) -> None:
    """`recover` lists and restores that vault with it, and sees nothing of the other."""
    key = tmp_path / "vault.key"
    strongroom("export-key", str(key), "--vault", made.vaults[0], "--state", str(made.state))
    assert key.stat().st_mode & 0o777 == 0o600
    (row,) = listed(made.state, key)
    assert row["vault"] == made.vaults[0]
    options = ["--store", str(made.state / "store"), "--key", str(key)]
    strongroom("recover", *options, "restore", row["backup"], str(tmp_path / "new"))
    assert contents(tmp_path / "new") == made.tree
    strongroom("export-key", str(tmp_path / "none"), "--vault", "no-such-vault", "--state", str(made.state), code=1)
    assert not (tmp_path / "none").exists()
