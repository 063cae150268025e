"""What a replica says of itself in the shared table, and what it reads there of the others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from uuid import UUID

from sqlalchemy.engine import Connection

from .errors import DrainEnded, RegistryError, ReplicaNotFound
from .lease import elapsed
from .replica import Facts, Replica

#: Microseconds since 1970, read when the statement reads it, not when its transaction began.
_CLOCKS = {
    "postgresql": "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000",
}
#: Transaction-level advisory lock of joins: "rdyg" and a number.
_JOIN_LOCK = 0x72647967_00000001
_DAY = 86_400_000_000
_BATCH = 1000
#: How often one sync joins, touches again or writes down what it saw, before it judges by what it has.
_ATTEMPTS = 4
#: A third of the row's own stale_after is the longest heartbeat it may have: dated further ahead, it is stale too.
_STALE = "(updated_at < {now} - stale_after OR updated_at > {now} + stale_after / 3)"
#: Rows that have a place in the line, as the indexes know them: others never come between a query and its rows.
_COUNTS = "stopped_at IS NULL AND drained_at IS NULL"
_COLUMNS = "id, hostname, version, created_at, started_at, updated_at, stopped_at, draining_at, drained_at, stale_after"
_COLUMNS += ", grace, exclude, database_latency"


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
        monotonic: Callable[[], float] = elapsed,
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
        self._known: tuple[int, str] | None = None
        #: The first join of this server, so that a row that vanished comes back with its own age.
        self._started_at: int | None = None
        #: How old it was at its last sync: a clock that steps back makes nobody younger, nor gives a new grace.
        self._age = 0

    @property
    def id(self) -> str:
        """This replica's UUID, asked for once in each process. Raises RegistryError when it is none."""
        if self._known is None or self._known[0] != os.getpid():
            known = _uuid(self._replica_id() if callable(self._replica_id) else self._replica_id)
            if known is None:
                raise RegistryError("replica_id is no UUID; make one with uuid.uuid4() once per server")
            self._known = (os.getpid(), known)
        return self._known[1]

    def beat(self, connection: Connection, *, latency_seconds: float | None = None) -> bool:
        """Touch this replica's row, if a touch is due and it still stands in the line: one statement decides it.

        Whether it wrote.
        """
        now = self._now(connection)
        latency = "NULL" if latency_seconds is None else str(_micro(latency_seconds))
        touched = connection.exec_driver_sql(
            f"UPDATE readygate_replicas SET updated_at = {now}, database_latency = {latency}, {self._own(connection)}"
            f" WHERE id = '{self.id}' AND stopped_at IS NULL AND NOT {_STALE.format(now=now)}"
            # Any worker of the server may touch; one of them every half heartbeat is enough. A row that a stepped
            # clock left in the future is due at once.
            f" AND (updated_at <= {now} - {self._heartbeat // 2} OR updated_at > {now})"
        )
        return touched.rowcount > 0

    def join(self, connection: Connection) -> None:
        """Take a place at the end of the line, unless this replica stands in it already.

        Joins take turns under a lock, so that no later join can get an earlier place.
        """
        now = self._now(connection)
        place = f"SELECT created_at FROM readygate_replicas WHERE {_COUNTS} ORDER BY created_at DESC LIMIT 1"
        greatest, least = ("greatest", "least") if connection.dialect.name == "postgresql" else ("max", "min")
        # Nobody started after it joined, whatever its clock was before: `_read` relies on it.
        first = "n" if self._started_at is None else str(self._started_at)
        started = f"{least}({first}, n - {self._age})"
        insert = (
            f"INSERT INTO readygate_replicas AS r ({_COLUMNS}) SELECT '{self.id}', {_quoted(self._hostname, 255)},"
            f" {_quoted(self._version, 100)}, {greatest}(n, coalesce(({place}), 0) + 1), {started}, n, CAST(NULL AS"
            f" bigint), CAST(NULL AS bigint), CAST(NULL AS bigint), {self._stale_after}, {self._grace},"
            f" {_quoted(self._exclude, 20)}, CAST(NULL AS bigint) FROM (SELECT {now} AS n) AS clock WHERE true"
            " ON CONFLICT (id) DO UPDATE SET created_at = excluded.created_at, updated_at = excluded.updated_at,"
            f" {self._own(connection, 'r.')},"
            f" started_at = {least}(r.started_at, excluded.started_at), stopped_at = NULL"
            f" WHERE r.stopped_at IS NOT NULL OR r.updated_at < {now} - r.stale_after"
            f" OR r.updated_at > {now} + r.stale_after / 3"
        )
        if connection.dialect.name == "postgresql":
            # One message, hence one transaction, which no pause of this process can leave half done.
            lock = f"DO $$ BEGIN PERFORM pg_advisory_xact_lock({_JOIN_LOCK}); END $$"
            connection.exec_driver_sql(f"{lock}; {insert}")
        else:
            connection.exec_driver_sql(insert)  # SQLite has one writer at a time.

    def _own(self, connection: Connection, row: str = "") -> str:
        """What workers that were started anew may know better: they may run another release with other settings.

        stale_after only grows: older workers may rely on the larger one. The grace stays, as peers reckon with its end.
        """
        greatest = "greatest" if connection.dialect.name == "postgresql" else "max"
        return (
            f"version = {_quoted(self._version, 100)}, exclude = {_quoted(self._exclude, 20)},"
            f" stale_after = {greatest}({row}stale_after, {self._stale_after})"
        )

    def sync(self, connection: Connection, *, limit: int | None, latency_seconds: float | None = None) -> Facts:
        """Beat, and read what decides over this replica; joins (anew) where it has no place in the line.

        `limit`: how many replicas may serve; None: any number. Raises RegistryError where no place could be had.
        """
        touched = self._monotonic()
        wrote = self.beat(connection, latency_seconds=latency_seconds)
        for _ in range(_ATTEMPTS):
            facts = self._read(connection, limit, touched)
            if facts is None:
                self.join(connection)
            elif not wrote and facts.now - facts.me.updated_at > self._heartbeat // 2:
                # The touch was refused, and yet the row is not stale: one that was sent long ago has only now been
                # committed. What peers hold against this replica is older than `touched`, so it is touched again.
                touched = self._monotonic()
                wrote = self.beat(connection, latency_seconds=latency_seconds)
            elif not self._settle(connection, facts):
                break
        if facts is None or (not wrote and facts.now - facts.me.updated_at > self._heartbeat // 2):
            raise RegistryError("no place in the line: the row vanishes as fast as it is written")
        self._started_at, self._age = facts.me.started_at, max(0, facts.now - facts.me.started_at)
        return facts

    def leave(self, connection: Connection) -> None:
        """Say that this server has stopped."""
        now = self._now(connection)
        connection.exec_driver_sql(
            f"UPDATE readygate_replicas SET stopped_at = {now} WHERE id = '{self.id}' AND stopped_at IS NULL"
        )

    def drain(self, connection: Connection, replica_id: str, *, now: bool = False) -> Replica:
        """Have a replica give up its place once every worker of every replica knows, or is out; `now`: at once.

        That is its own stale_after from now. A second drain never postpones the first. Raises ReplicaNotFound.
        """
        at = f"{self._now(connection)}" if now else f"{self._now(connection)} + stale_after"
        least = "least" if connection.dialect.name == "postgresql" else "min"
        changed = self._change(connection, replica_id, f"draining_at = {least}(coalesce(draining_at, {at}), {at})")
        return changed or self.find(connection, replica_id)

    def undrain(self, connection: Connection, replica_id: str) -> Replica:
        """Take a drain back, before its instant. Raises ReplicaNotFound, and DrainEnded where it is too late."""
        before = f"drained_at IS NULL AND (draining_at IS NULL OR draining_at > {self._now(connection)})"
        changed = self._change(connection, replica_id, "draining_at = NULL", before)
        if changed is None:
            self.find(connection, replica_id)
            raise DrainEnded("it has given up its place already; restart it to have another")
        return changed

    def find(self, connection: Connection, replica_id: str) -> Replica:
        """The row of a replica that has not stopped. Raises ReplicaNotFound."""
        known = _uuid(replica_id)
        row = connection.exec_driver_sql(
            f"SELECT {_COLUMNS}, false AS stale FROM readygate_replicas WHERE id = '{known}' AND stopped_at IS NULL"
        ).one_or_none()
        if row is None:
            raise ReplicaNotFound("no running replica has this id; `replicas list` shows them")
        return _replica(row._mapping)

    def _change(self, connection: Connection, replica_id: str, what: str, only: str = "true") -> Replica | None:
        if (known := _uuid(replica_id)) is None:
            return None
        row = connection.exec_driver_sql(
            f"UPDATE readygate_replicas SET {what} WHERE id = '{known}' AND stopped_at IS NULL AND {only}"
            f" RETURNING {_COLUMNS}, false AS stale"
        ).one_or_none()
        return None if row is None else _replica(row._mapping)

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

    def active(self, connection: Connection, *, count: int, after: tuple[int, str] | None = None) -> Sequence[Replica]:
        """The first `count` active replicas of the line, or of what comes after the place (created_at, id) `after`."""
        now = self._now(connection)
        behind = "true"
        if after is not None:
            behind = f"(created_at > {after[0]} OR (created_at = {after[0]} AND id > {_quoted(after[1], 36)}))"
        rows = connection.exec_driver_sql(
            f"WITH clock(now) AS (SELECT {now}) SELECT {_COLUMNS}, false AS stale FROM readygate_replicas, clock"
            f" WHERE stopped_at IS NULL AND NOT {_STALE.format(now='clock.now')} AND {behind}"
            f" ORDER BY created_at, id LIMIT {count}"
        )
        return [_replica(row._mapping) for row in rows]

    def count_aged(self, connection: Connection) -> int:
        """How many aged replicas there are; who is past its appointment is none, whether or not that was written."""
        kept = "(draining_at IS NULL OR draining_at > clock.now)"
        number: int = connection.exec_driver_sql(f"SELECT count(*) {self._aged(connection)} AND {kept}").scalar_one()
        return number

    def last_allowed(self, connection: Connection, *, allowed: int | None) -> tuple[int, str] | None:
        """The place (created_at, id) behind which the surplus stands; None where there is no violation."""
        if allowed is None:
            return None
        rows = connection.exec_driver_sql(
            f"SELECT created_at, id {self._aged(connection)} ORDER BY created_at, id LIMIT 2 OFFSET {allowed - 1}"
        ).all()
        return (rows[0].created_at, rows[0].id) if len(rows) == 2 else None

    def _aged(self, connection: Connection) -> str:
        return (
            f"FROM readygate_replicas, (SELECT {self._now(connection)} AS now) AS clock WHERE {_COUNTS}"
            f" AND NOT {_STALE.format(now='clock.now')} AND started_at + grace <= clock.now"
        )

    def _read(self, connection: Connection, limit: int | None, touched: float) -> Facts | None:
        """The facts, or None where this replica has no place in the line."""
        sent = self._monotonic()
        now, mine = "(SELECT now FROM clock)", self.id
        parts = [f"SELECT r.* FROM readygate_replicas AS r WHERE id = '{mine}'"]
        few = ""
        if limit is not None:
            few, of_the_line = _line(mine, now, limit + 1)
            parts += of_the_line
        rows = connection.exec_driver_sql(
            f"WITH clock(now) AS (SELECT {self._now(connection)}){few} SELECT {_COLUMNS},"
            f" {_STALE.format(now=now)} AS stale, {now} AS now FROM ({' UNION '.join(parts)}) AS facts"
        ).all()
        members = {row.id: _replica(row._mapping) for row in rows}
        me = members.get(mine)
        if me is None or me.stale or me.stopped_at is not None:
            return None
        others = tuple(members.values()) if limit is not None else ()
        return Facts(now=rows[0].now, touched_local=touched, read_local=sent, me=me, limit=limit, members=others)

    def _settle(self, connection: Connection, facts: Facts) -> bool:
        """Write down the deaths and the ended appointments among the facts; whether anything was written.

        What is not written has not happened: a touch, or an undrain, that began before may still commit.
        """
        now, written = self._now(connection), 0
        if any(row.stale for row in facts.members):
            written += self._write(connection, f"stopped_at = {now}", _STALE.format(now=now))
        if any(row.draining_at is not None and row.draining_at <= facts.now for row in facts.members):
            passed = f"drained_at IS NULL AND draining_at <= {now}"
            written += self._write(connection, f"drained_at = {now}", passed)
        return written > 0

    def _write(self, connection: Connection, what: str, where: str) -> int:
        """Change the rows `where`, a batch at most, but those that somebody else is just changing."""
        rows = f"stopped_at IS NULL AND {where}"
        return connection.exec_driver_sql(
            f"UPDATE readygate_replicas SET {what} WHERE {rows} AND id IN (SELECT id FROM readygate_replicas"
            f" WHERE {rows} ORDER BY created_at, id LIMIT {_BATCH}{_skip_locked(connection)})"
        ).rowcount

    def _now(self, connection: Connection) -> str:
        return self._clocks[connection.dialect.name]


def _line(mine: str, now: str, most: int) -> tuple[str, list[str]]:
    """The queries for those that count and decide: at most `most` rows each, however many stand in the line.

    None of them may pass over rows that it does not want, and an index knows one order only: the line, or the ends of
    graces. So the second is asked whether a few have aged, before the first is searched for them.
    """
    line = f"SELECT r.* FROM readygate_replicas AS r WHERE {_COUNTS} AND"
    aged, soon = f"started_at + grace <= {now}", "ORDER BY started_at + grace"
    few = f", few AS MATERIALIZED ({line} {aged} {soon} LIMIT {most})"
    number = "(SELECT count(*) FROM few)"
    own = f"(SELECT created_at FROM readygate_replicas WHERE id = '{mine}')"
    ahead = f"(created_at < {own} OR (created_at = {own} AND id < '{mine}'))"
    # Who stands ahead had started by then, so that its grace ends by this instant.
    longest = f"(SELECT grace FROM readygate_replicas WHERE {_COUNTS} ORDER BY grace DESC LIMIT 1)"
    return few, [
        # Fewer have aged than would decide, as when a fleet starts: these are all, though the line is long.
        f"SELECT * FROM few WHERE {number} < {most}",
        f"SELECT * FROM ({line} {aged} AND {number} = {most} ORDER BY created_at, id LIMIT {most}) AS a",
        f"SELECT * FROM ({line} started_at + grace > {now} {soon} LIMIT {most}) AS b",
        f"SELECT * FROM ({line} started_at + grace > {now} AND started_at + grace <= {own} + {longest} AND {ahead}"
        f" {soon} LIMIT {most}) AS c",
    ]


def _replica(row: object) -> Replica:
    values = {name: row[name] for name in Replica.__dataclass_fields__}  # type: ignore[index]
    return Replica(**{**values, "stale": bool(values["stale"])})


def _uuid(text: str) -> str | None:
    """`text` as the table writes it, or None where it is no UUID."""
    try:
        return str(UUID(text))
    except ValueError:
        return None


def _skip_locked(connection: Connection) -> str:
    return " FOR UPDATE SKIP LOCKED" if connection.dialect.name == "postgresql" else ""


def _quoted(text: str, most: int) -> str:
    """`text` as a literal of both databases, cut to what its column holds."""
    return "'" + re.sub(r"[^\x20-\x7e]", "?", text)[:most].replace("'", "''") + "'"


def _micro(seconds: float) -> int:
    return round(seconds * 1_000_000)
