"""Which program may speak for a host: one-time tokens, certificates, and the authority that signs them.

    token        of one agent; counts once, for TOKEN_LIFE; only its hash is kept
    certificate  of one agent, short-lived; the row says whether it still counts. With the first use of a newer one the
                 older ones end, so that a copy of a host's files and the host itself cannot both go on for long.
    authority    one an installation; its key is sealed by the master key

An agent that is enrolled is a resource: its registration is made here, and ends when the agent is unregistered.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from psycopg import AsyncConnection
from psycopg.rows import TupleRow

from strongroom.base import certificates
from strongroom.base.clock import Clock
from strongroom.base.errors import AgentNotFound, Conflict, Forbidden, InvalidRequest
from strongroom.control.agents import show
from strongroom.control.db import Database
from strongroom.control.tokens import Ring
from strongroom.control.vault_kinds import HOST_TYPES, NATIVE

TOKEN_LIFE = timedelta(hours=1)
TOKENS_MAX = 16  # of an agent, not used and not expired
RENEW_LEFT = certificates.AGENT_LIFE / 2  # a certificate with less than this before it is to be renewed
_SECRET_BYTES = 24
_LOCK = 0x4167656E7473


@dataclass(frozen=True, kw_only=True)
class Authority:
    """certificate: DER."""

    certificate: bytes
    key: certificates.Key = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A certificate that counts. name: of the host, for sentences; renew: it should ask for a new one."""

    project_id: str
    agent_id: str
    serial: str
    name: str
    renew: bool


async def load_authority(database: Database, ring: Ring, clock: Clock) -> Authority:
    """Made by whoever asks first; the same in every process."""
    async with database.transaction() as conn:
        await conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        found = await conn.execute("SELECT certificate, sealed_key FROM agent_authority")
        row = await found.fetchone()
        if row is None:
            key = await asyncio.to_thread(certificates.new_key)
            made = certificates.make_authority(key, clock.now())
            sealed = ring.seal_secret(certificates.dump_key(key).decode("ascii"))
            await conn.execute(
                "INSERT INTO agent_authority (certificate, sealed_key, created_at) VALUES (%s, %s, %s)",
                (made, sealed, clock.now()),
            )
            row = (made, sealed)
    return Authority(
        certificate=bytes(row[0]), key=certificates.load_key(ring.open_secret(bytes(row[1])).encode("ascii"))
    )


async def new_token(
    database: Database,
    project_id: str,
    agent_id: str,
    authority: bytes,
    clock: Clock,
    resource_type: str = NATIVE.type_name,
) -> tuple[str, datetime]:
    """(token, when it ends) for an agent that is registered. Raises AgentNotFound, InvalidRequest, Conflict 7403.

    authority: its certificate; the token carries its fingerprint, so that the host knows whom to believe.
    resource_type: what the host becomes when it enrolls, one of HOST_TYPES.
    """
    if resource_type not in HOST_TYPES:
        raise InvalidRequest(reason=f"Invalid resource_type: use one of {', '.join(sorted(HOST_TYPES))}.")
    token = f"{certificates.fingerprint(authority)}.{secrets.token_urlsafe(_SECRET_BYTES)}"
    now = clock.now()
    async with database.transaction() as conn:
        found = await conn.execute(
            "SELECT uninstalled_at FROM agents WHERE project_id = %s AND id = %s FOR UPDATE", [project_id, agent_id]
        )
        row = await found.fetchone()
        if row is None:
            raise AgentNotFound(id=agent_id)
        if row[0] is not None:
            raise Conflict(conflict_code="7403", reason="The agent is uninstalled. Register it again first.")
        await conn.execute(
            "DELETE FROM agent_tokens WHERE project_id = %s AND agent_id = %s AND expires_at < %s",
            [project_id, agent_id, now],
        )
        counted = await conn.execute(
            "SELECT count(*) FROM agent_tokens WHERE project_id = %s AND agent_id = %s AND used_at IS NULL",
            [project_id, agent_id],
        )
        many = await counted.fetchone()
        if many is not None and many[0] >= TOKENS_MAX:
            raise Conflict(
                conflict_code="7403", reason=f"The agent has {TOKENS_MAX} open tokens. Use one, or wait an hour."
            )
        await conn.execute(
            "INSERT INTO agent_tokens (hash, project_id, agent_id, created_at, expires_at, resource_type) "
            "VALUES (%s, %s, %s, %s, %s, %s)",
            [_hash(token), project_id, agent_id, now, now + TOKEN_LIFE, resource_type],
        )
    return token, now + TOKEN_LIFE


async def enroll(
    database: Database, authority: Authority, token: str, request: bytes, clock: Clock
) -> tuple[bytes, str]:
    """(certificate, agent id) for a host that shows a token; the token and older certificates end.

    Raises Forbidden for a token that is unknown, used or expired, InvalidRequest for a request that is none.
    """
    now = clock.now()
    async with database.transaction() as conn:
        found = await conn.execute(
            "UPDATE agent_tokens SET used_at = %s WHERE hash = %s AND used_at IS NULL AND expires_at > %s "
            "RETURNING project_id, agent_id, resource_type",
            [now, _hash(token), now],
        )
        row = await found.fetchone()
        if row is None:
            raise Forbidden(reason="The token was used before, has expired, or never was one. Ask for another.")
        project_id, agent_id, resource_type = row
        await _require_installed(conn, project_id, agent_id)
        certificate, serial = _sign(authority, request, project_id, agent_id, now)
        await conn.execute(
            "UPDATE agent_certificates SET revoked_at = %s "
            "WHERE project_id = %s AND agent_id = %s AND revoked_at IS NULL",
            [now, project_id, agent_id],
        )
        await _note(conn, project_id, agent_id, serial, now)
        await _register(conn, project_id, agent_id, resource_type, now)
    return certificate, agent_id


async def renew(database: Database, authority: Authority, known: Known, request: bytes, clock: Clock) -> bytes:
    """Another certificate for an agent that showed one. Raises Forbidden, InvalidRequest."""
    now = clock.now()
    async with database.transaction() as conn:
        await _require_installed(conn, known.project_id, known.agent_id)
        await _require_valid(conn, known.project_id, known.agent_id, known.serial)
        certificate, serial = _sign(authority, request, known.project_id, known.agent_id, now)
        await _note(conn, known.project_id, known.agent_id, serial, now)
    return certificate


async def admit(
    database: Database, project_id: str, agent_id: str, serial: str, version: str | None, group: str, clock: Clock
) -> Known:
    """An agent greets with this certificate: it is active, older certificates end, and its tasks go to the worker
    group that it has dialled. Raises Forbidden."""
    now = clock.now()
    async with database.transaction() as conn:
        name = await _require_installed(conn, project_id, agent_id)
        issued_at, not_after = await _require_valid(conn, project_id, agent_id, serial)
        await conn.execute(
            "UPDATE agent_certificates SET revoked_at = %s WHERE project_id = %s AND agent_id = %s "
            "AND issued_at < %s AND revoked_at IS NULL",
            [now, project_id, agent_id, issued_at],
        )
        await conn.execute(
            "UPDATE agents SET last_active_at = now(), agent_version = coalesce(%s, agent_version) "
            "WHERE project_id = %s AND id = %s",
            [version, project_id, agent_id],
        )
        await conn.execute(
            "UPDATE protectables SET worker_group = %s WHERE project_id = %s AND id = %s AND worker_group <> %s",
            [group, project_id, agent_id, group],
        )
    return Known(project_id=project_id, agent_id=agent_id, serial=serial, name=name, renew=not_after - now < RENEW_LEFT)


async def agent_obstacle(database: Database, path: bytes) -> str | None:
    """Why the host that is registered under this path (see `_register`) cannot be protected now; None: it can."""
    _, project_id, agent_id = path.decode().split(":", 2)
    agent = await show(database, project_id, agent_id)
    if agent.status != "normal":
        return "Its agent does not connect. Start it on its host."
    return None if agent.paths else "None of its paths is named. Add one: strongroom agent add-path."


async def still_admitted(database: Database, connected: Mapping[str, Known]) -> set[str]:
    """Of agents that are connected, by id, those that may stay; these are active now."""
    if not connected:
        return set()
    ids = sorted(connected)
    async with database.transaction() as conn:
        found = await conn.execute(
            """
            UPDATE agents a SET last_active_at = now()
            FROM unnest(%s::text[], %s::text[], %s::text[]) AS k(project_id, agent_id, serial), agent_certificates c
            WHERE a.project_id = k.project_id AND a.id = k.agent_id AND a.uninstalled_at IS NULL
              AND c.project_id = k.project_id AND c.agent_id = k.agent_id AND c.serial = k.serial
              AND c.revoked_at IS NULL AND c.not_after > now()
            RETURNING a.id
            """,
            [
                [connected[agent_id].project_id for agent_id in ids],
                ids,
                [connected[agent_id].serial for agent_id in ids],
            ],
        )
        return {row[0] for row in await found.fetchall()}


async def _require_installed(conn: AsyncConnection[TupleRow], project_id: str, agent_id: str) -> str:
    """The host's name. Raises Forbidden."""
    found = await conn.execute(
        "SELECT host_name FROM agents WHERE project_id = %s AND id = %s AND uninstalled_at IS NULL FOR UPDATE",
        [project_id, agent_id],
    )
    row = await found.fetchone()
    if row is None:
        raise Forbidden(reason="The agent is not registered any more. Register it, and enroll again.")
    return str(row[0])


async def _require_valid(
    conn: AsyncConnection[TupleRow], project_id: str, agent_id: str, serial: str
) -> tuple[datetime, datetime]:
    """(issued at, not after) of a certificate that counts. Raises Forbidden."""
    found = await conn.execute(
        "SELECT issued_at, not_after FROM agent_certificates "
        "WHERE project_id = %s AND agent_id = %s AND serial = %s AND revoked_at IS NULL",
        [project_id, agent_id, serial],
    )
    row = await found.fetchone()
    if row is None:
        raise Forbidden(
            reason="The certificate does not count any more: the host was enrolled again, or another one renewed it. "
            "If that was not you, somebody has a copy of its key. Enroll the host again."
        )
    return row[0], row[1]


def _sign(authority: Authority, request: bytes, project_id: str, agent_id: str, now: datetime) -> tuple[bytes, str]:
    try:
        return certificates.make_agent(authority.certificate, authority.key, request, project_id, agent_id, now)
    except ValueError as err:
        raise InvalidRequest(reason="The certificate request cannot be used.", detail=str(err)) from err


async def _note(conn: AsyncConnection[TupleRow], project_id: str, agent_id: str, serial: str, now: datetime) -> None:
    await conn.execute(
        "DELETE FROM agent_certificates WHERE project_id = %s AND agent_id = %s AND not_after < %s",
        [project_id, agent_id, now],
    )
    await conn.execute(
        "INSERT INTO agent_certificates (serial, project_id, agent_id, issued_at, not_after) "
        "VALUES (%s, %s, %s, %s, %s)",
        [serial, project_id, agent_id, now, now + certificates.AGENT_LIFE],
    )


async def _register(
    conn: AsyncConnection[TupleRow], project_id: str, agent_id: str, resource_type: str, now: datetime
) -> None:
    """The host as a resource; one that was removed is there again.

    Raises Conflict for an id that others use, and for a host that is a resource of the other type already: its restore
    points are of that type.
    """
    done = await conn.execute(
        """
        INSERT INTO protectables (id, project_id, type, resource_type, name, path, options, created_at)
        SELECT id, project_id, %s, %s, host_name, convert_to('agent:' || project_id || ':' || id, 'UTF8'),
               '{}', %s
        FROM agents WHERE project_id = %s AND id = %s
        ON CONFLICT (id) DO UPDATE SET removed_at = NULL, name = excluded.name, status = 'available'
            WHERE protectables.project_id = excluded.project_id AND protectables.path = excluded.path
              AND protectables.resource_type = excluded.resource_type
        """,
        ["native" if resource_type == NATIVE.type_name else "server", resource_type, now, project_id, agent_id],
    )
    if done.rowcount != 1:
        raise Conflict(
            conflict_code="7403",
            reason="The agent's id is in use already, or its host is protected as the other type of server. Register "
            "it under another id.",
        )


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
