"""What is sent to the database: one message each, by its own clock, and nothing that stays in a session."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pg8000.dbapi
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from test_license import KEYS, a_license

import database
import schema
from auth import Tokens
from entitlements import EntitlementsService
from replicas import Registry


@pytest.fixture
def engine(database_url: str) -> Engine:
    engine = database.background_engine(lambda: database_url, timeout_seconds=5)
    schema.upgrade(engine)
    return engine


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def a_registry() -> Registry:
    return Registry(replica_id=str(uuid.uuid4()), hostname="it's %s :name ?", version="1", grace_seconds=0)


def test_no_statement_has_bind_parameters(engine: Engine, connection: Connection) -> None:
    """pg8000 sends those in three messages, which PgBouncer may hand to three servers."""
    sent: list[str] = []

    def see(_: Any, cursor: Any, statement: str, parameters: Any, *more: Any) -> None:
        sent.append(statement)
        assert not parameters, statement

    event.listen(engine, "before_cursor_execute", see)
    one, two = a_registry(), a_registry()
    for registry in (one, two, one):
        registry.sync(connection, limit=1, latency_seconds=0.001)
    registry.now(connection)
    registry.active(connection, count=5, after=(1, one.id))
    registry.count_aged(connection)
    registry.last_allowed(connection, allowed=1)
    registry.drain(connection, two.id)
    registry.undrain(connection, two.id)
    registry.leave(connection)
    registry.sweep(connection)
    service = EntitlementsService(keys=lambda: KEYS)
    service.remove(connection, service.add(connection, a_license()).id)
    service.read(connection)
    tokens = Tokens()
    tokens.create(connection, "ci", role="viewer", expires_seconds=60)
    tokens.find(connection, "0" * 64)
    tokens.all(connection)
    tokens.revoke(connection, "ci")
    assert len(sent) > 25


def test_every_statement_has_committed_once_it_returns(engine: Engine, connection: Connection) -> None:
    registry = a_registry()
    registry.sync(connection, limit=1)
    with engine.connect() as other:
        assert [row.id for row in registry.active(other, count=5)] == [registry.id]


def test_a_beat_that_waited_for_a_lock_is_dated_when_it_was_written(postgres_url: str) -> None:
    """Where the row was changed meanwhile. (Where it was only locked, PostgreSQL writes the earlier instant: peers then

    take it for older than it is, which harms nobody.) `now()` would be the earlier instant always.
    """
    engine = database.background_engine(lambda: postgres_url, timeout_seconds=5)
    schema.upgrade(engine)
    registry = a_registry()
    with engine.connect() as mine, engine.connect() as blocker:
        registry.sync(mine, limit=1)
        blocker.exec_driver_sql("UPDATE readygate_replicas SET updated_at = updated_at - 4000000")
        blocker.exec_driver_sql("BEGIN")
        blocker.exec_driver_sql("UPDATE readygate_replicas SET database_latency = 1")
        beat = threading.Thread(target=registry.beat, args=(mine,))
        beat.start()
        time.sleep(0.5)
        clock = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        released = blocker.exec_driver_sql(clock).scalar_one()
        blocker.exec_driver_sql("COMMIT")
        beat.join(10)
        assert registry.find(mine, registry.id).updated_at >= released


def test_nothing_is_kept_in_a_session(postgres_url: str) -> None:
    engine = database.background_engine(lambda: postgres_url, timeout_seconds=5)
    schema.upgrade(engine)
    questions = (
        "SELECT name FROM pg_settings WHERE source = 'session'",
        "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "SELECT name FROM pg_prepared_statements",
    )
    with engine.connect() as connection:
        a_registry().sync(connection, limit=1)
        EntitlementsService(keys=lambda: KEYS).add(connection, a_license())
        for question in questions:
            # As the driver sends it, without the bound that ours puts in front of each statement.
            found = pg8000.dbapi.Connection.execute_simple(connection.connection.dbapi_connection, question)
            assert found.rows == [], question


def test_no_index_holds_what_every_heartbeat_writes(connection: Connection) -> None:
    """PostgreSQL then updates a row in place: many updates a second would bloat an index on the column."""
    if connection.dialect.name == "postgresql":
        query = "SELECT indexdef FROM pg_indexes WHERE tablename = 'readygate_replicas'"
    else:
        query = "SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'readygate_replicas' AND sql > ''"
    indexes = [row[0] for row in connection.exec_driver_sql(query)]
    assert len(indexes) >= 3
    for index in indexes:
        assert "updated_at" not in index
        assert "database_latency" not in index
