"""Projects, domains, features and the migration of a domain, against the contract: only the caller's own."""

from typing import Any

import pytest
from contract_schema import check_answer, check_error
from in_process_api import CALLERS, DOMAIN, PROJECT_A, PROJECT_B, InProcessApi

from strongroom.control.db import Database

ALICE, OSCAR = (CALLERS[f"token-of-{name}"].user_id for name in ("alice", "oscar"))


@pytest.fixture
async def people(api: InProcessApi) -> InProcessApi:
    """Accounts behind the tokens: alice has a role on her project, oscar administers the domain `default`."""
    await api.execute("INSERT INTO domains (id, name, created_at) VALUES ('default', 'default', now())")
    for user_id, name, domain in ((ALICE, "alice", DOMAIN), (OSCAR, "oscar", DOMAIN)):
        await api.execute(
            "INSERT INTO users (id, domain_id, name, password_hash, created_at) VALUES (%s, %s, %s, '', now())",
            *(user_id, domain, name),
        )
    await api.execute("INSERT INTO role_assignments VALUES (%s, %s, 'te_admin')", ALICE, PROJECT_A)
    return api


async def test_projects_are_those_of_the_caller(people: InProcessApi) -> None:
    """Somebody sees the projects they have a role on and the one of their token; an administrator of the domain all."""
    answer = check_answer("list_projects", await people.alice.get("/v3/region-projects"))
    (project,) = answer["projects"]
    assert (project["id"], project["name"], project["domain_id"]) == (PROJECT_A, "a", DOMAIN)
    assert project["links"]["self"].endswith(f"/v3/projects/{PROJECT_A}")
    found = check_answer("list_projects", await people.oscar.get("/v3/region-projects"))["projects"]
    assert [project["id"] for project in found] == [PROJECT_A, PROJECT_B]
    found = check_answer("list_projects", await people.bob.get("/v3/region-projects"))["projects"]
    assert [project["id"] for project in found] == [PROJECT_B]
    check_error("list_projects", await people.nobody.get("/v3/region-projects"), 401, "APIGW.0301")


async def test_links_are_those_of_the_endpoint_setting(database: Database) -> None:
    """Behind a proxy that ends TLS, links name what clients reach."""
    async with await InProcessApi.start(database, endpoint="https://backup.example.org") as api:
        answer = check_answer("list_projects", await api.alice.get("/v3/region-projects"))
    assert answer["links"]["self"] == "https://backup.example.org/v3/region-projects"


async def test_a_domain_is_found_by_its_name_and_by_a_project(people: InProcessApi) -> None:
    """Both tell of the caller's own projects only."""
    answer = check_answer("list_domain_projects", await people.alice.get("/v3/domain/tests/projects"))
    assert answer == {"projects": [{"project_id": PROJECT_A, "project_name": "a"}]}
    answer = check_answer("show_domain", await people.alice.get(f"/v3/domain/{PROJECT_A}"))
    assert answer == {"project_id": PROJECT_A, "project_name": "a", "domain_id": DOMAIN, "domain_name": "tests"}


async def test_a_foreign_domain_answers_like_an_absent_one(people: InProcessApi) -> None:
    """So do foreign projects; what is no id is refused."""
    answers = [await people.alice.get(f"/v3/domain/{name}/projects") for name in ("default", "nowhere", "%00")]
    assert len({str(check_error("list_domain_projects", answer, 404, "9900")) for answer in answers}) == 1
    for project in (PROJECT_B, "0" * 32):
        body = check_error("show_domain", await people.alice.get(f"/v3/domain/{project}"), 404, "9900")
        assert body["error_msg"] == f"Account {project} does not exist."
    check_error("show_domain", await people.alice.get("/v3/domain/my-project"), 400, "9900")
    check_error("show_domain", await people.nobody.get(f"/v3/domain/{PROJECT_A}"), 401, "APIGW.0301")


async def test_a_domain_has_nothing_to_migrate(people: InProcessApi) -> None:
    """Asked for or not, every project of the caller is done; a reader may look, and not ask."""
    body = {"all_regions": True, "reservation": 0.2}
    answer = check_answer("migrate_domain", await people.alice.post("/v3/migrates", json=body))
    assert answer == {PROJECT_A: "success"}
    answer = check_answer("show_migrate_status", await people.alice.get("/v3/migrates?all_regions=true"))
    assert answer["status"] == "success"
    assert [(row["project_id"], row["progress"]) for row in answer["project_status"]] == [(PROJECT_A, 100)]
    check_answer("show_migrate_status", await people.rita.get("/v3/migrates"))
    check_error("migrate_domain", await people.rita.post("/v3/migrates", json=body), 403, "8600")
    for bad in ({}, {"all_regions": True}, body | {"reservation": 1.5}, body | {"reservation": "much"}):
        check_error("migrate_domain", await people.alice.post("/v3/migrates", json=bad), 400, "9900")
    refused = await people.alice.get("/v3/migrates?all_regions=some")
    check_error("show_migrate_status", refused, 400, "9900")


async def test_features_tell_what_is_here(api: InProcessApi) -> None:
    """A flat map in pages, each entry also by its key; an unknown key is refused with the known ones."""
    found: dict[str, Any] = check_answer("list_features", await api.rita.get("/cbr-features"))
    assert found["replication.source_region"] == api.services.region
    assert found["features.backup_double_az"] is False
    for key, value in found.items():
        answer = check_answer("show_feature", await api.alice.get(f"/cbr-features/{key}"))
        assert answer == {key: value}
    pages = [
        check_answer("list_features", await api.alice.get(f"/cbr-features?limit=2&offset={at}")) for at in (0, 2, 4, 6)
    ]
    assert [len(page) for page in pages] == [2, 2, len(found) - 4, 0]
    assert {key: value for page in pages for key, value in page.items()} == found
    refused = check_error("show_feature", await api.alice.get("/cbr-features/warp"), 400, "9900")
    assert "replication.enable" in refused["error_msg"]
    for query in ("limit=0", "limit=1001", "offset=-1", "limit=many"):
        check_error("list_features", await api.alice.get(f"/cbr-features?{query}"), 400, "9900")
        check_error("show_feature", await api.alice.get(f"/cbr-features/replication.enable?{query}"), 400, "9900")
    check_error("list_features", await api.bob.get(f"/v3/{PROJECT_A}/cbr-features"), 403, "8600")
