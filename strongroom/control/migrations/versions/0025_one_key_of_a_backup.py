"""A backup's checkpoint, vault and project agree, by one foreign key in place of three."""

from strongroom.control.migrate import apply_sql_beside

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    apply_sql_beside(__file__)
