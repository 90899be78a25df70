"""docs/RELIABILITY.md says what the suites counted, and nothing else."""

import json
from pathlib import Path

import pytest
import reliability

from bench.reliability import FIGURES, PAGE, SUITES, merged, page, table

TESTS = Path(__file__).parent.parent


def line(suite: str, count: int, **more: object) -> str:
    return json.dumps({"suite": suite, "count": count, "seed": 1, "commit": "abc", "at": "2026-01-01", **more})


def test_the_page_is_what_the_figures_say() -> None:
    """Nobody wrote a number into the table by hand."""
    text = PAGE.read_text()
    assert page(text, json.loads(FIGURES.read_text())) == text


def test_every_suite_is_where_the_page_says() -> None:
    """The files exist and report."""
    for name, suite in SUITES.items():
        assert "report(" in (TESTS / suite.file).read_text(), name


def test_lines_of_one_suite_add_up_and_newer_figures_replace_older() -> None:
    """A suite in several processes is one row; what was not run keeps its figures."""
    before = merged({}, "\n".join([line("damage", 5, found=4), line("kills", 9)]))
    after = merged(before, "\n".join([line("damage", 1, found=1), line("damage", 2, found=2)]))
    assert (after["damage"]["count"], after["damage"]["found"], after["kills"]["count"]) == (3, 3, 9)
    assert "| 3 | found 3 | 1 | abc, 2026-01-01 |" in table(after)
    assert "not run yet" in table(after)


def test_a_suite_that_nobody_knows_is_refused() -> None:
    """A misspelt name does not vanish."""
    with pytest.raises(KeyError):
        merged({}, line("dammage", 5))


def test_a_report_is_a_line_of_the_file_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable nothing is written."""
    monkeypatch.delenv(reliability.VARIABLE, raising=False)
    reliability.report("damage", count=1, seed=2)
    monkeypatch.setenv(reliability.VARIABLE, str(tmp_path / "lines"))
    reliability.report("damage", count=1, seed=2, found=3)
    (found,) = (json.loads(text) for text in (tmp_path / "lines").read_text().splitlines())
    assert (found["suite"], found["count"], found["seed"], found["found"]) == ("damage", 1, 2, 3)
    assert found["commit"]
