"""Every command, option, setting and error class is documented, and nothing is documented that does not exist."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import strongroom.cli
from strongroom.base.errors import StrongroomError
from strongroom.cli.main import app
from strongroom.config import SETTINGS

ROOT = Path(__file__).parent.parent
CLI = (ROOT / "docs/CLI.md").read_text()
ERRORS = (ROOT / "docs/ERRORS.md").read_text()
EVERYWHERE = {"--state", "--endpoint", "--credentials", "--json"}
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for child_name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{name} {child_name}".strip())
    if not hasattr(command, "commands"):
        yield name, command


COMMANDS = dict(commands(get_command(app)))
SECTIONS = dict(re.findall(r"^### `([^`]+)`\n(.*?)(?=^##|\Z)", CLI, flags=re.MULTILINE | re.DOTALL))


def test_every_command_is_documented_and_every_documented_one_exists() -> None:
    """docs/CLI.md has one section a command."""
    assert set(SECTIONS) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    """The section of a command names all options that not every command has."""
    options = {
        option
        for parameter in COMMANDS[name].params
        if parameter.param_type_name == "option"
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }
    missing = {option for option in options - EVERYWHERE if not re.search(rf"{re.escape(option)}\b", SECTIONS[name])}
    assert not missing
    mentioned = set(re.findall(r"(?<![\w`-])--[a-z][a-z-]+|(?<=`)--[a-z][a-z-]+", SECTIONS[name]))
    assert name == "engine" or mentioned <= options | {"--credentials", "--path"}


def test_every_setting_is_documented() -> None:
    """The table of settings has each with its default and meaning, and no other."""
    rows = dict(
        re.findall(r"^\| [^|]+ \| `(\w+)` \| (.+) \|$", CLI.partition("## Settings of the server")[2], re.MULTILINE)
    )
    assert set(rows) == set(SETTINGS)
    for name, setting in SETTINGS.items():
        assert setting.meaning in rows[name]
        assert setting.default is None or f"`{setting.default}`" in rows[name]


def _error_classes() -> set[str]:
    for module in pkgutil.walk_packages(strongroom.__path__, "strongroom."):
        if "migrations" not in module.name and module.name != "strongroom.__main__":
            importlib.import_module(module.name)
    found, left = set(), [StrongroomError]
    while left:
        cls = left.pop()
        if cls.__module__.startswith("strongroom."):
            found.add(cls.__name__)
        left.extend(cls.__subclasses__())
    return found


def test_every_error_class_is_documented() -> None:
    """docs/ERRORS.md names each class and no other."""
    documented = set(re.findall(r"`([A-Z][a-z]\w+)`", ERRORS))
    assert documented == _error_classes()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Links between our own pages name files that exist."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
