"""Everything that can be killed is killed, again and again, under tenants who work; then nothing is lost.

`make chaos SECONDS=60 SEED=7` runs it for as long as you like and prints what was done to whom.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from chaos_tenants import Session, Tenant, digest
from chaos_world import World, world
from harness import Client, make_tree, wait_until
from ready_database import ReadyDatabase
from reliability import report

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(4 * 3600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of connections that are cut and processes that are killed
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SHORT_S, LONG_S = 15, 1800
EVERY_S = 0.7  # two processes in three seconds have to start again: about what two cores can do beside the tenants
POLICY_EVERY = timedelta(minutes=2)


def every_s() -> float:
    return float(os.environ.get("STRONGROOM_CHAOS_EVERY_S", EVERY_S))


def seed() -> int:
    return int(os.environ.get("STRONGROOM_TEST_SEED", "1"))


def test_a_quarter_of_a_minute_of_it(tmp_path: Path, ready_database: ReadyDatabase) -> None:
    """Two APIs, two workers, two tenants: something breaks each second. Every promise holds."""
    with world(tmp_path, ready_database, apis=2, workers=2, seed=seed()) as place:
        told = lived(place, tmp_path, seconds=SHORT_S, tenants=2)
    assert told["restore points compared"] > 0


@pytest.mark.long
def test_half_an_hour_of_it(tmp_path: Path, ready_database: ReadyDatabase) -> None:
    """Three APIs, four workers, four tenants and policies, for STRONGROOM_CHAOS_S seconds."""
    seconds = float(os.environ.get("STRONGROOM_CHAOS_S", LONG_S))
    with world(tmp_path, ready_database, apis=3, workers=4, seed=seed()) as place:
        told = lived(place, tmp_path, seconds=seconds, tenants=4)
    report("chaos", count=told.pop("killed"), seed=seed(), **{name.replace(" ", "_"): n for name, n in told.items()})


def lived(place: World, base: Path, *, seconds: float, tenants: int) -> dict[str, int]:
    """Work under trouble for a while, then calm, then look. Raises what promise was broken; what was done else."""
    with place.many.client() as operator:
        people = [_tenant(place, operator, base, number) for number in range(tenants)]
        due = _policies(operator, base, seconds)
    for one in people:
        one.start()
    began = time.monotonic()
    while time.monotonic() - began < seconds and all(one.failure is None for one in people):
        place.trouble()
        time.sleep(every_s())  # the pace is the test's
    try:
        place.calm()
    finally:
        for one in people:
            one.end()
    with place.many.client() as operator:
        wait_until(lambda: not _open(operator), "no task is open when all is calm", 300)
        compared = sum(one.check() for one in people)
        fired = _fired_once(operator, due)
        compared += sum(_comes_back(operator, one) for one in fired)
        _nothing_half(operator)
        _everything_is_freed(operator, place)
    told = {"killed": place.kills, "restore points compared": compared, "firings": len(fired)}
    for counts in (place.counts, *(one.counts for one in people)):
        for kind, number in counts.items():
            told[kind] = told.get(kind, 0) + number
    print(json.dumps({"seed": seed(), "seconds": seconds, **told}, indent=1))
    return told


def _tenant(place: World, operator: Client, base: Path, number: int) -> Tenant:
    folder = base / f"source-{number}"
    make_tree(folder, number, files=10)
    resource = operator.register("turbo", f"source-{number}", folder)
    vault = operator.vault(f"vault-{number}", "turbo", [resource])
    headers = {"X-Auth-Token": operator.http.headers["X-Auth-Token"]}
    session = Session(place, headers, operator.project)
    return Tenant(session, folder, vault, resource, seed() * 1000 + number)


@dataclass(frozen=True, kw_only=True)
class Due:
    """A vault whose policy fires once, in the minute `at`. digest: of its folder, which nobody changes."""

    vault: str
    folder: Path
    digest: str
    at: datetime


def _policies(operator: Client, base: Path, seconds: float) -> list[Due]:
    """One every two minutes of the run."""
    first = (datetime.now(UTC) + timedelta(seconds=65)).replace(second=0, microsecond=0)
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    due: list[Due] = []
    while first < end:
        folder = base / f"policy-{len(due)}"
        make_tree(folder, 100 + len(due), files=3)
        vault = operator.vault(
            f"policy-{len(due)}", "turbo", [operator.register("turbo", f"policy-{len(due)}", folder)]
        )
        rule = f"FREQ=DAILY;INTERVAL=1;BYHOUR={first.hour};BYMINUTE={first.minute:02}"
        policy = {
            "name": f"policy-{len(due)}",
            "operation_type": "backup",
            "operation_definition": {"max_backups": 5},
            "trigger": {"properties": {"pattern": [rule]}},
        }
        made = operator.ok("POST", "policies", {"policy": policy})["policy"]["id"]
        operator.ok("POST", f"vaults/{vault}/associatepolicy", {"policy_id": made})
        due.append(Due(vault=vault, folder=folder, digest=digest(folder), at=first))
        first += POLICY_EVERY
    return due


def _fired_once(operator: Client, due: list[Due]) -> list[Due]:
    """Those whose minute has come: each has one run of its policy."""
    come = [one for one in due if datetime.now(UTC) >= one.at + timedelta(seconds=30)]
    for one in come:
        found = operator.ok("GET", "backups", vault_id=one.vault)["backups"]
        assert len(found) == 1, (one, found)
    return come


def _comes_back(operator: Client, one: Due) -> bool:
    """What its policy kept, over a folder in which everything has changed since. False: the run failed, and says so."""
    (backup,) = operator.ok("GET", "backups", vault_id=one.vault)["backups"]
    if backup["status"] == "error":
        return False
    shutil.rmtree(one.folder)
    make_tree(one.folder, 0, files=2)
    told = operator.restore(backup["id"])
    assert told["status"] == "success", told
    assert digest(one.folder) == one.digest, (one, told)
    return True


ROUNDS_MAX = 5  # of deletes: the first may meet an installation that still comes to itself


def _everything_is_freed(operator: Client, place: World) -> None:
    """With the last restore points gone, prune leaves no pack: nothing that a dead writer left outlives it."""
    for _ in range(ROUNDS_MAX):
        for backup in _backups(operator):
            operator.ok("DELETE", f"backups/{backup['id']}")
        wait_until(lambda: not _open(operator), "deletes ended", 300)
    if left := _backups(operator):
        logs = operator.ok("GET", "operation-logs", operation_type="delete", limit=5)["operation_logs"]
        raise AssertionError(f"not deleted in {ROUNDS_MAX} rounds: {left}; {logs}")
    wait_until(lambda: not _open(operator, operation_type="prune"), "prunes ended", 300)
    packs = [name for name in place.objects() if "/packs/" in name]
    assert not packs, packs


def _backups(operator: Client) -> list[dict[str, Any]]:
    """All of the project."""
    found: list[dict[str, Any]] = []
    while page := operator.ok("GET", "backups", limit=200, offset=len(found))["backups"]:
        found += page
    return found


def _open(operator: Client, **what: str) -> list[object]:
    return operator.ok("GET", f"/ext/v1/{operator.project}/tasks", open="true", **what)["tasks"]


def _nothing_half(operator: Client) -> None:
    """No restore point, resource or vault is still in the middle of something."""
    states = {backup["status"] for backup in _backups(operator)}
    assert states <= {"available", "error"}, states
    for vault in operator.ok("GET", "vaults", limit=100)["vaults"]:
        assert {resource["protect_status"] for resource in vault["resources"]} <= {"available", "error"}, vault
