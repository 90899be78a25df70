"""Identity, protectables, vaults, restore points, operation logs."""

from strongroom.control.migrate import apply_sql_beside

revision = "0001"
down_revision = None


def upgrade() -> None:
    apply_sql_beside(__file__)
