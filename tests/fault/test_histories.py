"""Histories drawn from a seed, against a dict: backups, deletes, prunes, copies, rebuilds, crashes, jumps, company.

A history is a dozen steps on one vault. In a step the store may fail at the N-th call or the machine may die there,
another process may do its whole work ahead of the N-th call, and a reader may hold its session over many steps. The
dict says what was acknowledged. After every step a new process finds all of it, byte for byte, and whatever else is
visible is whole; at the end a deep verify finds nothing and a prune leaves nothing that no restore point needs.

STRONGROOM_TEST_SEED draws other histories, STRONGROOM_TEST_HISTORY=N tells only number N of them, with its steps.
"""

import os
import random
from collections import Counter

import pytest
from history_world import History
from reliability import report

from strongroom.base.errors import Corrupt, ObjectMissing
from strongroom.engine import ProcessSessions

SEED = int(os.environ.get("STRONGROOM_TEST_SEED", "1"))
ONLY = os.environ.get("STRONGROOM_TEST_HISTORY")
SHORT, LONG = 100, 2000
STEPS = 12


def tell(number: int) -> Counter[str]:
    """One history; what happened in it, counted. Fails with its steps."""
    history = History(random.Random(f"{SEED} {number}"))
    try:
        for _ in range(STEPS):
            history.step()
        history.end()
    except BaseException as err:
        steps = "\n  ".join(history.told)
        raise AssertionError(f"seed {SEED}, history {number}: {err!r}\n  {steps}") from err
    if ONLY:
        print("\n".join(history.told))
    return history.counts


def tell_all(count: int) -> Counter[str]:
    numbers = [int(ONLY)] if ONLY else range(count)
    counts: Counter[str] = Counter()
    for number in numbers:
        counts += tell(number)
    print(f"{len(numbers)} histories, seed {SEED}: {dict(sorted(counts.items()))}")
    return counts


def test_histories_agree_with_a_dict() -> None:
    """A hundred of them."""
    counts = tell_all(SHORT)
    if not ONLY:
        assert (
            min(counts[what] for what in ("backup", "delete", "prune", "copy", "rebuild", "crashed", "met", "reader"))
            > 3
        )


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_thousands_of_histories_agree_with_a_dict() -> None:
    """Two thousand of them."""
    counts = tell_all(LONG)
    done = {what: counts[what] for what in sorted(counts)}
    report("histories", count=LONG, seed=SEED, steps=STEPS * LONG, **done)


def test_a_history_notices_a_lost_root() -> None:
    """The dict bites: a root that goes without a delete ends the history."""
    history = History(random.Random(f"{SEED} lost"))
    while not history.world.kept:
        history.step()
    name = min(history.world.kept)
    history.disk.delete(next(info.name for info in history.disk.list("") if info.name.endswith(f"/roots/{name}")))
    with pytest.raises(AssertionError, match="is lost"):
        history.check()


def test_histories_notice_a_prune_that_sees_no_sessions() -> None:
    """The readers bite: without pins one of them, or a backup in company, loses what it relied on."""

    class Blind(ProcessSessions):
        def oldest_pinned(self) -> int | None:
            return None

    def lose() -> None:
        for number in range(200):
            history = History(random.Random(f"{SEED} blind {number}"))
            history.sessions = Blind()
            for _ in range(STEPS):
                history.step()
            history.end()

    with pytest.raises((AssertionError, Corrupt, ObjectMissing)):
        lose()
