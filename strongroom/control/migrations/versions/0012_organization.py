"""Organization policies: one of a domain, kept as a copy in every project that it is for."""

from strongroom.control.migrate import apply_sql_beside

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    apply_sql_beside(__file__)
