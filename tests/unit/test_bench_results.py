"""The figures of the benchmark: medians, ratios, verdicts, and the report made of them."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

import pytest

from bench.compare import chart, goals, report
from bench.compare.results import STEPS, Results, Row, Spread, parse, peak, ratio, spread, take, values

MB = 1_000_000


def row(program: str, step: str, repetition: int = 0, **other: object) -> Row:
    fields = {
        "set": "tree",
        "wall_s": 1.0,
        "cpu_s": 1.0,
        "system_s": 0.1,
        "rss_bytes": 100 * MB,
        "code": 0,
        "ok": True,
        "stored_bytes": 10 * MB,
        "stored_files": 3,
        "load": 0.5,
        "equal": True if step == "restore" else None,
    }
    return Row(**{"program": program, "step": step, "repetition": repetition, **fields, **other})  # type: ignore[arg-type]


def results(rows: Sequence[Row], programs: Sequence[str] = ("strongroom", "restic")) -> Results:
    about = {name: {"version": f"{name} 0.19.1", "about": "a | b"} for name in programs}
    one = {"files": 10, "bytes": 20 * MB}
    data = {"tree.1": one, "tree.2": one, "change": {"created": 1}}
    run = {
        "programs": about,
        "data": data,
        "command": "make bench",
        "date": "today",
        "commit": "c0ffee",
        "machine": "2 cores",
        "notes": [],
    }
    return Results(run=run, rows=tuple(rows))


def test_a_ratio_is_taken_inside_a_repetition_and_then_the_median() -> None:
    """A slow repetition slows both sides: 2/4, 20/40 and 3/4 have the median 0.5, whatever the walls are."""
    walls = {"strongroom": (2.0, 20.0, 3.0), "restic": (4.0, 40.0, 4.0)}
    rows = [row(name, "first", n, wall_s=wall) for name, of in walls.items() for n, wall in enumerate(of)]
    found = ratio(results(rows), "tree", "strongroom", "restic", take("first", "wall_s"))
    assert found == Spread(median=0.5, low=0.5, high=0.75, count=3)


def test_repetitions_that_only_one_side_has_do_not_count() -> None:
    """A ratio needs both in one repetition; without any there is none."""
    rows = [row("strongroom", "first", 0), row("strongroom", "first", 1), row("restic", "first", 1, wall_s=2.0)]
    found = ratio(results(rows), "tree", "strongroom", "restic", take("first", "wall_s"))
    assert found == Spread(median=0.5, low=0.5, high=0.5, count=1)
    assert ratio(results(rows[:1]), "tree", "strongroom", "restic", take("first", "wall_s")) is None
    assert spread([]) is None


def test_failed_steps_give_no_figure() -> None:
    """What failed, or restored other bytes, is fast for nothing."""
    rows = [row("strongroom", "restore", 0, ok=False, equal=False), row("strongroom", "restore", 1, wall_s=3.0)]
    assert values(results(rows), "tree", "strongroom", take("restore", "wall_s")) == {1: 3.0}


def test_the_peak_is_that_of_all_steps() -> None:
    """The largest of four steps; with a step missing nobody knows it."""
    steps = {step: row("restic", step, rss_bytes=MB * n) for n, step in enumerate(STEPS, 1)}
    assert peak(steps) == 4 * MB
    del steps["first"]
    assert peak(steps) is None


def test_rows_survive_their_file() -> None:
    """What parse reads is what was written: the run in the first line, then rows; empty lines do not matter."""
    made = results([row("strongroom", "first"), row("strongroom", "restore")])
    lines = [json.dumps(made.run), *(json.dumps(vars(one)) for one in made.rows), "\n"]
    assert parse(lines) == made


@pytest.mark.parametrize(
    ("ours", "base", "text"),
    [
        (0.15, 1.0, "goal met"),
        (0.16, 1.0, "must met"),
        (0.35, 1.0, "must met (0.35 s)"),
        (0.36, 1.0, "NOT met"),
        (3.0, 15.0, "must met"),
    ],
)
def test_a_step_without_changes_is_judged_by_ratio_or_seconds(ours: float, base: float, text: str) -> None:
    """No change, tree: 0.15 is the goal, 0.20 must; or 0.35 s."""
    rows = [row("strongroom", "same", wall_s=ours), row("restic", "same", wall_s=base)]
    found = {cell.measure: cell for cell in goals.judge(results(rows)) if cell.base == "restic"}
    assert found["no change wall"].text == text
    assert found["first CPU"].text == "not measured"


def test_the_limits_are_judged_on_the_tree_alone() -> None:
    """tar | zstd bounds the CPU of a first backup, cp -a the wall of a restore."""
    rows = [
        row("strongroom", "first", cpu_s=1.1),
        row("tar-zstd", "first", cpu_s=1.0),
        row("strongroom", "restore", wall_s=1.1),
        row("cp", "restore", wall_s=1.0),
    ]
    found = {cell.base: cell.text for cell in goals.judge(results(rows)) if cell.base != "restic"}
    assert found == {"tar-zstd": "NOT met", "cp": "goal met"}
    images = [row("strongroom", "first", set="image"), row("restic", "first", set="image")]
    assert {cell.base for cell in goals.judge(results(images))} == {"restic"}


def test_every_data_set_has_a_goal_for_every_measure() -> None:
    """The table of goals is complete, and no goal is weaker than its gate."""
    assert set(goals.GOALS) == set(report.TITLES)
    for cells in goals.GOALS.values():
        assert len(cells) == len(goals.MEASURES)
        assert all(goal <= must for must, goal in cells)


def all_steps() -> list[Row]:
    return [
        row(name, step, n, wall_s=wall + n)
        for name, wall in (("strongroom", 1.0), ("restic", 2.0))
        for step in STEPS
        for n in range(3)
    ]


def test_the_report_has_figures_ratios_and_verdicts() -> None:
    """Median and range of each step, ratios to restic, must and goal; and its tables have as many cells as columns."""
    text = report.write_report(results(all_steps()), "ratios.svg")
    assert "| strongroom | first backup | 2.00 (1.00-3.00) | 1.00 | 0.10 | 100 | 10.0 | 3 |" in text
    assert "| tree | restore wall | restic | 0.55 | 0.40 | 0.67 (0.50-0.75) | **NOT met** |" in text
    assert "All 6 restores were compared with the source by digest: equal." in text
    columns = 0
    for line in text.splitlines():
        cells = line.replace(r"\|", "").count("|") if line.startswith("|") else 0
        assert cells == columns or not (cells and columns), line
        columns = cells


def test_the_report_hides_no_failure() -> None:
    """A step that failed and a restore that differs are named, and the sentence of success is gone."""
    rows = [row("restic", "first", code=3, ok=False), row("strongroom", "restore", ok=False, equal=False)]
    text = report.write_report(results(rows), "ratios.svg")
    assert "**restic failed**: tree, first backup, repetition 1 (exit code 3)." in text
    assert "**strongroom failed**: tree, restore, repetition 1: what it restored is not the source." in text
    assert "by digest: equal" not in text


def test_the_report_of_another_restic_says_so() -> None:
    """Goals were set against one version; without any restic nothing is judged."""
    other = results(all_steps())
    other.run["programs"]["restic"]["version"] = "restic 0.14.0"
    assert "The goals were set against restic 0.19.1, not this version." in report.write_report(other, "x.svg")
    alone = results([row("strongroom", step) for step in STEPS], ("strongroom",))
    text = report.write_report(alone, "x.svg")
    assert "Without restic no goal can be judged." in text
    assert "of 9 cells 0 were measured" in text


def test_the_chart_is_well_formed_and_cuts_long_bars() -> None:
    """One bar for each measure of each program with a ratio; none leaves its panel; without restic there are none."""
    rows = [*all_steps(), *(row("borg", step, n, wall_s=99.0) for step in STEPS for n in range(3))]
    drawing = ElementTree.fromstring(chart.draw(results(rows, ("strongroom", "restic", "borg"))))
    bars = [part for part in drawing.iter("{http://www.w3.org/2000/svg}rect") if len(part)]
    assert len(bars) == 2 * len(goals.MEASURES)
    assert all(float(bar.attrib["height"]) <= chart.PANEL for bar in bars)
    alone = ElementTree.fromstring(chart.draw(results([row("strongroom", "first")], ("strongroom",))))
    assert not [part for part in alone.iter("{http://www.w3.org/2000/svg}rect") if len(part)]
