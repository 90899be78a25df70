"""The protocol: all programs on the same data, in turns, each step a process of its own.

One repetition of one data set:

    first     every program backs up generation 1 of a live folder
    same      and again: nothing has changed
              the folder is changed in place to generation 2
    changed   every program backs up again
    restore   every program restores generation 2 into an empty folder; its digest is compared
              only now is anything deleted, and the disk left to settle

The order of programs rotates from repetition to repetition. `sync` runs before every step, untimed, so that nobody pays
for the writes of whoever was before. All data is read from a warm page cache. Deleting gigabytes in between made
whoever came next two to four times slower (discard on ext4): hence the deletions at the end.
"""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from bench.compare import live
from bench.compare.measure import Cost, digest_tree, folder_size, run
from bench.compare.programs import Call, Place, Program
from bench.compare.results import Row

LABELS = {"first": "g1", "same": "g1-again", "changed": "g2", "restore": "g2"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """data: what datasets.py made. work: a folder of our own, emptied as we go. log: what the programs print."""

    data: Path
    work: Path
    programs: tuple[Program, ...]
    sets: tuple[str, ...]
    repetitions: int
    settle_s: float
    write: Callable[[Mapping[str, Any]], None]
    log: IO[bytes]


def measure(bench: Bench) -> int:
    """All repetitions; each row is written as soon as it is known. The number of steps that failed or were wrong."""
    failed = 0
    for repetition in range(bench.repetitions):
        for set_ in bench.sets:
            programs = [program for program in bench.programs if set_ in program.sets]
            turn = repetition % len(programs)
            failed += _Repetition(bench, repetition, set_, programs[turn:] + programs[:turn]).run()
            shutil.rmtree(bench.work / "run", ignore_errors=True)
            os.sync()
            time.sleep(bench.settle_s)
    return failed


class _Repetition:
    """One repetition of one data set. `out`: programs that failed; they sit out the rest."""

    def __init__(self, bench: Bench, number: int, set_: str, programs: list[Program]) -> None:
        self.bench, self.number, self.set, self.programs = bench, number, set_, programs
        self.source = bench.work / "source" / set_
        self.out: set[str] = set()
        self.failed = 0

    def run(self) -> int:
        live.put(self.bench.data, self.set, 1, self.source)
        for program in self.programs:
            place = self._place(program, "first")
            for folder in (place.repository.parent, place.cache, place.target):
                folder.mkdir(parents=True)
            if program.init is not None and self._call(program, program.init(place)).code not in program.good:
                self._drop(program, "init")
        for step in ("first", "same"):
            self._all(step)
        live.put(self.bench.data, self.set, 2, self.source)
        self._all("changed")
        self._all("restore", wanted=digest_tree(self.source))
        return self.failed

    def _place(self, program: Program, step: str) -> Place:
        own = self.bench.work / "run" / program.name
        told = self.set == "image" and step == "changed"
        return Place(
            source=self.source,
            repository=own / "repository",
            cache=own / "cache",
            target=own / "target",
            which=self.set,
            label=LABELS[step],
            changed=self.bench.data / "image.cbt.json" if told else None,
        )

    def _all(self, step: str, wanted: str = "") -> None:
        """Every program takes `step`; `wanted` is the digest a restore has to have."""
        for program in self.programs:
            command = program.restore if step == "restore" else program.backup
            if command is None or program.name in self.out or (program.is_limit and step in ("same", "changed")):
                continue
            place = self._place(program, step)
            load = os.getloadavg()[0]
            cost = self._call(program, command(place))
            ok = cost.code in program.good
            equal = digest_tree(place.target) == wanted if ok and step == "restore" else None
            stored, files = folder_size(place.repository)
            row = Row(
                repetition=self.number,
                set=self.set,
                program=program.name,
                step=step,
                **dataclasses.asdict(cost),
                ok=ok and equal is not False,
                stored_bytes=stored,
                stored_files=files,
                load=load,
                equal=equal,
            )
            self.bench.write(dataclasses.asdict(row))
            print(_line(row), flush=True)
            if not row.ok:
                self._drop(program, step)

    def _call(self, program: Program, call: Call) -> Cost:
        os.sync()
        self.bench.log.write(f"\n== {self.number} {self.set} {program.name}: {' '.join(call.argv)}\n".encode())
        self.bench.log.flush()
        return run(call.argv, log=self.bench.log, env=call.env, cwd=call.cwd)

    def _drop(self, program: Program, step: str) -> None:
        self.out.add(program.name)
        self.failed += 1
        print(f"  {program.name} failed at {step} and sits out this repetition; see {self.bench.log.name}")


def _line(row: Row) -> str:
    verdict = {None: "", True: "  equal", False: "  DIFFERENT"}[row.equal]
    return (
        f"{row.repetition + 1} {row.set:6} {row.step:7} {row.program:15} {row.wall_s:8.2f} s  CPU {row.cpu_s:7.2f} s  "
        f"RSS {row.rss_bytes / 1e6:5.0f} MB  stored {row.stored_bytes / 1e6:8.1f} MB{verdict}"
        + ("" if row.ok else f"  FAILED ({row.code})")
    )


def write_to(file: IO[str]) -> Callable[[Mapping[str, Any]], None]:
    """A writer of JSON Lines; each line is in the file when the call returns."""

    def write(row: Mapping[str, Any]) -> None:
        file.write(json.dumps(row) + "\n")
        file.flush()

    return write
