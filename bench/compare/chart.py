"""A picture of the ratios: one panel a data set, one group of bars a measure, one bar a program. SVG, by hand. Pure."""

from collections.abc import Sequence
from html import escape

from bench.compare.goals import BASE, GOALS, MEASURES
from bench.compare.report import TITLES
from bench.compare.results import Results, Spread, ratio

WIDTH, LEFT, TOP, PANEL, GAP = 980, 60, 70, 170, 75
RATIO_MAX = 1.5  # longer bars are cut and say how long they are
COLOURS = ("#1b6ca8", "#6db1e0", "#b0b0b0", "#d9a441", "#8a6fb3", "#6aa36f")
STYLE = "text{font:12px sans-serif;fill:#222}.small{font-size:9px}.title{font-size:15px;font-weight:bold}"


def draw(results: Results) -> str:
    """An SVG file. Programs without a ratio to the base (the limits, the base itself) have no bars."""
    sets = results.sets()
    names = [
        name
        for name in results.run["programs"]
        if name != BASE and any(_bar(results, set_, name, index) for set_ in sets for index in range(len(MEASURES)))
    ]
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    height = TOP + len(sets) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(LEFT, 24, f"Ratio to {BASE} (1 = {BASE}, lower is better), median and range", "title"),
    ]
    for number, name in enumerate(names):
        x = LEFT + number * 150
        parts.append(f'<rect x="{x}" y="36" width="12" height="12" fill="{colours[name]}"/>')
        parts.append(_text(x + 18, 46, name))
    parts.append(_text(LEFT + len(names) * 150, 46, "green line: must"))
    for number, set_ in enumerate(sets):
        parts += _panel(results, set_, TOP + 20 + number * (PANEL + GAP), colours)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(results: Results, set_: str, name: str, index: int) -> Spread | None:
    return ratio(results, set_, name, BASE, MEASURES[index].figure)


def _panel(results: Results, set_: str, top: int, colours: dict[str, str]) -> list[str]:
    bottom = top + PANEL
    parts = [_text(LEFT, top - 8, TITLES[set_], "title")]
    for tick in (0.0, 0.5, 1.0, RATIO_MAX):
        y = _y(bottom, tick)
        colour = "#c0392b" if tick == 1.0 else "#ddd"
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - 20}" y2="{y:.1f}" stroke="{colour}"/>')
        parts.append(_text(LEFT - 30, y + 4, f"{tick:.1f}", "small"))
    group = (WIDTH - 20 - LEFT) / len(MEASURES)
    shown = [name for name in colours if any(_bar(results, set_, name, index) for index in range(len(MEASURES)))]
    for index, measure in enumerate(MEASURES):
        left = LEFT + index * group
        width = (group - 16) / max(len(shown), 1)
        for number, name in enumerate(shown):
            found = _bar(results, set_, name, index)
            if found is not None:
                parts += _one(left + 8 + number * width, width - 3, bottom, found, colours[name])
        must = _y(bottom, GOALS[set_][index][0])
        parts.append(
            f'<line x1="{left + 4:.1f}" y1="{must:.1f}" x2="{left + group - 4:.1f}" y2="{must:.1f}" '
            'stroke="#2e8b57" stroke-width="2"/>'
        )
        parts.append(_text(left + 8, bottom + 16, measure.name, "small"))
    return parts


def _one(x: float, width: float, bottom: int, found: Spread, colour: str) -> Sequence[str]:
    top, middle = _y(bottom, found.median), x + width / 2
    return [
        f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}" fill="{colour}">'
        f"<title>{found.median:.3f} ({found.low:.3f}-{found.high:.3f})</title></rect>",
        f'<line x1="{middle:.1f}" y1="{_y(bottom, found.low):.1f}" x2="{middle:.1f}" y2="{_y(bottom, found.high):.1f}" '
        'stroke="#222"/>',
        _text(x, min(top, _y(bottom, found.high)) - 3, f"{found.median:.2f}", "small"),
    ]


def _y(bottom: int, value: float) -> float:
    return bottom - min(value, RATIO_MAX) / RATIO_MAX * PANEL


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'
