"""Backups of machines: one row a disk below the machine's own."""

from strongroom.control.migrate import apply_sql_beside

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    apply_sql_beside(__file__)
