"""The table of replicas. Instants are whole microseconds since 1970 in UTC by the database's clock; so are durations.

Whole numbers, because both databases then compare and add them alike and exactly: SQLite has no instants, and its
fractions of a second are silently lost in half of its functions.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, MetaData, String, Table, text

metadata = MetaData()

replicas = Table(
    "readygate_replicas",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("hostname", String(255), nullable=False),
    Column("version", String(100), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    # No index: every heartbeat writes it, and PostgreSQL updates a row in place only while no indexed column changes.
    Column("updated_at", BigInteger, nullable=False),
    Column("stopped_at", BigInteger),
    Column("draining_at", BigInteger),
    Column("drained_at", BigInteger),
    Column("stale_after", BigInteger, nullable=False),
    Column("grace", BigInteger, nullable=False),
    Column("exclude", String(20), nullable=False),
    Column("database_latency", BigInteger),
)
#: Those that have given up their places are left out: a query for the first of the line passes over none of them.
_COUNTS = text("stopped_at IS NULL AND drained_at IS NULL")
#: The line of those that count, the order in which their graces end, and the longest of these.
Index(
    "readygate_replicas_line",
    replicas.c.created_at,
    replicas.c.id,
    postgresql_where=_COUNTS,
    sqlite_where=_COUNTS,
)
Index(
    "readygate_replicas_aging",
    text("(started_at + grace)"),
    postgresql_where=_COUNTS,
    sqlite_where=_COUNTS,
    _table=replicas,
)
Index("readygate_replicas_grace", replicas.c.grace, postgresql_where=_COUNTS, sqlite_where=_COUNTS)
