"""The event stream: everything that changes is told, of this project only, to who may know and keeps up."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import uvicorn
from points_world import World, reader_of

from strongroom.api import event_hub
from strongroom.api.app import build_app
from strongroom.api.connection import Connection
from strongroom.api.event_hub import EventHub, StreamLimits
from strongroom.api.table import OPERATIONS
from strongroom.control import tasks
from strongroom.operations.monitor import JobMonitor

QUICK = StreamLimits(poll_s=0.02, check_s=0.02, heartbeat_s=0.05, send_s_max=0.2)
WAIT_S_MAX = 20.0


@dataclass
class Stream:
    """One connection to the application, as an ASGI server makes it. reads: False: the client takes nothing."""

    status: int = 0
    body: str = ""
    ended: bool = False
    aborted: bool = False
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            await self.reads.wait()
            self.body += message.get("body", b"").decode()
            self.ended = not message.get("more_body", False)
        self.changed.set()

    def abort(self) -> None:
        self.aborted = True
        self.left.set()

    def events(self) -> list[tuple[str, int, Any]]:
        """(kind, id, data) of what arrived whole."""
        found = []
        for text in self.body.split("\n\n")[:-1]:
            lines = [line.partition(": ") for line in text.split("\n")]
            members = {name: value for name, _, value in lines if name}
            if "event" in members:
                found.append((members["event"], int(members.get("id", 0)), json.loads(members["data"])))
        return found

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(WAIT_S_MAX):
            while not (value := condition()):
                self.changed.clear()
                await self.changed.wait()
        return value

    async def told(self, kind: str, **members: Any) -> tuple[int, Any]:
        """Id and object of the first event of that kind with these members."""

        def found() -> tuple[int, Any] | None:
            for told, position, data in self.events():
                inner = data.get(kind, data)
                if told == kind and all(inner.get(name) == value for name, value in members.items()):
                    return position, inner
            return None

        return await self.until(found)  # type: ignore[no-any-return]


@dataclass
class Server:
    world: World
    app: Any
    hub: EventHub

    @asynccontextmanager
    async def stream(self, *, reads: bool = True, project: str | None = None, **headers: str) -> AsyncIterator[Stream]:
        stream = Stream()
        if reads:
            stream.reads.set()
        path = f"/ext/v1/{project or self.world.project}/events"
        sent = {"x-auth-token": self.world.client.headers["x-auth-token"], **headers}
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            "client": ("127.0.0.1", 1),
            "state": {"abort": stream.abort},
        }
        running = asyncio.create_task(self.app(scope, stream.receive, stream.send))
        running.add_done_callback(lambda _: stream.changed.set())
        try:
            if reads:
                await stream.until(lambda: stream.status and (stream.body or running.done()))
            yield stream
        finally:
            stream.left.set()
            async with asyncio.timeout(WAIT_S_MAX):
                await running


def serve(world: World, **limits: Any) -> Server:
    hub = EventHub(replace(QUICK, **limits))
    transport: Any = world.client._transport
    services = replace(transport.app._services, events=hub)
    return Server(world, build_app(OPERATIONS, services), hub)


async def test_what_changes_is_told(world: World) -> None:
    """A task from its row to its end with its progress, and the restore point with it; each id is a place to go on."""
    vault = await world.add_vault([await world.add_resource()])
    async with serve(world).stream() as stream:
        assert stream.status == 200
        assert stream.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
        assert stream.events()[0][0] == "ready"
        point = await world.run(vault)
        _, task = await stream.told("task", status="waiting")
        await stream.told("restore_point", id=point.id, status="protecting")
        claimed = await world.claim("backup")
        await stream.told("task", id=task["id"], status="running")
        await tasks.note_progress(world.database, claimed, JobMonitor(bytes_done=7, bytes_total=70).progress(0.0))
        await stream.told("task", bytes_done=7, bytes_total=70, progress=10)
        await world.commit(claimed)
        await stream.told("task", id=task["id"], status="success", progress=100)
        await stream.told("restore_point", id=point.id, status="available")
        positions = [position for _, position, _ in stream.events()]
        assert positions == sorted(positions)


async def test_who_comes_back_misses_nothing(world: World) -> None:
    """With the id of any event the stream goes on after it: what changed meanwhile is told as it is now."""
    vault = await world.add_vault([await world.add_resource()])
    server = serve(world)
    async with server.stream() as stream:
        point = await world.run(vault)
        position, _ = await stream.told("task", status="waiting")
    await world.commit(await world.claim("backup"))
    async with server.stream(**{"last-event-id": str(position)}) as stream:
        await stream.told("task", status="success")
        await stream.told("restore_point", id=point.id, status="available")
        last = max(position for _, position, _ in stream.events())
    async with server.stream(**{"last-event-id": str(last + 1)}) as stream:
        assert [kind for kind, *_ in stream.events()] == ["ready"], "nothing changed since"


async def test_a_change_that_commits_late_is_told(world: World) -> None:
    """A transaction that began before others and ends after them is told, though its number is lower than theirs."""
    vault, other = [await world.add_vault([await world.add_resource()]) for _ in range(2)]
    await world.run(vault)
    await world.run(other)
    server = serve(world)
    async with server.stream() as stream:
        async with world.database.transaction() as conn:
            await conn.execute("UPDATE operation_logs SET bytes_done = 1 WHERE vault_id = %s", [vault])
            await world.execute("UPDATE operation_logs SET bytes_done = 2 WHERE vault_id = %s", other)
            position, _ = await stream.told("task", bytes_done=2)
            assert not any(data.get("task", {}).get("bytes_done") == 1 for _, _, data in stream.events())
        await stream.told("task", bytes_done=1)
        told = [data for kind, _, data in stream.events() if kind == "task" and data["task"]["bytes_done"] == 2]
        assert len(told) == 1, "what was told while an older transaction was open is not told again"
    async with server.stream(**{"last-event-id": str(position)}) as stream:
        await stream.told("task", bytes_done=1)


async def test_another_projects_events_are_not_told(world: World) -> None:
    """Two projects change, each hears its own; and nobody opens another one's stream."""
    other, header = await world.add_project()
    vault = await world.add_vault([await world.add_resource()])
    foreign = await world.add_vault([await world.add_resource(project=other)], project=other)
    server = serve(world)
    async with server.stream() as mine, server.stream(project=other, **lower(header)) as theirs:
        await world.run(vault)
        mine_project, world.project = world.project, other
        await world.run(foreign)
        world.project = mine_project
        await mine.told("task", vault_id=vault)
        await theirs.told("task", vault_id=foreign)
        await theirs.told("restore_point", vault_id=foreign)
        await mine.told("restore_point", vault_id=vault)
        assert foreign not in mine.body
        assert vault not in theirs.body
    async with server.stream(project=other) as refused:
        assert refused.status == 403
    async with server.stream(**{"x-auth-token": "none"}) as refused:
        assert refused.status == 401
    async with server.stream(**lower(reader_of(world))) as reading:
        assert reading.status == 200


async def test_a_stream_ends_with_its_credentials(world: World) -> None:
    """A token that was revoked, or whose role is gone, ends the stream with the reason, and its place is free."""
    server = serve(world, per_project=1)
    token = world.client.headers["x-auth-token"]
    async with server.stream() as stream:
        caller = world.callers.pop(token)
        _, end = await stream.told("end")
        assert end["error_code"] == "APIGW.0301"
        assert stream.ended
    world.callers[token] = caller
    async with server.stream() as stream:
        world.callers[token] = replace(caller, roles=frozenset({"unknown"}))
        _, end = await stream.told("end")
        assert end["error_code"] == "BackupService.8600"


async def test_streams_are_bounded(world: World) -> None:
    """One more than a project, or the process, may have is 429; one that ends makes room; others are not hit."""
    other, header = await world.add_project()
    server = serve(world, per_project=2, streams=3)
    async with server.stream():
        async with server.stream(), server.stream(project=other, **lower(header)):
            async with server.stream() as refused:
                assert refused.status == 429
            async with server.stream(project=other, **lower(header)) as refused:
                assert refused.status == 429
        async with server.stream() as again:
            assert again.status == 200
    assert not server.hub._subscriptions
    assert server.hub._looking is None, "without a listener nobody looks"


async def test_a_client_that_does_not_read_is_cut(world: World) -> None:
    """After send_s_max without a byte taken the connection is dropped, not closed politely, and its place is free."""
    server = serve(world)
    async with server.stream(reads=False) as stream:
        await stream.until(lambda: stream.aborted)
        assert not stream.ended
    assert not server.hub._subscriptions


async def test_a_client_that_falls_behind_is_cut(world: World) -> None:
    """More waiting events than pending_max end the stream: nothing is kept without bound."""
    vaults = [await world.add_vault([await world.add_resource()]) for _ in range(3)]
    server = serve(world, pending_max=2, send_s_max=WAIT_S_MAX)
    async with server.stream(reads=False) as stream:
        for vault in vaults:
            await world.run(vault)
        async with asyncio.timeout(WAIT_S_MAX):
            while not any(subscription.behind for subscription in server.hub._subscriptions):
                await asyncio.sleep(0)
        stream.reads.set()
        await stream.until(lambda: stream.aborted)


async def test_nobody_listens_to_a_look_that_died(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it died of: listeners are cut, come back, and are told again."""
    server = serve(world)

    async def broken(*_: object) -> None:
        raise KeyError("a mistake of ours")

    async with server.stream() as stream:
        with monkeypatch.context() as patched:
            patched.setattr("strongroom.api.event_hub.look", broken)
            await stream.until(lambda: stream.aborted)
    async with server.stream() as again:
        vault = await world.add_vault([await world.add_resource()])
        await world.run(vault)
        await again.told("task", operation_type="backup")


async def test_a_look_whose_cancel_got_lost_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.11 loses one; else two would look, and tell everything twice."""
    server = serve(world)
    looking, canceled = asyncio.Event(), asyncio.Event()
    real = event_hub.look

    async def deaf(*words: Any) -> Any:
        looking.set()
        try:
            await canceled.wait()
        except asyncio.CancelledError:
            canceled.set()
        return await real(*words)

    async with server.stream():
        first = server.hub._looking
        monkeypatch.setattr(event_hub, "look", deaf)
        await looking.wait()
    monkeypatch.setattr(event_hub, "look", real)
    assert first is not None
    async with server.stream(), asyncio.timeout(WAIT_S_MAX):
        await asyncio.wait({first})
    assert canceled.is_set()


async def test_too_much_at_once_is_a_reset(world: World) -> None:
    """More changes than a look may bring are told as one: list again. So is a position of another database."""
    vaults = [await world.add_vault([await world.add_resource()]) for _ in range(3)]
    server = serve(world, rows_max=2)
    async with server.stream() as stream:
        (_, before, _), *_ = stream.events()
        async with world.database.transaction() as conn:
            await conn.execute("UPDATE vaults SET threshold = 81 WHERE project_id = %s", [world.project])
        for vault in vaults:
            await world.run(vault)
        await stream.told("task")
    async with server.stream(**{"last-event-id": str(before)}) as stream:
        assert [kind for kind, *_ in stream.events()] == ["ready", "reset"]
    async with server.stream(**{"last-event-id": "9" * 18}) as stream:
        assert [kind for kind, *_ in stream.events()] == ["ready", "reset"]
    async with server.stream() as stream:
        async with world.database.transaction() as conn:
            await conn.execute("UPDATE operation_logs SET bytes_done = 3 WHERE project_id = %s", [world.project])
        await stream.told("reset")
    for bad in ("x", "-1", "1" * 19):
        async with server.stream(**{"last-event-id": bad}) as stream:
            assert stream.status == 400


async def test_silence_is_broken_and_a_stopping_server_says_so(world: World) -> None:
    """Comments keep the connection alive; when the server ends so does the stream, and none begins."""
    server = serve(world)
    async with server.stream() as stream:
        await stream.until(lambda: ": alive\n\n" in stream.body)
        server.hub.close()
        _, end = await stream.told("end")
        assert "stopping" in end["error_msg"]
        assert stream.ended
    async with server.stream() as refused:
        assert refused.status == 429


async def test_a_lease_that_is_extended_is_no_event(world: World) -> None:
    """What no client can see changes nothing: no event, no number."""
    await world.run(await world.add_vault([await world.add_resource()]))
    task = await world.claim("backup")
    before = await world.one("SELECT change FROM operation_logs")
    await tasks.renew(world.database, world.worker, {task.id: task.generation})
    assert await world.one("SELECT change FROM operation_logs") == before
    await tasks.save_state(world.database, task, {"done": [[0, 1]]})
    assert await world.one("SELECT change FROM operation_logs") == before
    async with world.database.transaction() as conn:
        await tasks.request_cancel(conn, world.project, task.id)
    assert await world.one("SELECT change FROM operation_logs") != before


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


async def test_a_real_connection_that_is_not_read_is_dropped(world: World) -> None:
    """Over a socket: what the kernel does not take is thrown away, and the server keeps nothing of it."""
    await world.run(await world.add_vault([await world.add_resource()]))
    server = serve(world)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(server.app, lifespan="off", log_config=None, http=Connection, ws="none", access_log=False)
    running = uvicorn.Server(config)
    with listener, socket.socket() as client:
        serving = asyncio.create_task(running._serve([listener]))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, listener.getsockname())
        token = world.client.headers["x-auth-token"]
        head = f"GET /ext/v1/{world.project}/events HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n\r\n"
        await loop.sock_sendall(client, head.encode())
        async with asyncio.timeout(WAIT_S_MAX):
            while not server.hub._subscriptions:
                await asyncio.sleep(0.01)
            written = 0
            while server.hub._subscriptions:
                written += 1
                await world.execute(
                    "UPDATE operation_logs SET outcome = jsonb_build_object(%s::text, repeat('y', 300000))", written
                )
                await asyncio.sleep(0.03)
            while running.server_state.connections:
                await asyncio.sleep(0.01)
        running.should_exit = True
        await serving
