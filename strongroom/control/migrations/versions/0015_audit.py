"""The audit log: who did what from where, kept by triggers."""

from strongroom.control.migrate import apply_sql_beside

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    apply_sql_beside(__file__)
