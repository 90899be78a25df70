"""Reads regions.toml: which other regions there are, and what is shared with each of them.

    [west]
    endpoint = "https://backup.west.example.org:8799"
    secret = "64 hex digits, the same in the file of that region"
    ca_file = "/etc/strongroom/west-ca.pem"
    [west.projects]
    "project id here" = "project id there"

It holds secrets, so it must be closed to others. Nothing in it is ever shown: sentences name the member, not its value.
"""

import os
import re
import ssl
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from strongroom.base.errors import ConfigError
from strongroom.base.ids import is_hex_id
from strongroom.base.regions import SECRET_HEX_DIGITS, Region
from strongroom.base.units import KIB

FILE_NAME = "regions.toml"
REGIONS_MAX = 64  # peers of one server; a real one has one or two
PROJECTS_MAX = 10_000

_BYTES_MAX = 1024 * KIB
_MEMBERS = frozenset({"endpoint", "secret", "ca_file", "allow_http", "projects"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SECRET = re.compile(rf"[0-9a-f]{{{SECRET_HEX_DIGITS}}}")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def load_regions(path: Path, *, own: str, required: bool) -> Mapping[str, Region]:
    """The regions of the file by name; none when it is not there and not `required`.

    Raises ConfigError naming the entry and member that is wrong.
    """
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(_BYTES_MAX + 1)
    except FileNotFoundError:
        if not required:
            return {}
        raise ConfigError(reason=f"The file of regions {path} does not exist.") from None
    except OSError as err:
        raise ConfigError(reason=f"The file of regions {path} cannot be read: {err.strerror}.") from err
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(reason=f"Others may read the secrets in {path}: run `chmod 600 {path}`.")
    if len(data) > _BYTES_MAX:
        raise ConfigError(reason=f"{path} is larger than {_BYTES_MAX} bytes.")
    try:
        table = tomllib.loads(data.decode())
    except ValueError as err:  # of TOML or of UTF-8; its text names line and column, never a value
        raise ConfigError(reason=f"{path} is not valid TOML: {err}.") from err
    if len(table) > REGIONS_MAX:
        raise ConfigError(reason=f"{path} names more than {REGIONS_MAX} regions.")
    return {name: _region(name, entry, own, path) for name, entry in table.items()}


def _region(name: str, entry: Any, own: str, path: Path) -> Region:
    where = f"Region {name[:64]} in {path}"
    if not _NAME.fullmatch(name):
        raise ConfigError(reason=f"{where}: a region's name has 1 to 64 letters, digits, - and _.")
    if name == own:
        raise ConfigError(reason=f"{where} is this region itself. Name other ones, or set `region`.")
    if not isinstance(entry, dict) or not entry.keys() <= _MEMBERS:
        raise ConfigError(reason=f"{where} is a table with {', '.join(sorted(_MEMBERS))}, and nothing else.")
    secret = entry.get("secret")
    if not isinstance(secret, str) or not _SECRET.fullmatch(secret):
        raise ConfigError(
            reason=f"{where}: secret must be {SECRET_HEX_DIGITS} hex digits, the same on both sides. "
            "Make one with `openssl rand -hex 32`."
        )
    return Region(
        name=name,
        endpoint=_endpoint(entry, where),
        secret=bytes.fromhex(secret),
        ca_file=_ca_file(entry, where),
        projects=_projects(entry, where),
    )


def _endpoint(entry: Mapping[str, Any], where: str) -> str:
    text = entry.get("endpoint")
    parts = urlsplit(text if isinstance(text, str) else "")
    allow_http = entry.get("allow_http", False)
    if not isinstance(allow_http, bool):
        raise ConfigError(reason=f"{where}: allow_http must be true or false.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ConfigError(reason=f"{where}: endpoint must be a URL such as https://backup.west.example.org:8799.")
    if parts.scheme == "http" and not allow_http and parts.hostname not in _LOOPBACK:
        raise ConfigError(
            reason=f"{where}: an endpoint without TLS would let others cut in. Use https, or allow_http = true on a "
            "network of your own."
        )
    return str(text).rstrip("/")


def _ca_file(entry: Mapping[str, Any], where: str) -> Path | None:
    text = entry.get("ca_file")
    if text is None:
        return None
    path = Path(str(text)).expanduser().absolute()
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as err:  # SSLError is an OSError
        raise ConfigError(reason=f"{where}: ca_file {path} cannot be used: {err}.") from err
    return path


def _projects(entry: Mapping[str, Any], where: str) -> Mapping[str, str]:
    found = entry.get("projects", {})
    if not isinstance(found, dict) or len(found) > PROJECTS_MAX:
        raise ConfigError(reason=f"{where}: projects is a table of at most {PROJECTS_MAX} lines.")
    if not all(is_hex_id(here) and isinstance(there, str) and is_hex_id(there) for here, there in found.items()):
        raise ConfigError(reason=f"{where}: projects maps project ids here to project ids there, 32 hex digits each.")
    if len(set(found.values())) < len(found):
        raise ConfigError(reason=f"{where}: two projects here have the same project there. Give each its own.")
    return found
