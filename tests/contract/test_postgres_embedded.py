"""The embedded PostgreSQL: starts fast, survives crashes, is never run twice, and leaves nothing behind."""

import os
import platform
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from strongroom.base.errors import ConfigError
from strongroom.control import embedded_postgres
from strongroom.control.embedded_postgres import EmbeddedPostgres

PATIENCE_S = 30.0

# A server process in small: starts the database in a thread that ends (the kernel's bond must not be to that one),
# reports, and waits for its end.
SERVER = """
import sys, threading
from pathlib import Path
from strongroom.control.embedded_postgres import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]))
urls = []
starter = threading.Thread(target=lambda: urls.append(postgres.start()))
starter.start()
starter.join()
print(urls[0], postgres.pid, flush=True)
sys.stdin.read()
postgres.stop()
"""


def servers_in(data_dir: Path) -> list[int]:
    """Every process whose working folder is the data folder, zombies not counted."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd") == str(data_dir):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_for(condition, what: str):
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)
    return value


# Runs a command as root of a Docker container with default settings: its capabilities, and unshare(CLONE_NEWUSER)
# refused by a system call filter. Numbers from linux/{prctl,seccomp,filter,bpf_common}.h and asm/unistd_64.h.
CONTAINER = """
import ctypes, os, struct, sys
keep, unshare = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}, int(sys.argv[1])
program = b"".join(struct.pack("=HBBI", *step) for step in [
    (0x20, 0, 0, 0),                # load the system call's number
    (0x15, 0, 3, unshare),          # another one: allow
    (0x20, 0, 0, 16),               # load its first argument
    (0x45, 0, 1, 0x10000000),       # without CLONE_NEWUSER: allow
    (0x06, 0, 0, 0x00050000 | 1),   # refuse with EPERM
    (0x06, 0, 0, 0x7FFF0000),       # allow
])
class Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))
libc = ctypes.CDLL(None, use_errno=True)
steps = Filter(len(program) // 8, program)
if os.geteuid() != 0:
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges: the price of a filter for who is not root
assert libc.prctl(22, 2, ctypes.byref(steps), 0, 0) == 0, os.strerror(ctypes.get_errno())
for capability in range(64):
    if capability not in keep:
        libc.prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[2], sys.argv[2:])
"""
UNSHARE_NUMBER = {"x86_64": "272", "aarch64": "97"}.get(platform.machine())


def in_container(*command: str) -> list[str]:
    assert UNSHARE_NUMBER is not None
    return [sys.executable, "-c", CONTAINER, UNSHARE_NUMBER, *command]


def start_server(data_dir: Path, *, contained: bool = False) -> tuple[subprocess.Popen[str], str, int]:
    command = [sys.executable, "-c", SERVER, str(data_dir)]
    server = subprocess.Popen(
        in_container(*command) if contained else command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    url, pid = server.stdout.readline().split()
    return server, url, int(pid)


def end_server(server: subprocess.Popen[str]) -> None:
    server.communicate(timeout=PATIENCE_S)


def kill_server(server: subprocess.Popen[str]) -> None:
    server.kill()
    with server:  # closes the pipes and waits
        pass


@pytest.fixture
def data_dir(tmp_path: Path):
    folder = tmp_path / "postgres"
    yield folder
    wait_for(lambda: not servers_in(folder), "no process is left in the data folder")


def test_a_first_start_is_closed_to_others_and_leaves_nothing(data_dir: Path):
    """It listens on no TCP port, its folders are closed to others, and stop leaves no process."""
    postgres = EmbeddedPostgres(data_dir)
    url = postgres.start()
    try:
        with psycopg.connect(url) as conn:
            shown = {name: conn.execute(f"SHOW {name}").fetchone()[0] for name in ("listen_addresses", "fsync")}
            assert shown == {"listen_addresses": "", "fsync": "on"}
            socket_dir = Path(conn.info.host)
        assert data_dir.stat().st_mode & 0o777 == 0o700
        assert socket_dir.stat().st_mode & 0o777 == 0o700
    finally:
        postgres.stop()
    assert servers_in(data_dir) == []
    assert not socket_dir.exists()
    postgres.stop()  # idempotent


def test_keeps_rows_over_stop_and_start(data_dir: Path):
    """What was committed is there after stop and start."""
    postgres = EmbeddedPostgres(data_dir)
    for expected in ([], [(1,)]):
        with psycopg.connect(postgres.start()) as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS kept (n integer)")
            assert conn.execute("SELECT n FROM kept").fetchall() == expected
            conn.execute("INSERT INTO kept VALUES (1)")
        postgres.stop()


def test_starts_again_after_a_crash(data_dir: Path):
    """A postmaster that is killed is started again at the same URL, and committed rows are there."""
    postgres = EmbeddedPostgres(data_dir)
    url = postgres.start()
    try:
        with psycopg.connect(url) as conn:
            conn.execute("CREATE TABLE kept AS SELECT 1 AS n")
        first = postgres.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

        def answers() -> bool:
            try:
                with psycopg.connect(url) as conn:
                    return conn.execute("SELECT n FROM kept").fetchall() == [(1,)]
            except psycopg.OperationalError:
                return False

        wait_for(lambda: postgres.pid not in (None, first) and answers(), "the restarted server answers")
    finally:
        postgres.stop()


def test_two_servers_on_one_folder_are_refused(data_dir: Path):
    """A second start names the process that holds the folder, and does not disturb the first."""
    postgres = EmbeddedPostgres(data_dir)
    url = postgres.start()
    try:
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            EmbeddedPostgres(data_dir).start()
        with psycopg.connect(url) as conn:
            conn.execute("SELECT 1")
    finally:
        postgres.stop()


def test_nothing_is_left_when_the_server_is_killed(data_dir: Path):
    """SIGKILL of the server process ends PostgreSQL too, even when the thread that called start had ended before."""
    server, url, pid = start_server(data_dir)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS n")
        assert pid in servers_in(data_dir)
        kill_server(server)
        wait_for(lambda: not servers_in(data_dir), "PostgreSQL ended after its server")
    again, url, _ = start_server(data_dir)
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT n FROM kept").fetchall() == [(1,)]
    end_server(again)


def test_a_restart_at_once_after_a_kill_recovers(data_dir: Path):
    """kill -9 of the server and a start in the same instant, with the old PostgreSQL still ending: rows are there."""
    server, url, _ = start_server(data_dir)
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS n")
    kill_server(server)
    again, url, _ = start_server(data_dir)
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT n FROM kept").fetchall() == [(1,)]
    end_server(again)


def test_a_postgres_without_a_keeper_is_taken_over(data_dir: Path):
    """A PostgreSQL that outlived its server (the kernel's bond failed) is found, ended and replaced, rows kept."""
    postgres = EmbeddedPostgres(data_dir)
    with psycopg.connect(postgres.start()) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS n")
        socket_dir = Path(conn.info.host)
    postgres.stop()
    socket_dir.mkdir(mode=0o700)
    command = embedded_postgres._launched("postgres", data_dir, ["-k", str(socket_dir), "-c", "listen_addresses="])
    orphan = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: embedded_postgres._reported_state(data_dir, orphan.pid) == "ready", "the orphan is ready")
    with psycopg.connect(postgres.start()) as conn:
        assert conn.execute("SELECT n FROM kept").fetchall() == [(1,)]
    assert orphan.wait(PATIENCE_S) == 0
    assert postgres.pid not in (None, orphan.pid)
    postgres.stop()


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(data_dir: Path):
    """A pid file whose number is another program's by now is removed; that program is not touched."""
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    postgres.stop()
    stranger = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    (data_dir / "postmaster.pid").write_text(f"{stranger.pid}\n{data_dir}\n1\n5432\n/nowhere\n\n1 1\nready\n")
    postgres.start()
    postgres.stop()
    assert stranger.poll() is None
    stranger.communicate()


def test_a_dead_servers_socket_lock_is_no_obstacle(data_dir: Path):
    """The lock that a killed PostgreSQL left beside its socket is removed, though its number runs again."""
    socket_dir = data_dir.with_name("postgres.socket")
    socket_dir.mkdir(mode=0o700)
    stranger = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    (socket_dir / ".s.PGSQL.5432.lock").write_text(f"{stranger.pid}\n{data_dir}\n1\n5432\n{socket_dir}\n")
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    postgres.stop()
    stranger.communicate()


@pytest.mark.parametrize("runtime_name", ["run", "run" * 40])
def test_a_long_path_gets_a_short_socket(tmp_path: Path, runtime_name: str):
    """Where the path is too long for a socket, a 0700 folder in the runtime folder or /tmp is used, then removed."""
    data_dir = tmp_path / ("long" * 30) / "postgres"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        runtime_dir = Path(short) / runtime_name
        runtime_dir.mkdir()
        postgres = EmbeddedPostgres(data_dir, runtime_dir=runtime_dir)
        url = postgres.start()
        try:
            with psycopg.connect(url) as conn:
                socket_dir = Path(conn.info.host)
            assert socket_dir.parent == (runtime_dir if runtime_name == "run" else Path("/tmp"))
            assert socket_dir.stat().st_mode & 0o777 == 0o700
        finally:
            postgres.stop()
        assert not socket_dir.exists()


def test_a_socket_folder_of_somebody_else_is_refused(tmp_path: Path):
    """A prepared link in place of the socket's folder is refused, and nothing is left running."""
    data_dir = tmp_path / "postgres"
    (tmp_path / "elsewhere").mkdir()
    data_dir.with_name("postgres.socket").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        EmbeddedPostgres(data_dir).start()
    assert servers_in(data_dir) == []


def test_a_cluster_of_another_version_is_refused(data_dir: Path):
    """A data folder of another major version is named with both numbers, and not touched."""
    data_dir.mkdir(mode=0o700)
    (data_dir / "PG_VERSION").write_text("15\n")
    with pytest.raises(ConfigError, match=r"PostgreSQL 15.*18"):
        EmbeddedPostgres(data_dir).start()
    assert [path.name for path in data_dir.iterdir()] == ["PG_VERSION"]


as_root_with_unshare = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="tells root and an ordinary user apart: runs as root, with unshare",
)


@as_root_with_unshare
def test_an_ordinary_user_needs_no_namespace(data_dir: Path):
    """Run as an ordinary user, the same calls start and stop a server; here the user is one inside a namespace."""
    command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", sys.executable, "-c", SERVER, str(data_dir)]
    finished = subprocess.run(command, input="", capture_output=True, text=True, timeout=PATIENCE_S)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("postgresql://")


@as_root_with_unshare
def test_root_without_namespaces_is_told_what_to_do(data_dir: Path):
    """Where user namespaces are forbidden, root reads that STRONGROOM_DATABASE_URL helps, and nothing is left."""
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$0" "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, sys.executable, "-c", SERVER, str(data_dir)]
    finished = subprocess.run(command, input="", capture_output=True, text=True, timeout=PATIENCE_S)
    assert finished.returncode != 0
    assert "namespaces are forbidden" in finished.stderr
    assert "STRONGROOM_DATABASE_URL" in finished.stderr
    assert not data_dir.exists()


as_root_contained = pytest.mark.skipif(
    os.geteuid() != 0 or UNSHARE_NUMBER is None,
    reason="forbids root its namespaces: runs as root, on x86_64 or aarch64",
)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@as_root_contained
def test_root_in_a_container_gets_an_ordinary_user(data_dir: Path):
    """Root without user namespaces, as in a container: the server is not uid 0, keeps one capability, restarts after
    kill -9 of its starter, and leaves nothing after a stop."""
    server, url, _ = start_server(data_dir, contained=True)
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS n")
    kill_server(server)
    again, url, pid = start_server(data_dir, contained=True)
    status = status_of(pid)
    assert set(status["Uid"].split()) == {str(pwd.getpwnam("nobody").pw_uid)}
    assert "0" not in status["Gid"].split()
    assert status["Groups"] == ""
    only_dac_override = f"{1 << 1:016x}"
    assert [status[name] for name in ("CapPrm", "CapEff", "CapAmb")] == [only_dac_override] * 3
    with psycopg.connect(url) as conn:
        socket_dir = Path(conn.info.host)
        assert conn.execute("SELECT n FROM kept").fetchall() == [(1,)]
    end_server(again)
    assert servers_in(data_dir) == []
    assert not socket_dir.exists()


@as_root_contained
def test_root_without_its_capabilities_is_told_which(data_dir: Path):
    """A container whose root may not send signals to others reads the missing capability's name; nothing is left."""
    command = in_container("/usr/bin/env", sys.executable, "-c", SERVER, str(data_dir))
    command[2] = command[2].replace("5, 6, 7", "6, 7")
    finished = subprocess.run(command, input="", capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert finished.returncode != 0
    assert "capabilities KILL" in finished.stderr
    assert "STRONGROOM_DATABASE_URL" in finished.stderr
    assert not data_dir.exists()


@as_root_contained
def test_the_ordinary_user_of_a_container_reaches_nothing(data_dir: Path):
    """Another process of the server's user reads neither its data, log, socket and memory, nor root's folders."""
    server, url, pid = start_server(data_dir, contained=True)
    with psycopg.connect(url) as conn:
        socket_dir = Path(conn.info.host)
    owned_by_root = (data_dir.parent, socket_dir, data_dir.with_name("postgres.log"))
    assert [path.stat().st_uid for path in owned_by_root] == [0, 0, 0]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (*owned_by_root, data_dir))
    user = pwd.getpwnam("nobody")
    reached = []
    for path in (data_dir / "PG_VERSION", *owned_by_root, socket_dir / ".s.PGSQL.5432", Path(f"/proc/{pid}/environ")):
        command = ["cat" if path.name == "environ" else "ls", str(path)]
        tried = subprocess.run(
            command, user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", capture_output=True, check=False
        )
        if tried.returncode == 0:
            reached.append(path)
    end_server(server)
    # A folder of pytest is closed to others, as the state folder is.
    assert reached == []
    assert not [path for path in Path("/dev/shm").iterdir() if path.stat().st_uid == user.pw_uid]


@as_root_contained
def test_a_data_folder_goes_from_one_way_to_the_other_and_back(data_dir: Path):
    """A folder made with a namespace serves a container and comes back: rows are there, and one user owns it all."""
    nobody = pwd.getpwnam("nobody").pw_uid
    for turn, (contained, owner) in enumerate([(False, 0), (True, nobody), (False, 0)]):
        server, url, _ = start_server(data_dir, contained=contained)
        with psycopg.connect(url) as conn:
            conn.execute("CREATE TABLE IF NOT EXISTS kept (n integer)")
            assert conn.execute("SELECT count(*) FROM kept").fetchone() == (turn,)
            conn.execute("INSERT INTO kept VALUES (1)")
        if turn == 2:
            end_server(server)
        else:
            kill_server(server)
            wait_for(lambda: not servers_in(data_dir), "PostgreSQL ended after its server")
        assert {path.lstat().st_uid for path in (data_dir, *data_dir.rglob("*"))} == {owner}


@as_root_contained
def test_programs_in_a_closed_folder_run_in_a_container(data_dir: Path, tmp_path: Path):
    """An installation below a folder of root at 0700, such as /root, runs as the ordinary user of a container."""
    package = embedded_postgres._installation().parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in package.parent.glob(f"{package.name}*"):  # the programs, and the libraries beside them
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    command = [sys.executable, "-c", SERVER, str(data_dir)]
    finished = subprocess.run(
        in_container(*command),
        input="",
        env={**os.environ, "PYTHONPATH": str(closed)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    log = data_dir.with_name("postgres.log").read_text()
    assert "database system is shut down" in log


@as_root_with_unshare
def test_a_user_without_a_name_gets_one_or_a_sentence(data_dir: Path):
    """initdb wants a name: a uid without one gets it in a namespace, or reads what to do; nothing is left."""
    nameless = next(uid for uid in range(70000, 80000) if uid not in {user.pw_uid for user in pwd.getpwall()})
    inside = ["unshare", "--user", f"--map-user={nameless}", f"--map-group={nameless}"]
    command = [sys.executable, "-c", SERVER, str(data_dir)]
    refused = subprocess.run(
        [*inside, *in_container(*command)], input="", capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert refused.returncode != 0
    assert f"uid {nameless}" in refused.stderr
    assert "STRONGROOM_DATABASE_URL" in refused.stderr
    assert not data_dir.exists()
    named = subprocess.run(
        [*inside, *command], input="", capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert named.returncode == 0, named.stderr


def test_a_half_made_cluster_is_made_again(data_dir: Path):
    """What a crash during initdb left beside the place is thrown away."""
    making = data_dir.with_name("postgres.making")
    making.mkdir()
    (making / "PG_VERSION").write_text("18\n")
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    postgres.stop()
    assert not making.exists()
