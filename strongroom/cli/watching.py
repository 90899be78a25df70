"""Watch tasks until they end: bars for people, status lines for programs.

The server tells what changes (cli/following.py); where it does not, because too many listen or something on the way
takes no streams, it is asked: one request a look, whatever the number of tasks, since what is missing from the list of
open tasks has ended and is then read once. A server that restarts meanwhile is waited for, because its tasks go on.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from strongroom.base.units import human_bytes
from strongroom.cli.client import Client, Json
from strongroom.cli.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_PARTLY_DONE,
    AnswerStrange,
    RequestRefused,
    ServerUnreachable,
)
from strongroom.cli.following import followed
from strongroom.cli.output import Output, shown

LOOK_EVERY_S = 0.5  # what a person sees as live; a hundred watchers are 200 requests a second
RECONNECT_S = 60.0  # a restart takes seconds; after a minute somebody should be told
NO_STREAM = frozenset({404, 429, 501, 502, 503})  # then it is asked now and then
ENDED = frozenset({"success", "skipped", "failed", "timeout"})

Sleep = Callable[[float], None]


def watch(
    client: Client, output: Output, ids: Sequence[str], *, every_s: float = LOOK_EVERY_S, sleep: Sleep = time.sleep
) -> list[Json]:
    """The tasks as they ended, in the order of `ids`. Ctrl-C stops the watching, not the tasks."""
    ended: dict[str, Json] = {}
    open_ids = list(ids)
    with _bars(output) as bars:
        numbers: dict[str, Any] = {}
        silent_since: float | None = None
        while open_ids:
            try:
                for rows in _told(client, open_ids):
                    silent_since = None
                    for row in rows:
                        _draw(bars, numbers, row)
                        output.line("status", **_status(row))
                        if row["status"] in ENDED:
                            ended[row["id"]] = row
                    open_ids[:] = [task_id for task_id in open_ids if task_id not in ended]
                    if not open_ids:
                        break
            except (ServerUnreachable, AnswerStrange):
                silent_since = silent_since if silent_since is not None else time.monotonic()
                if time.monotonic() - silent_since > RECONNECT_S:
                    raise
            if open_ids:
                sleep(every_s)
    return [ended[task_id] for task_id in ids]


def outcome_code(tasks: Sequence[Json]) -> int:
    """0 when all succeeded, 1 when none did, 3 in between."""
    good = sum(task["status"] == "success" for task in tasks)
    if good == len(tasks):
        return EXIT_OK
    return EXIT_PARTLY_DONE if good else EXIT_FAILED


def tell_failures(output: Output, tasks: Sequence[Json]) -> None:
    """A line for each task that did not succeed: which resource, why."""
    for task in tasks:
        if task["status"] != "success":
            reason = task.get("error_message") or "no reason was given"
            output.warn(f"{_label(task)}: {task['status']}: {shown(reason)}")


def _told(client: Client, open_ids: Sequence[str]) -> Iterator[list[Json]]:
    """Rows of open tasks as they change, beginning with all of them; ends when it has to be called again."""
    try:
        with followed(client) as told:
            for kind, data in told:
                if kind in ("ready", "reset"):
                    yield _look(client, open_ids)
                elif kind == "task" and data["task"]["id"] in open_ids:
                    yield [data["task"]]
    except RequestRefused as refused:
        if refused.status not in NO_STREAM:
            raise
        yield _look(client, open_ids)


def _look(client: Client, ids: Sequence[str]) -> list[Json]:
    if len(ids) == 1:
        return [client.get(client.ext(f"tasks/{ids[0]}"))["task"]]
    listed = {row["id"]: row for row in client.get(client.ext("tasks"), open=True)["tasks"]}
    return [listed.get(task_id) or client.get(client.ext(f"tasks/{task_id}"))["task"] for task_id in ids]


def _status(row: Json) -> Json:
    members = (
        "operation_type",
        "status",
        "progress",
        "bytes_done",
        "bytes_total",
        "bytes_total_exact",
        "rate_bytes_s",
        "remaining_s",
        "entries_done",
        "resource_name",
        "error_code",
        "error_message",
    )
    return {"task_id": row["id"]} | {member: row.get(member) for member in members}


def _label(row: Json) -> str:
    return shown(f"{row['operation_type']} {row.get('resource_name') or row.get('vault_id') or ''}".strip())


@contextlib.contextmanager
def _bars(output: Output) -> Iterator[Progress | None]:
    """Bars on stderr while somebody looks; they stay when the work has ended."""
    if not output.live:
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}", markup=False),
    )
    with Progress(*columns, console=output.stderr) as bars:
        yield bars


def _draw(bars: Progress | None, numbers: dict[str, Any], row: Json) -> None:
    if bars is None:
        return
    if row["id"] not in numbers:
        numbers[row["id"]] = bars.add_task(_label(row), total=100, state="", amount="")
    done, total = row.get("bytes_done") or 0, row.get("bytes_total") or 0
    if row["status"] == "success":
        done = max(done, total)  # of a deletion or a check the last note of the progress is some seconds old
    amount = f"{human_bytes(done)} of {human_bytes(total)}" if total else human_bytes(done) if done else ""
    if row.get("rate_bytes_s"):
        amount += f", {human_bytes(row['rate_bytes_s'])}/s"
    progress = 100 if row["status"] == "success" else row.get("progress") or 0
    bars.update(numbers[row["id"]], completed=progress, state=row["status"], amount=amount)
    if row["status"] in ENDED:
        bars.stop_task(numbers[row["id"]])
