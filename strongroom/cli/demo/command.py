"""The command: a folder of its own, a server of its own, the story, the tables, the exit code."""

import contextlib
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.text import Text

from strongroom.base.units import GIB, human_bytes
from strongroom.cli.client import Client
from strongroom.cli.command import JsonOption
from strongroom.cli.credentials import load_credentials
from strongroom.cli.demo.server import running_server
from strongroom.cli.demo.sources import find_tools
from strongroom.cli.demo.story import Findings, Story
from strongroom.cli.errors import EXIT_FAILED, EXIT_OK, CommandRefused
from strongroom.cli.output import Output, shown

FREE_BYTES_MIN = 2 * GIB  # sources, damaged copies, staging and store together, with room to spare
DIFFERENCES_SHOWN = 20


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to work, in a new folder that is removed. Default: the temporary folder."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Back up, damage and restore real data on a real server, and compare every byte. Leaves nothing behind."""
    started = time.monotonic()
    output = Output(as_json=as_json)
    tools = find_tools()
    with _interruptible(), _own_folder(folder) as own:
        output.say("Starting a server on embedded defaults")
        with running_server(own / "state", own / "server.log") as endpoint:
            output.say(f"  it listens on {endpoint}")
            credentials = load_credentials(state=own / "state", endpoint=endpoint, file=None)
            with Client(credentials) as client:
                story = Story(client, output, own, tools)
                story.tell()
    raise typer.Exit(_conclude(output, story.findings, time.monotonic() - started))


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("demo")(demo)


def _conclude(output: Output, findings: Findings, seconds: float) -> int:
    """The tables and the verdict."""
    code = EXIT_FAILED if findings.differing else EXIT_OK
    output.line(
        "summary",
        checkpoint=findings.checkpoint,
        backups=findings.runs,
        restores=findings.restores,
        differences=findings.differing,
        seconds=round(seconds, 2),
        exit_code=code,
    )
    if output.as_json:
        return code
    output.say("")
    output.cells(
        [
            [r["what"], r["run"], *(human_bytes(r[m]) for m in ("bytes_read", "bytes_new", "bytes_stored")), _s(r)]
            for r in findings.runs
        ],
        ["Backup of", "Run", "Read", "New", "Stored", "Seconds"],
    )
    output.say("")
    output.cells(
        [[r["what"], r["names"], human_bytes(r["bytes"]), _s(r), len(r["differences"])] for r in findings.restores],
        ["Restore of", "Names", "Bytes", "Seconds", "Differences"],
    )
    output.say("")
    for sentence in _costs(findings.runs):
        output.say(sentence)
    for restore in findings.restores:
        for sentence in restore["differences"][:DIFFERENCES_SHOWN]:
            output.stdout.print(Text(shown(f"{restore['what']}: {sentence}"), style="red"))
    verdict = f"{findings.differing} differences. This must not be." if code else "Nothing differs."
    output.stdout.print(Text(f"{verdict} {seconds:.1f} s", style="bold red" if code else "bold green"))
    return code


def _costs(runs: list[dict[str, Any]]) -> Iterator[str]:
    """What each increment cost, beside its first restore point."""
    for first in runs:
        for run in runs:
            if run["what"] == first["what"] and first["run"] == "first" and run["run"] != "first":
                share = 100 * run["bytes_stored"] / max(first["bytes_stored"], 1)
                yield (
                    f"The increment of the {run['what']} cost {human_bytes(run['bytes_stored'])}, "
                    f"{share:.1f} % of the first restore point, and read {human_bytes(run['bytes_read'])}."
                )


def _s(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.2f}"


@contextlib.contextmanager
def _own_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder that only we can enter, removed in the end with everything in it."""
    try:
        own = Path(tempfile.mkdtemp(prefix="strongroom-demo-", dir=parent)).resolve()
    except OSError as err:
        raise CommandRefused(
            reason=f"No folder could be made there: {err.strerror}. Name another with --folder."
        ) from err
    try:
        free = shutil.disk_usage(own).free
        if free < FREE_BYTES_MIN:
            raise CommandRefused(
                reason=f"{own.parent} has {human_bytes(free)} left; the demo needs {human_bytes(FREE_BYTES_MIN)}. "
                "Name another folder with --folder."
            )
        yield own
    finally:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            shutil.rmtree(own, onerror=_open_and_retry)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _open_and_retry(_function: Callable[..., object], path: str, _error: object) -> None:
    """Our data has folders that refuse writes: open the parent of what could not be removed, then try again."""
    for folder in (Path(path).parent, Path(path)):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(stat.S_IRWXU)
    if Path(path).is_dir() and not Path(path).is_symlink():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A polite kill or a closed terminal ends the demo as Ctrl-C does, with everything cleaned up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
