"""Indexes for what /metrics asks."""

from strongroom.control.migrate import apply_sql_beside

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    apply_sql_beside(__file__)
