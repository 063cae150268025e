"""The background thread's one connection to the database, and what it last measured of it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from database import Failure, failure
from deadline import Budget

_log = logging.getLogger("readygate.database")
#: A result older than the timeout and this is no result (spec, section 2).
_TOO_OLD_SECONDS = 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """What is known of the database; instants are the local monotonic clock's."""

    #: The last answer; None: there was none yet.
    answered_at: float | None = None
    #: Since when an operation waits for an answer; None: nothing is under way.
    waiting_since: float | None = None
    #: Why the last operation got no answer; None: it got one.
    failure: Failure | None = None
    #: How long the last ping took; None: there was none yet.
    latency_seconds: float | None = None
    #: The local instant at which that was known.
    pinged_at: float = float("-inf")


class Link:
    """One connection, opened when needed, kept open, dropped when it no longer answers.

    One thread uses it; any thread reads what it measured.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        label: Callable[[], str],
        timeout_seconds: float,
        file: Path | None = None,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`file`: the SQLite file, if it is one: a connection to a deleted or replaced file is none.

        `budget`: the engine's, to bound a ping and the connect that it may need together.
        """
        self._engine = engine
        self._label = label
        self._timeout_seconds = timeout_seconds
        self._file = file
        self._budget, self._clock = budget or Budget(), clock
        self._connection: Connection | None = None
        #: Of which process it is; another's, from before a fork, is kept and never touched: the other uses it.
        self._process = os.getpid()
        self._inherited: Connection | None = None
        self._inode: tuple[int, int] | None = None
        self.measurement = Measurement()
        event.listen(engine, "before_cursor_execute", self._sent)
        event.listen(engine, "after_cursor_execute", self._answered)

    def unreachable(self) -> bool:
        """Whether the last operation failed, takes longer than the timeout, or is too old to tell."""
        seen, now = self.measurement, self._clock()
        if seen.failure is not None:
            return True
        if seen.waiting_since is not None and now - seen.waiting_since > self._timeout_seconds:
            return True
        # Before the first answer nothing is known yet; the other checks say that this worker is starting.
        return seen.answered_at is not None and now - seen.answered_at > self._timeout_seconds + _TOO_OLD_SECONDS

    def stalled(self) -> bool:
        """Whether others had better not try: the last operation failed, or has waited for over a second."""
        since = self.measurement.waiting_since
        return (since is not None and self._clock() - since > 1.0) or self.unreachable()

    def ping(self) -> bool:
        """Ask the database for a sign of life; whether one came. Never raises for a failure of the database."""
        started = self._clock()

        def ask(connection: Connection) -> None:
            # The table is there in every SQLite file, and reading it reads the file; to PostgreSQL it is no table.
            connection.exec_driver_sql("SELECT 1" if self._file is None else "SELECT count(*) FROM sqlite_master").all()
            if self._clock() - started > self._timeout_seconds:
                raise TimeoutError

        try:
            with self._budget.limit(self._timeout_seconds):
                self.use(ask)
        except Exception as error:  # noqa: BLE001  # whatever it is, the database gave no sign of life
            # Nor will this connection: SQLite's go on failing on a file that was taken away under them.
            self.close()
            return self._note(failure(error))
        now = self._clock()
        self.measurement = replace(self.measurement, latency_seconds=now - started, pinged_at=now)
        return True

    def use(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns with the connection, each of whose statements commits by itself.

        Raises what `work` or the connect raises; a connection that no longer answers is dropped first.
        """
        try:
            result = work(self._open())
        except Exception as error:
            self._failed(error)
            raise
        self._note(None)
        return result

    def close(self) -> None:
        """Drop the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _open(self) -> Connection:
        if self._process != os.getpid():
            self._inherited, self._connection, self._process = self._connection, None, os.getpid()
        if self._file is not None and self._connection is not None and _inode(self._file) != self._inode:
            self.close()
        if self._connection is None:
            self.measurement = replace(self.measurement, waiting_since=self._clock())
            self._connection = self._engine.connect()
            self._inode = None if self._file is None else _inode(self._file)
        return self._connection

    def _failed(self, error: Exception) -> None:
        why = failure(error)
        if self._connection is None or self._connection.invalidated or why.lost:
            self.close()
            self._note(why)
        else:
            # The server answered, if only to refuse this statement.
            if why.word == "read only":
                # Another connection may write: the name leads to the primary by now, or the file's mode was mended.
                self.close()
            self.measurement = replace(self.measurement, waiting_since=None, answered_at=self._clock())

    def _note(self, why: Failure | None) -> bool:
        before = self.measurement.failure
        answered = self.measurement.answered_at if why else self._clock()
        self.measurement = replace(self.measurement, waiting_since=None, answered_at=answered, failure=why)
        if before is None and why is not None:
            _log.warning("database %s: %s", self._label(), why)
        elif before is not None and why is None:
            _log.info("database %s: answers again", self._label())
        return why is None

    def _sent(self, *_: Any) -> None:
        self.measurement = replace(self.measurement, waiting_since=self._clock())

    def _answered(self, *_: Any) -> None:
        self.measurement = replace(self.measurement, waiting_since=None, answered_at=self._clock())


def _inode(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
