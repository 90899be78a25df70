"""Domains of other vaults in a vault: whose root a backup has, what a session pins, whose keys are copied."""

from strongroom.control.migrate import apply_sql_beside

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    apply_sql_beside(__file__)
