"""What a replica says of itself in the shared table, and what it reads there of the others."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.engine import Connection

#: Microseconds since 1970, read when the statement reads it, not when its transaction began.
_CLOCKS = {
    "postgresql": "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000",
}
#: Transaction-level advisory lock of joins: "rdyg" and a number.
_JOIN_LOCK = 0x72647967_00000001
_DAY = 86_400_000_000
_BATCH = 1000
#: A third of the row's own stale_after is the longest heartbeat it may have: dated further ahead, it is stale too.
_STALE = "(updated_at < {now} - stale_after OR updated_at > {now} + stale_after / 3)"
_COLUMNS = "id, hostname, version, created_at, started_at, updated_at, stopped_at, draining_at, stale_after, grace"
_COLUMNS += ", exclude, database_latency"


class RegistryError(Exception):
    """The registry cannot do what was asked; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A row. Instants and durations are microseconds."""

    id: str
    hostname: str
    version: str
    created_at: int
    started_at: int
    updated_at: int
    stopped_at: int | None
    draining_at: int | None
    stale_after: int
    grace: int
    exclude: str
    database_latency: int | None
    #: Whether no heartbeat came for its own stale_after, or it is dated further ahead than a heartbeat.
    stale: bool

    @property
    def aged_at(self) -> int:
        """The end of its grace: from then on it counts."""
        return self.started_at + self.grace


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one sync read, at the database's instant `now`; `*_local` are instants of the local monotonic clock."""

    now: int
    #: Before the touch was sent: what peers hold against this replica is counted from no earlier.
    touched_local: float
    #: Before the read was sent, hence no later than `now`.
    read_local: float
    me: Replica
    #: How many rows it asked for, less one; None: it asked for none but its own.
    limit: int | None
    #: Others and itself: the first of the line that count already, and the next whose grace ends.
    members: tuple[Replica, ...]


class Registry:
    """The rows of the shared table as one replica writes and reads them.

    Every method takes a connection in autocommit mode, and sends statements without bind parameters: with them pg8000
    sends three messages, which PgBouncer may spread over three servers.
    """

    def __init__(
        self,
        *,
        replica_id: str | Callable[[], str],
        hostname: str,
        version: str,
        heartbeat_seconds: float = 5.0,
        stale_after_seconds: float = 15.0,
        grace_seconds: float = 60.0,
        exclude: str = "all",
        clocks: dict[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`replica_id`: a UUID made once per server, before its workers fork (see replicas.gunicorn).

        `clocks`: the SQL of the database's clock by dialect, for tests; None: its own.
        """
        self._replica_id = replica_id
        self._hostname, self._version, self._exclude = hostname, version, exclude
        self._heartbeat, self._stale_after = _micro(heartbeat_seconds), _micro(stale_after_seconds)
        self._grace = _micro(grace_seconds)
        self._clocks = clocks or _CLOCKS
        self._monotonic = monotonic
        #: The first join of this server, so that a row that vanished comes back with its own age.
        self._started_at: int | None = None

    @property
    def id(self) -> str:
        """This replica's UUID. Raises RegistryError when it is none."""
        text = self._replica_id() if callable(self._replica_id) else self._replica_id
        try:
            return str(UUID(text))
        except ValueError:
            raise RegistryError("replica_id is no UUID; make one with uuid.uuid4() once per server") from None

    def beat(self, connection: Connection, *, latency_seconds: float | None = None) -> None:
        """Touch this replica's row, if a touch is due and it still stands in the line: one statement decides it."""
        now = self._now(connection)
        latency = "NULL" if latency_seconds is None else str(_micro(latency_seconds))
        connection.exec_driver_sql(
            f"UPDATE readygate_replicas SET updated_at = {now}, database_latency = {latency}"
            f" WHERE id = '{self.id}' AND stopped_at IS NULL AND NOT {_STALE.format(now=now)}"
            # Any worker of the server may touch; one of them every half heartbeat is enough. A row that a stepped
            # clock left in the future is due at once.
            f" AND (updated_at <= {now} - {self._heartbeat // 2} OR updated_at > {now})"
        )

    def join(self, connection: Connection) -> None:
        """Take a place at the end of the line, unless this replica stands in it already.

        Joins take turns under a lock, so that no later join can get an earlier place.
        """
        now = self._now(connection)
        place = "SELECT created_at FROM readygate_replicas WHERE stopped_at IS NULL ORDER BY created_at DESC LIMIT 1"
        started = "n" if self._started_at is None else str(self._started_at)
        greatest = "greatest" if connection.dialect.name == "postgresql" else "max"
        insert = (
            f"INSERT INTO readygate_replicas AS r ({_COLUMNS}) SELECT '{self.id}', {_quoted(self._hostname, 255)},"
            f" {_quoted(self._version, 100)}, {greatest}(n, coalesce(({place}), 0) + 1), {started}, n,"
            f" CAST(NULL AS bigint), CAST(NULL AS bigint), {self._stale_after}, {self._grace},"
            f" {_quoted(self._exclude, 20)}, CAST(NULL AS bigint) FROM (SELECT {now} AS n) AS clock WHERE true"
            " ON CONFLICT (id) DO UPDATE SET created_at = excluded.created_at, updated_at = excluded.updated_at,"
            " stopped_at = NULL WHERE r.stopped_at IS NOT NULL OR"
            f" r.updated_at < {now} - r.stale_after OR r.updated_at > {now} + r.stale_after / 3"
        )
        if connection.dialect.name == "postgresql":
            # One message, hence one transaction, which no pause of this process can leave half done.
            lock = f"DO $$ BEGIN PERFORM pg_advisory_xact_lock({_JOIN_LOCK}); END $$"
            connection.exec_driver_sql(f"{lock}; {insert}")
        else:
            connection.exec_driver_sql(insert)  # SQLite has one writer at a time.

    def sync(self, connection: Connection, *, limit: int | None, latency_seconds: float | None = None) -> Facts:
        """Beat, and read what decides over this replica; joins (anew) where it has no place in the line.

        `limit`: how many replicas may serve; None: any number. Raises RegistryError where no place could be had.
        """
        touched = self._monotonic()
        self.beat(connection, latency_seconds=latency_seconds)
        for _ in range(3):
            facts = self._read(connection, limit, touched)
            if facts is None:
                self.join(connection)
                continue
            if any(row.stale for row in facts.members) and self._bury(connection):
                continue
            break
        if facts is None:
            raise RegistryError("no place in the line: the row vanishes as fast as it is written")
        self._started_at = facts.me.started_at
        return facts

    def leave(self, connection: Connection) -> None:
        """Say that this server has stopped."""
        now = self._now(connection)
        connection.exec_driver_sql(
            f"UPDATE readygate_replicas SET stopped_at = {now} WHERE id = '{self.id}' AND stopped_at IS NULL"
        )

    def sweep(self, connection: Connection) -> int:
        """Delete rows that stopped, or beat last, over a day ago; at most a batch. How many it deleted."""
        now = self._now(connection)
        return connection.exec_driver_sql(
            "DELETE FROM readygate_replicas WHERE id IN (SELECT id FROM readygate_replicas WHERE"
            f" coalesce(stopped_at, updated_at) < {now} - {_DAY} LIMIT {_BATCH}{_skip_locked(connection)})"
        ).rowcount

    def now(self, connection: Connection) -> int:
        """The database's clock: microseconds since 1970."""
        instant: int = connection.exec_driver_sql(f"SELECT {self._now(connection)}").scalar_one()
        return instant

    def active(self, connection: Connection, *, count: int) -> Sequence[Replica]:
        """The first `count` active replicas of the line."""
        now = self._now(connection)
        rows = connection.exec_driver_sql(
            f"WITH clock(now) AS (SELECT {now}) SELECT {_COLUMNS}, false AS stale FROM readygate_replicas, clock"
            f" WHERE stopped_at IS NULL AND NOT {_STALE.format(now='clock.now')} ORDER BY created_at, id LIMIT {count}"
        )
        return [_replica(row._mapping) for row in rows]

    def _read(self, connection: Connection, limit: int | None, touched: float) -> Facts | None:
        """The facts, or None where this replica has no place in the line."""
        sent = self._monotonic()
        now, mine = "(SELECT now FROM clock)", self.id
        aged, counts = f"started_at + grace <= {now}", f"(draining_at IS NULL OR draining_at > {now})"
        parts = [f"SELECT r.* FROM readygate_replicas AS r WHERE id = '{mine}'"]
        if limit is not None:
            line = "SELECT r.* FROM readygate_replicas AS r WHERE stopped_at IS NULL AND"
            own = f"(SELECT created_at FROM readygate_replicas WHERE id = '{mine}')"
            first, soon = "ORDER BY created_at, id", "ORDER BY started_at + grace"
            ahead = f"(created_at < {own} OR (created_at = {own} AND id < '{mine}'))"
            parts += [
                f"SELECT * FROM ({line} {aged} AND {counts} {first} LIMIT {limit + 1}) AS a",
                f"SELECT * FROM ({line} NOT ({aged}) AND {counts} {soon} LIMIT {limit + 1}) AS b",
                f"SELECT * FROM ({line} NOT ({aged}) AND {counts} AND {ahead} {soon} LIMIT {limit + 1}) AS c",
            ]
        rows = connection.exec_driver_sql(
            f"WITH clock(now) AS (SELECT {self._now(connection)}) SELECT {_COLUMNS},"
            f" {_STALE.format(now=now)} AS stale, {now} AS now FROM ({' UNION '.join(parts)}) AS facts"
        ).all()
        members = {row.id: _replica(row._mapping) for row in rows}
        me = members.get(mine)
        if me is None or me.stale or me.stopped_at is not None:
            return None
        others = tuple(members.values()) if limit is not None else ()
        return Facts(now=rows[0].now, touched_local=touched, read_local=sent, me=me, limit=limit, members=others)

    def _bury(self, connection: Connection) -> int:
        """Write down the death of stale rows, a batch at most, but those that somebody is just touching."""
        now = self._now(connection)
        stale = f"stopped_at IS NULL AND {_STALE.format(now=now)}"
        return connection.exec_driver_sql(
            f"UPDATE readygate_replicas SET stopped_at = {now} WHERE {stale} AND id IN (SELECT id FROM"
            f" readygate_replicas WHERE {stale} ORDER BY created_at, id LIMIT {_BATCH}{_skip_locked(connection)})"
        ).rowcount

    def _now(self, connection: Connection) -> str:
        return self._clocks[connection.dialect.name]


def _replica(row: object) -> Replica:
    values = {name: row[name] for name in Replica.__dataclass_fields__}  # type: ignore[index]
    return Replica(**{**values, "stale": bool(values["stale"])})


def _skip_locked(connection: Connection) -> str:
    return " FOR UPDATE SKIP LOCKED" if connection.dialect.name == "postgresql" else ""


def _quoted(text: str, most: int) -> str:
    """`text` as a literal of both databases, cut to what its column holds."""
    return "'" + re.sub(r"[^\x20-\x7e]", "?", text)[:most].replace("'", "''") + "'"


def _micro(seconds: float) -> int:
    return round(seconds * 1_000_000)
