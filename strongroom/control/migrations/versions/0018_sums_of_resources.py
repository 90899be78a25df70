"""What restore points of a resource store, read off the index."""

from strongroom.control.migrate import apply_sql_beside

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    apply_sql_beside(__file__)
