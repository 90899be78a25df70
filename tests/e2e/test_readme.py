"""The README's tour, pasted block by block into one shell beside a real server."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from harness import Server

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
# Packages of clients are in the tests' environment; what a reader installs is not fetched again here.
BLOCKS = [
    "\n".join(line for line in block.splitlines() if not line.startswith("pip install"))
    for block in re.findall(r"<!-- tour -->\n```bash\n(.*?)```", README, re.DOTALL)
]
(MACHINE,) = re.findall(r"<!-- machine -->\n```bash\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "state", from_nothing=True).start()
    yield running
    running.stop()


@pytest.fixture
def short_home() -> Iterator[Path]:
    """Sockets have names of less than 108 bytes."""
    with TemporaryDirectory(prefix="sr-") as folder:
        yield Path(folder) / "home"


def paste(script: str, server: Server, home: Path) -> str:
    """What one shell prints that is given the script in the project's folder."""
    home.mkdir()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("STRONGROOM_", "OS_"))}
    environ |= {"HOME": str(home), "STRONGROOM_STATE": str(server.state)}
    script = f"cd {shlex.quote(str(ROOT))}\nset -euo pipefail\n{script}"
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_tour_works_as_pasted(server: Server, tmp_path: Path) -> None:
    """CLI, curl, SDK and openstack all see the restore point that the first block makes."""
    assert len(BLOCKS) == 5
    home = tmp_path / "home"
    marks = [f"echo; echo ===={number}" for number in range(len(BLOCKS))]
    script = "\n".join(line for pair in zip(marks, BLOCKS, strict=True) for line in pair)
    parts = re.split(r"====\d\n", paste(script, server, home))[1:]
    assert "CLI.md" in parts[0]
    assert (home / "CLI-from-backup.md").read_bytes() == (ROOT / "docs/CLI.md").read_bytes()
    assert '"name": "first"' in parts[2]
    assert parts[3].strip() == "available ['tour']"
    assert "homes" in parts[4]
    assert "first" in parts[4]


@pytest.mark.long
def test_a_machine_of_the_tour_comes_back_as_it_was(server: Server, short_home: Path) -> None:
    """Its guest writes while the restore points are made, and after the restore finds all that it had written."""
    shell = f'export PATH="$PWD/.venv/bin:$PATH"\ntrap "make machine-off" EXIT\n{MACHINE}'
    told = paste(shell, server, short_home)
    written = [int(number) for number in re.findall(r"had said: wrote file (\d+)", told)]
    (equal,) = re.findall(r"(\d+) files on the disk, each as it was written", told)
    assert 2 < int(equal) <= written[0]
    assert "BROKEN" not in told
