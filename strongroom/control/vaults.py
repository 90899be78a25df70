"""Vaults: create, read, change and delete them. Each request is one transaction; rules are in vault_rules.

A vault is a repository (its own keys and prefix in the store), which its first backup makes. Deleting one that never
had a backup therefore ends in the request itself; any other goes through a task, while the vault says `deleting`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from strongroom.base.clock import Clock
from strongroom.base.errors import Conflict, InvalidRequest, VaultNotFound
from strongroom.base.ids import new_id
from strongroom.control import tasks
from strongroom.control.access import Caller, allowed
from strongroom.control.db import Database
from strongroom.control.listing import Filters, Page, fetch_page
from strongroom.control.locking import tell_store
from strongroom.control.names import ENTERPRISE_PROJECT_ALL, Tag, require_enterprise_project, require_id
from strongroom.control.policies import apply_policy, unbind_vault
from strongroom.control.promises import promise
from strongroom.control.quotas import require_vaults
from strongroom.control.resource_binding import LookAt, bind
from strongroom.control.subjects import VaultRef, lock_vault
from strongroom.control.tag_search import TagQuery, filters_of
from strongroom.control.vault_resources import load_resources, require_available
from strongroom.control.vault_rules import (
    NewVault,
    Vault,
    VaultChange,
    changed,
    check_filters,
    check_new_vault,
    check_threshold,
)
from strongroom.control.vault_work import refuse_open_work

IDS_MAX = 1000  # of one filter: a page of the list

_COLUMNS: LiteralString = """id, project_id, user_id, name, description, provider_id, object_type, protect_type,
    consistent_level, size_gb, cloud_type, charging_mode, is_multi_az, status, enterprise_project_id, auto_bind,
    bind_rules, auto_expand, threshold, smn_notify, backup_name_prefix, demand_billing, locked, availability_zone,
    sys_lock_source_service, used_bytes, created_at, updated_at"""


@dataclass(frozen=True, kw_only=True)
class VaultQuery:
    """Filters of the list, joined by AND; None or empty: no filter. resource_ids: vaults that hold any of them."""

    name: str | None = None
    ids: tuple[str, ...] = ()
    policy_id: str | None = None
    status: str | None = None
    object_type: str | None = None
    protect_type: str | None = None
    cloud_type: str | None = None
    enterprise_project_id: str | None = None
    resource_ids: tuple[str, ...] = ()


async def create_vault(database: Database, caller: Caller, new: NewVault, look_at: LookAt, clock: Clock) -> Vault:
    """Make a vault with its tags and resources, all or nothing, and return it as `require_vault` will.

    Raises InvalidRequest, Conflict, NotFound (a resource, the policy), QuotaExceeded.
    """
    kind = check_new_vault(new)
    looks = await look_at([resource.id for resource in new.resources])
    vault_id, now = new_id(), clock.now()
    async with database.transaction() as conn:
        await conn.execute(
            """
            INSERT INTO vaults (id, project_id, user_id, name, description, provider_id, object_type, protect_type,
                consistent_level, size_gb, cloud_type, charging_mode, is_multi_az, enterprise_project_id, auto_bind,
                bind_rules, auto_expand, threshold, smn_notify, backup_name_prefix, demand_billing, locked,
                availability_zone, sys_lock_source_service, created_at)
            VALUES (%(id)s, %(project_id)s, %(user_id)s, %(name)s, %(description)s, %(provider_id)s, %(object_type)s,
                %(protect_type)s, %(consistent_level)s, %(size_gb)s, %(cloud_type)s, %(charging_mode)s,
                %(is_multi_az)s, %(enterprise_project_id)s, %(auto_bind)s, %(bind_rules)s, %(auto_expand)s,
                %(threshold)s, %(smn_notify)s, %(backup_name_prefix)s, %(demand_billing)s, %(locked)s,
                %(availability_zone)s, %(sys_lock_source_service)s, %(created_at)s)
            """,
            {
                **{field.name: getattr(new, field.name) for field in fields(NewVault)},
                "id": vault_id,
                "project_id": caller.project_id,
                "user_id": caller.user_id,
                "provider_id": kind.provider_id,
                "enterprise_project_id": require_enterprise_project(
                    new.enterprise_project_id, "vault.enterprise_project_id"
                ),
                "bind_rules": Jsonb(_stored_rules(new.bind_rules)),
                "created_at": now,
            },
        )
        await conn.execute(
            "INSERT INTO vault_tags (project_id, vault_id, key, value) "
            "SELECT %s, %s, t.* FROM unnest(%s::text[], %s::text[]) AS t",
            [caller.project_id, vault_id, [tag.key for tag in new.tags], [tag.value for tag in new.tags]],
        )
        vault = await lock_vault(conn, caller.project_id, vault_id)
        await bind(conn, vault, new.resources, looks, now)
        if new.backup_policy_id is not None:
            await apply_policy(conn, vault, new.backup_policy_id, now)
        await require_vaults(conn, caller.project_id)
        return await require_vault(conn, caller.project_id, vault_id)


async def require_vault(conn: AsyncConnection[Any], project_id: str, vault_id: str) -> Vault:
    """One vault of this project. Raises VaultNotFound."""
    found = await load_vaults(conn, project_id, [vault_id])
    if vault_id not in found:
        raise VaultNotFound(id=vault_id)
    return found[vault_id]


async def load_vaults(conn: AsyncConnection[Any], project_id: str, vault_ids: Sequence[str]) -> dict[str, Vault]:
    """Those of the vaults that are this project's, by id."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            f"SELECT {_COLUMNS} FROM vaults WHERE project_id = %s AND id = ANY(%s)",  # noqa: S608 -- the columns are ours
            [project_id, list(vault_ids)],
        )
        rows = await cursor.fetchall()
    return {vault.id: vault for vault in await _complete(conn, project_id, rows)}


async def list_vaults(database: Database, project_id: str, query: VaultQuery, page: Page) -> tuple[list[Vault], int]:
    """One page, newest first, and the count of all that match. Raises InvalidRequest."""
    filters = _filters(project_id, query)
    whole = "vaults" if query == VaultQuery() else None
    async with database.transaction() as conn:
        rows, count = await fetch_page(conn, columns=_COLUMNS, table="vaults", filters=filters, page=page, whole=whole)
        return await _complete(conn, project_id, rows), count


async def find_by_tags(
    database: Database, project_id: str, query: TagQuery, page: Page | None
) -> tuple[list[Vault], int]:
    """One page of the vaults that the query finds, newest first, and how many it finds; None: only how many.

    Raises InvalidRequest.
    """
    filters = filters_of(project_id, query)
    async with database.transaction() as conn:
        rows, count = await fetch_page(
            conn, columns=_COLUMNS, table="vaults", filters=filters, page=page or Page(limit=1)
        )
        return await _complete(conn, project_id, rows) if page is not None else [], count


async def list_external(
    database: Database, caller: Caller, project_id: str, query: VaultQuery, page: Page
) -> tuple[list[Vault], int]:
    """Vaults of another project, for a caller whose roles there include to list them; else none, as if none were.

    Raises InvalidRequest.
    """
    filters = _filters(project_id, query)
    async with database.transaction() as conn:
        found = await conn.execute(
            "SELECT a.role FROM role_assignments a JOIN projects p ON p.id = a.project_id AND p.enabled "
            "WHERE a.user_id = %s AND a.project_id = %s",
            [caller.user_id, project_id],
        )
        roles = frozenset(row[0] for row in await found.fetchall())
        if project_id != caller.project_id and not allowed(roles, "cbr:vaults:list"):
            return [], 0
        rows, count = await fetch_page(conn, columns=_COLUMNS, table="vaults", filters=filters, page=page)
        return await _complete(conn, project_id, rows), count


async def update_all(
    database: Database, project_id: str, *, threshold: int | None, smn_notify: bool | None, clock: Clock
) -> list[str]:
    """Change every vault of the project that is not on its way out; their ids, newest first. None leaves a member.

    Raises InvalidRequest.
    """
    if threshold is not None:
        check_threshold(threshold)
    if threshold is None and smn_notify is None:
        return []
    async with database.transaction() as conn:
        found = await conn.execute(
            "SELECT id FROM vaults WHERE project_id = %s AND status <> 'deleting' ORDER BY id FOR UPDATE", [project_id]
        )
        ids = [row[0] for row in await found.fetchall()]
        done = await conn.execute(
            "UPDATE vaults SET threshold = coalesce(%s, threshold), smn_notify = coalesce(%s, smn_notify), "
            "updated_at = %s WHERE project_id = %s AND id = ANY(%s) RETURNING created_at, id",
            [threshold, smn_notify, clock.now(), project_id, ids],
        )
        return [row[1] for row in sorted(await done.fetchall(), reverse=True)]


async def update_vault(database: Database, project_id: str, vault_id: str, change: VaultChange, clock: Clock) -> Vault:
    """Change a vault and return it; a change that asks for nothing writes nothing.

    Raises VaultNotFound, InvalidRequest, Conflict 6101 (size), 6112 (the vault is on its way out).
    """
    async with database.transaction() as conn:
        head = await lock_vault(conn, project_id, vault_id)
        require_available(head, "lock", "error")
        before = await require_vault(conn, project_id, vault_id)
        after = changed(before, change)
        if after == before:
            return before
        await conn.execute(
            """
            UPDATE vaults SET name = %s, size_gb = %s, consistent_level = %s, auto_bind = %s, bind_rules = %s,
                auto_expand = %s, threshold = %s, smn_notify = %s, locked = %s, updated_at = %s
            WHERE project_id = %s AND id = %s
            """,
            [
                after.name,
                after.size_gb,
                after.consistent_level,
                after.auto_bind,
                Jsonb(_stored_rules(after.bind_rules)),
                after.auto_expand,
                after.threshold,
                after.smn_notify,
                after.locked,
                clock.now(),
                project_id,
                vault_id,
            ],
        )
        if after.locked and not before.locked:
            await promise(conn, head, clock.now())
            await tell_store(conn, head, clock)
        return await require_vault(conn, project_id, vault_id)


async def delete_vault(database: Database, project_id: str, vault_id: str, request_id: str, clock: Clock) -> None:
    """Delete a vault with every backup in it: at once if it never had one, else by a task while it says `deleting`.

    Backups that wait or run are told to stop; the task waits for what is open. Raises VaultNotFound, or Conflict 6112
    (wrong status, or resources move from it or to it), 6111 (locked and not empty).
    """
    async with database.transaction() as conn:
        vault = await lock_vault(conn, project_id, vault_id)
        require_available(vault, "error")
        await refuse_open_work(conn, vault, "migrate")
        backups, untouched = await _contents(conn, vault)
        if vault.locked and backups:
            raise Conflict(
                reason="The vault is locked and holds backups: it can be deleted when the last one has expired.",
                conflict_code="6111",
            )
        task = tasks.NewTask(
            project_id=project_id,
            operation_type="vault_delete",
            request_id=request_id,
            vault_id=vault.id,
            vault_name=vault.name,
            provider_id=vault.provider_id,
        )
        now = clock.now()
        await tasks.insert(conn, [task], now)
        if untouched:
            await conn.execute(
                "UPDATE operation_logs SET status = 'success', progress = 100, started_at = %s, ended_at = %s, "
                "outcome = %s WHERE project_id = %s AND id = %s",
                [now, now, Jsonb({"total_count": 0, "fail_count": 0}), project_id, task.id],
            )
            await conn.execute("DELETE FROM vaults WHERE project_id = %s AND id = %s", [project_id, vault_id])
            return
        await unbind_vault(conn, vault)
        await conn.execute(
            "UPDATE vaults SET status = 'deleting', updated_at = %s WHERE project_id = %s AND id = %s",
            [now, project_id, vault_id],
        )
        # A task that is writing its end holds its row and waits for this vault: it is left alone, or both would wait.
        await conn.execute(
            "UPDATE operation_logs SET cancel_requested = true WHERE project_id = %s AND id IN ("
            "SELECT id FROM operation_logs WHERE project_id = %s AND vault_id = %s "
            "AND operation_type IN ('backup', 'verify', 'replication', 'copy') AND status IN ('waiting', 'running') "
            "FOR UPDATE SKIP LOCKED)",
            [project_id, project_id, vault_id],
        )


async def _contents(conn: AsyncConnection[Any], vault: VaultRef) -> tuple[int, bool]:
    """Backups that are not failed ones, or promised; and whether there never was a repository, a backup or a task."""
    found = await conn.execute(
        """
        SELECT (SELECT count(*) FROM backups WHERE project_id = %(p)s AND vault_id = %(v)s AND (status <> 'error'
                OR (root IS NOT NULL AND promised_until > (SELECT at FROM promise_clock)))),
               NOT EXISTS (SELECT 1 FROM backups WHERE project_id = %(p)s AND vault_id = %(v)s)
               AND NOT EXISTS (SELECT 1 FROM vault_keys WHERE project_id = %(p)s AND vault_id = %(v)s)
               AND NOT EXISTS (SELECT 1 FROM operation_logs WHERE project_id = %(p)s AND vault_id = %(v)s
                               AND status IN ('waiting', 'running'))
        """,
        {"p": vault.project_id, "v": vault.id},
    )
    row = await found.fetchone()
    assert row is not None
    return row[0], row[1]


async def _complete(conn: AsyncConnection[Any], project_id: str, rows: Sequence[dict[str, Any]]) -> list[Vault]:
    """Rows with their tags and resources, in the order of the rows."""
    ids = [row["id"] for row in rows]
    if not ids:
        return []
    resources = await load_resources(conn, project_id, ids)
    tags: dict[str, list[Tag]] = {vault_id: [] for vault_id in ids}
    found = await conn.execute(
        "SELECT vault_id, key, value FROM vault_tags WHERE project_id = %s AND vault_id = ANY(%s) ORDER BY key",
        [project_id, ids],
    )
    for vault_id, key, value in await found.fetchall():
        tags[vault_id].append(Tag(key=key, value=value))
    return [
        Vault(
            **{
                **row,
                "bind_rules": tuple(Tag(**tag) for tag in row["bind_rules"].get("tags", ())),
                "tags": tuple(tags[row["id"]]),
                "resources": tuple(resources[row["id"]]),
            }
        )
        for row in rows
    ]


def _filters(project_id: str, query: VaultQuery) -> Filters:
    check_filters(
        name=query.name,
        cloud_type=query.cloud_type,
        protect_type=query.protect_type,
        object_type=query.object_type,
        status=query.status,
    )
    if max(len(query.ids), len(query.resource_ids)) > IDS_MAX:
        raise InvalidRequest(reason=f"Invalid query: filter by at most {IDS_MAX} ids.")
    filters = Filters(project_id=project_id)
    exact: list[tuple[LiteralString, str | None]] = [
        ("name = %s", query.name),
        ("status = %s", query.status),
        ("object_type = %s", query.object_type),
        ("protect_type = %s", query.protect_type),
        ("cloud_type = %s", query.cloud_type),
    ]
    for text, value in exact:
        if value is not None:
            filters.add(text, value)
    if query.enterprise_project_id not in (None, ENTERPRISE_PROJECT_ALL):
        filters.add(
            "enterprise_project_id = %s",
            require_enterprise_project(query.enterprise_project_id, "enterprise_project_id"),
        )
    if query.ids:
        filters.add("id = ANY(%s)", [require_id(vault_id, "id") for vault_id in query.ids])
    if query.resource_ids:
        ids = [require_id(resource_id, "resource_ids") for resource_id in query.resource_ids]
        filters.add(
            "id IN (SELECT vault_id FROM vault_resources WHERE project_id = %s AND resource_id = ANY(%s))",
            project_id,
            ids,
        )
    if query.policy_id is not None:
        require_id(query.policy_id, "policy_id")
        filters.add(
            "id IN (SELECT vault_id FROM policy_vaults WHERE project_id = %s AND policy_id = %s)",
            project_id,
            query.policy_id,
        )
    return filters


def _stored_rules(tags: Sequence[Tag]) -> dict[str, Any]:
    """`{}` when there are none: clients set that and `{"tags": []}` alike, and must read one form."""
    return {"tags": [{"key": tag.key, "value": tag.value} for tag in tags]} if tags else {}
