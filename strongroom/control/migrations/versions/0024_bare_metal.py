"""Bare metal servers with an agent: what kind of resource a one-time token makes."""

from strongroom.control.migrate import apply_sql_beside

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    apply_sql_beside(__file__)
