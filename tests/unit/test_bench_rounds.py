"""The protocol of the benchmark, with programs that are one line of shell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.compare import datasets
from bench.compare.programs import Call, Place, Program, Step
from bench.compare.rounds import Bench, measure

MIB = 1 << 20
BACK_UP = 'cp -a "$1/." "$2/$4"'
RESTORE = 'cp -a "$2/$4/." "$3"'


def shell(script: str) -> Step:
    """$1 source, $2 repository, $3 target, $4 label; $5 the changed blocks, when told."""

    def step(place: Place) -> Call:
        told = [str(place.changed)] if place.changed else []
        where = [str(path) for path in (place.source, place.repository, place.target)]
        return Call(argv=["sh", "-ec", script, "sh", *where, place.label, *told])

    return step


def program(name: str, *, init: str = 'mkdir "$2"', backup: str = BACK_UP, restore: str = RESTORE) -> Program:
    return Program(name=name, about="", version="", init=shell(init), backup=shell(backup), restore=shell(restore))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    datasets.make(out, datasets.Recipe(tree=MIB, image=16 * MIB, random=MIB, seed=1, synthetic=True))
    return out


def rows_of(
    data: Path, tmp_path: Path, *programs: Program, sets: tuple[str, ...] = ("tree",), repetitions: int = 1
) -> tuple[int, list[Mapping[str, Any]]]:
    rows: list[Mapping[str, Any]] = []
    with (tmp_path / "log.txt").open("wb") as log:
        failed = measure(
            Bench(
                data=data,
                work=tmp_path / "work",
                programs=programs,
                sets=sets,
                repetitions=repetitions,
                settle_s=0.0,
                write=rows.append,
                log=log,
            )
        )
    return failed, rows


def test_programs_take_turns_and_their_order_rotates(data: Path, tmp_path: Path) -> None:
    """Step by step, each program once; who was first comes last in the next repetition."""
    failed, rows = rows_of(data, tmp_path, program("a"), program("b"), repetitions=3)
    assert failed == 0
    seen = [(row["repetition"], row["step"], row["program"]) for row in rows]
    steps = ("first", "same", "changed", "restore")
    assert seen == [(n, step, name) for n, order in enumerate(("ab", "ba", "ab")) for step in steps for name in order]
    assert [row["equal"] for row in rows if row["step"] == "restore"] == [True] * 6
    assert not (tmp_path / "work/run").exists()


def test_who_fails_sits_out_the_rest(data: Path, tmp_path: Path) -> None:
    """The failed step has its row; later steps have none; the others go on, and the next repetition tries again."""
    broken = program("broken", backup='test "$4" = g1 && ' + BACK_UP)
    failed, rows = rows_of(data, tmp_path, program("fine"), broken, repetitions=2)
    assert failed == 2
    seen = [(row["step"], row["ok"], row["code"]) for row in rows if row["program"] == "broken"]
    assert seen == [("first", True, 0), ("same", False, 1)] * 2
    assert sum(row["program"] == "fine" for row in rows) == 8


def test_who_cannot_begin_has_no_rows(data: Path, tmp_path: Path) -> None:
    """A repository that cannot be made is counted and told."""
    failed, rows = rows_of(data, tmp_path, program("fine"), program("broken", init="exit 9"))
    assert failed == 1
    assert {row["program"] for row in rows} == {"fine"}


@pytest.mark.parametrize("wrong", ['echo >> "$3/new"', 'rm -r "$3"/share0000/folder0', "find $3 -name '*.txt' -delete"])
def test_a_wrong_restore_is_a_failure(data: Path, tmp_path: Path, wrong: str) -> None:
    """Something more, something less: exit code 0 does not help."""
    failed, rows = rows_of(data, tmp_path, program("wrong", restore=f"{RESTORE}; {wrong}"))
    assert failed == 1
    assert (rows[-1]["step"], rows[-1]["code"], rows[-1]["ok"], rows[-1]["equal"]) == ("restore", 0, False, False)


def test_changed_blocks_are_told_with_the_second_generation_only(data: Path, tmp_path: Path) -> None:
    """Of the image, once: a map for a first backup would be a lie."""
    rows_of(data, tmp_path, program("told"), sets=("tree", "image"))
    log = (tmp_path / "log.txt").read_text()
    calls = [line for line in log.splitlines() if line.endswith("image.cbt.json")]
    assert len(calls) == 1
    assert calls[0].startswith("== 0 image told:")
    assert " g2 " in calls[0]
