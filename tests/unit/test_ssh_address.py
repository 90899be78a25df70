"""Addresses of hosts by ssh, and the command line that they become."""

import shlex
from pathlib import Path

import pytest

from strongroom.base.errors import InvalidRequest, SourceError
from strongroom.base.ssh_address import parse_ssh_address
from strongroom.sources.hosts.ssh import arguments


def test_an_address_names_user_host_port_and_paths() -> None:
    """Paths in one spelling, each once, with bytes that are no text; an IPv6 host in brackets."""
    found = parse_ssh_address(
        b"ssh:backup@web-1.example.org:2222?path=/srv//data/&path=/etc&path=/srv/data&path=/a%26%FF"
    )
    assert (found.user, found.host, found.port) == ("backup", "web-1.example.org", 2222)
    assert found.paths == (b"/a&\xff", b"/etc", b"/srv/data")
    assert (parse_ssh_address(b"ssh:root@[::1]?path=/").host, parse_ssh_address(b"ssh:root@h?path=/").port) == (
        "::1",
        22,
    )


@pytest.mark.parametrize(
    "address",
    [
        *(b"ssh:root@web", b"ssh:web?path=/", b"ssh:root@-oProxyCommand=x?path=/", b"ssh:-l@web?path=/"),
        *(b"ssh:root@web;id?path=/", b"ssh:root@$(id)?path=/", b"ssh:root@web:0?path=/", b"ssh:root@web:99999?path=/"),
        *(b"ssh:root@web?path=srv", b"ssh:root@web?path=/a/../b", b"ssh:root@web?path=/a%00", b"ssh:root@web?key=/a"),
        b"ssh:root@web?" + b"&".join(b"path=/%d" % number for number in range(65)),
    ],
)
def test_an_address_that_could_be_read_as_something_else_is_refused(address: bytes) -> None:
    """No option of ssh, no word of a shell, no path that leads up gets through."""
    with pytest.raises(InvalidRequest):
        parse_ssh_address(address)


def test_ssh_gets_no_word_of_the_address_but_user_host_and_port(tmp_path: Path) -> None:
    """Pinned keys, nothing asked, nothing forwarded; the host's shell gets one fixed command."""
    address = parse_ssh_address(b"ssh:root@web?path=/srv/$(id)")
    with pytest.raises(SourceError, match="ssh-keygen"):
        arguments(address, tmp_path)
    (tmp_path / "id").write_text("key")
    (tmp_path / "id").chmod(0o644)
    with pytest.raises(SourceError, match="chmod 600"):
        arguments(address, tmp_path)
    (tmp_path / "id").chmod(0o600)
    with pytest.raises(SourceError, match="known"):
        arguments(address, tmp_path)
    (tmp_path / "known_hosts").touch()
    words = arguments(address, tmp_path)
    for option in ("BatchMode=yes", "StrictHostKeyChecking=yes", "ForwardAgent=no", "IdentityAgent=none"):
        assert option in words
    assert words[-3:-1] == ["--", "web"]
    assert not [word for word in words if "$(id)" in word]
    assert shlex.split(words[-1])[:3] == ["exec", "/bin/sh", "-c"]
