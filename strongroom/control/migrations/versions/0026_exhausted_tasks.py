"""Tasks whose attempts are used up are found by an index."""

from strongroom.control.migrate import apply_sql_beside

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    apply_sql_beside(__file__)
