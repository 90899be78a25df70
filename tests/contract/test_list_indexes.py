"""Filters and orders of the list of backups are answered by an index of their own, not by reading the project."""

from points_world import World, opened_world

from strongroom.base.ids import new_id
from strongroom.control.backups import SORT_KEYS, BackupFilters, list_backups
from strongroom.control.db import Database
from strongroom.control.listing import Page, sort_order

OTHER = new_id()  # a vault, resource, parent ... of the one backup that the filters look for
ROWS, READ_MAX = 3000, 300
FILTERS = (
    BackupFilters(resource_id=OTHER),
    BackupFilters(name=OTHER),
    BackupFilters(statuses=("error",)),
    BackupFilters(parent_id=OTHER),
    BackupFilters(resource_type="OS::Nova::Server"),
    BackupFilters(incremental=False),
    BackupFilters(start_time="2026-01-01T00:00:00Z", end_time="2026-01-01T00:00:01Z"),
)
SORTS = ("created_at:asc", "name:asc", "name", "status:desc", "status:asc", "updated_at:asc", "protected_at", "id:asc")


async def filled(world: World) -> None:
    """A backup, and a child of its kind, that differ in everything from three thousand others, as does their vault."""
    vault = await world.add_vault([await world.add_resource()])
    point = await world.run(vault)
    other = await world.add_vault([await world.add_resource()], name="other")
    elsewhere = await world.run(other)
    insert = (
        "INSERT INTO backups (id, project_id, vault_id, checkpoint_id, resource_id, resource_type, resource_name, "
        "name, provider_id, status, incremental, created_at, updated_at, protected_at, root, parent_id, machine_id) "
    )
    await world.execute(
        insert + "SELECT gen_random_uuid()::text, %s, %s, %s, 'r' || n %% 50, "
        "'OS::Cinder::Volume', 'n', 'n' || n, 'p', 'available', true, "
        "now() - n * interval '1 min', now() - n * interval '1 s', "
        "now() - n * interval '2 s', 'x', NULL, NULL FROM generate_series(1, %s) AS n",
        *(world.project, vault, point.id, ROWS),
    )
    for parent in (None, OTHER):
        await world.execute(
            insert + "VALUES (%s, %s, %s, %s, %s, 'OS::Nova::Server', 'n', %s, 'p', 'error', false, '2026-01-01', "
            "NULL, NULL, NULL, %s, %s)",
            *(OTHER if parent is None else new_id(), world.project, other, elsewhere.id, OTHER, OTHER, parent, parent),
        )
    await world.execute("ANALYZE backups")


async def rows_read(database: Database) -> int:
    """Of the table and of its indexes, to this moment: the pool has one connection, which reports what it did."""
    async with database.read() as conn:
        await conn.execute("SELECT pg_stat_force_next_flush()")
        found = await conn.execute(
            "SELECT (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'backups') "
            "+ (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'backups')"
        )
        row = await found.fetchone()
        assert row is not None
        return int(row[0])


async def test_filters_and_orders_read_what_they_show(postgres_url: str) -> None:
    """Each filter that few backups match, and each order, reads a page and its count, and nothing of the rest of the
    project: some hundred rows of three thousand at most."""
    async with await Database.open(postgres_url, max_size=1) as database, opened_world(database) as world:
        await filled(world)
        # A table this small is cheaper to read whole: what counts is that there is another way.
        await world.execute("SELECT set_config('enable_seqscan', 'off', false)")
        await world.execute("SELECT set_config('enable_bitmapscan', 'off', false)")
        asked = [(filters, sort_order(None, SORT_KEYS), 1) for filters in FILTERS]
        asked += [(BackupFilters(), sort_order(sort, SORT_KEYS), ROWS + 3) for sort in SORTS]
        for filters, order, expected in asked:
            before = await rows_read(database)
            rows, count = await list_backups(database, world.project, filters, Page(limit=50), order)
            assert (len(rows), count) == (min(expected, 50), expected), (filters, order)
            assert await rows_read(database) - before <= READ_MAX, (filters, order)
