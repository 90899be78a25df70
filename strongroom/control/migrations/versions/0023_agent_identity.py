"""Who may speak for a host: tokens, certificates, and the authority that signs them."""

from strongroom.control.migrate import apply_sql_beside

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    apply_sql_beside(__file__)
