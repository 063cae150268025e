"""The tables of replicas, licenses and the deployment's identity."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "1_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make them; the deployment's UUID is made here, once, and never changes."""
    op.create_table(
        "readygate_replicas",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("hostname", sa.String(255), nullable=False),
        sa.Column("version", sa.String(100), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("stopped_at", sa.BigInteger),
        sa.Column("draining_at", sa.BigInteger),
        sa.Column("stale_after", sa.BigInteger, nullable=False),
        sa.Column("grace", sa.BigInteger, nullable=False),
        sa.Column("exclude", sa.String(20), nullable=False),
        sa.Column("database_latency", sa.BigInteger),
    )
    standing = sa.text("stopped_at IS NULL")
    op.create_index(
        "readygate_replicas_line",
        "readygate_replicas",
        ["created_at", "id"],
        postgresql_where=standing,
        sqlite_where=standing,
    )
    op.create_index(
        "readygate_replicas_aging",
        "readygate_replicas",
        [sa.text("(started_at + grace)")],
        postgresql_where=standing,
        sqlite_where=standing,
    )
    op.create_table(
        "readygate_licenses",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("uuid", sa.String(36), nullable=False, unique=True),
        sa.Column("jwt", sa.Text, nullable=False),
        sa.Column("uploaded_at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    deployment = op.create_table("readygate_deployment", sa.Column("id", sa.String(36), primary_key=True))
    op.execute(deployment.insert().values(id=sa.literal(str(uuid.uuid4()), literal_execute=True)))
