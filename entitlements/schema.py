"""The tables of licenses and of this deployment's identity."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, Text

metadata = MetaData()

licenses = Table(
    "readygate_licenses",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    # The license's jti: the same license twice is one license, whatever its spelling.
    Column("uuid", String(36), nullable=False, unique=True),
    # The signed text as it came. It is verified again whenever it is read: the database is not trusted.
    Column("jwt", Text, nullable=False),
    # Microseconds since 1970, by the database's clock.
    Column("uploaded_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
#: One row, made with the schema: what a license's deployment_ids are compared with.
deployment = Table("readygate_deployment", metadata, Column("id", String(36), primary_key=True))
