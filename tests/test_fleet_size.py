"""What a sync reads does not grow with the fleet."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Connection

import database
import schema
from replicas import Registry
from replicas.replica import Facts

NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
SECOND, HOUR, SIZE = 1_000_000, 3_600_000_000, 3000
#: In line: how many gave up their places, how many have aged, how many are in their grace.
FLEETS = {
    "aged": (0, SIZE, 0),
    "in grace": (0, 0, SIZE),
    "half in grace": (0, SIZE // 2, SIZE // 2),
    "half drained": (SIZE // 2, SIZE // 2, 0),
    "all but two drained": (SIZE - 2, 2, 0),
}
COLUMNS = (
    "id, hostname, version, created_at, started_at, updated_at, stopped_at, draining_at, drained_at, stale_after,"
    " grace, exclude, database_latency"
)


@pytest.fixture
def connection(postgres_url: str) -> Iterator[Connection]:
    engine = database.background_engine(lambda: postgres_url, timeout_seconds=30)
    schema.upgrade(engine)
    with engine.connect() as connection:
        yield connection


def rows_in_vain(plan: dict[str, Any]) -> int:
    own = int(plan.get("Rows Removed by Filter", 0) * plan.get("Actual Loops", 1))
    return own + sum(rows_in_vain(part) for part in plan.get("Plans", []))


@pytest.mark.parametrize("fleet", FLEETS)
def test_no_statement_of_a_sync_passes_over_rows_of_others(connection: Connection, fleet: str) -> None:
    place = 0
    for count, age, drained in zip(
        FLEETS[fleet], (HOUR, HOUR, 20 * SECOND), (f"{NOW} - 1", "NULL", "NULL"), strict=True
    ):
        connection.exec_driver_sql(
            f"INSERT INTO readygate_replicas ({COLUMNS}) SELECT gen_random_uuid()::text, 'h', 'v',"
            f" {NOW} - {age} + {place} + i, {NOW} - {age} + {place} + i, {NOW}, NULL, {drained}, {drained}, {HOUR},"
            f" {60 * SECOND}, 'all', NULL FROM generate_series(1, {count}) AS i"
        )
        place += count
    connection.exec_driver_sql("ANALYZE readygate_replicas")
    order = "FROM readygate_replicas WHERE drained_at IS NULL ORDER BY created_at"
    ends = [connection.exec_driver_sql(f"SELECT id {order} {way} LIMIT 1").scalar_one() for way in ("", "DESC")]
    sent: list[str] = []
    event.listen(connection.engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    for mine in ends:
        for limit in (1, 50, None):
            registry = Registry(replica_id=mine, hostname="h", version="v", stale_after_seconds=3600)
            registry.sync(connection, limit=limit)
            sent.clear()
            registry.sync(connection, limit=limit)
            for statement in list(sent):
                found = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}").scalar_one()
                plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
                # Its own row, which needs no touch yet, is the only one.
                assert rows_in_vain(plan) <= 1, (mine == ends[0], limit, statement)


def test_it_reads_all_that_decides_in_any_fleet(connection: Connection) -> None:
    generator = random.Random(5)
    for _ in range(40):
        connection.exec_driver_sql("DELETE FROM readygate_replicas")
        now = Registry(replica_id=str(UUID(int=0)), hostname="h", version="v").now(connection)
        rows = [a_row(generator, now) for _ in range(generator.randrange(1, 30))]
        connection.exec_driver_sql(f"INSERT INTO readygate_replicas ({COLUMNS}) VALUES {', '.join(map(sql, rows))}")
        mine = generator.choice([row for row in rows if row["stopped_at"] is None] or [a_row(generator, now)])
        limit = generator.choice([1, 2, 3, 8])
        registry = Registry(replica_id=mine["id"], hostname="h", version="v", stale_after_seconds=3600)
        facts = registry.sync(connection, limit=limit)
        assert {row.id for row in facts.members} >= wanted(connection, facts, limit)


def a_row(generator: random.Random, now: int) -> dict[str, Any]:
    started = now - generator.randrange(1, 200) * SECOND - generator.randrange(SECOND)
    drained = now - SECOND if generator.random() < 0.2 else None
    return {
        "id": str(UUID(int=generator.getrandbits(128))),
        # It may have lost its place and joined anew.
        "created_at": started + generator.choice([0, 0, generator.randrange(max(1, now - started))]),
        "started_at": started,
        "stopped_at": now if generator.random() < 0.1 else None,
        "drained_at": drained,
        "grace": generator.choice([0, 60, 60, 60, 90]) * SECOND + 30 * SECOND,
    }


def sql(row: dict[str, Any]) -> str:
    stopped, drained = (str(row[name] or "NULL") for name in ("stopped_at", "drained_at"))
    return (
        f"('{row['id']}', 'h', 'v', {row['created_at']}, {row['started_at']}, {NOW}, {stopped}, {drained}, {drained},"
        f" {HOUR}, {row['grace']}, 'all', NULL)"
    )


def wanted(connection: Connection, facts: Facts, limit: int) -> set[str]:
    """The same, worked out row by row: what has aged, first in line; what ages next, of all and of those ahead."""
    rows = connection.exec_driver_sql(
        "SELECT id, created_at, started_at + grace AS aged_at FROM readygate_replicas"
        " WHERE stopped_at IS NULL AND drained_at IS NULL"
    ).all()
    aged = sorted((row for row in rows if row.aged_at <= facts.now), key=lambda row: (row.created_at, row.id))
    soon = sorted((row for row in rows if row.aged_at > facts.now), key=lambda row: row.aged_at)
    ahead = [row for row in soon if (row.created_at, row.id) < (facts.me.created_at, facts.me.id)]
    return {row.id for row in (*aged[: limit + 1], *soon[: limit + 1], *ahead[: limit + 1])}
