"""Inside restore points through /ext: reports, names, downloads, restores by path."""

import base64
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
import pytest
from points_world import DISK, World, reader_of

from strongroom.base.errors import ChunkCorrupt
from strongroom.base.ids import new_id
from strongroom.control import restores

ODD = b'caf\xe9/\xff "name".txt'


@pytest.fixture
async def backup(world: World) -> str:
    _, found = await world.backed_up(await world.add_vault([await world.add_resource()]))
    return found[0]


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["error_code"]) == (status, code), answer.text
    assert len(answer.json()["error_msg"]) > 10


async def test_report(world: World, backup: str) -> None:
    """The report of a backup comes beside its state, and cannot overwrite it."""
    await world.execute('UPDATE backups SET report = report || \'{"status": "x", "bytes_new": 3}\'')
    answer = await world.client.get(world.ext(f"backups/{backup}"))
    report = answer.json()["backup"]
    assert (report["id"], report["status"], report["kind"]) == (backup, "available", "tree")
    assert (report["bytes_read"], report["bytes_new"], report["bytes_stored"]) == (7, 3, 5_000_000)
    assert "root" not in report


async def test_entries(world: World, backup: str) -> None:
    """Names come in pages, as text and exactly; bytes that are not UTF-8 survive."""
    names = [b"f%03d" % i for i in range(7)]
    world.browser.files = {b"d/" + name: b"x" * i for i, name in enumerate(names)} | {b"d/\xff": b""}
    path, found, after = world.ext(f"backups/{backup}/entries"), [], None
    while True:
        params = {"path": "d", "limit": 3} | ({"after": after} if after else {})
        page = (await world.client.get(path, params=params)).json()
        found += page["entries"]
        after = page["next"]
        if after is None:
            break
    assert [base64.b64decode(e["raw_path_b64"]) for e in found] == [b"d/" + name for name in names] + [b"d/\xff"]
    assert (found[-1]["name"], found[-1]["path"]) == ("%FF", "d/%FF")
    assert (found[3]["kind"], found[3]["size"], found[3]["mode"], found[3]["uid"], found[3]["gid"]) == (
        "file", 3, 0o644, 1, 2)  # fmt: skip
    assert found[3]["modified_at"] == "2026-01-01T00:00:00.000000"
    assert (found[3]["target"], found[3]["changed_while_read"]) == (None, False)
    whole = (await world.client.get(path, params={"path": "/d/"})).json()
    assert len(whole["entries"]) == 8 and whole["next"] is None
    exact = (await world.client.get(path, params={"path_b64": b64(b"d")})).json()
    assert exact == whole


async def test_download(world: World, backup: str) -> None:
    """A file streams with its length and a safe name, whatever its bytes are called; the reader is closed."""
    content = bytes(range(256)) * 20
    world.browser.files = {ODD: content, b"empty": b""}
    path = world.ext(f"backups/{backup}/download")
    answer = await world.client.get(path, params={"path_b64": b64(ODD)})
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["Content-Length"] == str(len(content))
    assert answer.headers["Content-Type"] == "application/octet-stream"
    disposition = answer.headers["Content-Disposition"]
    assert disposition.startswith('attachment; filename="_FF _name_.txt"; ')
    assert disposition.endswith("filename*=UTF-8''" + quote(b'\xff "name".txt', safe=""))
    empty = await world.client.get(path, params={"path": "empty"})
    assert (empty.content, empty.headers["Content-Length"]) == (b"", "0")
    assert world.browser.closed == 2


@pytest.mark.parametrize("messages", [0, 1, 2])
async def test_client_leaves(world: World, backup: str, messages: int) -> None:
    """A client that leaves before or within the body does not leave the restore point pinned."""
    world.browser.files = {b"a": bytes(10_000)}
    (token,) = [t for t, caller in world.callers.items() if caller.project_id == world.project]
    sent: list[object] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        if len(sent) == messages:
            raise OSError("the client left")
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": "GET",
        "path": world.ext(f"backups/{backup}/download"),
        "query_string": b"path=a",
        "headers": [(b"x-auth-token", token.encode())],
    }
    await world.client._transport.app(scope, receive, send)  # type: ignore[attr-defined]
    assert world.browser.closed == 1


async def test_damage_at_the_start(world: World, backup: str) -> None:
    """A restore point whose first piece is damaged answers an error, not an empty file."""

    async def damaged(path: bytes) -> AsyncIterator[bytes]:
        raise ChunkCorrupt(reason="a chunk is not what was written")
        yield b""

    world.browser.files = {b"a": b"1"}
    world.browser._pieces = damaged  # type: ignore[method-assign]
    answer = await world.client.get(world.ext(f"backups/{backup}/download"), params={"path": "a"})
    refused(answer, 500, "BackupService.9910")


async def test_bad_paths(world: World, backup: str) -> None:
    """Missing paths are 404; paths that lead out, are too long or no base64 are 9900; limits hold."""
    world.browser.files = {b"a": b"1"}
    for tail in ("entries", "download"):
        path = world.ext(f"backups/{backup}/{tail}")
        refused(await world.client.get(path, params={"path": "nowhere"}), 404, "BackupService.6302")
        for bad in ({"path": "../a"}, {"path": "a/./b"}, {"path": "x" * 4097}, {"path_b64": "?"},
                    {"path_b64": b64(b"a\x00")}, {"path_b64": b64(b"x" * 4097)}):  # fmt: skip
            refused(await world.client.get(path, params=bad), 400, "BackupService.9900")
        raw = await world.client.get(path + "?path=%ff")
        refused(raw, 400, "BackupService.9900")
    entries = world.ext(f"backups/{backup}/entries")
    for bad in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after": "?"}):
        refused(await world.client.get(entries, params=bad), 400, "BackupService.9900")


async def test_who_may(world: World, backup: str) -> None:
    """A read-only role sees names and reports, and fetches nothing; another project sees nothing."""
    world.browser.files = {b"a": b"1"}
    reader = reader_of(world)
    for tail in ("", "/entries"):
        assert (await world.client.get(world.ext(f"backups/{backup}{tail}"), headers=reader)).status_code == 200
    download = await world.client.get(world.ext(f"backups/{backup}/download"), params={"path": "a"}, headers=reader)
    refused(download, 403, "BackupService.8600")
    other, header = await world.add_project()
    refused(await world.client.get(f"/ext/v1/{other}/backups/{backup}", headers=header), 404, "BackupService.6200")
    body = {"restore": {}}
    foreign = await world.client.post(f"/ext/v1/{other}/backups/{backup}/restore", json=body, headers=header)
    refused(foreign, 404, "BackupService.6200")


async def test_restore_by_path(world: World, backup: str) -> None:
    """One path, to another place of another resource, reaches the job as exact bytes."""
    target = await world.add_resource()
    body = {"path_b64": b64(ODD), "target_resource_id": target, "target_path": "/back/here/", "force": True}
    answer = await world.client.post(world.ext(f"backups/{backup}/restore"), json={"restore": body})
    assert answer.status_code == 202
    task = await world.claim("restore")
    assert answer.json() == {"job_id": task.id}
    job = await restores.start_restore(world.database, task)
    assert (job.path, job.target_path, job.force, job.target.id) == (ODD, b"back/here", True, target)


async def test_restore_everything(world: World, backup: str) -> None:
    """Without members everything goes to the source."""
    answer = await world.client.post(world.ext(f"backups/{backup}/restore"), json={"restore": {"path": ""}})
    assert answer.status_code == 202
    job = await restores.start_restore(world.database, await world.claim("restore"))
    assert (job.path, job.target_path, job.same_resource, job.force) == (None, None, True, False)


async def test_restore_refused(world: World, backup: str) -> None:
    """Bad targets and paths are refused with their codes, and nothing is begun."""
    disk = await world.add_resource(DISK)
    _, (of_disk,) = await world.backed_up(await world.add_vault([disk], kind=DISK))
    for chosen, members, status, code in (
        (backup, {"path": "../x"}, 400, "9900"),
        (backup, {"path": "a", "target_path": "../x"}, 400, "9900"),
        (backup, {"target_path": "x"}, 400, "9900"),
        (backup, {"path": 7}, 400, "9900"),
        (backup, {"target_resource_id": "x"}, 400, "9900"),
        (backup, {"target_resource_id": ""}, 400, "9900"),
        (backup, {"target_resource_id": new_id()}, 404, "6302"),
        (backup, {"target_resource_id": disk}, 404, "6302"),
        (of_disk, {"target_resource_id": new_id()}, 404, "7000"),
        (of_disk, {"path": "a"}, 400, "9900"),
        (new_id(), {}, 404, "6200"),
    ):
        answer = await world.client.post(world.ext(f"backups/{chosen}/restore"), json={"restore": members})
        refused(answer, status, f"BackupService.{code}")
    assert await world.one("SELECT count(*) FROM operation_logs WHERE operation_type = 'restore'") == 0
