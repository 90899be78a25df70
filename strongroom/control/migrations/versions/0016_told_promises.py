"""What the store has been told of promises: which labels still have to be written."""

from strongroom.control.migrate import apply_sql_beside

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    apply_sql_beside(__file__)
