"""The table of tokens. Instants are whole microseconds since 1970 in UTC by the database's clock."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, MetaData, String, Table

metadata = MetaData()

tokens = Table(
    "readygate_tokens",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("role", String(20), nullable=False),
    # SHA-256, in hexadecimal: who reads the table has no token. 224 random bits need no salt and no slow hash.
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    # None: never.
    Column("expires_at", BigInteger),
)
