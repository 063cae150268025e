"""${message}"""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is new. Within a major version nothing is removed or renamed: the previous release still runs."""
    ${upgrades if upgrades else "pass"}
