"""The engines, and what a failure of the database is called in the log."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypedDict

from sqlalchemy import create_engine, event, exc
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool, QueuePool

import driver
from database_url import Postgres, Sqlite, UrlError, parse
from deadline import Budget, ConnectError
from resolver import Resolver

#: Connections that the requests of one worker may hold at once; with the background one, three per worker.
REQUEST_CONNECTIONS = 2

_WORDS = {
    "28000": "authentication",
    "28P01": "authentication",
    "53300": "too many connections",
    "25006": "read only",
    "57014": "timeout",
    "55P03": "timeout",
    "57P03": "refused",
}
_NO_ANSWER = ("connection lost", "refused", "name not resolved", "tls", "authentication", "too many connections")
_SCHEMA_STATES = ("42P01", "42703", "3F000")


@dataclass(frozen=True)
class Failure:
    """What went wrong, in words that hold no user, password, parameter or text of the driver."""

    word: str
    #: The server's SQLSTATE, SQLite's name for it, or the variable that is at fault.
    code: str | None = None

    def __str__(self) -> str:
        return f"{self.word} ({self.code})" if self.code else self.word

    @property
    def of_schema(self) -> bool:
        """Whether a table or column that this code needs is missing."""
        return self.word == "schema"

    @property
    def lost(self) -> bool:
        """Whether the connection it happened on is over (SQLSTATE classes 08 and 57P, or no answer at all)."""
        return self.word in _NO_ANSWER or (self.code or "").startswith(("08", "57P"))


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the engines of one worker have in common."""

    budget: Budget = field(default_factory=Budget)
    resolve: Resolver = field(default_factory=Resolver)


class Common(TypedDict):
    """What is the same for all engines of one worker."""

    known: str
    shared: Shared


def background_engine(
    url: Callable[[], str],
    *,
    timeout_seconds: float,
    connect_seconds: float | None = None,
    known: str | None = None,
    shared: Shared | None = None,
) -> Engine:
    """An engine for the background thread, which keeps one connection. Every statement commits by itself.

    `connect_seconds`: how long a connect may take, where that is less than a statement may. `known`: a URL of the
    same database, where `url` may raise UrlError as yet; None: it is asked.
    """
    return _engine(url, known, timeout_seconds, connect_seconds, shared, poolclass=NullPool)


def request_engine(
    url: Callable[[], str], *, timeout_seconds: float, known: str | None = None, shared: Shared | None = None
) -> Engine:
    """An engine for requests and commands: at most two connections, and a wait for one of them that ends."""
    return _engine(
        url,
        known,
        timeout_seconds,
        None,
        shared,
        poolclass=QueuePool,
        pool_size=REQUEST_CONNECTIONS,
        max_overflow=0,
        pool_timeout=timeout_seconds,
        pool_pre_ping=True,
    )


def label(url: str) -> str:
    """host:port/database of `url`, for the log."""
    return parse(url).label


def failure(error: BaseException) -> Failure:
    """The name of what `error` means."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, ConnectError):
        return Failure(cause.word)
    if isinstance(cause, UrlError):
        return Failure("other", "DATABASE_URL_FILE")
    if isinstance(cause, sqlite3.Error):
        word = _sqlite_word(cause)
        return Failure(word, getattr(cause, "sqlite_errorname", None) if word == "other" else None)
    # The second is a wait for one of the pool's connections that was too long.
    if isinstance(cause, (TimeoutError, exc.TimeoutError)):
        return Failure("timeout")
    state = driver.sqlstate(cause)
    if state in _SCHEMA_STATES:
        return Failure("schema", state)
    return Failure(_WORDS.get(state or "", "other"), state)


def _sqlite_word(error: sqlite3.Error) -> str:
    text = str(error)
    if "no such table" in text or "no such column" in text:
        return "schema"
    if "locked" in text or "busy" in text:
        return "timeout"
    if "readonly" in text:
        return "read only"
    return "refused" if "unable to open" in text else "other"


def _engine(
    url: Callable[[], str],
    known: str | None,
    timeout_seconds: float,
    connect_seconds: float | None,
    shared: Shared | None,
    **options: Any,
) -> Engine:
    # Which of the two it is may not change while the process lives; where it is may (a rotated password file).
    target = parse(url() if known is None else known)
    if isinstance(target, Postgres):
        shared = shared or Shared()
        return create_engine(
            "postgresql+pg8000://",
            creator=driver.Connector(
                lambda: _postgres(url()),
                timeout_seconds=timeout_seconds,
                connect_seconds=connect_seconds,
                budget=shared.budget,
                resolve=shared.resolve,
            ),
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            **options,
        )
    return _sqlite_engine(target, timeout_seconds, options)


def _postgres(url: str) -> Postgres:
    target = parse(url)
    if not isinstance(target, Postgres):
        raise ConnectError("other")
    return target


def _sqlite_engine(target: Sqlite, timeout_seconds: float, options: dict[str, Any]) -> Engine:
    engine = create_engine(
        f"sqlite:///{target.path}",
        isolation_level="AUTOCOMMIT",
        # One thread at a time uses a connection, but not always the one that opened it (abandoned attempts).
        connect_args={"timeout": 0.8 * timeout_seconds, "check_same_thread": False},
        hide_parameters=True,
        **options,
    )

    @event.listens_for(engine, "do_connect")
    def make_folder(dialect: Any, record: Any, args: Any, kwargs: Any) -> None:
        target.path.parent.mkdir(parents=True, exist_ok=True)

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        # Two workers that open a new file together: one of them makes the change, which the file then remembers, and
        # SQLite refuses the other at once, whatever its timeout.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "checkin")
    def close(connection: Any, record: Any) -> None:
        # A request's connection that was kept would go on with a file that was deleted or replaced, and would keep
        # SQLite in this process from noticing that a file can be written again. To open one costs next to nothing.
        record.invalidate()

    return engine
