"""Policies, the vaults they are applied to, and what retention and full backups are counted by."""

from strongroom.control.migrate import apply_sql_beside

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    apply_sql_beside(__file__)
