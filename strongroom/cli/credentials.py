"""Where the server is and who asks: `credentials.json`, which the first start of a server writes.

A file of your own needs `endpoint`, `project_id`, `access_key` and `secret_key`; other members are ignored here.
"""

import json
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

from strongroom.base.errors import ConfigError

CREDENTIALS_BYTES_MAX = 1 << 16  # a real one is 500 bytes; a wrong --credentials may name anything


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """One caller on one server. `endpoint` has no path and no slash at its end.

    The members from `username` on are empty in a file that was made for a key; only the conformance kit needs them.
    """

    endpoint: str
    project_id: str
    access_key: str
    secret_key: str = field(repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    domain_name: str = ""
    project_name: str = ""
    region: str = ""


def state_folder(state: Path | None) -> Path:
    """--state, else STRONGROOM_STATE, else `~/.local/share/strongroom`."""
    if state is not None:
        return state.expanduser()
    named = os.environ.get("STRONGROOM_STATE")
    return Path(named).expanduser() if named else Path.home() / ".local" / "share" / "strongroom"


def load_credentials(*, state: Path | None, endpoint: str | None, file: Path | None) -> Credentials:
    """Read FILE, or `credentials.json` of the state folder; --endpoint wins over the one inside.

    Raises ConfigError with a sentence that says what to do.
    """
    path = file if file is not None else state_folder(state) / "credentials.json"
    values = _load_file(path)
    if endpoint is not None:
        values["endpoint"] = endpoint
    missing = [name for name in ("endpoint", "project_id", "access_key", "secret_key") if not values.get(name)]
    if missing:
        raise ConfigError(
            reason=f"{path} lacks {', '.join(missing)}. `strongroom key create --save` writes such a file."
        )
    base = values["endpoint"].rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise ConfigError(reason=f"The endpoint {base} must begin with http:// or https://.")
    return Credentials(
        endpoint=base,
        project_id=values["project_id"],
        access_key=values["access_key"],
        secret_key=values["secret_key"],
        **{name: values.get(name, "") for name in ("username", "password", "domain_name", "project_name", "region")},
    )


def save_credentials(path: Path, values: dict[str, str]) -> None:
    """Write a new file that only its owner can read. Raises ConfigError when it exists or cannot be written."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as err:
        raise ConfigError(reason=f"{path} cannot be written: {err.strerror}.") from err
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(values, stream, indent=2)
        stream.write("\n")


def _load_file(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as stream:
            if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
                sys.stderr.write(f"warning: others can read {path}; `chmod 600 {path}` keeps your keys to yourself.\n")
            data = stream.read(CREDENTIALS_BYTES_MAX + 1)
    except FileNotFoundError as err:
        raise ConfigError(
            reason=f"{path} does not exist. The first `strongroom serve` writes it; --state names another."
        ) from err
    except OSError as err:
        raise ConfigError(reason=f"{path} cannot be read: {err.strerror}.") from err
    try:
        values = json.loads(data) if len(data) <= CREDENTIALS_BYTES_MAX else None
    except ValueError as err:
        raise ConfigError(reason=f"{path} is not valid JSON.", detail=str(err)) from err
    if not isinstance(values, dict):
        raise ConfigError(reason=f"{path} is not a credentials file.")
    return {name: value for name, value in values.items() if isinstance(value, str)}
