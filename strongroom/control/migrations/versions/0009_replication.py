"""Replication between regions: the records of both sides, and their kinds of tasks."""

from strongroom.control.migrate import apply_sql_beside

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    apply_sql_beside(__file__)
