"""A database on virtual time: real SQL on SQLite, with the row locks, late commits and lost messages of PostgreSQL.

A statement arrives, is evaluated at one instant, and becomes visible at another. Between the two its rows are locked:
who writes them waits and evaluates anew, who skips locked rows passes by, who reads sees the old row. That is what
PostgreSQL does with single statements at READ COMMITTED.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

import entitlements.schema
import replicas

CLOCKS = {"sqlite": "virtual_now()"}
_JOIN = "INSERT INTO readygate_replicas"
_SKIPS_LOCKED = re.compile(r"LIMIT 1000\)")
_TABLE = "SELECT * FROM readygate_replicas"
Rewrite = Callable[[str], str]


class Row(SimpleNamespace):
    """A row as SQLAlchemy gives it."""

    @property
    def _mapping(self) -> dict[str, Any]:
        return self.__dict__


@dataclass
class Result:
    """What a statement answered."""

    rows: list[Row]
    rowcount: int = 0

    def all(self) -> list[Row]:
        return self.rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def one_or_none(self) -> Row | None:
        return self.rows[0] if self.rows else None

    def scalar_one(self) -> Any:
        return next(iter(self.rows[0].__dict__.values()))


@dataclass
class Pending:
    """A statement that was evaluated and is not visible yet."""

    changes: dict[str, tuple[Any, ...] | None]
    joins: bool
    result: Result
    answer: Callable[[Result], None]


@dataclass
class Waiting:
    """A statement that waits for another's lock."""

    statement: str
    commit_seconds: float
    answer: Callable[[Result], None]


@dataclass
class Database:
    """`now`: microseconds by its clock. `later`: runs a function after seconds of true time.

    `rewrite`: what a mutation makes of each statement.
    """

    now: Callable[[], int]
    later: Callable[[float, Callable[[], None]], None]
    rewrite: Rewrite = str
    pending: list[Pending] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._file = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
        self._file.create_function("virtual_now", 0, self.now)
        for metadata in (replicas.metadata, entitlements.schema.metadata):
            for table in metadata.sorted_tables:
                self._file.execute(str(CreateTable(table).compile(dialect=sqlite.dialect())))
                for index in table.indexes:
                    self._file.execute(str(CreateIndex(index).compile(dialect=sqlite.dialect())))
        self._file.execute("INSERT INTO readygate_deployment VALUES ('00000000-0000-4000-8000-000000000000')")
        self._columns = [row[1] for row in self._file.execute("PRAGMA table_info(readygate_replicas)")]

    def arrive(self, statement: str, commit_seconds: float, answer: Callable[[Result], None]) -> None:
        """Evaluate a statement now, make it visible after `commit_seconds`, and then answer."""
        statement = self.rewrite(statement)
        if statement.startswith(("SELECT", "WITH")) or "readygate_replicas" not in statement:
            answer(self.run(statement))
        else:
            self._write(Waiting(statement, commit_seconds, answer))

    def hold(self, statement: str) -> tuple[Result, Pending | None]:
        """Evaluate a statement of a transaction that stays open until `commit`, which may never come.

        Where another's lock is met, nothing is changed.
        """
        write = Waiting(statement, float("inf"), lambda result: None)
        before = len(self.pending)
        self._write(write)
        if write in self.waiting:
            self.waiting.remove(write)
            return Result([]), None
        held = self.pending[-1] if len(self.pending) > before else None
        return held.result if held else Result([]), held

    def within(self, statement: str, pending: Pending | None) -> Result:
        """What a read sees inside the transaction that holds `pending`."""
        self._file.execute("SAVEPOINT reading")
        if pending in self.pending:
            self._apply(pending)
        result = self.run(statement)
        self._file.execute("ROLLBACK TO reading")
        self._file.execute("RELEASE reading")
        return result

    def commit(self, pending: Pending) -> None:
        """Make it visible, and let those go on that wait for its locks."""
        if pending not in self.pending:
            return
        self.pending.remove(pending)
        self._apply(pending)
        pending.answer(pending.result)
        self._wake()

    def abort(self, pending: Pending) -> None:
        """It never was."""
        if pending in self.pending:
            self.pending.remove(pending)
            self._wake()

    def restart(self) -> None:
        """What was not visible never will be, and nobody hears of it."""
        self.pending.clear()
        self.waiting.clear()

    def run(self, statement: str) -> Result:
        """Evaluate and commit at once."""
        cursor = self._file.execute(statement)
        names = [column[0] for column in cursor.description or ()]
        return Result([Row(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()], cursor.rowcount)

    def _write(self, write: Waiting) -> None:
        joins = write.statement.startswith(_JOIN)
        if joins and any(other.joins for other in self.pending):
            self.waiting.append(write)
            return
        locked = {row for other in self.pending for row in other.changes}
        self._file.execute("SAVEPOINT evaluation")
        before = self._snapshot()
        result = self.run(write.statement)
        after = self._snapshot()
        changes = {row: after.get(row) for row in {*before, *after} if before.get(row) != after.get(row)}
        met = locked & changes.keys()
        skips = _SKIPS_LOCKED.search(write.statement) is not None
        if not met and not write.commit_seconds:
            self._file.execute("RELEASE evaluation")
            write.answer(result)
            return
        self._file.execute("ROLLBACK TO evaluation")
        self._file.execute("RELEASE evaluation")
        if met and not skips:
            self.waiting.append(write)
            return
        for row in met:
            del changes[row]
        result.rowcount -= len(met)
        pending = Pending(changes, joins, result, write.answer)
        self.pending.append(pending)
        if write.commit_seconds != float("inf"):
            self.later(write.commit_seconds, lambda: self.commit(pending))

    def _apply(self, pending: Pending) -> None:
        marks = ", ".join("?" * len(self._columns))
        for row, values in pending.changes.items():
            if values is None:
                self._file.execute("DELETE FROM readygate_replicas WHERE id = ?", (row,))
            else:
                self._file.execute(f"INSERT OR REPLACE INTO readygate_replicas VALUES ({marks})", values)

    def _wake(self) -> None:
        waiting, self.waiting = self.waiting, []
        for write in waiting:
            self._write(write)

    def _snapshot(self) -> dict[str, tuple[Any, ...]]:
        return {row[0]: row for row in self._file.execute(_TABLE)}
