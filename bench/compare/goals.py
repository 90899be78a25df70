"""What has to be reached, and whether it was. Pure.

Ratios to restic 0.19.1 with its defaults: `must` is the gate, `goal` what we are here for. A step without changes may
instead stay below a number of seconds: next to Python's start nothing is left to measure.
"""

import dataclasses
from collections.abc import Mapping

from bench.compare.results import Figure, Results, Spread, peak, ratio, spread, take, values

OURS, BASE, BASE_VERSION = "strongroom", "restic", "0.19.1"
WITH_MAP = "strongroom+cbt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """One column: its name, and the figure. `or_below` in the figure's own unit: enough, whatever the ratio is."""

    name: str
    figure: Figure
    or_below: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """One cell: what was wanted, what came out (None: not measured)."""

    set: str
    measure: str
    program: str
    base: str
    must: float
    goal: float
    found: Spread | None
    own: Spread | None
    or_below: float | None = None

    @property
    def text(self) -> str:
        """ "goal met", "must met", "NOT met" or "not measured"."""
        if self.found is None:
            return "not measured"
        if self.found.median <= self.goal:
            return "goal met"
        if self.found.median <= self.must:
            return "must met"
        if self.or_below is not None and self.own is not None and self.own.median <= self.or_below:
            return f"must met ({self.own.median:.2f} s)"
        return "NOT met"


MEASURES = (
    Measure(name="first CPU", figure=take("first", "cpu_s")),
    Measure(name="first wall", figure=take("first", "wall_s")),
    Measure(name="no change wall", figure=take("same", "wall_s"), or_below=0.35),
    Measure(name="2 % change CPU", figure=take("changed", "cpu_s")),
    Measure(name="restore wall", figure=take("restore", "wall_s")),
    Measure(name="stored, both generations", figure=take("changed", "stored_bytes")),
    Measure(name="peak RSS", figure=peak),
)

# (must, goal), in the order of MEASURES.
GOALS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "tree": ((0.40, 0.30), (0.50, 0.30), (0.20, 0.15), (0.25, 0.15), (0.55, 0.40), (0.84, 0.80), (1.0, 0.60)),
    "image": ((0.33, 0.25), (0.35, 0.20), (0.20, 0.20), (0.18, 0.12), (0.60, 0.25), (0.91, 0.86), (0.85, 0.60)),
    "random": ((0.25, 0.15), (0.30, 0.15), (0.20, 0.17), (0.20, 0.15), (0.25, 0.15), (0.93, 0.92), (0.75, 0.50)),
}
WITH_MAP_GOAL = (0.08, 0.04)  # 2 % change CPU of the image, when the changed blocks are told
TAR_CPU_MUST, CP_WALL_MUST = 1.0, 1.1  # of the tree, against `tar | zstd -3 -T2` and `cp -a`


def judge(results: Results) -> list[Verdict]:
    """All cells of the data sets that were run, in order."""
    found = []
    for set_ in results.sets():
        for measure, (must, goal) in zip(MEASURES, GOALS[set_], strict=True):
            found.append(_verdict(results, set_, measure, must, goal))
        if set_ == "image":
            told = dataclasses.replace(MEASURES[3], name="2 % change CPU, changed blocks told")
            found.append(_verdict(results, set_, told, *WITH_MAP_GOAL, program=WITH_MAP))
        if set_ == "tree":
            for measure, base, must in ((MEASURES[0], "tar-zstd", TAR_CPU_MUST), (MEASURES[4], "cp", CP_WALL_MUST)):
                found.append(_verdict(results, set_, measure, must, must, base=base))
    return found


def _verdict(
    results: Results, set_: str, measure: Measure, must: float, goal: float, *, program: str = OURS, base: str = BASE
) -> Verdict:
    return Verdict(
        set=set_,
        measure=measure.name,
        program=program,
        base=base,
        must=must,
        goal=goal,
        found=ratio(results, set_, program, base, measure.figure),
        own=spread(values(results, set_, program, measure.figure).values()),
        or_below=measure.or_below if base == BASE else None,
    )
