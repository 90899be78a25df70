"""The embedded PostgreSQL: starts fast, survives crashes, is never run twice, and leaves nothing behind."""

import os
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


def start_server(data_dir: Path) -> tuple[subprocess.Popen[str], str, int]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(data_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


def test_starts_within_five_seconds_and_leaves_nothing(data_dir: Path):
    """A first start takes less than 5 s, listens on no TCP port, is closed to others, and stop leaves no process."""
    postgres = EmbeddedPostgres(data_dir)
    began = time.monotonic()
    url = postgres.start()
    first_start_s = time.monotonic() - began
    try:
        with psycopg.connect(url) as conn:
            shown = {name: conn.execute(f"SHOW {name}").fetchone()[0] for name in ("listen_addresses", "fsync")}
            assert shown == {"listen_addresses": "", "fsync": "on"}
            socket_dir = Path(conn.info.host)
        assert data_dir.stat().st_mode & 0o777 == 0o700
        assert socket_dir.stat().st_mode & 0o777 == 0o700
    finally:
        postgres.stop()
    assert first_start_s < 5
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
    command = embedded_postgres._launched(
        ["postgres", "-D", str(data_dir), "-k", str(socket_dir), "-c", "listen_addresses="]
    )
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


def test_a_half_made_cluster_is_made_again(data_dir: Path):
    """What a crash during initdb left beside the place is thrown away."""
    making = data_dir.with_name("postgres.making")
    making.mkdir()
    (making / "PG_VERSION").write_text("18\n")
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    postgres.stop()
    assert not making.exists()
