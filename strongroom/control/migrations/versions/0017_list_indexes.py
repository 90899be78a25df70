"""An index for the filters and orders of the list of backups."""

from strongroom.control.migrate import apply_sql_beside

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    apply_sql_beside(__file__)
