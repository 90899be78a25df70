"""Checks of a vault as a task, and what they found wrong with a backup."""

from strongroom.control.migrate import apply_sql_beside

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    apply_sql_beside(__file__)
