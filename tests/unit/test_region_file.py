"""regions.toml: what it may say, and the sentence for everything else; its secrets show nowhere."""

from pathlib import Path

import pytest

from strongroom.base.errors import ConfigError
from strongroom.region_file import load_regions

SECRET = "0123456789abcdef" * 4
HERE, THERE = "a" * 32, "b" * 32


def write(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "regions.toml"
    path.touch()
    path.chmod(mode)
    path.write_text(text)
    return path


def entry(**change: str) -> str:
    members = {"endpoint": '"https://west.example.org:8799/"', "secret": f'"{SECRET}"', **change}
    return "[west]\n" + "".join(f"{name} = {value}\n" for name, value in members.items() if value)


def test_a_region_is_read_with_its_projects(tmp_path: Path) -> None:
    """Endpoint without its slash, projects in both directions, keys that differ and do not show."""
    path = write(tmp_path, entry() + f'[west.projects]\n"{HERE}" = "{THERE}"\n')
    west = load_regions(path, own="east", required=True)["west"]
    assert west.endpoint == "https://west.example.org:8799"
    assert west.maps(here=HERE, there=THERE)
    assert not west.maps(here=THERE, there=HERE)
    assert not west.maps(here=HERE, there=HERE)
    assert bytes.fromhex(west.signing_key) != west.wrapping_key
    assert SECRET not in repr(west)
    assert west.signing_key not in repr(west)


def test_no_file_is_no_region(tmp_path: Path) -> None:
    """Unless it was named."""
    assert load_regions(tmp_path / "none", own="east", required=False) == {}
    with pytest.raises(ConfigError, match="does not exist"):
        load_regions(tmp_path / "none", own="east", required=True)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """It holds secrets; the sentence says what to run."""
    with pytest.raises(ConfigError, match="chmod 600"):
        load_regions(write(tmp_path, entry(), 0o640), own="east", required=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[west", "not valid TOML"),
        ("west = 1", "is a table with"),
        (entry(secert='"x"'), "and nothing else"),
        (entry(secret='"short"'), "openssl rand"),
        (entry(secret=""), "openssl rand"),
        (entry(endpoint='"west.example.org"'), "endpoint must be"),
        (entry(endpoint='"ftp://west.example.org"'), "endpoint must be"),
        (entry(endpoint='"https://user:pw@west.example.org"'), "endpoint must be"),
        (entry(endpoint='"http://west.example.org"'), "without TLS"),
        (entry(endpoint='"http://west.example.org"', allow_http='"yes"'), "true or false"),
        (entry(ca_file='"/nowhere/ca.pem"'), "cannot be used"),
        (entry() + '[west.projects]\n"x" = "y"\n', "32 hex digits"),
        (entry() + f'[west.projects]\n"{HERE}" = "{THERE}"\n"{THERE}" = "{THERE}"\n', "its own"),
        (entry().replace("[west]", "[east]"), "this region itself"),
        (entry().replace("[west]", '["we st"]'), "letters, digits"),
    ],
)
def test_what_is_wrong_is_named_and_no_secret_with_it(tmp_path: Path, text: str, sentence: str) -> None:
    """Each mistake has a sentence that names the entry."""
    with pytest.raises(ConfigError, match=sentence) as found:
        load_regions(write(tmp_path, text), own="east", required=True)
    assert SECRET not in str(found.value)


def test_http_is_for_this_machine_and_for_who_says_so(tmp_path: Path) -> None:
    """Loopback needs no TLS; another machine needs the word."""
    text = (
        entry(endpoint='"http://127.0.0.1:9"')
        + "\n"
        + entry(endpoint='"http://10.0.0.1:9"', allow_http="true").replace("[west]", "[north]")
    )
    assert set(load_regions(write(tmp_path, text), own="east", required=True)) == {"west", "north"}
