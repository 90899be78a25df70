"""Another Keystone that is gone, slow, lying or locked: no request passes, and none waits or asks without bound.

The Keystone here is a socket that answers as each test says; the real one is in tests/e2e/test_keystone.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from accounts_world import StoppedClock
from starlette.requests import Request

from strongroom.api.keystone import ANSWER_BYTES_MAX, REFUSED_KEPT_S, KeystoneAuthenticator
from strongroom.base.errors import Unauthenticated, Unavailable
from strongroom.control.access import ROLE_FULL, ROLE_OPERATOR, ROLE_READER, Caller
from strongroom.control.db import Database
from strongroom.control.keystone_access import KeystoneAccess, parse_roles

PROJECT, DOMAIN, USER = "a" * 32, "d" * 32, "c" * 32
CACHE_S = 10
BODY = b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"

Answer = tuple[int, dict[str, str], bytes]


def token(**members: Any) -> dict[str, Any]:
    """The body of a valid answer."""
    domain = {"id": DOMAIN, "name": "there"}
    body = {
        "methods": ["password"],
        "expires_at": "2026-01-31T13:00:00.000000Z",
        "user": {"id": USER, "name": "mary", "domain": domain},
        "project": {"id": PROJECT, "name": "tenant", "domain": domain},
        "roles": [{"id": "1" * 32, "name": "member"}],
    }
    return {"token": {name: value for name, value in {**body, **members}.items() if value is not None}}


def valid(**members: Any) -> Answer:
    return 200, {}, json.dumps(token(**members)).encode()


@dataclass
class Told:
    """What the socket answers: a login, and to who asks for a token. None: nothing at all."""

    clock: StoppedClock = field(default_factory=StoppedClock)
    login: Answer | None = field(default_factory=lambda: (201, {"X-Subject-Token": "ours"}, valid()[2]))
    shown: Callable[[dict[str, str]], Answer | None] = lambda headers: valid()
    logins: int = 0
    asked: int = 0
    listener: Any = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            await reader.readexactly(int(headers.get("content-length", "0")))
            if lines[0].startswith("POST"):
                self.logins += 1
                answer = self.login
            else:
                self.asked += 1
                answer = self.shown(headers)
            if answer is None:
                await reader.read()  # until the client has had enough
                return
            status, more, body = answer
            extra = "".join(f"{name}: {value}\r\n" for name, value in more.items())
            writer.write(f"HTTP/1.1 {status} x\r\n{extra}".encode() + BODY % (len(body), body))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def asking(database: Database, told: Told, **members: Any) -> AsyncIterator[Callable[..., Any]]:
    """A function from a token's text to its caller, over a Keystone that answers as told."""
    server = await asyncio.start_server(told.serve, "127.0.0.1", 0)
    told.listener, port = server, server.sockets[0].getsockname()[1]
    access = KeystoneAccess(
        url=f"http://127.0.0.1:{port}/v3", user="strongroom", password="secret", user_domain="Default",
        project="service", project_domain="Default", ca=None, cache_s=members.pop("cache_s", CACHE_S),
        roles=parse_roles("member=CBR FullAccess,reader=CBR ReadOnlyAccess"),
    )  # fmt: skip

    async def own(request: Request, body: bytes, request_id: str) -> Caller:
        raise AssertionError("these requests have a token")

    authenticator = KeystoneAuthenticator(access, own=own, database=database, clock=told.clock, **members)

    async def ask(text: str = "theirs") -> Caller:
        scope = {"type": "http", "headers": [(b"x-auth-token", text.encode("latin-1"))]}
        return await authenticator(Request(scope), b"", "")

    async with server:
        yield ask
        server.close()
        await authenticator.close()


async def test_an_answer_becomes_a_caller(database: Database):
    """Roles are mapped by name, whatever its case; our own names stand for themselves; others allow nothing."""
    told = Told()
    async with asking(database, told, cache_s=0) as ask:
        caller = await ask()
        assert (caller.user_id, caller.project_id, caller.domain_name) == (USER, PROJECT, "there")
        assert caller.roles == {ROLE_FULL}
        for names, expected in (
            (["Reader"], {ROLE_READER}),
            (["cbr fullaccess"], {ROLE_FULL}),
            (["reader", "member"], {ROLE_READER, ROLE_FULL}),
            (["admin"], set()),
            (["strongroom:admin", "root"], set()),
            ([], set()),
        ):
            told.shown = lambda _, n=names: valid(roles=[{"id": "1", "name": name} for name in n])
            found = await ask()
            assert found.roles == expected, names
            assert found.project_id == (PROJECT if expected else "")
        told.shown = lambda _: valid(project=None, system={"all": True}, roles=[{"id": "1", "name": "admin"}])
        assert (await ask()).roles == {ROLE_OPERATOR}
        for members in (
            {"project": None, "system": {"all": True}, "roles": [{"id": "1", "name": "reader"}]},
            {"project": None, "system": {"all": False}, "roles": [{"id": "1", "name": "admin"}]},
            {"project": None, "domain": {"id": "default", "name": "Default"}, "roles": [{"id": "1", "name": "admin"}]},
            {"project": {"id": "x", "name": "y", "domain": {"id": DOMAIN}}},
        ):
            told.shown = lambda _, m=members: valid(**m)
            found = await ask()
            assert (found.project_id, found.roles) == ("", frozenset()), members
    async with database.read() as conn:
        rows = await (
            await conn.execute("SELECT p.id, p.name, d.name FROM projects p JOIN domains d ON d.id = domain_id")
        ).fetchall()
    assert rows == [(PROJECT, "tenant", "there")]


async def test_a_project_turned_off_here_is_nobodys(database: Database):
    """The operator's word on a project counts beside Keystone's; names that are taken give way to the id."""
    told = Told()
    async with database.transaction() as conn:
        await conn.execute("INSERT INTO domains (id, name, created_at) VALUES ('default', 'there', now())")
        await conn.execute(
            "INSERT INTO projects (id, domain_id, name, created_at) VALUES (%s, 'default', 'tenant', now())",
            ("b" * 32,),
        )
    async with asking(database, told, cache_s=0) as ask:
        assert (await ask()).project_id == PROJECT
        async with database.transaction() as conn:
            await conn.execute("UPDATE projects SET enabled = false WHERE id = %s", (PROJECT,))
        found = await ask()
        assert (found.project_id, found.roles) == ("", frozenset())
    async with database.read() as conn:
        rows = await (await conn.execute("SELECT name FROM domains WHERE id = %s", (DOMAIN,))).fetchall()
    assert rows == [(DOMAIN,)]


STRANGE = {
    "an error of its own": (500, {}, b"{}"),
    "a gateway": (502, {}, b"<html>"),
    "a refusal of our user": (403, {}, b"{}"),
    "a redirect": (302, {"Location": "http://127.0.0.1:9/v3"}, b""),
    "nothing": (200, {}, b""),
    "no JSON": (200, {}, b"<html>"),
    "another JSON": (200, {}, b'{"token": {}}'),
    "no time": (200, {}, json.dumps(token(expires_at="soon")).encode()),
    "too much": (200, {}, b'{"x": "' + b"y" * ANSWER_BYTES_MAX + b'"}'),
    "success without a body": (204, {}, b""),
}


@pytest.mark.parametrize("answer", STRANGE.values(), ids=STRANGE)
async def test_a_strange_answer_lets_nobody_in(database: Database, answer: Answer):
    """503 whatever it says but yes or no, to the login as well as to the question; nothing of it is remembered."""
    told = Told(shown=lambda _: answer)
    async with asking(database, told) as ask:
        with pytest.raises(Unavailable, match="identity service does not answer"):
            await ask()
        told.shown = lambda _: valid()
        assert (await ask()).project_id == PROJECT
    told = Told(login=answer)
    async with asking(database, told) as ask:
        with pytest.raises(Unavailable):
            await ask()
    assert told.asked == 0


async def test_a_keystone_that_is_gone_lets_nobody_in(database: Database):
    """It ends: 503, also for a token that was good a moment ago, once its answer is too old; then nobody listens."""
    told = Told()
    async with asking(database, told) as ask:
        await ask()
        told.shown = lambda _: (500, {}, b"")
        told.clock.forward(CACHE_S - 1)
        await ask()
        told.clock.forward(1)
        with pytest.raises(Unavailable):
            await ask()
        told.listener.close()
        for text in ("theirs", "another"):
            with pytest.raises(Unavailable):
                await ask(text)


async def test_a_silent_keystone_is_waited_for_a_bounded_time(database: Database):
    """No answer within ask_s_max is none."""
    told = Told(shown=lambda _: None)
    async with asking(database, told, ask_s_max=0.2) as ask:
        with pytest.raises(Unavailable):
            await ask()


async def test_a_revoked_token_counts_no_longer_than_the_bound(database: Database):
    """A yes is used for cache_s seconds, a no for at most five: then Keystone is asked again."""
    told = Told()
    async with asking(database, told) as ask:
        await ask()
        told.shown = lambda _: (404, {}, b"{}")
        told.clock.forward(CACHE_S - 0.001)
        await ask()
        assert told.asked == 1
        told.clock.forward(0.001)
        with pytest.raises(Unauthenticated, match="revoked"):
            await ask()
        told.shown = lambda _: valid()
        with pytest.raises(Unauthenticated):
            await ask()
        assert told.asked == 2
        told.clock.forward(REFUSED_KEPT_S)
        await ask()
        assert told.asked == 3


async def test_invented_tokens_push_no_real_one_out(database: Database, monkeypatch: pytest.MonkeyPatch):
    """However many of them are refused, what was found of a real one is used as long as it may be."""
    monkeypatch.setattr("strongroom.api.keystone.REMEMBERED_MAX", 4)
    told = Told()
    async with asking(database, told) as ask:
        await ask()
        told.shown = lambda _: (404, {}, b"{}")
        for number in range(9):
            with pytest.raises(Unauthenticated):
                await ask(f"invented-{number}")
        assert told.asked == 10
        await ask()
        assert told.asked == 10


async def test_an_expired_token_is_refused_though_remembered(database: Database):
    """The end that the token itself names wins over the memory."""
    told = Told()
    until = (told.clock.now() + timedelta(seconds=2)).astimezone(UTC)
    told.shown = lambda _: valid(expires_at=until.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
    async with asking(database, told) as ask:
        await ask()
        told.clock.forward(2)
        with pytest.raises(Unauthenticated, match="token expires"):
            await ask()


async def test_many_requests_with_one_token_ask_once(database: Database):
    """A burst is one question and one login; one that leaves takes the answer from nobody."""
    told = Told()
    async with asking(database, told) as ask:
        waiting = [asyncio.create_task(ask()) for _ in range(50)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(outcome, Caller) for outcome in outcomes) == 49
        assert (told.logins, told.asked) == (1, 1)


async def test_our_own_token_is_renewed(database: Database):
    """Before it ends, and when Keystone takes it no more; a password that is refused is not sent again at once."""
    told = Told()
    told.shown = lambda headers: valid() if headers["x-auth-token"] == "ours" else (401, {}, b"")
    async with asking(database, told, cache_s=0) as ask:
        await ask()
        told.clock.forward(3600 - 30)
        later = datetime(2027, 1, 1, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told.login = (201, {"X-Subject-Token": "newer"}, valid(expires_at=later)[2])
        told.shown = lambda headers: valid(expires_at=later) if headers["x-auth-token"] == "newer" else (401, {}, b"")
        await ask()
        assert told.logins == 2
        told.login = (201, {"X-Subject-Token": "newest"}, valid(expires_at=later)[2])
        told.shown = lambda headers: valid(expires_at=later) if headers["x-auth-token"] == "newest" else (401, {}, b"")
        await ask()
        assert told.logins == 3
        told.shown = lambda headers: (401, {}, b"")
        told.login = (401, {}, b"{}")
        for _ in range(5):
            with pytest.raises(Unavailable):
                await ask()
        assert told.logins == 4


@pytest.mark.parametrize("text", ["", "x" * 8193, "é", "a\x7f", "a b\tc"])
async def test_texts_that_are_no_tokens_are_not_asked_for(database: Database, text: str):
    """What no Keystone issues is refused without asking."""
    told = Told()
    async with asking(database, told) as ask:
        with pytest.raises(Unauthenticated):
            await ask(text)
    assert (told.logins, told.asked) == (0, 0)
