"""The benchmark itself, from data to report, with small sizes and without peers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.e2e


def test_a_run_measures_verifies_and_reports(tmp_path: Path) -> None:
    """Every step of every program of every data set has a row, all restores are equal, and no data is left behind."""
    sizes = ["--tree", "2M", "--image", "16M", "--random", "1M", "--synthetic", "--reps", "2", "--settle", "0"]
    where = ["--no-fetch", "--dir", str(tmp_path / "bench"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "bench.compare", "run", *sizes, *where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "BENCH_COMMAND": "make bench"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run, *rows = (json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert run["data"]["recipe"]["seed"] == 1
    ours = [row for row in rows if row["program"].startswith("strongroom")]
    assert len(ours) == 2 * 4 * 4  # repetitions, steps; three data sets, one of them also with changed blocks told
    assert all(row["ok"] for row in rows)
    assert {row["equal"] for row in rows if row["step"] == "restore"} == {True}
    text = (tmp_path / "out/report.md").read_text()
    assert "restic was not asked for" in text
    assert "Made by `make bench` on " in text
    assert str(tmp_path) not in text + json.dumps([run, rows]), "folders of this machine are nobody's business"
    assert (tmp_path / "out/ratios.svg").read_text().startswith("<svg")
    assert not (tmp_path / "bench/work").exists()


@pytest.mark.parametrize("cases", [("files", "sparse", "folder", "points"), pytest.param((), marks=pytest.mark.long)])
def test_memory_is_measured_case_by_case(tmp_path: Path, cases: tuple[str, ...]) -> None:
    """These cases, or all, end well with small sizes, and a bound that is missed makes the run fail."""
    sizes = ["--files", "300", "--sparse", "1G", "--entries", "300", "--points", "2"]
    command = [sys.executable, "-m", "bench.memory", *sizes, "--dir", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *cases], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/memory.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} >= {"first backup", "nothing changed", "one entry more", "restore point 1"}
    assert [row["equal"] for row in rows if row["step"] == "restore"] == [True] * 4
    done = subprocess.run([*command, "files", "--bound", "1M"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "above the bound" in (tmp_path / "out/memory.md").read_text()
