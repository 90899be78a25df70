"""`identity = keystone` against a real Keystone: its tokens, its projects, its roles; and nothing while it is down."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from harness import Client, Server, make_tree, wait_until
from hostile_world import refused
from real_keystone import PASSWORD, REGION, Keystone

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900)]

CACHE_S = 2


@pytest.fixture(scope="module")
def keystone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keystone]:
    made = Keystone(tmp_path_factory.mktemp("identity") / "keystone").start()
    service = made.project("service")
    made.user("strongroom", service, "service")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def server(keystone: Keystone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(
        tmp_path_factory.mktemp("server") / "state",
        identity="keystone",
        keystone_url=keystone.url,
        keystone_password=PASSWORD,
        keystone_cache_s=str(CACHE_S),
        region=REGION,
    ).start()
    kind = keystone.call("POST", "/services", {"service": {"name": "cbr", "type": "cbr"}})["service"]["id"]
    url = f"{running.endpoint}/v3/%(project_id)s"
    place = {"service_id": kind, "interface": "public", "region_id": REGION, "url": url}
    keystone.call("POST", "/endpoints", {"endpoint": place})
    yield running
    assert running.stop() == 0, running.log()


def ask(server: Server, token: str, path: str, method: str = "GET", body: object = None) -> httpx.Response:
    return httpx.request(method, server.endpoint + path, headers={"X-Auth-Token": token}, json=body)


def test_its_projects_are_the_tenants(keystone: Keystone, server: Server, tmp_path: Path) -> None:
    """A member of one of its projects protects and restores with its token; a reader reads; a second tenant sees
    nothing; a role that is not mapped allows nothing; `admin` of a project is no operator, of the system it is one."""
    project, second = keystone.project("tenant"), keystone.project("second")
    keystone.user("mary", project, "member")
    keystone.user("rita", project, "reader")
    keystone.user("otto", project, "observer")
    keystone.user("sam", second, "admin")
    mary, rita, otto, sam = (
        keystone.token(name, project=place)
        for name, place in (("mary", "tenant"), ("rita", "tenant"), ("otto", "tenant"), ("sam", "second"))
    )
    vaults = f"/v3/{project}/vaults"
    assert ask(server, mary, vaults).json()["vaults"] == []
    source = tmp_path / "share"
    make_tree(source, 1, files=4)
    operator = keystone.token("admin", system=True)
    listed = ask(server, operator, "/ext/v1/admin/projects").json()["projects"]
    assert {"tenant"} <= {p["name"] for p in listed if p["id"] == project}
    body = {"protectable": {"project_id": project, "type": "turbo", "name": "share", "path": str(source)}}
    made = ask(server, operator, "/ext/v1/admin/protectables", "POST", body)
    assert made.status_code == 201, made.text
    client = Client.__new__(Client)
    client.project = project
    client.http = httpx.Client(base_url=server.endpoint, timeout=30, headers={"X-Auth-Token": mary})
    with client:
        vault = client.vault("shares", "turbo", [made.json()["protectable"]["id"]])
        assert client.settled(client.checkpoint(vault))["status"] == "available", server.log()
        (source / "big").write_bytes(b"changed")
        assert client.restore(client.backups()[0]["id"])["status"] == "success"
        assert (source / "big").stat().st_size == 3_000_000
    assert len(ask(server, rita, vaults).json()["vaults"]) == 1
    refused(ask(server, rita, f"{vaults}/{vault}", "DELETE"), 403, "BackupService.8600", "role")
    refused(ask(server, otto, vaults), 403, "BackupService.8600")
    refused(ask(server, sam, vaults), 403, "BackupService.8600", "project")
    refused(ask(server, mary, f"/v3/{second}/vaults"), 403, "BackupService.8600", "project")
    assert ask(server, sam, f"/v3/{second}/vaults").json()["vaults"] == []  # there, `admin` implies `member`
    for token in (mary, sam, keystone.token("admin", project="admin")):
        refused(ask(server, token, "/ext/v1/admin/projects"), 403, "BackupService.8600", "role")


def test_what_keystone_takes_back_counts_no_more(keystone: Keystone, server: Server) -> None:
    """A revoked token, a role taken away, a disabled user: refused within the seconds an answer is used for."""
    project = keystone.project("leavers")
    path = f"/v3/{project}/vaults"
    users = {name: keystone.user(name, project, "member") for name in ("ann", "ben", "cat")}
    tokens = {name: keystone.token(name, project="leavers") for name in users}
    assert {ask(server, token, path).status_code for token in tokens.values()} == {200}
    answer = httpx.delete(
        f"{keystone.url}/auth/tokens", headers={"X-Auth-Token": tokens["ann"], "X-Subject-Token": tokens["ann"]}
    )
    assert answer.status_code == 204, answer.text
    keystone.call("DELETE", f"/projects/{project}/users/{users['ben']}/roles/{keystone.role('member')}")
    keystone.call("PATCH", f"/users/{users['cat']}", {"user": {"enabled": False}})
    for name, token in tokens.items():
        wait_until(lambda t=token: ask(server, t, path).status_code in (401, 403), f"{name} is refused", CACHE_S + 10)
    assert ask(server, "made up", path).status_code == 401
    assert ask(server, "x" * 9000, path).status_code == 401
    ours = {"auth": {"identity": {"methods": ["password"], "password": {"user": {"name": "admin", "password": "x"}}}}}
    text = refused(httpx.post(f"{server.endpoint}/v3/auth/tokens", json=ours), 400, "400")
    assert keystone.url in text


def test_the_openstack_client_finds_the_service_in_its_catalog(keystone: Keystone, server: Server) -> None:
    """`openstack cbr vault list`, unmodified, with nothing but Keystone's address and a password."""
    project = keystone.project("clients")
    keystone.user("carl", project, "member")
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OS_")} | {
        "OS_AUTH_URL": keystone.url,
        "OS_USERNAME": "carl",
        "OS_PASSWORD": PASSWORD,
        "OS_PROJECT_NAME": "clients",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_REGION_NAME": REGION,
        "OS_IDENTITY_API_VERSION": "3",
    }
    command = [str(Path(sys.executable).with_name("openstack")), "cbr", "vault", "list", "-f", "json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_nothing_is_open_while_keystone_is_down(keystone: Keystone, server: Server) -> None:
    """503 with a sentence for every token once its answer is too old, known, unknown and made up alike; access keys go
    on; the service finds Keystone again by itself, also after all of its keys changed."""
    project = keystone.project("outage")
    keystone.user("dora", project, "member")
    token, path = keystone.token("dora", project="outage"), f"/v3/{project}/vaults"
    unused = keystone.token("dora", project="outage")
    assert ask(server, token, path).status_code == 200
    keystone.stop()
    for text in (unused, "made up"):
        refused(ask(server, text, path), 503, "BackupService.9910", "identity service does not answer")
    wait_until(lambda: ask(server, token, path).status_code == 503, "the known token is refused", CACHE_S + 10)
    assert ask(server, "", path).status_code == 401
    listed = subprocess.run(
        [sys.executable, "-m", "strongroom", "project", "list", "--json", "--state", str(server.state)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    keystone.start()
    assert ask(server, token, path).status_code == 200
    for _ in range(4):  # every key that our own token was sealed with is gone
        keystone.rotate_keys()
    keystone.stop()
    keystone.start()
    fresh = keystone.token("dora", project="outage")
    assert ask(server, fresh, path).status_code == 200, server.log()
