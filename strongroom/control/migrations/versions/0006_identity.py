"""Tokens that can be given back, keys of tokens, temporary access keys, and where users logged in from."""

from strongroom.control.migrate import apply_sql_beside

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    apply_sql_beside(__file__)
