"""Agents: hosts with a program of ours, as far as the API knows of them."""

from strongroom.control.migrate import apply_sql_beside

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    apply_sql_beside(__file__)
