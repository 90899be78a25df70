"""Everything that clients get wrong, or try: the contract's code, a sentence that helps, nothing changed."""

import os
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import contents, make_tree
from hostile_world import MISSING, Raw, Rows, World, connect, refused

from strongroom.base.signing import sign
from strongroom.control.tokens import Ring, Token, TokenRing

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TURBO, DISK = "OS::Sfs::Turbo", "OS::Cinder::Volume"
BODY_S_MAX = 20  # of the server
REQUESTS_MAX = 200  # its default


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World.build(tmp_path_factory.mktemp("bad"))
    yield made
    made.close()


@pytest.fixture
def rows(world: World) -> Iterator[Rows]:
    with connect(world.server.state) as conn:
        yield Rows(conn)


def ask(world: World, method: str, path: str, body: object = None, **more: Any) -> httpx.Response:
    url = path if path.startswith("/") else f"/v3/{world.alice.project}/{path}"
    return world.alice.http.request(method, url, json=body, **more)


# --- the forms of values ----------------------------------------------------------------------------------------------


def test_wrong_values_are_named_and_change_nothing(world: World, rows: Rows) -> None:
    """Wrong types, sizes out of range, long names, angle brackets: 400 with the member in the sentence."""
    billing = {"object_type": "turbo", "protect_type": "backup", "consistent_level": "crash_consistent", "size": 100}
    good = {"name": "v", "billing": billing, "resources": []}
    before = rows.count()

    def create(code: str, *words: str, **members: Any) -> None:
        refused(ask(world, "POST", "vaults", {"vault": good | members}), 400, f"BackupService.{code}", *words)

    create("9900", "vault.name", name=5)
    create("9900", "vault.name", name="n" * 300)
    create("9900", "vault.name", name="")
    create("9900", "vault.description", description="a <b> c")
    create("9900", "vault.billing.size", billing=billing | {"size": "100"})
    create("9900", "vault.billing.size", billing=billing | {"size": True})
    create("6101", "10485760", billing=billing | {"size": 9})
    create("6101", "10485760", billing=billing | {"size": 10485761})
    create("9900", "vault.resources", resources=None)
    create("9900", "billing", billing=[])
    create("9900", "object_type", billing=billing | {"object_type": "floppy"})
    for body in ([], {}, {"vault": None}, "vault", 7):
        refused(ask(world, "POST", "vaults", body), 400, "BackupService.9900")

    def protect(code: str, *words: str, vault_id: object = world.vault, **parameters: Any) -> None:
        body = {"checkpoint": {"vault_id": vault_id, "parameters": parameters}}
        refused(ask(world, "POST", "checkpoints", body), 400, f"BackupService.{code}", *words)

    protect("9900", "vault_id", vault_id="not-an-id")
    protect("9900", "vault_id", vault_id=7)
    protect("9900", "name", name="n" * 300)
    protect("9900", "description", description="<")
    protect("9900", "resources", resources="all")
    protect("9900", "resource id", resources=["1"])
    protect("6104", "twice", resources=[world.share, world.share])
    protect("6135", "not in vault", resources=[world.spare])
    protect("9900", "retention", retention_duration_days=0)
    protect("9900", "retention", retention_duration_days=10**30)

    def rename(name: object) -> None:
        body = {"backup": {"name": name}}
        refused(ask(world, "PUT", f"backups/{world.first}", body), 400, "BackupService.9900", "name")

    for name in (None, 5, "", "n" * 300, "a/b", "<", "a\nb"):
        rename(name)
    for query in ("limit=0", "limit=1001", "limit=x", "offset=-1", "offset=" + "9" * 30, "marker=x", "sort=id;drop"):
        refused(ask(world, "GET", f"backups?{query}"), 400, "BackupService.9900")
    refused(ask(world, "GET", f"backups?marker={MISSING}"), 400, "BackupService.9900", "marker")
    assert rows.count() == before


def test_unknown_and_malformed_ids_have_their_codes(world: World, rows: Rows) -> None:
    """A missing id is 404 with the code of its kind, a malformed one 400, in every place an id can stand."""
    before = rows.count()
    alice = world.alice.project
    for method, path, code, body in (
        ("GET", "vaults/{}", "6105", None),
        ("PUT", "vaults/{}", "6105", {"vault": {"name": "x"}}),
        ("DELETE", "vaults/{}", "6105", None),
        ("POST", "vaults/{}/addresources", "6105", {"resources": [{"id": world.spare, "type": TURBO}]}),
        ("POST", "vaults/{}/removeresources", "6105", {"resource_ids": [world.spare]}),
        ("GET", "checkpoints/{}", "6217", None),
        ("GET", "backups/{}", "6200", None),
        ("PUT", "backups/{}", "6200", {"backup": {"name": "x"}}),
        ("DELETE", "backups/{}", "6200", None),
        ("POST", "backups/{}/restore", "6200", {"restore": {}}),
        ("GET", "operation-logs/{}", "6500", None),
        ("GET", "protectables/turbo/instances/{}", "6302", None),
        ("GET", "protectables/disk/instances/{}", "7000", None),
        ("GET", f"/ext/v1/{alice}/backups/{{}}", "6200", None),
        ("GET", f"/ext/v1/{alice}/backups/{{}}/entries", "6200", None),
        ("GET", f"/ext/v1/{alice}/backups/{{}}/download?path=big", "6200", None),
        ("POST", f"/ext/v1/{alice}/backups/{{}}/restore", "6200", {"restore": {}}),
        ("GET", f"/ext/v1/{alice}/tasks/{{}}", "6500", None),
        ("POST", f"/ext/v1/{alice}/tasks/{{}}/cancel", "6500", None),
        ("DELETE", "/ext/v1/admin/protectables/{}", "6302", None),
    ):
        refused(ask(world, method, path.format(MISSING), body), 404, f"BackupService.{code}")
        for malformed in ("1", MISSING.upper() + "x", world.vault.upper(), "%00", "%ff", "..%5c..", "%zz"):
            refused(ask(world, method, path.format(malformed), body), 400, "BackupService.9900", "nvalid")
    resource = {"resources": [{"id": MISSING, "type": TURBO}]}
    refused(ask(world, "POST", f"vaults/{world.vault}/addresources", resource), 404, "BackupService.6302")
    body = {"checkpoint": {"vault_id": MISSING}}
    refused(ask(world, "POST", "checkpoints", body), 404, "BackupService.6105")
    body = {"checkpoint": {"vault_id": world.vault, "parameters": {"resources": [MISSING]}}}
    refused(ask(world, "POST", "checkpoints", body), 404, "BackupService.6302")
    body = {"restore": {"resource_id": MISSING}}
    refused(ask(world, "POST", f"backups/{world.first}/restore", body), 404, "BackupService.6302")
    assert rows.count() == before


# --- vaults and resources in a state that refuses ---------------------------------------------------------------------


def test_vaults_refuse_what_their_state_forbids(world: World, rows: Rows) -> None:
    """Bound twice, empty, full: each with the published code and what to do about it."""
    alice = world.alice
    other = alice.vault("other", "turbo", [])
    before = rows.count()
    body = {"resources": [{"id": world.share, "type": TURBO}]}
    refused(ask(world, "POST", f"vaults/{other}/addresources", body), 400, "BackupService.6103")
    body = {"resources": [{"id": world.disk, "type": DISK}]}
    refused(ask(world, "POST", f"vaults/{other}/addresources", body), 400, "BackupService.6102")
    refused(ask(world, "POST", "checkpoints", {"checkpoint": {"vault_id": other}}), 400, "BackupService.0001", "Add")
    with connect(world.server.state) as conn:
        used = conn.execute("SELECT used_bytes FROM vaults WHERE id = %s", [world.vault]).fetchone()
        full = "UPDATE vaults SET used_bytes = %s WHERE id = %s"
        conn.execute(full, [100 << 30, world.vault])
        try:
            body = {"checkpoint": {"vault_id": world.vault}}
            refused(ask(world, "POST", "checkpoints", body), 400, "BackupService.6114", "full")
        finally:
            assert used is not None
            conn.execute(full, [used[0], world.vault])
    assert rows.count() == before
    alice.ok("DELETE", f"vaults/{other}")


def test_a_vault_that_fills_during_a_backup_fails_that_resource_only(world: World) -> None:
    """6114 for what did not fit, in the checkpoint and in its log; what fits is available and restorable."""
    alice, base = world.alice, world.base
    large, small = base / "large", base / "small"
    large.mkdir()
    small.mkdir()
    (large / "data").write_bytes(os.urandom(4 << 20))
    (small / "data").write_bytes(b"fits")
    large_id, small_id = alice.register("turbo", "large", large), alice.register("turbo", "small", small)
    vault = alice.vault("tight", "turbo", [large_id, small_id])
    with connect(world.server.state) as conn:
        conn.execute("UPDATE vaults SET used_bytes = %s WHERE id = %s", [(100 << 30) - (1 << 20), vault])
    point = alice.settled(alice.checkpoint(vault))
    assert point["status"] == "available"
    assert [r["id"] for r in point["vault"]["resources"] if r["protect_status"] == "available"] == [small_id]
    (skipped,) = point["vault"]["skipped_resources"]
    assert (skipped["id"], skipped["code"]) == (large_id, "BackupService.6114")
    assert "full" in skipped["reason"] and "then back up again" in skipped["reason"]
    logs = alice.ok("GET", "operation-logs", vault_id=vault, resource_id=large_id)["operation_logs"]
    assert [(log["status"], log["error_info"]["code"]) for log in logs] == [("failed", "BackupService.6114")]
    backup = next(b for b in alice.backups(vault_id=vault) if b["status"] == "available")
    (small / "data").unlink()
    assert alice.restore(backup["id"])["status"] == "success"
    assert (small / "data").read_bytes() == b"fits"


def test_two_checkpoints_at_once_are_one_run(world: World) -> None:
    """Of four requests at the same moment one runs; the others are told that the resource is being backed up."""
    alice, slow = world.alice, world.base / "slow"
    make_tree(slow, 5, files=4)
    resource = alice.register("turbo", "slow", slow, read_limit_bytes_s=1 << 20)
    vault = alice.vault("slow", "turbo", [resource])
    answers: list[httpx.Response] = []

    def protect() -> None:
        answers.append(ask(world, "POST", "checkpoints", {"checkpoint": {"vault_id": vault}}))

    threads = [threading.Thread(target=protect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [answer for answer in answers if answer.status_code == 200]
    assert len(done) == 1
    for answer in answers:
        if answer not in done:
            code = answer.json()["error_code"].removeprefix("BackupService.")
            refused(answer, 400, f"BackupService.{code}", "being backed up" if code == "0001" else "Try again")
            assert code in ("0001", "6125")
    body = {"restore": {"resource_id": resource}}
    refused(ask(world, "POST", f"backups/{world.first}/restore", body), 400, "BackupService.2002", "back")
    assert alice.settled(done[0].json()["checkpoint"]["id"])["status"] == "available"


# --- paths ------------------------------------------------------------------------------------------------------------


def test_paths_that_cannot_be_protected_are_refused_with_the_reason(world: World, rows: Rows) -> None:
    """Missing, of another kind, relative, climbing, inside the service's own state: nothing is registered."""
    before = rows.count()
    project = world.alice.project

    def register(code: str, *words: str, **members: Any) -> None:
        body = {"project_id": project, "type": "turbo", "name": "n", "path": str(world.base / "share")} | members
        answer = ask(world, "POST", "/ext/v1/admin/protectables", {"protectable": body})
        refused(answer, 400, f"BackupService.{code}", *words)

    register("6215", path=str(world.base / "nowhere"))
    register("6215", path=str(world.base / "disk.raw"))
    register("7003", type="disk", path=str(world.base / "share"))
    register("9900", "absolute", path="share")
    register("9900", "..", path=f"{world.base}/share/../share")
    register("9900", "registered", path=str(world.base / "share"))
    register("9900", "path", path="/" + "a" * 5000)
    register("6215", "state", path=str(world.server.state / "store"))
    register("6215", "state", path=str(world.base))
    link = world.base / "link-to-state"
    link.symlink_to(world.server.state)
    register("6215", path=str(link))
    register("9900", "project_id", project_id="x")
    answer = ask(
        world,
        "POST",
        "/ext/v1/admin/protectables",
        {"protectable": {"project_id": "f" * 32, "type": "turbo", "name": "n", "path": str(world.base / "share")}},
    )
    refused(answer, 404, "BackupService.9900")
    assert rows.count() == before


def test_a_restore_stays_inside_what_was_registered(world: World, rows: Rows) -> None:
    """`..` is refused at once; absolute paths are taken from the top of the target."""
    before = rows.count()
    path = f"/ext/v1/{world.alice.project}/backups/{world.first}"
    for climbing in ("..", "../x", "a/../../x", "a/..", "./x", "/../etc"):
        for member in ("path", "target_path"):
            body = {"restore": {"path": "big", "target_resource_id": world.spare, member: climbing}}
            refused(ask(world, "POST", f"{path}/restore", body), 400, "BackupService.9900", member)
        refused(ask(world, "GET", f"{path}/entries", params={"path": climbing}), 400, "BackupService.9900", "path")
        refused(ask(world, "GET", f"{path}/download", params={"path": climbing}), 400, "BackupService.9900", "path")
    refused(ask(world, "POST", f"{path}/restore", {"restore": {"path": "a" * 5000}}), 400, "BackupService.9900", "path")
    refused(ask(world, "GET", f"{path}/download?path=nothing"), 404, "BackupService.6302", "nothing")
    refused(ask(world, "GET", f"{path}/download?path=d0"), 400, "BackupService.9900", "file")
    refused(ask(world, "GET", f"{path}/entries?path_b64=!!"), 400, "BackupService.9900", "base64")
    assert rows.count() == before
    aside = world.base / "aside"
    body = {"restore": {"path": "big", "target_resource_id": world.spare, "target_path": str(aside)}}
    log = world.alice.ended(ask(world, "POST", f"{path}/restore", body).json()["job_id"])
    assert log["status"] == "success", log
    assert not aside.exists()
    assert (world.base / "spare" / str(aside).lstrip("/") / "big").stat().st_size == 3_000_000


def test_hostile_links_do_not_lead_a_restore_out(world: World) -> None:
    """Links in the backup and links planted at the target, absolute and climbing: nothing outside is touched."""
    alice, base = world.alice, world.base
    source, target, outside = base / "hostile", base / "trap", base / "outside"
    for folder in (source / "d", source / "e", target, outside):
        folder.mkdir(parents=True)
    (outside / "precious").write_bytes(b"untouched")
    (source / "d" / "precious").write_bytes(b"from the backup")
    (source / "e" / "precious").write_bytes(b"from the backup too")
    (source / "abs").symlink_to(outside)
    (source / "climb").symlink_to("../../../../../../etc")
    (source / "loop").symlink_to("loop")
    resource, trap = alice.register("turbo", "hostile", source), alice.register("turbo", "trap", target)
    vault = alice.vault("hostile", "turbo", [resource])
    assert alice.settled(alice.checkpoint(vault))["status"] == "available"
    backup = alice.backups(vault_id=vault)[0]["id"]
    wanted = contents(source)
    # The target holds links where the backup holds folders and files, and folders where the backup holds links.
    (target / "d").symlink_to(outside)
    (target / "e").mkdir()
    (target / "e" / "precious").symlink_to(outside / "precious")
    (target / "abs").mkdir()
    (target / "abs" / "mine").write_bytes(b"in the way")
    log = alice.restore(backup, resource_id=trap)
    assert log["status"] == "success", log
    assert contents(target) == wanted
    assert contents(outside) == {"precious": ((outside / "precious").lstat().st_mode, b"untouched")}
    # Aimed through a link that leads out: refused, or the link is replaced; never followed.
    for aim in ("abs/precious", "climb/passwd-of-strongroom", "abs/deep/precious"):
        body = {"restore": {"path": "d/precious", "target_resource_id": trap, "target_path": aim}}
        answer = ask(world, "POST", f"/ext/v1/{alice.project}/backups/{backup}/restore", body)
        ended = alice.ended(answer.json()["job_id"])
        if ended["status"] != "success":
            assert ended["error_info"]["code"] in ("BackupService.2011", "BackupService.6215"), ended
            assert ended["error_info"]["message"]
        assert (outside / "precious").read_bytes() == b"untouched"
        assert os.listdir(outside) == ["precious"]
        assert not Path("/etc/passwd-of-strongroom").exists()
    listed = alice.ok("GET", f"/ext/v1/{alice.project}/backups/{backup}/entries")["entries"]
    assert {e["name"]: e["kind"] for e in listed}["abs"] == "symlink"
    for through in ("abs/precious", "climb/passwd"):
        url = f"/ext/v1/{alice.project}/backups/{backup}/download?path={through}"
        refused(ask(world, "GET", url), 404, "BackupService.6302")


def test_a_busy_image_is_not_overwritten(world: World) -> None:
    """An image that another program has open: 2011, the image as it was; with force it is restored."""
    alice = world.alice
    image = world.base / "busy.raw"
    old = random.Random(1).randbytes(1 << 20)
    image.write_bytes(old)
    disk = alice.register("disk", "busy", image)
    vault = alice.vault("busy", "disk", [disk])
    assert alice.settled(alice.checkpoint(vault))["status"] == "available"
    backup = alice.backups(vault_id=vault)[0]["id"]
    new = random.Random(2).randbytes(1 << 20)
    image.write_bytes(new)
    with image.open("r+b"):
        log = alice.restore(backup, volume_id=disk)
        assert (log["status"], log["error_info"]["code"]) == ("failed", "BackupService.2011"), log
        assert "Stop" in log["error_info"]["message"] or "force" in log["error_info"]["message"]
        assert image.read_bytes() == new
        shown = alice.ok("GET", f"vaults/{vault}")["vault"]["resources"][0]
        assert shown["protect_status"] == "available"
        assert alice.restore(backup, volume_id=disk, force=True)["status"] == "success"
    assert image.read_bytes() == old


# --- bytes on the wire ------------------------------------------------------------------------------------------------


def head(world: World, method: str, path: str, *lines: str) -> bytes:
    token = world.alice.http.headers["X-Auth-Token"]
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", f"X-Auth-Token: {token}", *lines, "", ""]).encode(
        "latin-1"
    )


def test_bodies_that_are_no_json_are_refused(world: World, rows: Rows) -> None:
    """Bad JSON, wrong encodings, deep nests, NUL, nothing at all: 400 9900, and the server goes on."""
    before = rows.count()
    url = f"/v3/{world.alice.project}/vaults"
    deep = 100_000
    for body in (
        b"",
        b"{",
        b"{'a': 1}",
        b"\xff\xfe{\x00}\x00",
        b'{"vault": {"name": "\xff"}}',
        b'{"vault": {"name": "\\ud800"}}',
        b'{"vault": {"name": "a\\u0000b"}}',
        b'{"vault": NaN}',
        b"[" * deep,
        b'{"vault":' * deep,
        b'{"x":' + b"[" * deep + b"]" * deep + b"}",
        b'{"vault":{}} trailing',
        b'{"vault": {"billing": {"size": 1e400}}}',
        b'{"vault": {"billing": {"size": ' + b"9" * 10_000 + b"}}}",
    ):
        refused(ask(world, "POST", url, content=body), 400, "BackupService.9900")
    doubled = b'{"vault": {"name": "one", "name": "<two>", "billing": null, "resources": []}}'
    refused(ask(world, "POST", url, content=doubled), 400, "BackupService.9900")
    assert rows.count() == before


def test_bodies_that_are_too_large_are_not_read(world: World) -> None:
    """100 MB, announced or in chunks: 413 after a megabyte at most, whether the client has credentials or not."""
    path = f"/v3/{world.alice.project}/vaults"
    piece = bytes(1 << 20)
    for lines, framed in (
        (["Content-Length: 104857600"], piece),
        (["Transfer-Encoding: chunked"], b"100000\r\n" + piece + b"\r\n"),
    ):
        with Raw(world.server.endpoint) as raw:
            raw.send(head(world, "POST", path, *lines))
            sent = 0
            while sent < 100 and raw.send(framed):
                sent += 1
            status, code, sentence = raw.refusal()
            assert (status, code) == (413, "APIGW.0201") and "1048576" in sentence
            assert sent < 60, "the server read on"
    with Raw(world.server.endpoint) as raw:
        raw.send(head(world, "POST", path, "Content-Length: 104857600", "Expect: 100-continue"))
        assert raw.refusal()[:2] == (413, "APIGW.0201")


def test_heads_are_bounded_and_garbage_gets_the_envelope(world: World) -> None:
    """Huge headers and addresses are 431, what is no HTTP is 400; both with code, sentence and request id."""
    path = f"/v3/{world.alice.project}/vaults"
    large = 1 << 20
    for data in (
        head(world, "GET", path, "X-A: " + "a" * large),
        head(world, "GET", path, *(f"X-{i}: a" for i in range(20_000))),
        head(world, "GET", f"{path}?name={'a' * large}"),
        b"GET /" + b"a" * large,
        b"X" * 10 + b"GET " * large,
    ):
        with Raw(world.server.endpoint) as raw:
            raw.send(data)
            status, code, _ = raw.refusal()
            assert (status, code) in ((431, "APIGW.0201"), (400, "APIGW.0201"))
    with Raw(world.server.endpoint) as raw:
        for _ in range(200):  # a header without an end must not be collected
            if not raw.send(b"GET / HTTP/1.1\r\nX-A: " + b"a" * large):
                break
        else:
            raise AssertionError("the server took 200 MB of one header")
    for data in (
        b"\x16\x03\x01\x00\xa5\x01 hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"FOO / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v3/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\n\r\n",
        head(world, "POST", path, "Content-Length: 5", "Content-Length: 6") + b"abcdef",
        head(world, "POST", path, "Content-Length: -5") + b"abcdef",
        head(world, "POST", path, "Content-Length: " + "9" * 40) + b"abcdef",
        head(world, "POST", path, "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head(world, "POST", path, "Transfer-Encoding: chunked") + b"xyz\r\n",
    ):
        with Raw(world.server.endpoint) as raw:
            raw.send(data)
            assert raw.refusal()[0] == 400, data[:60]


def test_a_truncated_body_is_refused_and_writes_nothing(world: World, rows: Rows) -> None:
    """The client stops half-way: 400, or silence when it is gone; no row."""
    before = rows.count()
    body = b'{"vault": {"name": "half", "billing": {}, "resources": []}}'
    with Raw(world.server.endpoint) as raw:
        raw.send(head(world, "POST", f"/v3/{world.alice.project}/vaults", f"Content-Length: {len(body)}") + body[:30])
        raw.socket.shutdown(1)
        status, code, sentence = raw.refusal()
        assert (status, code) == (400, "APIGW.0201") and "cut off" in sentence
    with Raw(world.server.endpoint) as raw:
        raw.send(head(world, "POST", f"/v3/{world.alice.project}/vaults", f"Content-Length: {len(body)}") + body[:30])
    assert world.alice.ok("GET", "vaults")
    assert rows.count() == before


def test_half_a_request_is_waited_for_a_bounded_time(world: World) -> None:
    """Half a body, half a head, nothing at all, blank lines: each connection ends, and others are served meanwhile."""
    path = f"/v3/{world.alice.project}/vaults"
    token = world.alice.http.headers["X-Auth-Token"]
    with (
        Raw(world.server.endpoint, BODY_S_MAX * 2) as body,
        Raw(world.server.endpoint, BODY_S_MAX * 2) as request_line,
        Raw(world.server.endpoint, BODY_S_MAX * 2) as silent,
        Raw(world.server.endpoint, BODY_S_MAX * 2) as blank,
        Raw(world.server.endpoint, BODY_S_MAX * 2) as crowd_head,
    ):
        body.send(head(world, "POST", path, "Content-Length: 100") + b'{"vault":')
        request_line.send(b"GET /v3 HT")
        blank.send(b"\r\n\r\n")
        crowd_head.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n".encode())
        assert world.alice.ok("GET", "vaults")
        status, code, sentence = body.refusal()
        assert (status, code) == (408, "APIGW.0201") and str(BODY_S_MAX) in sentence
        for raw in (request_line, crowd_head):
            assert raw.refusal()[:2] == (408, "APIGW.0201")
        assert silent.socket.recv(1) == b""
        assert blank.socket.recv(1) == b""


def test_bodies_that_do_not_come_take_no_place_from_others(world: World) -> None:
    """More half bodies of strangers than requests are worked on at once: everybody else is served meanwhile."""
    half = b"POST /v3/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    with ExitStack() as stack:
        waiting = [stack.enter_context(Raw(world.server.endpoint)) for _ in range(REQUESTS_MAX + 20)]
        for raw in waiting:
            raw.send(half)
        with connect(world.server.state):  # a moment in which the server has seen them
            assert world.alice.call("GET", "/readyz")[0] == 200
        assert world.alice.ok("GET", "vaults")
        body = {"checkpoint": {"vault_id": MISSING}}
        refused(ask(world, "POST", "checkpoints", body), 404, "BackupService.6105")
    assert world.alice.ok("GET", "vaults")


def test_odd_addresses_and_methods_have_an_answer(world: World) -> None:
    """Unknown paths 404, wrong methods 405, bad encodings and repeated keys: always the envelope."""
    alice = world.alice.project
    for path in ("/nothing", "/v3/x/y/z", f"/v3/{alice}", f"/v3/{alice}//vaults", f"/v3/{alice}/vaults/x/y/z", "/v4"):
        refused(ask(world, "GET", path), 404, "APIGW.0101")
    refused(ask(world, "GET", "/v3/project_id/vaults"), 404, "APIGW.0101")
    for method in ("HEAD", "OPTIONS", "PATCH", "TRACE", "DELETE"):
        answer = ask(world, method, "vaults")
        assert answer.status_code == 405 and answer.headers["X-Request-Id"]
        assert answer.headers["Allow"] == "GET, POST"
        if method != "HEAD":
            refused(answer, 405, "APIGW.0101")
    for query in ("name=%ff", "name=a%00b", "&".join(["id=" + MISSING] * 1001)):
        refused(ask(world, "GET", f"vaults?{query}"), 400, "BackupService.9900", "query")
    assert ask(world, "GET", "vaults?limit=1&limit=2").json()["limit"] == 2
    assert ask(world, "GET", "vaults?nonsense=1&%zz=2").status_code == 200
    for path in (f"/v3/{alice}/vaults/%ff%fe", f"/v3/{alice}/vaults/%3Fx%23y"):
        refused(ask(world, "GET", path), 400, "BackupService.9900")
    with Raw(world.server.endpoint) as raw:
        raw.send(head(world, "OPTIONS", "*"))
        assert raw.refusal()[0] == 404
    with Raw(world.server.endpoint) as raw:
        raw.send(head(world, "GET", "/v3").replace(b"Host: x", b"Host: ["))
        assert raw.answer()[0] == 300


# --- credentials ------------------------------------------------------------------------------------------------------


def test_credentials_that_do_not_hold_are_401(world: World, rows: Rows) -> None:
    """None, garbage, expired, of another installation, wrongly signed, unsigned body, replayed: APIGW.0301."""
    given, before = world.server.credentials, rows.count()
    url = f"{world.server.endpoint}/v3/{world.alice.project}/vaults"
    now = datetime.now(UTC)

    def get(headers: dict[str, str]) -> httpx.Response:
        return httpx.get(url, headers=[(name.encode(), value.encode("latin-1")) for name, value in headers.items()])

    refused(get({}), 401, "APIGW.0301", "x-auth-token not found")
    for token in ("", "x", "é" * 40, "a" * 8000, world.alice.http.headers["X-Auth-Token"][:-2]):
        refused(get({"X-Auth-Token": token}), 401, "APIGW.0301", "decrypt")

    def forged(secret: bytes, life: timedelta) -> str:
        user = next(u for u in world.alice.ok("GET", "/ext/v1/admin/users")["users"] if u["name"] == given["username"])
        born = now - timedelta(days=1)
        token = Token(
            user_id=user["id"],
            project_id=world.alice.project,
            methods=("password",),
            issued_at=born,
            expires_at=now + life,
        )
        return TokenRing([Ring([secret]).first_token_key]).seal(token)

    master = (world.server.state / "master.key").read_bytes()
    assert get({"X-Auth-Token": forged(master, timedelta(hours=1))}).status_code == 200
    refused(get({"X-Auth-Token": forged(master, -timedelta(seconds=1))}), 401, "APIGW.0301", "expires")
    refused(get({"X-Auth-Token": forged(bytes(32), timedelta(hours=1))}), 401, "APIGW.0301", "decrypt")

    def signed(
        method: str,
        body: bytes,
        *,
        key: str | None = None,
        secret: str | None = None,
        late_s: float = 0,
        sent: bytes = b"",
    ) -> httpx.Response:
        request = httpx.Request(method, url, content=sent or body, headers={"Content-Type": "application/json"})
        request.headers["X-Sdk-Date"] = (now - timedelta(seconds=late_s)).strftime("%Y%m%dT%H%M%SZ")
        names = {name: request.headers[name] for name in ("host", "x-sdk-date")}
        signature = sign(secret or given["secret_key"], method, request.url.raw_path, names, body)
        request.headers["Authorization"] = (
            f"SDK-HMAC-SHA256 Access={key or given['access_key']}, SignedHeaders=host;x-sdk-date, Signature={signature}"
        )
        with httpx.Client() as client:
            return client.send(request)

    assert signed("GET", b"").status_code == 200
    refused(signed("GET", b"", secret="wrong"), 401, "APIGW.0301", "verify aksk signature fail")
    refused(signed("GET", b"", key="A" * 20), 401, "APIGW.0301", "verify aksk signature fail")
    refused(signed("GET", b"", late_s=16 * 60), 401, "APIGW.0301")
    refused(signed("GET", b"", late_s=-16 * 60), 401, "APIGW.0301")
    refused(signed("POST", b"{}", sent=b'{"vault": {}}'), 401, "APIGW.0301")
    refused(signed("POST", b"{}", late_s=30), 400, "BackupService.9900")  # taken, and refused for what it says
    refused(signed("POST", b"{}", late_s=30), 401, "APIGW.0301", "before")
    for authorization in ("Basic YTpi", "Bearer x", "SDK-HMAC-SHA256", "SDK-HMAC-SHA256 Access=, Signature="):
        refused(get({"Authorization": authorization}), 401, "APIGW.0301")
    login = {
        "auth": {"identity": {"methods": ["password"], "password": {"user": {"name": "nobody-here", "password": "x"}}}}
    }
    refused(httpx.post(f"{world.server.endpoint}/v3/auth/tokens", json=login), 401, "401")
    assert rows.count() == before
