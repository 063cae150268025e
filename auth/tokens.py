"""Tokens: what they look like, and the table that knows their digests."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.engine import Connection

from .errors import TokenExists, TokenNameError, TokenNotFound

Role = Literal["viewer", "admin"]
PREFIX = "rg_"
_RANDOM_BYTES = 28
_SHAPE = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}", re.ASCII)
_CLOCKS = {
    "postgresql": "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000",
}


@dataclass(frozen=True, kw_only=True)
class Token:
    """A row, without its digest. Instants are microseconds."""

    name: str
    role: Role
    created_at: int
    #: None: never.
    expires_at: int | None


def make() -> str:
    """A new token: 224 random bits and their CRC-32, in base64url."""
    random = secrets.token_bytes(_RANDOM_BYTES)
    return _spell(random)


def well_formed(text: str) -> bool:
    """Whether `text` could be a token: one that is cut, mistyped or made up costs no query."""
    if not _SHAPE.fullmatch(text):
        return False
    random = base64.urlsafe_b64decode(text.removeprefix(PREFIX) + "=")[:_RANDOM_BYTES]
    # Spelled again, because base64 has several spellings of the same bytes.
    return _spell(random) == text


def digest(text: str) -> str:
    """What the table knows of the token `text`."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class Tokens:
    """The table.

    Methods take a connection in autocommit mode, and send statements without bind parameters.
    """

    def __init__(self, *, clocks: Mapping[str, str] | None = None) -> None:
        """`clocks`: the SQL of the database's clock by dialect, for tests; None: its own."""
        self._clocks = clocks or _CLOCKS

    def create(
        self, connection: Connection, name: str, *, role: Role, expires_seconds: int | None = None
    ) -> tuple[str, Token]:
        """A new token, whose text nobody will see again, and its row. Raises TokenNameError or TokenExists."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}", name, re.ASCII):
            raise TokenNameError("a token's name takes up to 100 letters, digits and . _ @ -, such as ci-deploy")
        text = make()
        ends = "CAST(NULL AS bigint)" if expires_seconds is None else f"n + {int(expires_seconds) * 1_000_000}"
        row = connection.exec_driver_sql(
            f"INSERT INTO readygate_tokens (name, role, digest, created_at, expires_at) SELECT '{name}', '{role}',"
            f" '{digest(text)}', n, {ends} FROM (SELECT {self._now(connection)} AS n) AS clock WHERE true"
            " ON CONFLICT (name) DO NOTHING RETURNING name, role, created_at, expires_at"
        ).one_or_none()
        if row is None:
            raise TokenExists(f"a token named {name} exists; revoke it first, or choose another name")
        return text, Token(**row._mapping)

    def find(self, connection: Connection, known_digest: str) -> tuple[Token, int] | None:
        """The token with that digest and the database's instant, or None where it is unknown or has expired."""
        row = connection.exec_driver_sql(
            "SELECT name, role, created_at, expires_at, n FROM readygate_tokens,"
            f" (SELECT {self._now(connection)} AS n) AS clock"
            f" WHERE digest = '{known_digest}' AND (expires_at IS NULL OR expires_at > n)"
        ).one_or_none()
        if row is None:
            return None
        values = dict(row._mapping)
        now = values.pop("n")
        return Token(**values), now

    def all(self, connection: Connection) -> tuple[Sequence[Token], int]:
        """All tokens by name, the expired ones too, and the database's instant."""
        rows = connection.exec_driver_sql(
            "SELECT name, role, created_at, expires_at FROM readygate_tokens ORDER BY name"
        ).all()
        now: int = connection.exec_driver_sql(f"SELECT {self._now(connection)}").scalar_one()
        return [Token(**row._mapping) for row in rows], now

    def revoke(self, connection: Connection, name: str) -> None:
        """Delete a token; raises TokenNotFound. It stops working within one heartbeat, wherever it is remembered."""
        quoted = re.sub(r"[^\x20-\x7e]", "?", name)[:101].replace("'", "''")
        if connection.exec_driver_sql(f"DELETE FROM readygate_tokens WHERE name = '{quoted}'").rowcount == 0:
            raise TokenNotFound("no token has this name; `token list` shows them")

    def _now(self, connection: Connection) -> str:
        return self._clocks[connection.dialect.name]


def _spell(random: bytes) -> str:
    checked = random + zlib.crc32(random).to_bytes(4, "big")
    return PREFIX + base64.urlsafe_b64encode(checked).rstrip(b"=").decode()
