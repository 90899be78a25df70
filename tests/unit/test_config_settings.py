"""Settings: where they come from, what is refused, and who owns the state folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.base.errors import ConfigError
from strongroom.base.units import GIB, MIB
from strongroom.config import SETTINGS, Settings, load_settings
from strongroom.state import prepare_state, state_lock


def load(state: Path, options: dict[str, str | None] | None = None, **environ: str) -> Settings:
    return load_settings({"state": str(state), **(options or {})}, environ)


def test_defaults(tmp_path: Path):
    """Without any setting the small install of the design comes out, on loopback, in the state folder."""
    settings = load(tmp_path)
    assert str(settings.listen) == "127.0.0.1:8799"
    assert settings.store_url == f"file://{tmp_path}/store"
    assert settings.master_key_file == tmp_path / "master.key"
    assert settings.database_url is None
    assert (settings.region, settings.worker_concurrency, settings.worker_memory_bytes) == ("local", 4, GIB)
    assert (settings.token_ttl_s, settings.body_bytes_max) == (86400, MIB)


def test_state_folder_is_option_then_environment_then_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """--state wins over STRONGROOM_STATE, that over the default below the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings({}, {}).state_dir == tmp_path / ".local/share/strongroom"
    environ = {"STRONGROOM_STATE": str(tmp_path / "b")}
    assert load_settings({}, environ).state_dir == tmp_path / "b"
    assert load_settings({"state": str(tmp_path / "a")}, environ).state_dir == tmp_path / "a"


def test_option_wins_over_environment_over_file(tmp_path: Path):
    """Each source overrides the weaker one, setting by setting."""
    (tmp_path / "strongroom.toml").write_text(
        'region = "file"\nworker_concurrency = 2\ninsecure = true\nworker_memory = "512MiB"\n'
    )
    settings = load(tmp_path, {"region": "option", "listen": None}, STRONGROOM_REGION="environment")
    assert settings.region == "option"
    assert (settings.worker_concurrency, settings.insecure, settings.worker_memory_bytes) == (2, True, 512 * MIB)
    assert load(tmp_path, STRONGROOM_REGION="environment").region == "environment"


def test_keys_of_the_object_store(tmp_path: Path):
    """They come from our settings, else from the AWS variables, and show in no repr."""
    foreign = {"AWS_ACCESS_KEY_ID": "AKFOREIGN", "AWS_SECRET_ACCESS_KEY": "secret-1", "AWS_REGION": "eu-1"}
    settings = load(tmp_path, **foreign)
    assert (settings.s3_access_key, settings.s3_secret_key, settings.s3_region) == ("AKFOREIGN", "secret-1", "eu-1")
    assert "AKFOREIGN" not in repr(settings)
    assert "secret-1" not in repr(settings)
    (tmp_path / "strongroom.toml").write_text('s3_access_key = "AKFILE"\n')
    settings = load(tmp_path, STRONGROOM_S3_SECRET_KEY="secret-2", **foreign)
    assert (settings.s3_access_key, settings.s3_secret_key) == ("AKFILE", "secret-2")


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"STRONGROOM_INSECUR": "1"}, "STRONGROOM_INSECUR is not a setting.*Did you mean STRONGROOM_INSECURE"),
        ({"STRONGROOM_QQQQQQ": "1"}, "is not a setting.*There are: STRONGROOM_LISTEN"),
        ({"STRONGROOM_LISTEN": "8799"}, "STRONGROOM_LISTEN must be HOST:PORT"),
        ({"STRONGROOM_LISTEN": "localhost:99999"}, "STRONGROOM_LISTEN must be HOST:PORT"),
        ({"STRONGROOM_WORKER_CONCURRENCY": "0"}, "from 1 to 64"),
        ({"STRONGROOM_WORKER_CONCURRENCY": "²"}, "from 1 to 64"),
        ({"STRONGROOM_WORKER_MEMORY": "1 ton"}, "such as 512MiB"),
        ({"STRONGROOM_INSECURE": "maybe"}, "true or false"),
        ({"STRONGROOM_LOG_LEVEL": "loud"}, "one of debug"),
        ({"STRONGROOM_REGION": "a b"}, "letters, digits"),
        ({"STRONGROOM_STORE_URL": "ftp://x"}, "a URL such as file://"),
        ({"STRONGROOM_S3_SECRET_KEY": "secret with spaces"}, "STRONGROOM_S3_SECRET_KEY must be 1 to 256"),
        ({"AWS_ENDPOINT_URL": "secret@host"}, "AWS_ENDPOINT_URL must be a URL"),
        ({"STRONGROOM_DATABASE_URL": "mysql://root:secret@x"}, "a URL such as postgresql://"),
        ({"STRONGROOM_TLS_CERT": "/nowhere"}, "needs both"),
        ({"STRONGROOM_TLS_CERT": "/nowhere", "STRONGROOM_TLS_KEY": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_wrong_values_are_refused_with_their_name(tmp_path: Path, environ: dict[str, str], sentence: str):
    """A wrong setting stops the start with a sentence that names it and shows no secret."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(tmp_path, **environ)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("listn = 'x'", "listn in .*strongroom.toml is not a setting.*Did you mean listen"),
        ("listen = [1]", "must be a text"),
        ("listen =", "not valid TOML"),
        ("[server]\nlisten = 'x'", "The key server in"),
        ("region = '\x00'", "not valid TOML"),
        ("worker_concurrency = 1000", "The key worker_concurrency in .* must be a whole number"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, sentence: str):
    """Unknown keys, wrong types and broken TOML in the file are named."""
    (tmp_path / "strongroom.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load(tmp_path)


@pytest.mark.parametrize(
    ("listen", "open_to_others"),
    [("127.0.0.1:1", False), ("[::1]:1", False), ("localhost:1", False), ("127.8.8.8:1", False),
     ("0.0.0.0:1", True), ("[::]:1", True), ("192.0.2.1:1", True), ("backup.example.org:1", True)],
)  # fmt: skip
def test_beyond_loopback_needs_tls_or_insecure(tmp_path: Path, listen: str, open_to_others: bool):
    """Plain HTTP beyond this machine is refused unless it is asked for by name; with TLS it is fine."""
    cert = tmp_path / "cert.pem"
    cert.write_text("")
    if open_to_others:
        with pytest.raises(ConfigError, match=r"without TLS.*--insecure"):
            load(tmp_path, {"listen": listen})
    else:
        load(tmp_path, {"listen": listen})
    load(tmp_path, {"listen": listen, "insecure": "true"})
    load(tmp_path, {"listen": listen, "tls_cert": str(cert), "tls_key": str(cert)})


KEYSTONE = {
    "STRONGROOM_IDENTITY": "keystone",
    "STRONGROOM_KEYSTONE_URL": "https://keystone.example.org:5000/v3/",
    "STRONGROOM_KEYSTONE_PASSWORD": "hunter2",
}


def test_another_keystone(tmp_path: Path):
    """Its settings become one value, with the roles as a mapping and no secret in sight; without it there is none."""
    assert load(tmp_path, STRONGROOM_KEYSTONE_URL="https://k/v3").keystone is None
    found = load(tmp_path, **KEYSTONE, STRONGROOM_KEYSTONE_ROLES="Member=te_admin, ops = CBR ReadOnlyAccess").keystone
    assert found is not None
    assert (found.url, found.user, found.project) == ("https://keystone.example.org:5000/v3", "strongroom", "service")
    assert (found.roles["member"], found.roles["ops"]) == ("te_admin", "CBR ReadOnlyAccess")
    assert found.roles["cbr fullaccess"] == "CBR FullAccess"
    assert "hunter2" not in repr(found)
    assert load(tmp_path, **KEYSTONE | {"STRONGROOM_KEYSTONE_URL": "http://127.0.0.1:5000/v3"}).keystone is not None


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"IDENTITY": "ldap"}, "one of own, keystone"),
        ({"KEYSTONE_URL": ""}, "keystone_url is not set"),
        ({"KEYSTONE_PASSWORD": ""}, "keystone_password is not set"),
        ({"KEYSTONE_URL": "http://keystone.example.org/v3"}, "https://"),
        ({"KEYSTONE_URL": "https://keystone.example.org"}, "/v3"),
        ({"KEYSTONE_CA": "/nowhere.pem"}, "does not exist"),
        ({"KEYSTONE_ROLES": "member"}, "such as member="),
        ({"KEYSTONE_ROLES": "member=admin"}, "roles of ours"),  # no role there makes an operator here
        ({"KEYSTONE_CACHE_S": "301"}, "0 to 300"),
    ],
    ids=repr,
)
def test_half_a_keystone_is_refused(tmp_path: Path, changed: dict[str, str], sentence: str):
    """What is missing, in the clear, or no role of ours is named."""
    with pytest.raises(ConfigError, match=sentence):
        load(tmp_path, **KEYSTONE | {f"STRONGROOM_{name}": value for name, value in changed.items()})


def test_no_secret_in_the_repr(tmp_path: Path):
    """A logged Settings value does not show the database's password."""
    assert "hunter2" not in repr(load(tmp_path, STRONGROOM_DATABASE_URL="postgresql://u:hunter2@h/d"))


def test_every_setting_says_what_it_is_for():
    """The table that the documentation is made from has a sentence for every setting."""
    assert all(setting.meaning.endswith(".") for setting in SETTINGS.values())


def test_state_folder_is_closed(tmp_path: Path):
    """A new state folder and an empty open one become 0700; one with strange files is refused and left as it is."""
    settings = load(tmp_path / "new" / "state")
    prepare_state(settings)
    assert settings.state_dir.stat().st_mode & 0o777 == 0o700
    settings.state_dir.chmod(0o755)
    prepare_state(settings)
    assert settings.state_dir.stat().st_mode & 0o777 == 0o700
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    (home / "letter.txt").write_text("")
    with pytest.raises(ConfigError, match="not Strongroom's"):
        prepare_state(load(home))
    assert home.stat().st_mode & 0o777 == 0o755


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path):
    """A second owner is refused with the pid of the first; a killed holder frees the folder at once."""
    script = (
        "import sys; from strongroom.config import *; from strongroom.state import state_lock\n"
        "with state_lock(load_settings({'state': sys.argv[1]}, {})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid}"), state_lock(load(tmp_path)):
            pass
        holder.kill()
    with state_lock(load(tmp_path)), pytest.raises(ConfigError), state_lock(load(tmp_path)):
        pass
    with state_lock(load(tmp_path)):
        pass
