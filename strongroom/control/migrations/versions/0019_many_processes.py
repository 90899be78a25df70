"""Many processes on one database: fair claims by an index, source hosts, and who may work with which schema."""

from strongroom.control.migrate import apply_sql_beside

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    apply_sql_beside(__file__)
