"""One worker's share of a replica in an app with an engine of its own: its connection, its thread, what they know."""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from werkzeug.exceptions import ServiceUnavailable

from .errors import RegistryError
from .heartbeat import Heartbeat
from .lease import Lease, elapsed
from .policies import Policies
from .registry import Registry

_log = logging.getLogger("readygate.replicas")
#: A result older than the timeout and this is no result (spec, section 2).
_TOO_OLD_SECONDS = 2.0
_SWEEP_SECONDS = 3600.0
_UNREACHABLE, _OUTDATED = "database unreachable", "schema outdated"
#: A table or a column that is not there.
_SCHEMA_STATES = ("42P01", "42703", "3F000")
#: Every statement commits by itself, and is sent as it stands: to some drivers a % would be a placeholder.
_OPTIONS = {"isolation_level": "AUTOCOMMIT", "no_parameters": True}
T = TypeVar("T")


class Judge(Protocol):
    """Says how many replicas may serve, and judges by the facts; entitlements.EntitlementsService is one."""

    @property
    def exclude(self) -> str:
        """The policy, as the replica's row shows it to its peers."""

    def read(self, connection: Connection) -> Any:
        """What it knows of the database, for the two below."""

    def to_read(self, stored: Any) -> int | None:
        """How many replicas may serve; None: any number."""

    def update(self, stored: Any, facts: Any, *, read_local: float) -> Any:
        """Judge anew; `read_local` as in Facts."""

    def replaceable(self) -> bool:
        """Whether another replica could take this one's place once it is taken for dead."""

    def seconds_to_change(self) -> float | None:
        """When time alone would change the verdict; None: never."""


class Membership:
    """Makes this replica known in the table, and knows how it stands there. Asking it costs no database anything.

    `start` it in each worker, after the fork: the gunicorn hooks do, or else the first probe.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        replica_id: str | Callable[[], str],
        version: str,
        hostname: str | None = None,
        judge: Judge | None = None,
        heartbeat_seconds: float = 5.0,
        stale_after_seconds: float | None = None,
        grace_seconds: float = 60.0,
        timeout_seconds: float = 5.0,
        clock: Callable[[], float] = elapsed,
    ) -> None:
        """`engine`: the app's; the thread has one connection of its own beside the app's pool.

        `replica_id`: a UUID made once per server, before its workers fork (gunicorn.replica_id). `hostname`: None
        asks the system. `judge`: None lets any number serve. `stale_after_seconds`: None is three heartbeats.
        `timeout_seconds`: what takes the database longer is a failure.
        """
        stale_after = 3 * heartbeat_seconds if stale_after_seconds is None else stale_after_seconds
        if round(stale_after * 1e6) < 3 * round(heartbeat_seconds * 1e6):
            raise ValueError("stale_after_seconds takes at least three heartbeats")
        if engine.dialect.name not in ("postgresql", "sqlite"):
            raise ValueError(f"engine takes PostgreSQL or SQLite, not {engine.dialect.name}")
        self._engine, self._judge = engine, judge
        self._timeout_seconds, self._clock = timeout_seconds, clock
        self._own: Engine | None = None
        self._connection: Connection | None = None
        #: Since when an operation waits for an answer; None: nothing is under way.
        self._waiting_since: float | None = None
        self._answered_at: float | None = None
        self._latency_seconds: float | None = None
        self._unreachable = self._outdated = False
        self._next_sweep = clock()
        self._policies = Policies()
        #: Of which process the connection is; another's, from before a fork, is kept and never touched.
        self._process: int | None = None
        self._inherited: Connection | None = None
        self.registry = Registry(
            replica_id=replica_id,
            hostname=platform.node() if hostname is None else hostname,
            version=version,
            heartbeat_seconds=heartbeat_seconds,
            stale_after_seconds=stale_after,
            grace_seconds=grace_seconds,
            exclude="all" if judge is None else judge.exclude,
            monotonic=clock,
        )
        self.lease = Lease(
            stale_after_seconds=stale_after, replaceable=judge.replaceable if judge else lambda: False, clock=clock
        )
        self.heartbeat = Heartbeat(
            ping=self._ping,
            sync=self._sync,
            heartbeat_seconds=heartbeat_seconds,
            describe=_words,
            orphaned=self.lease.orphaned,
            clock=clock,
        )

    def start(self) -> None:
        """Start the thread, where none runs in this process yet."""
        self.heartbeat.start()

    def refresh(self) -> bool:
        """Have the thread sync now, and wait for that, two seconds at most; whether it did."""
        self.start()
        return self.heartbeat.refresh()

    def reason(self) -> str | None:
        """Why this replica's own standing keeps it out of service, or None: a check that reads memory."""
        return self.lease.reason()

    def lost(self) -> bool:
        """Whether the heartbeat is lost, also where that takes nobody out, as no other replica could take the place."""
        return self.lease.lost()

    def database_reason(self) -> str | None:
        """Why the database keeps this replica out of service, or None: a check that reads memory."""
        since, answered, now = self._waiting_since, self._answered_at, self._clock()
        waits = since is not None and now - since > self._timeout_seconds
        old = answered is not None and now - answered > self._timeout_seconds + _TOO_OLD_SECONDS
        if self._unreachable or waits or old:
            return _UNREACHABLE
        return _OUTDATED if self._outdated else None

    def stalled(self) -> bool:
        """Whether requests had better not try the database: it failed to answer, or has not for over a second."""
        self.start()
        since = self._waiting_since
        return (since is not None and self._clock() - since > 1.0) or self.database_reason() == _UNREACHABLE

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection of the app's pool, in autocommit mode, for the blueprints: 503 where there is none."""
        try:
            with self._engine.execution_options(**_OPTIONS).connect() as connection:
                yield connection
        except (SQLAlchemyError, OSError) as error:
            # Not a word of the error itself: its text may hold the statement, and with it a license.
            _log.warning("a request failed: %s", _words(error))
            raise ServiceUnavailable(_OUTDATED if _of_schema(error) else _UNREACHABLE) from None

    def leave(self) -> None:
        """Say that this server has stopped: once, at its end, never at a worker's. Waits for the timeout at most.

        A failure is logged and loses nothing: the row goes stale by itself.
        """
        thread = threading.Thread(target=self._leave, name="readygate-leave", daemon=True)
        thread.start()
        thread.join(self._timeout_seconds)
        if thread.is_alive():
            _log.warning("leaving failed: timeout; the replica counts until it is stale")

    def _leave(self) -> None:
        engine = _apart(self._engine)
        try:
            with engine.connect() as connection:
                self.registry.leave(connection)
        except Exception as error:  # noqa: BLE001  # the exit goes on, whatever the database does
            _log.warning("leaving failed: %s; the replica counts until it is stale", _words(error))
        finally:
            engine.dispose()

    def _ping(self) -> bool:
        started = self._clock()
        try:
            self._use(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())
        except Exception:
            self._unreachable = True
            raise
        self._answered_at, self._unreachable = self._clock(), False
        self._latency_seconds = self._answered_at - started
        return True

    def _sync(self) -> float | None:
        try:
            change = self._use(self._judge_anew)
        except Exception as error:
            self._outdated = _of_schema(error)
            raise
        self._answered_at, self._outdated = self._clock(), False
        return change

    def _judge_anew(self, connection: Connection) -> float | None:
        judge = self._judge
        stored = None if judge is None else judge.read(connection)
        facts = self.registry.sync(
            connection, limit=judge.to_read(stored) if judge else None, latency_seconds=self._latency_seconds
        )
        if judge is not None:
            judge.update(stored, facts, read_local=facts.read_local)
        self.lease.renew(facts)
        self._policies.compare(facts)
        if self._clock() >= self._next_sweep:
            self._next_sweep = self._clock() + _SWEEP_SECONDS
            self.registry.sweep(connection)
        return None if judge is None else judge.seconds_to_change()

    def _use(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns with the thread's connection, which any failure closes."""
        self._waiting_since = self._clock()
        try:
            if self._process != os.getpid():
                self._inherited, self._connection, self._own = self._connection, None, None
                self._process = os.getpid()
            if self._connection is None:
                self._own = self._own or _apart(self._engine)
                self._connection = self._own.connect()
            return work(self._connection)
        except Exception:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.invalidate()
                connection.close()
            raise
        finally:
            self._waiting_since = None


def _apart(engine: Engine) -> Engine:
    """The same database through a pool of its own: the app's requests cannot exhaust it, and no fork can share it."""
    own = Engine(engine.pool.recreate(), engine.dialect, engine.url, hide_parameters=True)
    return own.execution_options(**_OPTIONS)


def _of_schema(error: Exception) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return _sqlstate(cause) in _SCHEMA_STATES or str(cause).startswith(("no such table", "no such column"))


def _words(error: Exception) -> str:
    """An error in words fit for the log: nothing of the driver's text, which may hold what was sent."""
    if isinstance(error, RegistryError):
        return str(error)
    if _of_schema(error):
        return "a table or column is missing; add the metadata of the readygate packages to your migrations"
    cause = error.orig if isinstance(error, DBAPIError) else error
    state = _sqlstate(cause)
    return type(cause).__name__ + (f" ({state})" if state else "")


def _sqlstate(error: BaseException | None) -> str | None:
    """PostgreSQL's code, as psycopg, psycopg2 and pg8000 each have it."""
    first = error.args[0] if error is not None and error.args else None
    told = first.get("C") if isinstance(first, dict) else None
    found = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or told
    return found if isinstance(found, str) else None
