"""Sharing: backups that other projects may read, and restores that read through a share."""

from strongroom.control.migrate import apply_sql_beside

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    apply_sql_beside(__file__)
