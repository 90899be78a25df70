"""Times of whole vaults, resources that move between vaults, and restore points that are brought into the catalogue."""

from strongroom.control.migrate import apply_sql_beside

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    apply_sql_beside(__file__)
