"""The report of one run, in Markdown. Pure: results in, text out."""

from collections.abc import Sequence

from bench.compare.goals import BASE, BASE_VERSION, MEASURES, OURS, Verdict, judge
from bench.compare.results import STEPS, Figure, Results, Spread, ratio, spread, take, values

TITLES = {"tree": "Tree of files", "image": "Disk image", "random": "Incompressible file"}
STEP_TITLES = {"first": "first backup", "same": "nothing changed", "changed": "2 % changed", "restore": "restore"}
MB = 1e6


def write_report(results: Results, chart: str) -> str:
    """All of it; `chart` is the name of the picture beside it."""
    parts = ["# Strongroom beside other programs", _made(results), f"![Ratios to {BASE}]({chart})"]
    parts += ["## Must and goal", _goals(judge(results))]
    for set_ in results.sets():
        parts += [f"## {TITLES[set_]}", _data(results, set_), _figures(results, set_)]
        if BASE in results.programs(set_):
            parts += [f"Ratios to {BASE}; below 1 is better than {BASE}:", _ratios(results, set_)]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _made(results: Results) -> str:
    run = results.run
    loads = spread(row.load for row in results.rows)
    repetitions = 1 + max((row.repetition for row in results.rows), default=-1)
    lines = [
        f"Made by `{run['command']}` on {run['date']}; commit {run['commit']}.",
        f"Machine: {run['machine']}.",
        f"Repetitions: {repetitions}; load of the machine before a step {_number(loads, 1.0, 1)}.",
        "Everything was read from a warm page cache. Median (lowest-highest); [how to read it](README.md).",
    ]
    programs = [[name, about["version"], about["about"]] for name, about in run["programs"].items()]
    notes = [str(note) for note in run["notes"]]
    base = run["programs"].get(BASE)
    if base is None:
        notes.append(f"Without {BASE} no goal can be judged.")
    elif BASE_VERSION not in base["version"]:
        notes.append(f"The goals were set against {BASE} {BASE_VERSION}, not this version.")
    wrong = [row for row in results.rows if not row.ok]
    notes += [
        f"**{row.program} failed**: {row.set}, {STEP_TITLES[row.step]}, repetition {row.repetition + 1}"
        + (": what it restored is not the source." if row.equal is False else f" (exit code {row.code}).")
        for row in wrong
    ]
    restores = sum(row.equal is not None for row in results.rows if row.program != "cp")
    if restores and not any(row.equal is False for row in wrong):
        notes.append(f"All {restores} restores were compared with the source by digest: equal.")
    return "\n\n".join(
        ["\n".join(f"- {line}" for line in lines), _table(["program", "version", "options"], programs), " ".join(notes)]
    )


def _goals(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for cell in verdicts:
        wanted = f"{cell.must:.2f}" + (f" or {cell.or_below} s" if cell.or_below else "")
        rows.append(
            [
                cell.set,
                cell.measure,
                cell.base,
                wanted,
                f"{cell.goal:.2f}",
                _number(cell.found, 1.0, 2),
                f"**{cell.text}**" if cell.text.startswith("NOT") else cell.text,
            ]
        )
    met = sum("met" in cell.text and not cell.text.startswith("NOT") for cell in verdicts)
    goals = sum(cell.text == "goal met" for cell in verdicts)
    measured = sum(cell.found is not None for cell in verdicts)
    said = f"{OURS}: of {len(verdicts)} cells {measured} were measured; {met} meet must, {goals} of these the goal."
    return f"{said}\n\n" + _table(["data", "measure", "ratio to", "must", "goal", "found", ""], rows)


def _data(results: Results, set_: str) -> str:
    about = results.run["data"]
    if set_ == "tree":
        one, two = about["tree.1"], about["tree.2"]
        return (
            f"{one['files']:,} files, {one['bytes'] / MB:,.0f} MB; then {two['files']:,} files, "
            f"{two['bytes'] / MB:,.0f} MB ({', '.join(f'{name} {n:,}' for name, n in about['change'].items())})."
        )
    first = about[f"{set_}.1"]
    text = f"{first['bytes'] / MB:,.0f} MB, {first['allocated'] / MB:,.0f} MB of it allocated"
    if set_ == "image":
        text += f"; then {about['image.changed_bytes'] / MB:,.1f} MB in changed 64 KiB blocks"
    return text + "."


def _figures(results: Results, set_: str) -> str:
    """One table a step: wall, CPU, memory; stored where a backup was made."""
    head = ["program", "step", "wall s", "CPU s", "of it system s", "RSS MB", "stored MB", "stored files"]
    rows = []
    for step in STEPS:
        for program in results.programs(set_):
            columns = [("wall_s", 1.0, 2), ("cpu_s", 1.0, 2), ("system_s", 1.0, 2), ("rss_bytes", MB, 0)]
            if step != "restore":
                columns += [("stored_bytes", MB, 1), ("stored_files", 1.0, 0)]
            cells = [
                _number(spread(values(results, set_, program, take(step, field)).values()), unit, digits)
                for field, unit, digits in columns
            ]
            if set(cells) != {"-"}:
                rows.append([program, STEP_TITLES[step], *cells, *["-"] * (6 - len(cells))])
    return _table(head, rows)


def _ratios(results: Results, set_: str) -> str:
    others: list[tuple[str, Figure]] = [
        ("2 % change wall", take("changed", "wall_s")),
        ("restore CPU", take("restore", "cpu_s")),
        ("stored, first", take("first", "stored_bytes")),
    ]
    columns = [(measure.name, measure.figure) for measure in MEASURES] + others
    rows = []
    for program in results.programs(set_):
        cells = [_number(ratio(results, set_, program, BASE, figure), 1.0, 2) for _, figure in columns]
        if program != BASE and set(cells) != {"-"}:
            rows.append([program, *cells])
    return _table(["program", *(name for name, _ in columns)], rows)


def _number(found: Spread | None, unit: float, digits: int) -> str:
    """`1.23 (1.20-1.31)`; without the extremes when there is but one value, or all are the same."""
    if found is None:
        return "-"
    median, low, high = (f"{value / unit:.{digits}f}" for value in (found.median, found.low, found.high))
    return median if low == high else f"{median} ({low}-{high})"
