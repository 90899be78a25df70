"""Agents: hosts that a project has registered, the paths wanted of them, and whether a program is there.

Registering a host says that somebody means to install an agent, not that one runs: only its own connection may say that
(`last_active_at`), and until then it is `abnormal`, not installed, and nothing of it can be put into a vault.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from strongroom.base.clock import Clock
from strongroom.base.errors import AgentNotFound, Conflict, InvalidRequest
from strongroom.base.ids import new_id
from strongroom.control.agent_paths import normal_exclusions, normal_paths
from strongroom.control.db import Database
from strongroom.control.listing import Filters, Page, fetch_page
from strongroom.control.names import require_id, require_label
from strongroom.control.vault_kinds import RESOURCE_KINDS
from strongroom.control.vault_resources import remove_resources

STATUSES = ("normal", "abnormal", "uninstall")
AGENT_TYPES = ("cloud", "native")
ACTIVE_S = 180  # an agent that was not heard of for so long is not there: some missed rounds, not one lost packet
AGENTS_MAX = 1000  # of a project; one page shows them all
PATHS_MAX = 64  # of an agent; the published limit has no number
CHECKED_MAX = 256  # resources of one check, as many as a vault can have
IDS_MAX = 256  # of a filter
_VERSION = re.compile(r"(\d{1,3}\.){2}\d{1,3}")


@dataclass(frozen=True, kw_only=True)
class NewAgent:
    """A host as a request describes it."""

    id: str
    host_name: str
    host_ip: str
    host_os: str
    host_nickname: str | None = None
    agent_version: str | None = None
    agent_type: str | None = None


@dataclass(frozen=True, kw_only=True)
class AgentPath:
    """A path wanted of a host. excluded: paths below it."""

    id: str
    path: str
    excluded: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Agent:
    """A registered host. status: normal (heard of within ACTIVE_S), abnormal (not), uninstall (said by the tenant)."""

    id: str
    agent_type: str | None
    agent_version: str | None
    host_name: str
    host_nickname: str | None
    host_ip: str
    host_os: str
    status: str
    last_active_at: datetime | None
    created_at: datetime
    updated_at: datetime | None
    paths: tuple[AgentPath, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Whether a resource has an agent. code: 0 it works; else the number of the published code, and why."""

    resource_id: str
    installed: bool
    code: int
    message: str
    version: str | None


# Rows with their project_id, which every statement binds, and the status by the database's clock, which also writes
# last_active_at.
_TABLE: LiteralString = f"""(SELECT id, project_id, agent_type, agent_version, host_name, host_nickname, host_ip,
    host_os, last_active_at, created_at, updated_at, CASE WHEN uninstalled_at IS NOT NULL THEN 'uninstall'
    WHEN last_active_at >= now() - make_interval(secs => {ACTIVE_S}) THEN 'normal' ELSE 'abnormal' END AS status
    FROM agents) AS agents"""  # noqa: S608 -- the number is ours
_COLUMNS: LiteralString = """id, agent_type, agent_version, host_name, host_nickname, host_ip, host_os, status,
    last_active_at, created_at, updated_at"""


# --- rows -----------------------------------------------------------------------------------------------------------


async def register(database: Database, project_id: str, new: NewAgent, clock: Clock) -> Agent:
    """A new host, or what is now known of a registered one, which is thereby meant to be installed again.

    Raises InvalidRequest, Conflict 7403 (too many agents).
    """
    _check_new(new)
    now = clock.now()
    async with database.transaction() as conn:
        # One after the other in a project, so that the limit holds for two at once.
        await conn.execute("SELECT 1 FROM projects WHERE id = %s FOR NO KEY UPDATE", [project_id])
        found = await conn.execute(
            "SELECT count(*) FROM agents WHERE project_id = %s AND id <> %s", [project_id, new.id]
        )
        row = await found.fetchone()
        if row is not None and row[0] >= AGENTS_MAX:
            raise Conflict(
                conflict_code="7403", reason=f"A project can have at most {AGENTS_MAX} agents. Unregister others first."
            )
        await conn.execute(
            """
            INSERT INTO agents (id, project_id, agent_type, agent_version, host_name, host_nickname, host_ip, host_os,
                                created_at)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (project_id, id) DO UPDATE SET agent_type = excluded.agent_type,
                agent_version = excluded.agent_version, host_name = excluded.host_name,
                host_nickname = excluded.host_nickname, host_ip = excluded.host_ip, host_os = excluded.host_os,
                uninstalled_at = NULL, updated_at = excluded.created_at
            """,
            [
                *(new.id, project_id, new.agent_type, new.agent_version, new.host_name, new.host_nickname),
                *(new.host_ip, new.host_os, now),
            ],
        )
        return await _require(conn, project_id, new.id)


async def list_agents(
    database: Database, project_id: str, page: Page, *, ids: Sequence[str] = (), status: str | None = None
) -> tuple[list[Agent], int]:
    """One page, newest first, and how many match. Raises InvalidRequest."""
    if len(ids) > IDS_MAX:
        raise InvalidRequest(reason=f"Invalid agent_id: filter by at most {IDS_MAX} ids.")
    if status is not None and status not in STATUSES:
        raise InvalidRequest(reason=f"Invalid status: use one of {', '.join(STATUSES)}.")
    filters = Filters(project_id=project_id)
    if ids:
        filters.add("id = ANY(%s)", [require_id(agent_id, "agent_id") for agent_id in ids])
    if status is not None:
        filters.add("status = %s", status)
    async with database.read() as conn:
        rows, count = await fetch_page(conn, columns=_COLUMNS, table=_TABLE, filters=filters, page=page)
        return await _complete(conn, project_id, rows), count


async def show(database: Database, project_id: str, agent_id: str) -> Agent:
    """Raises AgentNotFound."""
    async with database.read() as conn:
        return await _require(conn, project_id, agent_id)


async def uninstall(database: Database, project_id: str, agent_id: str, clock: Clock) -> Agent:
    """Say that the program is taken away from the host; its row and its backups stay. Raises AgentNotFound."""
    now = clock.now()
    async with database.transaction() as conn:
        await conn.execute(
            "UPDATE agents SET uninstalled_at = coalesce(uninstalled_at, %s), updated_at = %s "
            "WHERE project_id = %s AND id = %s",
            [now, now, project_id, agent_id],
        )
        return await _require(conn, project_id, agent_id)


async def unregister(database: Database, project_id: str, agent_id: str, request_id: str, clock: Clock) -> None:
    """Forget a host, and begin to remove it with its backups from the vaults that have it.

    Raises AgentNotFound, and what refuses the removal from a vault; the host stays registered then.
    """
    async with database.read() as conn:
        await _require(conn, project_id, agent_id)
        found = await conn.execute(
            "SELECT vault_id FROM vault_resources WHERE project_id = %s AND resource_id = %s "
            "AND protect_status <> 'removing' ORDER BY vault_id",
            [project_id, agent_id],
        )
        vaults = [row[0] for row in await found.fetchall()]
    for vault_id in vaults:
        await remove_resources(database, project_id, vault_id, [agent_id], request_id, clock)
    async with database.transaction() as conn:
        await conn.execute("DELETE FROM agents WHERE project_id = %s AND id = %s", [project_id, agent_id])
        await conn.execute(
            "UPDATE protectables SET removed_at = %s "
            "WHERE project_id = %s AND id = %s AND path = convert_to('agent:' || project_id || ':' || id, 'UTF8') "
            "AND removed_at IS NULL",
            [clock.now(), project_id, agent_id],
        )


def _check_new(new: NewAgent) -> None:
    require_id(new.id, "agent.agent_id")
    require_label(new.host_name, "agent.host_name")
    require_label(new.host_os, "agent.host_os")
    if new.host_nickname:
        require_label(new.host_nickname, "agent.host_nickname")
    try:
        ipaddress.ip_address(new.host_ip)
    except ValueError as err:
        raise InvalidRequest(reason="Invalid agent.host_ip: give an IPv4 or IPv6 address.") from err
    if new.agent_version is not None and not _VERSION.fullmatch(new.agent_version):
        raise InvalidRequest(reason="Invalid agent.agent_version: give three numbers, such as 1.0.12.")
    if new.agent_type not in (None, *AGENT_TYPES):
        raise InvalidRequest(reason=f"Invalid agent.agent_type: use one of {', '.join(AGENT_TYPES)}.")


# --- paths ----------------------------------------------------------------------------------------------------------


async def add_paths(
    database: Database,
    project_id: str,
    agent_id: str,
    texts: Sequence[str],
    excluded: Sequence[tuple[str, Sequence[str]]],
    clock: Clock,
) -> tuple[list[str], list[str]]:
    """Want paths of a host; what to leave out of one that is wanted already is replaced. Returns (added, existed), as
    they were given. Raises InvalidRequest, AgentNotFound, Conflict: 7403 (uninstalled), 7407 (too many).
    """
    paths = normal_paths(texts, "add_path", PATHS_MAX)
    exclusions = normal_exclusions(excluded, paths)
    async with database.transaction() as conn:
        await _lock(conn, project_id, agent_id)
        agent = await _require(conn, project_id, agent_id)
        if agent.status == "uninstall":
            raise Conflict(
                conflict_code="7403",
                reason="The agent is uninstalled. Install it again on its host, and register it, before adding paths.",
            )
        known = {path.path for path in agent.paths}
        if len(known | set(paths)) > PATHS_MAX:
            raise Conflict(
                conflict_code="7407",
                reason=f"An agent can have at most {PATHS_MAX} paths. Add the folder around them, or remove others.",
            )
        now = clock.now()
        for path in paths:
            await conn.execute(
                "INSERT INTO agent_paths (id, project_id, agent_id, path, excluded, created_at) "
                "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (project_id, agent_id, path) DO UPDATE "
                "SET excluded = CASE WHEN %s THEN excluded.excluded ELSE agent_paths.excluded END",
                [new_id(), project_id, agent_id, path, exclusions.get(path, []), now, path in exclusions],
            )
        await _touch(conn, project_id, agent_id, now)
    added = [given for path, given in paths.items() if path not in known]
    return added, [given for path, given in paths.items() if path in known]


async def remove_paths(
    database: Database, project_id: str, agent_id: str, texts: Sequence[str], clock: Clock
) -> tuple[list[str], list[str]]:
    """No longer want paths of a host; what was backed up of them stays. Returns (removed, not there), as given.

    Raises InvalidRequest, AgentNotFound.
    """
    paths = normal_paths(texts, "remove_path", PATHS_MAX)
    async with database.transaction() as conn:
        await _lock(conn, project_id, agent_id)
        known = {path.path for path in (await _require(conn, project_id, agent_id)).paths}
        await conn.execute(
            "DELETE FROM agent_paths WHERE project_id = %s AND agent_id = %s AND path = ANY(%s)",
            [project_id, agent_id, list(paths)],
        )
        await _touch(conn, project_id, agent_id, clock.now())
    removed = [given for path, given in paths.items() if path in known]
    return removed, [given for path, given in paths.items() if path not in known]


async def _lock(conn: AsyncConnection[Any], project_id: str, agent_id: str) -> None:
    await conn.execute("SELECT 1 FROM agents WHERE project_id = %s AND id = %s FOR UPDATE", [project_id, agent_id])


async def _touch(conn: AsyncConnection[Any], project_id: str, agent_id: str, now: datetime) -> None:
    await conn.execute(
        "UPDATE agents SET updated_at = %s WHERE project_id = %s AND id = %s", [now, project_id, agent_id]
    )


# --- checks ---------------------------------------------------------------------------------------------------------


async def check(database: Database, project_id: str, resources: Sequence[tuple[str, str]]) -> list[Checked]:
    """Of each (id, type), in order, whether an agent works there. Resources of others answer like absent ones.

    Raises InvalidRequest, Conflict 6116 (unknown type).
    """
    if not 0 < len(resources) <= CHECKED_MAX:
        raise InvalidRequest(reason=f"Invalid agent_status: name 1 to {CHECKED_MAX} resources.")
    for resource_id, kind in resources:
        require_id(resource_id, "agent_status.resource_id")
        if kind not in RESOURCE_KINDS:
            raise Conflict(
                reason=f"The resource type is not known. Use one of {', '.join(RESOURCE_KINDS)}.", conflict_code="6116"
            )
    ids = sorted({resource_id for resource_id, _ in resources})
    filters = Filters(project_id=project_id)
    filters.add("id = ANY(%s)", ids)
    async with database.read() as conn:
        rows, _ = await fetch_page(conn, columns=_COLUMNS, table=_TABLE, filters=filters, page=Page(limit=CHECKED_MAX))
    agents = {row["id"]: row for row in rows}
    return [_checked(resource_id, agents.get(resource_id)) for resource_id, _ in resources]


def _checked(resource_id: str, row: Mapping[str, Any] | None) -> Checked:
    if row is None:
        state = (False, 7410, "No agent is registered for the resource.")
    elif row["status"] == "uninstall":
        state = (False, 7403, "The agent is uninstalled.")
    elif row["last_active_at"] is None:
        state = (False, 7403, "The agent is registered, and has never connected. Install and start it on its host.")
    elif row["status"] == "abnormal":
        state = (True, 7403, "The agent does not connect any more. Look whether it runs on its host.")
    else:
        state = (True, 0, "The agent is connected.")
    installed, code, message = state
    version = row["agent_version"] if row is not None and installed else None
    return Checked(resource_id=resource_id, installed=installed, code=code, message=message, version=version)


# --- shared ---------------------------------------------------------------------------------------------------------


async def _require(conn: AsyncConnection[Any], project_id: str, agent_id: str) -> Agent:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            f"SELECT {_COLUMNS} FROM {_TABLE} WHERE project_id = %s AND id = %s",  # noqa: S608 -- the texts are ours
            [project_id, agent_id],
        )
        rows = await cursor.fetchall()
    if not rows:
        raise AgentNotFound(id=agent_id)
    return (await _complete(conn, project_id, rows))[0]


async def _complete(conn: AsyncConnection[Any], project_id: str, rows: Sequence[dict[str, Any]]) -> list[Agent]:
    """Rows with their paths, in the order of the rows."""
    found = await conn.execute(
        "SELECT agent_id, id, path, excluded FROM agent_paths "
        "WHERE project_id = %s AND agent_id = ANY(%s) ORDER BY path",
        [project_id, [row["id"] for row in rows]],
    )
    paths: dict[str, list[AgentPath]] = {}
    for agent_id, path_id, path, excluded in await found.fetchall():
        paths.setdefault(agent_id, []).append(AgentPath(id=path_id, path=path, excluded=tuple(excluded)))
    return [Agent(**row, paths=tuple(paths.get(row["id"], ()))) for row in rows]
