"""Files in deploy/ name settings, commands and files that exist."""

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from strongroom.cli.main import app
from strongroom.config import SETTINGS

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_setting_exists(path: Path) -> None:
    """A setting that is misspelt would keep the server from starting."""
    named = set(re.findall(r"STRONGROOM_([A-Z0-9_]+)", path.read_text())) - {"STATE"}
    assert named <= {name.upper() for name in SETTINGS}


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("systemd/*.service")), ids=lambda path: path.name)
def test_units_start_commands_that_exist(path: Path) -> None:
    """With options that the command has."""
    (line,) = re.findall(r"^ExecStart=/opt/strongroom/.venv/bin/strongroom (.*)$", path.read_text(), re.MULTILINE)
    command, *words = line.split()
    options = {option for parameter in COMMANDS[command].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    assert re.search(r"^\[Unit\]$.*^\[Service\]$.*^\[Install\]$", path.read_text(), re.MULTILINE | re.DOTALL)


def test_the_compose_file_is_whole() -> None:
    """It parses, and every service's commands, volumes and neighbours are there."""
    document = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    services = document["services"]
    assert {"postgres", "seaweedfs", "migrate", "api", "worker"} == set(services)
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source.startswith("$") or source in document["volumes"]
        if service.get("image") == "strongroom":
            assert service["command"][0] in COMMANDS, name
    assert (ROOT / document["x-strongroom"]["build"]["dockerfile"]).is_file()


def test_the_image_copies_what_is_there() -> None:
    """Each COPY of the Dockerfile names files of the project."""
    for sources in re.findall(r"^COPY (.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
