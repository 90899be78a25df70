"""Notifications, and the outbox of what is still to be told."""

from strongroom.control.migrate import apply_sql_beside

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    apply_sql_beside(__file__)
