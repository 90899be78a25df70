"""Two tenants on one server: no operation reads, changes or gives away anything of the other one (RULINGS 21)."""

import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from every_operation import every_operation
from harness import Client, make_tree, wait_until
from hostile_world import PASSING_TABLES, World, connect
from reliability import report
from tenant_matrix import HOOK, Asked, Tenant, asked_soundly, needs_credentials, of_project, places

from strongroom.api.operation import AUTHENTICATED, Operation
from strongroom.control.access import ACTION_ADMIN, ROLE_TENANT_ADMIN, allowed
from strongroom.control.names import TAG_KEY_LENGTH_MAX

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EVERY = every_operation()
ADMINISTRATOR = frozenset({ROLE_TENANT_ADMIN})
OF_TENANTS = [o for o in EVERY if "{project_id}" in o.path]
# Without a project in the path: what an administrator of a project may ask, and what only others may.
OF_ANYBODY = [
    o for o in EVERY if o not in OF_TENANTS and (o.action == AUTHENTICATED or allowed(ADMINISTRATOR, o.action))
]
OF_OTHERS = [o for o in EVERY if o not in (*OF_TENANTS, *OF_ANYBODY) and needs_credentials(o)]

# What a tenant may not do with its own at the end of this test, each with the reason: everything else must work, else
# its row in the matrix proves nothing.
REFUSED_WITH_OWN = {
    "cancel_task": "the task ended long ago",
    "update_member_status": "only who receives a backup decides",
    "copy_backup": "the server knows no other region",
    "copy_checkpoint": "the server knows no other region",
    "check_region": "the server knows no other region",
    "new_agent_enrolment": "the server listens to no agents",
    **{
        f"{verb}_organization_policy": "the administrator of the domain may"
        for verb in ("create", "show", "update", "delete")
    },
    "list_organization_policies": "the administrator of the domain may",
    "list_organization_policy_detail": "the administrator of the domain may",
}
# Each begins something that others wait for: which is first through is chance, and the others say that they wait.
IN_EACH_OTHERS_WAY = {
    *("create_checkpoint", "import_checkpoint", "import_backup", "restore_backup", "restore_part", "delete_backup"),
    *("migrate_vault_resource", "remove_vault_resource", "delete_vault"),
}
BUSY_WORDS = (" being ", " is busy", "already running", "a running restore")
PUBLIC_PATHS = {"/", "/v3", "/{api_version}", "/v3/auth/tokens", "/healthz", "/readyz", "/metrics"}
LAST = (
    "migrate_vault_resource",
    "remove_vault_resource",
    "delete_backup",
    "delete_vault",
)  # what stands in the way of others
PASSING_HEADERS = frozenset({"x-request-id", "date"})


class Digests:
    """All rows of both tenants, and all of those that are nobody's, as digests."""

    def __init__(self, conn: psycopg.Connection[Any], *projects: str) -> None:
        self._conn = conn
        tables = conn.execute(
            "SELECT t.tablename, EXISTS (SELECT 1 FROM information_schema.columns c WHERE c.table_schema = 'public' "
            "AND c.table_name = t.tablename AND c.column_name = 'project_id') FROM pg_tables t "
            "WHERE t.schemaname = 'public' ORDER BY 1"
        ).fetchall()
        parts = []
        for table, owned in tables:
            if table not in PASSING_TABLES:
                for project in projects if owned else ("",):
                    where = f"WHERE project_id = '{project}'" if owned else ""
                    text = f"md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), '')) FROM {table} t {where}"
                    parts.append(f"SELECT '{table}', '{project}', {text}")
        assert sum(owned for _, owned in tables) > 10
        self._query = " UNION ALL ".join(parts).encode()

    def take(self) -> dict[tuple[str, str], str]:
        return {(table, project): digest for table, project, digest in self._conn.execute(self._query).fetchall()}

    def of(self, project: str, taken: dict[tuple[str, str], str]) -> dict[str, str]:
        return {table: digest for (table, owner), digest in taken.items() if owner == project}


def settle(client: Client, operator: Client, base: Path, letter: str, receivers: tuple[str, str]) -> Tenant:
    """One of everything for a tenant, its resources registered by the operator, and a backup lent to another one."""
    made = {}
    for kind, name in (("turbo", "share"), ("turbo", "spare"), ("turbo", "other"), ("disk", "disk")):
        path = base / f"{letter}-{name}"
        if kind == "turbo":
            make_tree(path, ord(letter), files=4)
        else:
            path.write_bytes(bytes(1 << 20))
        body = {"project_id": client.project, "type": kind, "name": f"{letter}-{name}-of-mine", "path": str(path)}
        made[name] = operator.ok("POST", "/ext/v1/admin/protectables", {"protectable": body})["protectable"]["id"]
    vault = client.vault(f"{letter}-vault-of-mine", "turbo", [made["share"]])
    spare_vault = client.vault(f"{letter}-second-of-mine", "turbo", [])
    checkpoint = client.checkpoint(vault)
    assert client.settled(checkpoint)["status"] == "available"
    trigger = {"properties": {"pattern": ["FREQ=DAILY;INTERVAL=1;BYHOUR=3;BYMINUTE=0"]}}
    policy = {"name": f"{letter}-policy", "operation_type": "backup", "trigger": trigger}
    policy_body = {"policy": {**policy, "operation_definition": {"max_backups": 5}}}
    policy_id = client.ok("POST", "policies", policy_body)["policy"]["id"]
    client.ok("POST", f"vaults/{vault}/associatepolicy", {"policy_id": policy_id})
    client.ok("POST", f"vault/{vault}/tags", {"tag": {"key": "team", "value": f"{letter}-red"}})
    disks = client.vault(f"{letter}-disks-of-mine", "disk", [made["disk"]])
    assert client.settled(client.checkpoint(disks))["status"] == "available"
    lent = client.backups(vault_id=disks)[0]["id"]
    client.ok("POST", f"backups/{lent}/members", {"members": [receivers[0]]})
    host = {"agent_id": str(uuid.uuid4()), "host_name": "web", "host_ip": "10.0.0.1", "host_os": "Debian"}
    agent = client.ok("POST", "agents", {"agent": host})["agent"]["agent_id"]
    hook = client.ok("POST", f"/ext/v1/{client.project}/notifications", {"notification": HOOK})["notification"]["id"]
    client.quiet()
    names = (f"{letter}-vault-of-mine", f"{letter}-share-of-mine", f"{letter}-red", str(base / f"{letter}-share"))
    shown = client.http.get("/v3/auth/tokens", headers={"X-Subject-Token": client.http.headers["X-Auth-Token"]})
    return Tenant(
        project=client.project,
        user=shown.json()["token"]["user"]["id"],
        vault=vault,
        spare_vault=spare_vault,
        resource=made["share"],
        spare=made["spare"],
        other=made["other"],
        disk=made["disk"],
        checkpoint=checkpoint,
        backup=next(b["id"] for b in client.backups() if b["vault_id"] == vault),
        log=next(log["id"] for log in client.ok("GET", "operation-logs", vault_id=vault)["operation_logs"]),
        policy=policy_id,
        agent=agent,
        notification=hook,
        lent=lent,
        receivers=receivers,
        names=names,
    )


class Neighbours:
    """bob asks; carol is who must not be touched. No worker takes a task, so that every change is a request's."""

    def __init__(self, base: Path) -> None:
        self.world = World.build(base)
        operator = self.world.alice
        self.bob_client, carol_client = self.world.bob, self._third(operator)
        fourth = operator.ok("POST", "/ext/v1/admin/projects", {"project": {"name": "fourth"}})["project"]["id"]
        receivers = (operator.project, fourth)
        self.bob = settle(self.bob_client, operator, base, "b", receivers)
        self.carol = settle(carol_client, operator, base, "c", receivers)
        carol_client.http.close()
        self.bob_client.http.close()
        self.world.server.stop()
        self.world.server.start(worker_group="nobody")
        self.bob_client = Client(self.world.server.endpoint, self._login("bob", self.bob.project))
        self.world.alice.http.close()
        self.world.alice = self.world.server.client()
        self.world.bob = self.bob_client

    def _login(self, name: str, project: str) -> dict[str, str]:
        domain = self.world.server.credentials["domain_name"]
        password = "correct horse battery staple"
        return {"project_id": project, "username": name, "password": password, "domain_name": domain}

    def _third(self, operator: Client) -> Client:
        project = operator.ok("POST", "/ext/v1/admin/projects", {"project": {"name": "third"}})["project"]["id"]
        login = self._login("carol", project)
        user = {"name": "carol", "password": login["password"], "project_id": project}
        operator.ok("POST", "/ext/v1/admin/users", {"user": user})
        return Client(self.world.server.endpoint, login)

    def ask(self, asked: Asked) -> httpx.Response:
        content = None if asked.body is None else json.dumps(asked.body).encode()
        return self.bob_client.http.request(asked.operation.method, asked.url, content=content)

    def settle(self) -> None:
        """No task of bob's is open, of which other tests begin some."""
        self.bob_client.quiet()
        tasks = f"/ext/v1/{self.bob.project}/tasks"
        wait_until(
            lambda: not self.bob_client.ok("GET", tasks, open="true", operation_type="prune")["tasks"], "prunes ended"
        )

    def begin(self, asked: Asked) -> tuple[int, str]:
        """Status, and the text of a refusal: what is carried out may answer without end."""
        content = None if asked.body is None else json.dumps(asked.body).encode()
        with self.bob_client.http.stream(asked.operation.method, asked.url, content=content) as answer:
            return answer.status_code, answer.read().decode() if answer.status_code >= 300 else ""


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbours]:
    made = Neighbours(tmp_path_factory.mktemp("tenants"))
    yield made
    made.world.close()


@pytest.fixture
def digests(neighbours: Neighbours) -> Iterator[Digests]:
    neighbours.settle()
    with connect(neighbours.world.server.state) as conn:
        yield Digests(conn, neighbours.bob.project, neighbours.carol.project)


def shown(answer: httpx.Response, value: str) -> tuple[int, list[tuple[str, str]], str]:
    """Everything a client sees, with the id it sent and that of the request left out."""
    headers = [(name, text) for name, text in answer.headers.items() if name not in PASSING_HEADERS]
    text = answer.text.replace(value, "ID").replace(json.dumps(value)[1:-1], "ID")
    text = text.replace(value[:TAG_KEY_LENGTH_MAX], "ID")  # a refusal says no more of a key that cannot be
    return answer.status_code, headers, text.replace(answer.headers["x-request-id"], "REQUEST")


def _differences(neighbours: Neighbours, foreign: Asked, missing: Asked) -> list[str]:
    """Empty when the two answer alike and nothing of carol is in the first."""
    first, second = neighbours.ask(foreign), neighbours.ask(missing)
    assert first.status_code < 500, (str(foreign), first.text, neighbours.world.server.log())
    if shown(first, foreign.value) != shown(second, missing.value):
        return [f"{foreign}\n  {shown(first, foreign.value)}\n  {shown(second, missing.value)}"]
    told = [text for text in neighbours.carol.ids() if text in first.text and text != foreign.value]
    return [f"{foreign} tells {told}"] if told else []


@pytest.mark.parametrize("operation", [*OF_TENANTS, *OF_ANYBODY], ids=lambda o: o.name)
def test_an_id_of_another_tenant_is_an_id_of_nobody(
    neighbours: Neighbours, digests: Digests, operation: Operation
) -> None:
    """In every place of every operation: the answer to carol's id is, byte for byte, that to an id nobody has; no row
    of carol changes, and none of bob's when he was refused."""
    before, carol = digests.take(), neighbours.carol
    found, pairs = [], 0
    for sound in asked_soundly(operation, neighbours.bob):
        for foreign, missing in zip(
            places(sound, carol, missing=False), places(sound, carol, missing=True), strict=True
        ):
            found += _differences(neighbours, foreign, missing)
            pairs += 1
    assert not found, "\n".join(found)
    assert digests.take() == before
    report("foreign ids", count=pairs, seed=0, told=0, rows_changed=0)


@pytest.mark.parametrize("operation", OF_TENANTS, ids=lambda o: o.name)
def test_a_project_of_another_tenant_is_a_project_of_nobody(
    neighbours: Neighbours, digests: Digests, operation: Operation
) -> None:
    """403 for carol's project in the path, with bob's ids and with hers, the same as for one that does not exist."""
    before = digests.take()
    for owner in (neighbours.bob, neighbours.carol):
        sound = asked_soundly(operation, owner)[0]
        hers, nobodys = of_project(sound, neighbours.carol.project), of_project(sound, "e" * 32)
        first, second = neighbours.ask(hers), neighbours.ask(nobodys)
        assert first.status_code == 403, str(hers)
        assert shown(first, hers.value) == shown(second, nobodys.value), str(hers)
    assert digests.take() == before


@pytest.mark.parametrize("operation", OF_OTHERS, ids=lambda o: o.name)
def test_tenants_are_no_operators(neighbours: Neighbours, digests: Digests, operation: Operation) -> None:
    """What is not for tenants, all of /ext/v1/admin, is refused to an administrator of a project, whatever it names."""
    before = digests.take()
    values = dict.fromkeys(re.findall(r"\{(\w+)\}", operation.path), neighbours.carol.spare)
    answer = neighbours.ask(Asked(operation=operation, path=values, query={}, body={}))
    assert answer.status_code == 403 or (operation.action != ACTION_ADMIN and answer.status_code == 401), answer.text
    assert neighbours.carol.spare not in answer.text
    assert digests.take() == before


def test_every_operation_is_in_the_matrix() -> None:
    """Each operation is asked for with foreign ids, is not for tenants, or is one of those that need no credentials."""
    public = [o for o in EVERY if not needs_credentials(o)]
    assert len(OF_TENANTS) + len(OF_ANYBODY) + len(OF_OTHERS) + len(public) == len(EVERY)
    assert all(not allowed(ADMINISTRATOR, o.action) for o in OF_OTHERS)
    assert {o.path for o in public} <= PUBLIC_PATHS
    assert len(OF_TENANTS) >= 50


def test_what_the_matrix_asks_for_works_with_ones_own(neighbours: Neighbours) -> None:
    """The same requests with bob's own ids are carried out: the refusals above come from whose the ids are."""
    order = {"GET": 0, "PUT": 1, "POST": 2, "DELETE": 3}
    rows = sorted(OF_TENANTS, key=lambda o: (LAST.index(o.name) if o.name in LAST else -1, order[o.method]))
    failed = []
    for operation in rows:
        status, text = neighbours.begin(asked_soundly(operation, neighbours.bob)[0])
        if operation.name in IN_EACH_OTHERS_WAY and any(word in text for word in BUSY_WORDS):
            continue
        if (status < 300) == (operation.name in REFUSED_WITH_OWN):
            failed.append(f"{operation.name}: {status} {text}")
    assert not failed, "\n".join(failed)
