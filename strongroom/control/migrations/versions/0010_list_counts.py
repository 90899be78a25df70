"""How long the lists are, without counting rows; and an index for how many backups a resource has."""

from strongroom.control.migrate import apply_sql_beside

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    apply_sql_beside(__file__)
