"""Figures of the fault suites for docs/RELIABILITY.md: what was counted, with its seed.

With STRONGROOM_RELIABILITY_REPORT=FILE each suite adds a line of JSON to that file; `python -m bench.reliability FILE`
puts them into the page. Several processes may write at once.
"""

import json
import os
import subprocess
from datetime import UTC, datetime
from functools import cache

VARIABLE = "STRONGROOM_RELIABILITY_REPORT"


@cache
def commit() -> str:
    """Of the code that runs, as this process began."""
    command = ["git", "-C", os.path.dirname(__file__), "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def report(suite: str, *, count: int, seed: int, **figures: int | float | str) -> None:
    """A suite has ended without a failure: `count` cases were checked. `suite` is a key of bench.reliability.SUITES."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    at = datetime.now(UTC).strftime("%Y-%m-%d")
    line = {"suite": suite, "count": count, "seed": seed, "commit": commit(), "at": at, **figures}
    with open(path, "a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
