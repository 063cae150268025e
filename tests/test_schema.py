"""The schema: made, upgraded by many at once, and judged."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import postgres as pg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from clock import Clock
from sqlalchemy import inspect
from sqlalchemy.engine import Connection, Engine

import auth
import database
import entitlements
import replicas
import schema


@pytest.fixture
def engine(database_url: str) -> Engine:
    return database.background_engine(lambda: database_url, timeout_seconds=20)


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def stamp(connection: Connection, revision: str) -> None:
    """Make the schema one of another release."""
    connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{revision}'")


def test_an_empty_database_has_no_schema_and_says_what_to_do(connection: Connection) -> None:
    assert schema.revision(connection) is None
    with pytest.raises(schema.SchemaOutdatedError, match="the schema is missing; run `flask --app app db upgrade`"):
        schema.require(connection)


def test_an_empty_database_is_brought_to_this_release(engine: Engine, connection: Connection) -> None:
    schema.upgrade(engine)
    assert schema.revision(connection) == schema.REVISION
    schema.require(connection)


def test_a_second_upgrade_changes_nothing(engine: Engine, connection: Connection) -> None:
    schema.upgrade(engine)
    before = connection.exec_driver_sql("SELECT id FROM readygate_deployment").all()
    schema.upgrade(engine)
    assert len(before) == 1
    assert connection.exec_driver_sql("SELECT id FROM readygate_deployment").all() == before


def test_ten_at_the_same_moment_make_one_schema(database_url: str, connection: Connection) -> None:
    failures: list[BaseException] = []
    together = threading.Barrier(10)

    def upgrade() -> None:
        try:
            own = database.background_engine(lambda: database_url, timeout_seconds=30)
            together.wait(10)
            schema.upgrade(own)
        except Exception as error:  # noqa: BLE001  # shown below, whatever it is
            failures.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert schema.revision(connection) == schema.REVISION
    assert connection.exec_driver_sql("SELECT count(*) FROM readygate_deployment").scalar() == 1


def test_every_table_carries_the_prefix(engine: Engine) -> None:
    schema.upgrade(engine)
    tables = set(inspect(engine).get_table_names())
    assert tables == {
        "readygate_replicas",
        "readygate_licenses",
        "readygate_deployment",
        "readygate_tokens",
        "readygate_alembic_version",
    }


# SQLAlchemy cannot read an index on an expression from SQLite; the test after this one can.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection", "ignore:autogenerate skipping")
def test_the_migrations_make_exactly_what_the_packages_describe(engine: Engine, connection: Connection) -> None:
    schema.upgrade(engine)

    def ours(thing: object, name: str | None, kind: str, reflected: bool, other: object) -> bool:
        return name != schema.VERSION_TABLE

    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True, "include_object": ours}
    )
    both: Any = [replicas.metadata, entitlements.metadata, auth.metadata]
    assert compare_metadata(context, both) == []


def test_the_migrations_make_the_indexes_that_the_packages_describe(engine: Engine, connection: Connection) -> None:
    def indexes() -> set[tuple[str, str]]:
        lists = {
            "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index'",
            "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        }
        rows = connection.exec_driver_sql(lists[connection.dialect.name])
        # White space is nobody's concern.
        return {(row[0], " ".join(str(row[1]).split())) for row in rows if "alembic" not in row[0]}

    schema.upgrade(engine)
    made = indexes()
    assert {name for name, _ in made} >= {"readygate_replicas_line", "readygate_replicas_aging"}
    for metadata in (replicas.metadata, entitlements.metadata, auth.metadata):
        metadata.drop_all(engine)
        metadata.create_all(engine)
    assert indexes() == made


@pytest.mark.parametrize(
    ("found", "usable"),
    [
        ("1_0002", True),
        ("1_0003", True),
        ("1_0100", True),
        ("1_0001", False),
        ("2_0001", False),
        ("0_0001", False),
        ("10_001", False),
        ("1", False),
        ("1_", False),
        ("1_x", False),
        ("", False),
        (None, False),
    ],
)
def test_a_release_runs_on_its_own_major_version_from_its_own_number_on(found: str | None, usable: bool) -> None:
    assert schema.usable(found) is usable


def test_a_newer_schema_of_the_same_major_version_is_left_alone(engine: Engine, connection: Connection) -> None:
    schema.upgrade(engine)
    stamp(connection, "1_0042")
    schema.require(connection)
    schema.upgrade(engine)
    assert schema.revision(connection) == "1_0042"


def test_another_major_version_is_refused_and_left_alone(engine: Engine, connection: Connection) -> None:
    schema.upgrade(engine)
    stamp(connection, "2_0001")
    with pytest.raises(schema.SchemaOutdatedError, match="not one that this release can use"):
        schema.require(connection)
    with pytest.raises(schema.SchemaOutdatedError, match="another major version"):
        schema.upgrade(engine)
    assert schema.revision(connection) == "2_0001"


def test_an_upgrade_that_fails_leaves_nothing_behind(engine: Engine, connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE readygate_deployment (other integer)")
    with pytest.raises(Exception, match="readygate_deployment"):
        schema.upgrade(engine)
    assert schema.revision(connection) is None
    assert set(inspect(engine).get_table_names()) == {"readygate_deployment"}


def finish(migrator: schema.Migrator) -> None:
    """Wait for the upgrade that is under way."""
    assert migrator._thread is not None
    migrator._thread.join(20)
    assert not migrator._thread.is_alive()


def test_a_migrator_upgrades_in_a_thread_of_its_own(engine: Engine, connection: Connection, logged: list[str]) -> None:
    migrator = schema.Migrator(engine)
    migrator.start()
    migrator.start()
    finish(migrator)
    schema.require(connection)
    assert logged == [f"schema: at revision {schema.REVISION}"]


def test_an_upgrade_that_cannot_succeed_is_tried_again_in_its_time_and_logged_once(
    postgres_url: str, logged: list[str]
) -> None:
    pg.execute(postgres_url, "CREATE TABLE readygate_deployment (other integer)")
    clock = Clock()
    migrator = schema.Migrator(database.background_engine(lambda: postgres_url, timeout_seconds=20), clock=clock)
    migrator.start()
    finish(migrator)
    first = migrator._thread
    migrator.start()
    assert migrator._thread is first
    clock.now += 5
    migrator.start()
    assert migrator._thread is not first
    finish(migrator)
    assert logged == ["schema: upgrade failed: other (42P07)"]
    pg.execute(postgres_url, "DROP TABLE readygate_deployment")
    clock.now += 5
    migrator.start()
    finish(migrator)
    assert logged[1:] == [f"schema: at revision {schema.REVISION}"]


def test_another_major_version_is_named_in_the_log(engine: Engine, connection: Connection, logged: list[str]) -> None:
    schema.upgrade(engine)
    stamp(connection, "2_0001")
    migrator = schema.Migrator(engine)
    migrator.start()
    finish(migrator)
    assert logged == ["schema: upgrade failed: the schema is of another major version; run a release that knows it"]
