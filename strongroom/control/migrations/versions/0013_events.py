"""Events: when each task and restore point was changed last, and what is known of a running task's speed."""

from strongroom.control.migrate import apply_sql_beside

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    apply_sql_beside(__file__)
