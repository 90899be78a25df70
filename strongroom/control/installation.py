"""Facts about this installation, kept in its database: which master key it was made with."""

from strongroom.base.errors import ConfigError
from strongroom.control.db import Database

MASTER_KEY_ID = "master_key_id"


async def find_master_key_id(database: Database) -> str | None:
    """Id (hex) of the master key that this database's vaults are wrapped with; None before the first start ended."""
    async with database.read() as conn:
        row = await (await conn.execute("SELECT value FROM installation WHERE name = %s", [MASTER_KEY_ID])).fetchone()
    return row[0] if row is not None else None


async def has_restore_points(database: Database) -> bool:
    """Whether the store of this installation must hold something."""
    async with database.read() as conn:
        row = await (await conn.execute("SELECT EXISTS (SELECT 1 FROM backups WHERE root IS NOT NULL)")).fetchone()
    return row is not None and bool(row[0])


async def claim_master_key(database: Database, key_id: str) -> None:
    """Bind the database to a master key, once. Raises ConfigError when it is bound to another one."""
    async with database.transaction() as conn:
        await conn.execute(
            "INSERT INTO installation (name, value) VALUES (%s, %s) ON CONFLICT (name) DO NOTHING",
            [MASTER_KEY_ID, key_id],
        )
        row = await (await conn.execute("SELECT value FROM installation WHERE name = %s", [MASTER_KEY_ID])).fetchone()
    if row is None or row[0] != key_id:
        raise ConfigError(
            reason="The master key file is not the one this installation was made with. "
            "Put the exported key of this installation in its place; with another key no restore point can be read."
        )
