"""Quotas: what a project may have, set by the operator."""

from strongroom.control.migrate import apply_sql_beside

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    apply_sql_beside(__file__)
