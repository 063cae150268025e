"""The table of replicas, as `alembic revision --autogenerate` on PostgreSQL wrote it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "readygate_replicas",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("hostname", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("stopped_at", sa.BigInteger(), nullable=True),
        sa.Column("draining_at", sa.BigInteger(), nullable=True),
        sa.Column("drained_at", sa.BigInteger(), nullable=True),
        sa.Column("stale_after", sa.BigInteger(), nullable=False),
        sa.Column("grace", sa.BigInteger(), nullable=False),
        sa.Column("exclude", sa.String(length=20), nullable=False),
        sa.Column("database_latency", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "readygate_replicas_aging",
        "readygate_replicas",
        [sa.literal_column("(started_at + grace)")],
        unique=False,
        postgresql_where=sa.text("stopped_at IS NULL AND drained_at IS NULL"),
        sqlite_where=sa.text("stopped_at IS NULL AND drained_at IS NULL"),
    )
    op.create_index(
        "readygate_replicas_grace",
        "readygate_replicas",
        ["grace"],
        unique=False,
        postgresql_where=sa.text("stopped_at IS NULL AND drained_at IS NULL"),
        sqlite_where=sa.text("stopped_at IS NULL AND drained_at IS NULL"),
    )
    op.create_index(
        "readygate_replicas_line",
        "readygate_replicas",
        ["created_at", "id"],
        unique=False,
        postgresql_where=sa.text("stopped_at IS NULL AND drained_at IS NULL"),
        sqlite_where=sa.text("stopped_at IS NULL AND drained_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("readygate_replicas")
