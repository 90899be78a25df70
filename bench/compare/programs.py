"""How each program is called. All encrypt (the two limits do not) and write to a folder; options are their defaults."""

import dataclasses
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

PASSWORD = "bench"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where one program works in one repetition. All paths are absolute.

    source       folder to back up (the same for all)
    repository   folder it owns; what lies in it counts as stored
    cache        folder for what it keeps outside
    target       empty folder to restore into
    which        data set: "tree", "image" or "random"
    label        name of the backup to make or restore
    changed      list of changed blocks, or None when there is none for this step
    """

    source: Path
    repository: Path
    cache: Path
    target: Path
    which: str
    label: str
    changed: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One command: argv, additions to the environment, working folder (None: any)."""

    argv: list[str]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cwd: Path | None = None


Step = Callable[[Place], Call]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program under test. A step that is None is not taken by it; `sets` are the data it runs on.

    about     its options, for the report
    version   what it says of itself
    good      exit codes that count as done
    """

    name: str
    about: str
    version: str
    init: Step | None = None
    backup: Step | None = None
    restore: Step | None = None
    sets: tuple[str, ...] = ("tree", "image", "random")
    good: tuple[int, ...] = (0,)
    is_limit: bool = False


def strongroom(name: str, *, level: int = 3, changed_blocks: bool = False) -> Program:
    """Ours, as `strongroom engine`: the engine that every vault uses."""
    engine = [str(Path(sys.executable).with_name("strongroom")), "engine"]

    def backup(place: Place) -> Call:
        changed = ["--cbt", str(place.changed)] if changed_blocks and place.changed else []
        return Call(argv=[*engine, "backup", str(place.repository), str(place.source), place.label, *changed])

    return Program(
        name=name,
        about=f"zstd level {level}" + (", is told the changed blocks" if changed_blocks else ""),
        version=importlib.metadata.version("strongroom"),
        init=lambda place: Call(argv=[*engine, "init", "--level", str(level), str(place.repository)]),
        backup=backup,
        restore=lambda place: Call(
            argv=[*engine, "restore", str(place.repository), place.label, str(place.target)],
        ),
        sets=("image",) if changed_blocks else ("tree", "image", "random"),
    )


def restic(name: str, program: Path, *options: str) -> Program:
    def call(place: Place, *arguments: str, cwd: Path | None = None) -> Call:
        env = {
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_REPOSITORY": str(place.repository),
            "RESTIC_CACHE_DIR": str(place.cache),
            "RESTIC_PROGRESS_FPS": "0",
        }
        return Call(argv=[str(program), *arguments], env=env, cwd=cwd)

    return Program(
        name=name,
        about=" ".join(options) or "defaults (zstd)",
        version=_version([str(program), "version"]),
        init=lambda place: call(place, "init", "-q"),
        backup=lambda place: call(place, "backup", "-q", *options, ".", cwd=place.source),
        restore=lambda place: call(place, "restore", "-q", "latest", "--target", str(place.target)),
    )


def borg(name: str, program: Path, compression: str) -> Program:
    def call(place: Place, *arguments: str, cwd: Path | None = None) -> Call:
        env = {
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_REPO": str(place.repository),
            "BORG_BASE_DIR": str(place.cache),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        return Call(argv=[str(program), *arguments], env=env, cwd=cwd)

    def sparse(place: Place) -> list[str]:
        return ["--sparse"] if place.which == "image" else []

    return Program(
        name=name,
        about=f"repokey-blake2, {compression}",
        version=_version([str(program), "--version"]),
        init=lambda place: call(place, "init", "-e", "repokey-blake2"),
        backup=lambda place: call(
            place, "create", "-C", compression, *sparse(place), f"::{place.label}", ".", cwd=place.source
        ),
        restore=lambda place: call(place, "extract", *sparse(place), f"::{place.label}", cwd=place.target),
        good=(0, 1),  # 1: a warning
    )


def tar_zstd() -> Program:
    """The limit of a first backup: read everything, compress it, write one file."""
    script = 'mkdir -p "$2" && tar -C "$1" -cf - . | zstd -q -f -3 -T2 -o "$2/all.tar.zst"'
    return Program(
        name="tar-zstd",
        about="tar | zstd -3 -T2; neither deduplicates nor encrypts",
        version=_version(["zstd", "--version"]),
        backup=lambda place: Call(argv=["sh", "-c", script, "sh", str(place.source), str(place.repository)]),
        is_limit=True,
    )


def cp_a() -> Program:
    """The limit of a restore: make the files from files."""
    return Program(
        name="cp",
        about="cp -a from the live source",
        version=_version(["cp", "--version"]),
        restore=lambda place: Call(argv=["cp", "-a", "--reflink=never", f"{place.source}/.", str(place.target)]),
        is_limit=True,
    )


def find_programs(peers: Mapping[str, Path], wanted: list[str] | None = None) -> list[Program]:
    """The programs to run, ours first. `wanted` None: the usual ones. Peers that were not obtained are missing."""
    makers: dict[str, Callable[[], Program]] = {
        "strongroom": lambda: strongroom("strongroom"),
        "strongroom+cbt": lambda: strongroom("strongroom+cbt", changed_blocks=True),
        "strongroom-fast": lambda: strongroom("strongroom-fast", level=1),
    }
    if "restic" in peers:
        makers["restic"] = lambda: restic("restic", peers["restic"])
        makers["restic-fastest"] = lambda: restic("restic-fastest", peers["restic"], "--compression", "fastest")
    if "borg" in peers:
        makers["borg"] = lambda: borg("borg", peers["borg"], "lz4")
        makers["borg-zstd"] = lambda: borg("borg-zstd", peers["borg"], "zstd,3")
    if shutil.which("zstd"):
        makers["tar-zstd"] = tar_zstd
    makers["cp"] = cp_a
    usual = ["strongroom", "strongroom+cbt", "restic", "borg", "tar-zstd", "cp"]
    return [makers[name]() for name in wanted or usual if name in makers]


def _version(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    return done.stdout.split("\n")[0].strip("* ")
