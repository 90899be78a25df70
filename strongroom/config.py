"""Every setting of a server, and the only file that reads the environment and `strongroom.toml`.

A setting has one name: `listen` in strongroom.toml, STRONGROOM_LISTEN in the environment, `--listen` where a command
has such an option. The option wins over the environment, that over the file, that over the default. What is unknown is
refused, with the nearest name there is: a misspelt `insecure` must not pass for the default.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strongroom import region_file
from strongroom.base.errors import ConfigError
from strongroom.base.regions import Region
from strongroom.base.units import GIB, KIB, MIB
from strongroom.control.keystone_access import KeystoneAccess, keystone_access, parse_roles
from strongroom.control.outgoing import Outgoing
from strongroom.engine.store.access import S3Access
from strongroom.setting_texts import (
    Listen,
    boolean,
    listen_at,
    mail_address,
    matching,
    networks,
    number,
    one_of,
    path_of,
    size,
    url_of,
    words,
)

FILE_NAME = "strongroom.toml"
PREFIX = "STRONGROOM_"
_FILE_BYTES_MAX = MIB  # a real one has a few hundred bytes
# Of the programs that speak to a server, and of its tests; not settings of a server.
_OTHER_VARIABLES = frozenset({"STRONGROOM_STATE", "STRONGROOM_ENDPOINT", "STRONGROOM_CREDENTIALS"})

# What other S3 programs read; weaker than every setting of our own. Their files and session tokens are not read.
_AWS_VARIABLES = {
    "AWS_ACCESS_KEY_ID": "s3_access_key",
    "AWS_SECRET_ACCESS_KEY": "s3_secret_key",
    "AWS_DEFAULT_REGION": "s3_region",
    "AWS_REGION": "s3_region",
    "AWS_ENDPOINT_URL": "s3_endpoint",
    "AWS_ENDPOINT_URL_S3": "s3_endpoint",
}

_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_KEY = re.compile(r"[!-~]{1,256}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,256}")
_GROUP = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checked settings of one process. Paths are absolute; None means not set.

    store_named  the store was named, and is not the one in the state folder for want of another
    runtime_dir  short-lived small files of this user: XDG_RUNTIME_DIR, else /tmp
    regions      other regions by name, as regions_file has them
    """

    state_dir: Path
    listen: Listen
    health_listen: Listen | None
    agent_listen: Listen | None
    agent_endpoint: Listen | None
    tls_cert: Path | None
    tls_key: Path | None
    insecure: bool
    endpoint: str | None
    trusted_proxies: tuple[str, ...]
    database_url: str | None = field(repr=False)
    database_direct_url: str | None = field(repr=False)
    database_connections: int
    store_url: str
    store_named: bool
    s3_endpoint: str | None
    s3_region: str
    s3_access_key: str | None = field(repr=False)
    s3_secret_key: str | None = field(repr=False)
    s3_allow_http: bool
    master_key_file: Path
    region: str
    regions: Mapping[str, Region] = field(repr=False)
    worker_group: str
    worker_concurrency: int
    worker_memory_bytes: int
    tasks_of_vault: int
    tasks_of_host: int
    tasks_of_project: int
    worker_drain_s: int
    api_drain_s: int
    token_ttl_s: int
    audit_days: int
    operation_log_days: int
    outgoing: Outgoing
    metrics_token: str | None = field(repr=False)
    metrics_detail: str
    metrics_series_max: int
    self_backup_hours: int
    self_backup_keep: int
    keystone: KeystoneAccess | None
    body_bytes_max: int
    requests_max: int
    log_level: str
    log_format: str
    kill_at: str | None
    runtime_dir: Path

    @property
    def s3(self) -> S3Access:
        """How an s3:// store is reached."""
        return S3Access(
            endpoint=self.s3_endpoint,
            region=self.s3_region,
            access_key=self.s3_access_key,
            secret_key=self.s3_secret_key,
            allow_http=self.s3_allow_http,
        )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table: how its text is read, the default as text (None: not set), and what it is for."""

    parse: Callable[[str], Any]
    default: str | None
    meaning: str


_DATABASE = url_of(("postgresql", "postgres"), "postgresql://user@host/database")

SETTINGS: dict[str, Setting] = {
    "listen": Setting(parse=listen_at, default="127.0.0.1:8799", meaning="Address and port of the API."),
    "health_listen": Setting(
        parse=listen_at,
        default=None,
        meaning="Where `worker` answers /healthz, /readyz and /metrics; without it, nowhere.",
    ),
    "agent_listen": Setting(parse=listen_at, default=None, meaning="Where agents dial; without it, none can."),
    "agent_endpoint": Setting(parse=listen_at, default=None, meaning="That as hosts reach it; else `agent_listen`."),
    "tls_cert": Setting(parse=path_of, default=None, meaning="Certificate chain of the API (PEM)."),
    "tls_key": Setting(parse=path_of, default=None, meaning="Private key of that certificate (PEM)."),
    "insecure": Setting(parse=boolean, default="false", meaning="Allow to listen beyond loopback without TLS."),
    "endpoint": Setting(
        parse=url_of(("http", "https"), "https://backup.example.org"),
        default=None,
        meaning="The API's base URL as clients see it; without it, taken from each request's Host header.",
    ),
    "trusted_proxies": Setting(
        parse=networks,
        default="none",
        meaning="Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses or networks, with commas.",
    ),
    "database_url": Setting(
        parse=_DATABASE, default=None, meaning="A PostgreSQL of your own; without it, one in the state folder."
    ),
    "database_direct_url": Setting(
        parse=_DATABASE, default=None, meaning="The same PostgreSQL, not through a pooler in transaction mode."
    ),
    "database_connections": Setting(parse=number(2, 500), default="16", meaning="Connections of this process."),
    "store_url": Setting(
        parse=url_of(("file", "s3"), "file:///srv/strongroom/store"),
        default=None,
        meaning="Where backups are stored, file:// or s3://bucket/prefix; without it, `store` in the state folder.",
    ),
    "s3_endpoint": Setting(
        parse=url_of(("http", "https"), "https://s3.example.org"),
        default=None,
        meaning="Base URL of the object store of an s3:// store; without it, AWS. Also read from AWS_ENDPOINT_URL_S3.",
    ),
    "s3_region": Setting(
        parse=matching(_REGION, "1 to 64 letters, digits, - and _"),
        default="us-east-1",
        meaning="Region that requests to it are signed for. Also read from AWS_REGION.",
    ),
    "s3_access_key": Setting(
        parse=matching(_KEY, "1 to 256 printable characters without spaces"),
        default=None,
        meaning="Access key of it. Also read from AWS_ACCESS_KEY_ID.",
    ),
    "s3_secret_key": Setting(
        parse=matching(_KEY, "1 to 256 printable characters without spaces"),
        default=None,
        meaning="Secret key of it. Also read from AWS_SECRET_ACCESS_KEY.",
    ),
    "s3_allow_http": Setting(
        parse=boolean, default="false", meaning="Allow that endpoint to be without TLS, on this machine or in a lab."
    ),
    "master_key_file": Setting(
        parse=path_of, default=None, meaning="The master key; without it, `master.key` in the state folder."
    ),
    "region": Setting(
        parse=matching(_REGION, "1 to 64 letters, digits, - and _"),
        default="local",
        meaning="Name of the region in the catalog, and of the first project.",
    ),
    "regions_file": Setting(
        parse=path_of,
        default=None,
        meaning="Where other regions are named (docs/REPLICATION.md); without it, `regions.toml` in the state folder.",
    ),
    "worker_group": Setting(
        parse=matching(_GROUP, "1 to 64 lower-case letters, digits, - and _"),
        default="default",
        meaning="The group of this worker: it runs the tasks whose sources that group reaches.",
    ),
    "worker_concurrency": Setting(parse=number(1, 64), default="4", meaning="Tasks that a worker runs at once."),
    "worker_memory": Setting(
        parse=size(128 * MIB, 1024 * GIB), default="1GiB", meaning="Buffers of all tasks of a worker together."
    ),
    "tasks_of_vault": Setting(
        parse=number(1, 1000), default="4", meaning="Tasks of one vault at once, on all workers together."
    ),
    "tasks_of_host": Setting(
        parse=number(1, 1000), default="4", meaning="The same of one source host, where registrations name it."
    ),
    "tasks_of_project": Setting(parse=number(1, 10_000), default="64", meaning="The same of one project."),
    "worker_drain_s": Setting(
        parse=number(0, 86400),
        default="60",
        meaning="How long `worker` lets its tasks run on when it is told to end; then others take them over.",
    ),
    "api_drain_s": Setting(
        parse=number(0, 600),
        default="5",
        meaning="How long `api` answers on after /readyz says that it ends: more than a balancer takes to notice.",
    ),
    "token_ttl_s": Setting(parse=number(60, 7 * 86400), default="86400", meaning="How long a token is valid."),
    "identity": Setting(
        parse=one_of("own", "keystone"), default="own", meaning="Whose tokens count: our own, or another Keystone's."
    ),
    "keystone_url": Setting(
        parse=url_of(("https", "http"), "https://keystone.example.org:5000/v3"),
        default=None,
        meaning="That Keystone, with /v3. Without TLS on this machine only.",
    ),
    "keystone_user": Setting(parse=str, default="strongroom", meaning="Our user there, who may validate tokens."),
    "keystone_password": Setting(parse=str, default=None, meaning="Password of that user."),
    "keystone_user_domain": Setting(parse=str, default="Default", meaning="Domain of that user, by name."),
    "keystone_project": Setting(parse=str, default="service", meaning="Project our user logs in to, by name."),
    "keystone_project_domain": Setting(parse=str, default="Default", meaning="Domain of that project, by name."),
    "keystone_ca": Setting(
        parse=path_of, default=None, meaning="Certificates it is trusted by (PEM); without it, the system's."
    ),
    "keystone_roles": Setting(
        parse=parse_roles,
        default="member=CBR FullAccess,reader=CBR ReadOnlyAccess",
        meaning="Role there = role here, separated by commas; names of our own roles always count as themselves.",
    ),
    "keystone_cache_s": Setting(
        parse=number(0, 300),
        default="15",
        meaning="How long its word on a token is used: a revoked one counts no longer.",
    ),
    "audit_days": Setting(
        parse=number(30, 36500),
        default="365",
        meaning="How long the audit log is kept, counted in days of service.",
    ),
    "operation_log_days": Setting(
        parse=number(30, 36500),
        default="365",
        meaning="How long the operation logs of what has ended are kept, counted in days of service.",
    ),
    "smtp_host": Setting(
        parse=listen_at,
        default=None,
        meaning="HOST:PORT that takes the mail of notifications; without it, none is sent.",
    ),
    "smtp_tls": Setting(parse=one_of("starttls", "tls", "none"), default="starttls", meaning="How it is spoken to."),
    "smtp_user": Setting(parse=str, default=None, meaning="User there."),
    "smtp_password": Setting(parse=str, default=None, meaning="Password of that user."),
    "smtp_from": Setting(parse=mail_address, default="strongroom@localhost", meaning="Sender of that mail."),
    "webhook_allow": Setting(
        parse=words,
        default="",
        meaning="Hosts and networks, separated by commas, that webhooks may reach although they are not public.",
    ),
    "metrics_token": Setting(
        parse=matching(_TOKEN, "16 to 256 letters, digits and -._~+/="),
        default=None,
        meaning="What /metrics wants as `Authorization: Bearer`; without it, everybody may read the totals.",
    ),
    "metrics_detail": Setting(
        parse=one_of("totals", "vaults"),
        default="totals",
        meaning="With `vaults`, /metrics has series of vaults and resources too. Needs metrics_token.",
    ),
    "metrics_series_max": Setting(
        parse=number(1, 100_000),
        default="1000",
        meaning="How many vaults, and how many resources, get such series.",
    ),
    "self_backup_hours": Setting(
        parse=number(0, 720),
        default="24",
        meaning="Hours between copies of the database into the store (docs/OPERATIONS.md); 0: none by itself.",
    ),
    "self_backup_keep": Setting(parse=number(1, 1000), default="7", meaning="How many of these copies are kept."),
    "body_bytes_max": Setting(parse=size(64 * KIB, 64 * MIB), default="1MiB", meaning="Longest request body."),
    "requests_max": Setting(
        parse=number(1, 10_000),
        default="200",
        meaning="Requests in work at once, and half as many of one project.",
    ),
    "log_level": Setting(parse=one_of("debug", "info", "warning", "error"), default="info", meaning="Least to log."),
    "log_format": Setting(parse=one_of("text", "json"), default="text", meaning="Log lines for people or programs."),
    "kill_at": Setting(parse=str, default=None, meaning="For tests: kill this process at a trace point."),
}


def load_settings(options: Mapping[str, str | None], environ: Mapping[str, str]) -> Settings:
    """Read and check everything. `options` are the command's, by setting name, plus `state`; None means not given.

    Nothing is created. Raises ConfigError with a sentence that names the setting and where it was read.
    """
    named = options.get("state") or environ.get("STRONGROOM_STATE") or ""
    state_dir = Path(named).expanduser().absolute() if named else Path.home() / ".local" / "share" / "strongroom"
    texts: dict[str, tuple[str, str]] = {}  # name -> (text, where it was read)
    texts |= {name: (environ[theirs], theirs) for theirs, name in _AWS_VARIABLES.items() if environ.get(theirs)}
    texts |= _from_file(state_dir / FILE_NAME)
    texts |= _from_environment(environ)
    texts |= {
        name: (text, f"--{name.replace('_', '-')}")
        for name, text in options.items()
        if text is not None and name != "state"
    }
    values = {name: _value(name, texts) for name in SETTINGS}
    named_regions = values.pop("regions_file")
    settings = Settings(
        state_dir=state_dir,
        store_named=values["store_url"] is not None,
        store_url=values.pop("store_url") or (state_dir / "store").as_uri(),
        master_key_file=values.pop("master_key_file") or state_dir / "master.key",
        worker_memory_bytes=values.pop("worker_memory"),
        regions=region_file.load_regions(
            named_regions or state_dir / region_file.FILE_NAME,
            own=values["region"],
            required=named_regions is not None,
        ),
        runtime_dir=Path(environ.get("XDG_RUNTIME_DIR") or "/tmp"),  # noqa: S108
        keystone=_keystone(values),
        outgoing=_outgoing(values),
        **values,
    )
    _check_transport(settings)
    return settings


def _outgoing(values: dict[str, Any]) -> Outgoing:
    """Takes the settings of notifications out of `values`."""
    smtp = values.pop("smtp_host")
    mine = {name: values.pop(name) for name in ("smtp_tls", "smtp_user", "smtp_password", "smtp_from")}
    at = {"smtp_host": smtp.host, "smtp_port": smtp.port} if smtp is not None else {}
    return Outgoing(**at, **mine, allow=values.pop("webhook_allow"))


def _keystone(values: dict[str, Any]) -> KeystoneAccess | None:
    """Takes the settings of another Keystone out of `values`. Raises ConfigError."""
    wanted = values.pop("identity") == "keystone"
    theirs = {name.removeprefix("keystone_"): values.pop(name) for name in SETTINGS if name.startswith("keystone_")}
    try:
        return keystone_access(theirs) if wanted else None
    except ValueError as err:
        raise ConfigError(reason=f"identity is keystone, but {err}.") from err


def _value(name: str, texts: Mapping[str, tuple[str, str]]) -> Any:
    setting = SETTINGS[name]
    text, where = texts.get(name, (setting.default, "the default"))
    if text is None:
        return None
    try:
        return setting.parse(text)
    except ValueError as err:
        raise ConfigError(reason=f"{where} must be {err}.") from err


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    found = {}
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and variable not in _OTHER_VARIABLES and text:
            name = variable.removeprefix(PREFIX).lower()
            _require_known(name, f"The environment variable {variable}", lambda near: PREFIX + near.upper())
            found[name] = (text, variable)
    return found


def _from_file(path: Path) -> dict[str, tuple[str, str]]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise ConfigError(reason=f"{path} is larger than {_FILE_BYTES_MAX} bytes.")
        table = tomllib.loads(data.decode())
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise ConfigError(reason=f"{path} cannot be read: {err.strerror}.") from err
    except ValueError as err:  # of TOML or of UTF-8
        raise ConfigError(reason=f"{path} is not valid TOML: {err}.") from err
    found = {}
    for name, value in table.items():
        _require_known(name, f"The key {name} in {path}", str)
        if not isinstance(value, str | int):
            raise ConfigError(reason=f"The key {name} in {path} must be a text, a number, true or false.")
        found[name] = (str(value).lower() if isinstance(value, bool) else str(value), f"The key {name} in {path}")
    return found


def _require_known(name: str, what: str, spelt: Callable[[str], str]) -> None:
    if name in SETTINGS:
        return
    near = [spelt(match) for match in difflib.get_close_matches(name, SETTINGS, n=3)]
    raise ConfigError(
        reason=f"{what} is not a setting of Strongroom. "
        + (f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(map(spelt, SETTINGS))}.")
    )


def _check_transport(settings: Settings) -> None:
    if settings.metrics_detail == "vaults" and settings.metrics_token is None:
        raise ConfigError(
            reason="With metrics_detail = vaults /metrics names what tenants have. Set metrics_token, so that not "
            "everybody reads it."
        )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError(reason="TLS needs both tls_cert and tls_key; only one of them is set.")
    for path in (settings.tls_cert, settings.tls_key):
        if path is not None and not path.is_file():
            raise ConfigError(reason=f"The TLS file {path} does not exist.")
    if settings.tls_cert is None and not settings.listen.is_loopback and not settings.insecure:
        raise ConfigError(
            reason=f"Listening on {settings.listen} without TLS would show passwords and tokens to the network. "
            "Give --tls-cert and --tls-key, or --insecure if a proxy in front speaks TLS."
        )
