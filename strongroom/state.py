"""The state folder and what every command on an installation begins with: logging, database, master key, first account.

    lock   place   database   master.key   credentials.json   master.key.exported   migrate.json   store/   cache/

Files here are written whole and durable, readable by their owner only. Used by the server and by upkeep, which never
run at the same time: both hold the folder's lock.
"""

import fcntl
import json
import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from strongroom import region_file
from strongroom.base.clock import SystemClock
from strongroom.base.errors import ConfigError
from strongroom.base.ids import is_hex_id, new_hex_id
from strongroom.config import FILE_NAME, Settings
from strongroom.control import installation
from strongroom.control.accounts import FirstAccount
from strongroom.control.db import Database
from strongroom.control.embedded_postgres import EmbeddedPostgres
from strongroom.control.relocation import require_moved_in
from strongroom.engine import MasterKey
from strongroom.engine.store.base import Store
from strongroom.operations import rotation

log = structlog.get_logger("state")

_CLOCK = SystemClock()
CREDENTIALS = "credentials.json"  # made by the first start
INDEX_FOLDER = "cache/index"  # copies of the vaults' indexes: may be deleted at any time, are made again
SSH_FOLDER = "ssh"  # id and known_hosts, for hosts that are reached by ssh
MOVE = "migrate.json"  # where the installation moves to, or has moved
PLACE = "place"  # the id of this folder


def configure_logging(settings: Settings) -> None:
    """One line an event on stderr. Nothing that is logged carries a secret: bodies, tokens and keys never are."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    processors: list[structlog.typing.Processor] = [_text_line]
    if settings.log_format == "json" or sys.stderr.isatty():
        processors = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer(),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def prepare_state(settings: Settings) -> None:
    """Make the state folder, closed to others. One that others may enter is closed if it is empty or already ours,
    else refused: it may be somebody's home. Raises ConfigError."""
    folder = settings.state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.geteuid():
            raise ConfigError(reason=f"The state folder {folder} belongs to another user. Name one of your own.")
        if stat.S_IMODE(found.st_mode) & 0o077:
            names = {entry.name for entry in folder.iterdir()}
            if names and not names & {"lock", FILE_NAME, region_file.FILE_NAME}:
                raise ConfigError(
                    reason=f"Others may enter {folder}, and it holds files that are not Strongroom's. "
                    "Name another state folder, or close this one with chmod 700."
                )
            folder.chmod(0o700)
    except OSError as err:
        raise ConfigError(reason=f"The state folder {folder} cannot be used: {err.strerror}.") from err


@contextmanager
def state_lock(settings: Settings, *, shared: bool = False) -> Iterator[None]:
    """Own the state folder. Who gets it knows that every earlier process of this folder is dead (RULINGS 6).

    shared: several `api` and `worker` may use one folder, beside each other and beside nobody else.

    Raises ConfigError naming the process that has it. The kernel frees it with the process.
    """
    path = settings.state_dir / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as err:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                reason=f"The state folder {settings.state_dir} is in use by process {holder}. "
                "Stop that one first, or name another folder with --state."
            ) from err
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def place_of(settings: Settings) -> str:
    """The id of this state folder, made at its first use: rows say with it where the process was that wrote them. The
    folder's lock MUST be held, shared or not."""
    path = settings.state_dir / PLACE
    for _ in range(2):
        try:
            found = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            with suppress(FileExistsError):
                _write_whole(path, new_hex_id().encode() + b"\n")
            continue
        if is_hex_id(found):
            return found
        break
    raise ConfigError(reason=f"{path} is not what Strongroom wrote. Remove it; a new one is made.")


def _text_line(_: object, level: str, event: structlog.typing.EventDict) -> str:
    """The line that structlog's console renderer writes without colours, all in one, because there is one a request.

    Texts of clients stand in it: whatever is not printable is escaped, so that nobody writes lines of their own.
    """
    if "exc_info" in event:
        event = structlog.processors.format_exc_info(_, level, event)
    exception = event.pop("exception", None)
    at = _CLOCK.now().isoformat(timespec="microseconds").replace("+00:00", "Z")
    words = [f"{at} [{level:9}] {event.pop('event'):30}"]
    for name in sorted(event):
        value = event[name]
        text = value if isinstance(value, str) else repr(value)
        words.append(f"{name}={text if text.isprintable() else ascii(text)}")
    line = " ".join(words)
    return line if exception is None else f"{line}\n{exception}"


@contextmanager
def running_database(settings: Settings) -> Iterator[str]:
    """URL of a PostgreSQL that answers: the one that is named, else the embedded one while the block lasts."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    postgres = EmbeddedPostgres(settings.state_dir / "postgres", runtime_dir=settings.runtime_dir)
    try:
        yield postgres.start()
    finally:
        postgres.stop()


async def load_master_key(settings: Settings, database: Database, store: Store, *, may_make: bool = True) -> MasterKey:
    """Load the key, or make it at the very first start. A lost key is never silently replaced by a new one."""
    await require_moved_in(database)
    path, bound = settings.master_key_file, await installation.find_master_key_id(database)
    used = bound is not None or next(store.list("vaults/"), None) is not None
    if path.exists():
        key = MasterKey.load(path)
    elif not used and may_make:
        key = MasterKey.create(path)
    elif not used:
        raise ConfigError(
            reason=f"There is no master key at {path}. The first `strongroom api` of an installation makes it: copy "
            "its file here, or name it with STRONGROOM_MASTER_KEY_FILE."
        )
    else:
        raise ConfigError(
            reason=f"The master key {path} is missing, and this installation was made with one. Put back the file that "
            "`strongroom export-key` wrote, or the one of another process; without it no restore point can be read."
        )
    if used and bound is None:
        log.warning(
            "the store holds restore points that this database does not know: "
            "stop the server and run `strongroom rebuild` to have them back"
        )
    await installation.claim_master_key(database, key.key_id.hex())
    return key


def require_settled(settings: Settings) -> None:
    """No rotation was cut short, and the installation has not moved away. Raises ConfigError."""
    if rotation.next_file(settings.master_key_file).exists():
        raise ConfigError(
            reason="A rotation of the master key was cut short. Run `strongroom rotate-key` again to finish it."
        )
    move = find_move(settings)
    if move is None or not move.done:
        return
    old = [
        name
        for name, new, before, now in (
            ("database_url", move.to_database, move.from_database, named_database(settings)),
            ("store_url", move.to_store, move.from_store, settings.store_url),
        )
        if new is not None and before == now
    ]
    if old:
        raise ConfigError(
            reason=f"This installation has moved: set {' and '.join(old)} to the new place "
            f"({', '.join(filter(None, (move.to_database, move.to_store)))}). "
            f"To go on at the old place, and lose what the new one has since, remove {settings.state_dir / MOVE}."
        )


@dataclass(frozen=True, kw_only=True)
class Move:
    """A move to another place, as `migrate.json` has it; URLs without passwords, None: this part stays."""

    id: str
    from_database: str
    to_database: str | None
    from_store: str
    to_store: str | None
    done: bool = False


def find_move(settings: Settings) -> Move | None:
    """The move that was begun here last. Raises ConfigError when its file does not read."""
    path = settings.state_dir / MOVE
    try:
        return Move(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as err:
        raise ConfigError(
            reason=f"The file {path}, which says where this installation moves to, does not read."
        ) from err


def save_move(settings: Settings, move: Move) -> None:
    """Durable on return."""
    _replace(settings.state_dir / MOVE, json.dumps(asdict(move), indent=2).encode() + b"\n")


def forget_move(settings: Settings) -> None:
    """It never began. Idempotent."""
    (settings.state_dir / MOVE).unlink(missing_ok=True)


def named_database(settings: Settings) -> str:
    """Which database the settings mean, without its password."""
    url = settings.database_direct_url or settings.database_url
    return without_password(url) if url is not None else f"embedded in {settings.state_dir / 'postgres'}"


def without_password(url: str) -> str:
    """The URL of a database as it may be shown and kept."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}"


def write_credentials(settings: Settings, endpoint: str, first: FirstAccount) -> None:
    """The first account, readable by its owner only. Replaces what a first start that did not commit left."""
    values = {
        "endpoint": endpoint,
        "region": settings.region,
        "domain_name": first.domain_name,
        "project_id": first.project_id,
        "project_name": first.project_name,
        "username": first.username,
        "password": first.password,
        "access_key": first.access_key,
        "secret_key": first.secret_key,
    }
    _replace(settings.state_dir / CREDENTIALS, json.dumps(values, indent=2).encode() + b"\n")


def note_endpoint(settings: Settings, endpoint: str) -> None:
    """Clients on this host find the server by credentials.json: keep its endpoint right when the address changes."""
    path = settings.state_dir / CREDENTIALS
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return  # the operator took it away or wrote their own; nothing of ours depends on it
    if isinstance(values, dict) and values.get("endpoint") != endpoint:
        values["endpoint"] = endpoint
        _replace(path, json.dumps(values, indent=2).encode() + b"\n")


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    write_new(new, data)
    new.replace(path)


def _write_whole(path: Path, data: bytes) -> None:
    """A new file that is there with all of its content, or not. Raises FileExistsError."""
    new = path.with_name(f"{path.name}.{new_hex_id()}")
    write_new(new, data)
    try:
        os.link(new, path)
    finally:
        new.unlink()


def export_mark(settings: Settings) -> Path:
    """Holds the id of the key that was exported. It lies beside the key: who shares or moves the one has the other."""
    return settings.master_key_file.with_name(f"{settings.master_key_file.name}.exported")


def write_new(path: Path, data: bytes) -> None:
    """A new file of mode 0600, durable on return."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
