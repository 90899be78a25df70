"""The audit log: every change and every refusal is in it, nothing secret is, and nobody takes anything out of it."""

import asyncio
from typing import Any

import psycopg
import pytest
from contract_schema import operations
from in_process_api import PROJECT_A, PROJECT_B, InProcessApi

from strongroom.api.table import OPERATIONS
from strongroom.base.clock import SystemClock
from strongroom.control import audit
from strongroom.control.audit import ALL_BURST, SOURCE_BURST, AuditTrail, Note

UNKNOWN = "8b0851a8-adf3-4f4c-a914-dead08bf9664"
SECRET = "a-name-that-nobody-logs"


def wanted(**members: Any) -> dict[str, Any]:
    billing = {"consistent_level": "crash_consistent", "object_type": "turbo", "protect_type": "backup", "size": 10}
    return {"vault": {"name": "v", "billing": billing, "resources": [], **members}}


async def listed(api: InProcessApi, **query: Any) -> list[dict[str, Any]]:
    answer = await api.alice.get(f"/ext/v1/{PROJECT_A}/audit", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["audit"]  # type: ignore[no-any-return]


async def test_a_change_is_recorded_with_who_and_where(api: InProcessApi) -> None:
    """One row a request, with the ids of the path, the request's id, and no word of its body."""
    made = await api.alice.post("/vaults", json=wanted(description=SECRET))
    vault = made.json()["vault"]["id"]
    changed = await api.alice.put(f"/vaults/{vault}", json={"vault": {"name": "other"}})
    rows = await listed(api)
    assert [row["operation"] for row in rows] == ["update_vault", "create_vault"]
    first = rows[1]
    assert (first["user_name"], first["user_id"], first["address"]) == (
        "alice",
        b"alice".hex().ljust(32, "0"),
        "127.0.0.1",
    )
    assert (first["outcome"], first["status"], first["error_code"]) == ("done", 200, "")
    assert first["request_id"] == made.headers["x-request-id"]
    assert rows[0]["objects"] == {"vault_id": vault}
    assert rows[0]["request_id"] == changed.headers["x-request-id"]
    everything = await api.rows("SELECT * FROM audit_log")
    assert SECRET not in str(everything)
    assert "token-of" not in str(everything)


async def test_a_change_that_does_not_happen_is_not_recorded(api: InProcessApi) -> None:
    """A refusal by state rolls the record back with the change; reading leaves none, nor does a POST that finds."""
    made = (await api.alice.post("/vaults", json=wanted())).json()["vault"]["id"]
    await api.execute("UPDATE vaults SET status = 'deleting' WHERE id = %s", made)
    refused = await api.alice.put(f"/vaults/{made}", json={"vault": {"name": "other"}})
    assert refused.status_code == 400
    assert (await api.alice.get("/vaults")).status_code == 200
    found = await api.alice.post("/vault/resource_instances/action", json={"action": "count"})
    assert found.status_code == 200, found.text
    assert [row["operation"] for row in await listed(api)] == ["create_vault"]


async def test_without_the_record_there_is_no_change(api: InProcessApi) -> None:
    """When the row cannot be written the change is taken back: they are one transaction."""
    await api.execute("ALTER TABLE audit_log ADD CONSTRAINT refusing CHECK (operation <> 'create_vault')")
    assert (await api.alice.post("/vaults", json=wanted())).status_code == 500
    assert await api.rows("SELECT 1 FROM vaults") == []


async def test_refusals_are_recorded(api: InProcessApi) -> None:
    """Another tenant's id, another project, a missing role, bad credentials: each with its code, in the own log."""
    vault = (await api.alice.post("/vaults", json=wanted())).json()["vault"]["id"]
    await api.bob.get(f"/vaults/{vault}")
    await api.bob.get(f"/v3/{PROJECT_A}/vaults")
    await api.rita.post("/vaults", json=wanted())
    await api.nobody.delete(f"/vaults/{vault}")
    rows = (await api.oscar.get("/ext/v1/admin/audit", params={"outcome": "refused"})).json()["audit"]
    told = [(row["operation"], row["status"], row["error_code"], row["user_name"], row["project_id"]) for row in rows]
    assert told == [
        ("delete_vault", 401, "APIGW.0301", "", ""),
        ("create_vault", 403, "BackupService.8600", "rita", PROJECT_A),
        ("list_vault", 403, "BackupService.8600", "bob", PROJECT_B),
        ("show_vault", 404, "BackupService.6105", "bob", PROJECT_B),
    ]
    assert [row["objects"] for row in rows] == [
        {"project_id": PROJECT_A, "vault_id": vault},
        {},
        {"project_id": PROJECT_A},
        {"vault_id": vault},
    ]
    assert {row["user_name"] for row in await listed(api)} == {"alice", "rita"}, "nobody fills another one's log"


async def test_the_list_is_filtered_and_paged(api: InProcessApi) -> None:
    """By operation, user, outcome and time; pages by marker hold every row once; bad values are 9900."""
    for _ in range(5):
        await api.alice.post("/vaults", json=wanted())
    await api.rita.post("/vaults", json=wanted())
    everything = await listed(api)
    assert len(everything) == 6
    seen, marker = [], None
    for _ in range(10):
        query = {"limit": 2} | ({"marker": marker} if marker else {})
        page = (await api.alice.get(f"/ext/v1/{PROJECT_A}/audit", params=query)).json()
        seen += page["audit"]
        marker = page["next_marker"]
        if marker is None:
            break
    assert seen == everything
    assert len(await listed(api, user="rita")) == 1
    assert len(await listed(api, user=b"alice".hex().ljust(32, "0"))) == 5
    assert len(await listed(api, outcome="refused")) == 1
    assert len(await listed(api, operation="delete_vault")) == 0
    assert len(await listed(api, start_time="2020-01-01T00:00:00Z", end_time="2020-01-02T00:00:00Z")) == 0
    assert len(await listed(api, start_time="2020-01-01T00:00:00Z")) == 6
    for query in ({"limit": 0}, {"marker": "x"}, {"marker": "9" * 19}, {"start_time": "now"}, {"outcome": "x"}):
        answer = await api.alice.get(f"/ext/v1/{PROJECT_A}/audit", params=query)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "BackupService.9900"), query


async def test_only_administrators_read_it(api: InProcessApi) -> None:
    """A reader and another project do not; the operator reads all projects, or one."""
    await api.alice.post("/vaults", json=wanted())
    await api.bob.post("/vaults", json=wanted())
    assert (await api.rita.get(f"/ext/v1/{PROJECT_A}/audit")).status_code == 403
    assert (await api.bob.get(f"/ext/v1/{PROJECT_A}/audit")).status_code == 403
    assert (await api.alice.get("/ext/v1/admin/audit")).status_code == 403
    every = (await api.oscar.get("/ext/v1/admin/audit", params={"outcome": "done"})).json()["audit"]
    assert {row["project_id"] for row in every} == {PROJECT_A, PROJECT_B}
    one = (await api.oscar.get("/ext/v1/admin/audit", params={"outcome": "done", "project_id": PROJECT_B})).json()
    assert {row["project_id"] for row in one["audit"]} == {PROJECT_B}


async def test_what_the_operator_does_to_a_project_is_in_its_log(api: InProcessApi) -> None:
    """A quota that was set is seen by who is bound by it."""
    path = f"/ext/v1/admin/projects/{PROJECT_A}/quotas"
    assert (await api.oscar.put(path, json={"quotas": {"vaults": 3}})).status_code == 200
    (row,) = await listed(api)
    assert (row["operation"], row["user_name"]) == ("admin_set_quotas", "oscar")


async def test_rows_are_kept_by_the_database(api: InProcessApi) -> None:
    """No statement changes, empties or shortens the log; what is old by the clock of promises goes, and only that."""
    await api.alice.post("/vaults", json=wanted())
    for statement in (
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "UPDATE audit_log SET user_name = 'bob'",
        "UPDATE audit_log SET kept_from = kept_from - interval '1 year'",
    ):
        with pytest.raises(psycopg.errors.RaiseException, match="only added to"):
            await api.execute(statement)
    await api.execute(
        "INSERT INTO audit_log (at, kept_from, project_id, user_id, user_name, address, operation, objects, outcome, "
        "status, request_id) VALUES (now(), '2000-01-01', '', '', '', '', 'x', '{}', 'done', 200, '')"
    )
    assert await audit.purge(api.database, 30) == 0, "an old date of its own makes no row old"
    await api.execute("ALTER TABLE promise_clock DISABLE TRIGGER promise_clock_runs")
    await api.execute("UPDATE promise_clock SET at = at + interval '40 days'")
    await api.alice.post("/vaults", json=wanted())
    assert await audit.purge(api.database, 50) == 0
    assert await audit.purge(api.database, 30) == 2
    assert [row["operation"] for row in await listed(api)] == ["create_vault"]


async def test_a_flood_of_refusals_is_bounded_and_counted(api: InProcessApi) -> None:
    """Of one source so many at once, of all so many; what is left out is told by the next row that is written."""

    class Still(SystemClock):
        at = 0.0

        def monotonic_s(self) -> float:
            return self.at

    clock, trail = Still(), AuditTrail()

    def note(address: str) -> Note:
        return Note(operation="x", request_id="r", address=address, objects={}, status=200, clock=clock)

    async def count() -> int:
        return int((await api.rows("SELECT count(*) AS n FROM audit_log"))[0]["n"])

    for _ in range(int(SOURCE_BURST) + 20):
        await trail.refused(api.database, note("10.0.0.1"), 401, "APIGW.0301")
    assert await count() == SOURCE_BURST
    for source in range(int(ALL_BURST)):
        await trail.refused(api.database, note(f"10.1.{source}"), 401, "APIGW.0301")
    assert await count() == ALL_BURST
    clock.at = 60.0
    await trail.refused(api.database, note("10.0.0.2"), 401, "APIGW.0301")
    (last,) = await api.rows("SELECT left_out FROM audit_log ORDER BY id DESC LIMIT 1")
    assert last["left_out"] == SOURCE_BURST, "of the second flood; the first was told by its first row"
    assert (await api.rows("SELECT sum(left_out) AS n FROM audit_log"))[0]["n"] == SOURCE_BURST + 20


async def test_texts_of_callers_are_bounded(api: InProcessApi) -> None:
    """A claimed name of megabytes or with a NUL is cut and made printable, and recorded all the same."""
    clock = SystemClock()
    note = Note(
        operation="create_token", request_id="r", address="a", objects={"key": "k" * 9999}, status=201, clock=clock
    )
    note.user_name = "\x00\ud800" + "n" * 100_000
    await AuditTrail().refused(api.database, note, 401, "APIGW.0301")
    (row,) = await api.rows("SELECT user_name, objects FROM audit_log")
    assert row["user_name"] == "??" + "n" * (audit.TEXT_CHARS_MAX - 2)
    assert len(row["objects"]["key"]) == audit.TEXT_CHARS_MAX


async def test_concurrent_changes_are_all_recorded(api: InProcessApi) -> None:
    """Twenty at once are twenty rows: no request records another one's, none is recorded twice."""
    answers = await asyncio.gather(*(api.alice.post("/vaults", json=wanted()) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert {row["request_id"] for row in await listed(api)} == {a.headers["x-request-id"] for a in answers}
    assert len(await listed(api)) == 20


def test_every_operation_has_a_name_to_be_found_by() -> None:
    """What stands in the log is an operationId: of CBR's document, or of ours."""
    published = set(operations())
    assert all(
        operation.name in published or operation.path.startswith(("/ext/", "/healthz", "/readyz", "/metrics"))
        for operation in OPERATIONS
    )
