"""A host of a million small files (STRONGROOM_TEST_FILES names another number), over a line that is cut every 30 s."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_world import Agent, Proxy, World
from blake3 import blake3
from harness import wait_until
from reliability import report

FILES = int(os.environ.get("STRONGROOM_TEST_FILES", "1000000"))
FILES_A_FOLDER = 500
CUT_EVERY_S = 30.0
ENDED_S_MAX = 7200.0
AGENT_BYTES_MAX = 400 << 20  # whatever the number of files: it keeps what it walks ahead, and chunks that are under way

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(4 * ENDED_S_MAX),
    pytest.mark.skipif(os.geteuid() != 0, reason="an agent obeys a file of root's only"),
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    base = tmp_path / "world"
    base.mkdir()
    made = World(base)
    yield made
    made.end()


def make_files(folder: Path) -> None:
    for number in range(FILES):
        if number % FILES_A_FOLDER == 0:
            place = folder / f"{number // 50_000:03}" / f"{number // FILES_A_FOLDER:05}"
            place.mkdir(parents=True)
        (place / f"f{number}").write_bytes(b"%d " % number * (number % 97))


def digest(folder: Path) -> tuple[int, str]:
    """How many files there are, and one digest of all names, modes, times and contents."""
    count, told = 0, blake3()
    for at, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(at, name)
            seen = os.stat(path)
            with open(path, "rb") as file:
                told.update(f"{path[len(str(folder)) :]} {seen.st_mode} {seen.st_mtime_ns} ".encode() + file.read())
            count += 1
    return count, told.hexdigest()


def ended(world: World, log_id: str, agent: Agent) -> dict[str, object]:
    def look() -> dict[str, object] | None:
        found = world.client.ok("GET", f"operation-logs/{log_id}")["operation_log"]
        return found if found["status"] not in ("waiting", "running") else None

    return wait_until(look, f"task {log_id} ended: {agent.log()}", ENDED_S_MAX)


def peak_bytes(agent: Agent) -> int:
    assert agent.process is not None
    text = Path(f"/proc/{agent.process.pid}/status").read_text()
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", text)
    return int(found) * 1024


def test_a_million_files_over_a_line_that_is_cut(world: World, tmp_path: Path) -> None:
    """One attempt each way, every file back, nothing read or sent when nothing changed, and a small agent."""
    data = tmp_path / "host" / "data"
    make_files(data)
    host = world.registered("many", data)
    agent = world.agent("agent", host, tmp_path / "host", restore=True)
    vault = world.vault("hosts", host)
    agent.stop()
    proxy = Proxy(world.token(host)["server"], cut_every_s=CUT_EVERY_S)
    agent.dial(proxy.address)
    agent.start()
    before = digest(data)
    assert before[0] == FILES

    def backed_up() -> dict[str, object]:
        made = world.client.checkpoint(vault)
        (found,) = world.client.backups(checkpoint_id=made)
        ours = f"/ext/v1/{world.client.project}"
        (task,) = world.client.ok("GET", f"{ours}/tasks", backup_id=found["id"])["tasks"]
        done = ended(world, task["id"], agent)
        assert done["status"] == "success", (done, agent.log(), world.server.log())
        assert world.client.ok("GET", f"{ours}/tasks/{task['id']}")["task"]["attempts"] == 1, agent.log()
        return world.client.ok("GET", f"/ext/v1/{world.client.project}/backups/{found['id']}")["backup"]

    begun_s = time.monotonic()
    first = backed_up()
    first_s = time.monotonic() - begun_s
    cuts = proxy.cuts
    sent = first["source"]["sent_bytes"]
    assert proxy.passed < 1.5 * sent + FILES * 100 + (cuts + 1) * (20 << 20), (proxy.passed, sent, cuts)
    begun_s = time.monotonic()
    again = backed_up()
    again_s = time.monotonic() - begun_s
    assert (again["bytes_read"], again["source"]["sent_bytes"]) == (0, 0)

    shutil.rmtree(data)
    begun_s = time.monotonic()
    job = world.client.ok("POST", f"backups/{again['id']}/restore", {"restore": {"resource_id": host}})["job_id"]
    done = ended(world, job, agent)
    restore_s = time.monotonic() - begun_s
    assert done["status"] == "success", (done, agent.log(), world.server.log())
    assert digest(data) == before
    peak = peak_bytes(agent)
    assert peak < AGENT_BYTES_MAX, peak
    figures = {
        "first_s": round(first_s),
        "again_s": round(again_s),
        "restore_s": round(restore_s),
        "agent_peak_mb": peak >> 20,
        "cuts": proxy.cuts,
    }
    print(figures)
    report("files through an agent", count=FILES, seed=0, **figures)
    proxy.close()
