"""Locked vaults: the time that is promised to a restore point, and the clock that it runs by."""

from strongroom.control.migrate import apply_sql_beside

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    apply_sql_beside(__file__)
