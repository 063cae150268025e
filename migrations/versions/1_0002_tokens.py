"""The table of tokens, and when a replica's place was given up."""

import sqlalchemy as sa
from alembic import op

revision = "1_0002"
down_revision = "1_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make it; the release before knows nothing of it and runs on."""
    op.add_column("readygate_replicas", sa.Column("drained_at", sa.BigInteger))
    # No query passes over those that gave up their places; and one index more, of the longest grace.
    counts = sa.text("stopped_at IS NULL AND drained_at IS NULL")
    for name, columns in (
        ("readygate_replicas_line", ["created_at", "id"]),
        ("readygate_replicas_aging", [sa.text("(started_at + grace)")]),
        ("readygate_replicas_grace", ["grace"]),
    ):
        if name != "readygate_replicas_grace":
            op.drop_index(name, "readygate_replicas")
        op.create_index(name, "readygate_replicas", columns, postgresql_where=counts, sqlite_where=counts)
    op.create_table(
        "readygate_tokens",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
    )
