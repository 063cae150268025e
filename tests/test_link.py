"""The background connection, and what it knows of the database."""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import postgres as pg
import pytest
from clock import Clock
from proxy import Proxy
from sqlalchemy import event
from sqlalchemy.engine import Connection

import database
import schema
from database_url import Sqlite, parse
from link import Link

TIMEOUT = 5.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_link(url: str, clock: Clock) -> Link:
    target = parse(url)
    return Link(
        database.background_engine(lambda: url, timeout_seconds=TIMEOUT),
        label=lambda: "db:1/shop",
        timeout_seconds=TIMEOUT,
        file=target.path if isinstance(target, Sqlite) else None,
        clock=clock,
    )


@pytest.fixture
def link(database_url: str, clock: Clock) -> Link:
    return a_link(database_url, clock)


@dataclass(frozen=True)
class Breakable:
    """A database that fails for good when it is told to, by this word of the log, until it is mended."""

    url: str
    word: str
    ruin: Callable[[], object]
    mend: Callable[[], object]


@pytest.fixture(params=["sqlite", "postgres"])
def breakable(request: pytest.FixtureRequest, tmp_path: Path, postgres_base: str) -> Iterator[Breakable]:
    if request.param == "sqlite":
        file = tmp_path / "gate.db"

        def ruin() -> None:
            file.unlink()
            file.mkdir()

        yield Breakable(f"sqlite:///{file}", "refused", ruin, lambda: shutil.rmtree(file))
        return
    name = f"t_{uuid.uuid4().hex[:12]}"
    create, drop = f"CREATE DATABASE {name} STRATEGY file_copy", f"DROP DATABASE {name} WITH (FORCE)"
    url = urlsplit(postgres_base)._replace(path=f"/{name}").geturl()
    pg.execute(postgres_base, create)
    yield Breakable(
        url, "other (3D000)", lambda: pg.execute(postgres_base, drop), lambda: pg.execute(postgres_base, create)
    )
    pg.execute(postgres_base, drop)


def test_before_the_first_answer_nothing_is_said(link: Link, clock: Clock) -> None:
    assert not link.unreachable()
    assert not link.stalled()
    clock.now += 100
    assert not link.unreachable()


def test_a_ping_that_is_answered_is_measured(link: Link, clock: Clock) -> None:
    assert link.ping()
    assert not link.unreachable()
    assert not link.stalled()
    assert link.measurement.latency_seconds == 0
    assert link.measurement.answered_at == clock.now


def test_an_answer_older_than_the_timeout_and_two_seconds_tells_nothing_any_more(link: Link, clock: Clock) -> None:
    link.ping()
    clock.now += TIMEOUT + 2
    assert not link.unreachable()
    clock.now += 0.01
    assert link.unreachable()
    link.ping()
    assert not link.unreachable()


def test_while_a_statement_waits_others_are_told_after_a_second_and_probes_after_the_timeout(
    sqlite_url: str, clock: Clock
) -> None:
    link = a_link(sqlite_url, clock)
    seen = []

    def wait(seconds: float) -> int:
        clock.now += seconds
        seen.append((link.stalled(), link.unreachable()))
        return 0

    def work(connection: Connection) -> None:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.create_function("wait", 1, wait)
        connection.exec_driver_sql(f"SELECT wait(1), wait(0.01), wait({TIMEOUT - 1.01}), wait(0.01)").all()

    link.use(work)
    assert seen == [(False, False), (True, False), (True, False), (True, True)]
    assert (link.stalled(), link.unreachable()) == (False, False)


def test_a_connect_that_waits_counts_as_well(sqlite_url: str, clock: Clock) -> None:
    link, seen = a_link(sqlite_url, clock), []

    @event.listens_for(link._engine, "do_connect")
    def slow(*_: object) -> None:
        clock.now += TIMEOUT + 0.01
        seen.append((link.stalled(), link.unreachable()))

    # It succeeded at last, and too late: a sign of life that took longer than the timeout is none.
    assert not link.ping()
    assert seen == [(True, True)]
    assert link.unreachable()


def test_a_failure_is_logged_once_when_it_begins_and_once_when_it_ends(
    breakable: Breakable, clock: Clock, logged: list[str]
) -> None:
    link = a_link(breakable.url, clock)
    assert link.ping()
    breakable.ruin()
    for _ in range(4):
        link.ping()
    assert not link.ping()
    assert link.unreachable()
    assert link.stalled()
    breakable.mend()
    for _ in range(3):
        assert link.ping()
    assert not link.unreachable()
    # The first failure may be that of the open connection, the later ones those of opening another.
    assert len(logged) == 2
    assert logged[0].startswith("database db:1/shop: ")
    assert logged[1] == "database db:1/shop: answers again"


def test_a_database_that_was_never_there_is_logged_by_its_word(
    breakable: Breakable, clock: Clock, logged: list[str]
) -> None:
    a_link(breakable.url, clock).ping()
    breakable.ruin()
    link = a_link(breakable.url, clock)
    for _ in range(3):
        assert not link.ping()
    assert logged == [f"database db:1/shop: {breakable.word}"]
    breakable.mend()


def test_a_lost_connection_is_opened_again(postgres_url: str, clock: Clock) -> None:
    link = a_link(postgres_url, clock)
    link.ping()
    with contextlib.suppress(Exception):  # It ends its own backend.
        link.use(lambda connection: connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert link.unreachable()
    assert link.ping()
    assert not link.unreachable()


def test_one_connection_serves_pings_and_syncs(postgres_url: str, clock: Clock) -> None:
    link, statement = a_link(postgres_url, clock), "SELECT pg_backend_pid()"
    backends = set()
    for _ in range(3):
        link.ping()
        backends.add(link.use(lambda connection: connection.exec_driver_sql(statement).scalar()))
    assert len(backends) == 1


def test_a_statement_that_the_server_refuses_is_an_answer(link: Link, clock: Clock, logged: list[str]) -> None:
    link.ping()
    with pytest.raises(Exception, match="nowhere"):
        link.use(lambda connection: connection.exec_driver_sql("SELECT * FROM nowhere"))
    assert not link.unreachable()
    assert link.measurement.answered_at == clock.now
    assert link.ping()
    assert logged == []


def test_a_connection_that_may_only_read_is_opened_again(link: Link, database_url: str, logged: list[str]) -> None:
    """The name may lead to the primary by now, and an SQLite connection stays as it was opened."""
    only_read = (
        "SET default_transaction_read_only = on" if database_url.startswith("postgres") else "PRAGMA query_only=1"
    )
    link.use(lambda connection: connection.exec_driver_sql("CREATE TABLE things (x int)"))
    link.use(lambda connection: connection.exec_driver_sql(only_read))
    with pytest.raises(Exception, match=r"read-?only"):
        link.use(lambda connection: connection.exec_driver_sql("DELETE FROM things"))
    assert not link.unreachable()
    link.use(lambda connection: connection.exec_driver_sql("DELETE FROM things"))
    assert logged == []


def test_work_that_fails_by_itself_says_nothing_of_the_database(link: Link, logged: list[str]) -> None:
    def work(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT 1")
        raise ValueError("its own")

    link.ping()
    with pytest.raises(ValueError, match="its own"):
        link.use(work)
    assert not link.unreachable()
    assert logged == []


def test_a_locked_sqlite_file_is_an_answer_to_a_sync(sqlite_url: str, clock: Clock) -> None:
    engine = database.background_engine(lambda: sqlite_url, timeout_seconds=TIMEOUT)
    schema.upgrade(engine)
    link = Link(
        database.background_engine(lambda: sqlite_url, timeout_seconds=0.1),
        label=lambda: "",
        timeout_seconds=0.1,
        clock=clock,
    )
    with engine.connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(Exception, match="locked") as caught:
            link.use(lambda connection: connection.exec_driver_sql("DELETE FROM readygate_licenses"))
        assert str(database.failure(caught.value)) == "timeout"
        assert not link.unreachable()
        assert link.ping()
        other.exec_driver_sql("ROLLBACK")


def test_a_replaced_sqlite_file_is_noticed(sqlite_url: str, tmp_path: Path, clock: Clock) -> None:
    link, file = a_link(sqlite_url, clock), tmp_path / "test.db"

    def tables() -> object:
        return link.use(lambda c: [row[0] for row in c.exec_driver_sql("SELECT name FROM sqlite_master")])

    link.use(lambda connection: connection.exec_driver_sql("CREATE TABLE old (x)"))
    assert tables() == ["old"]
    file.rename(tmp_path / "away.db")
    for tail in ("-wal", "-shm"):
        (tmp_path / f"test.db{tail}").unlink(missing_ok=True)
    assert tables() == []
    assert link.ping()


def test_a_closed_link_opens_again(link: Link) -> None:
    link.ping()
    link.close()
    link.close()
    assert link.ping()


def test_a_connect_and_its_ping_together_take_no_longer_than_the_timeout(postgres_server: pg.Server) -> None:
    with contextlib.closing(Proxy(postgres_server.port)) as proxy:
        shared, url = database.Shared(), f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        link = Link(
            database.background_engine(lambda: url, timeout_seconds=1, shared=shared),
            label=lambda: "db:1/shop",
            timeout_seconds=1,
            budget=shared.budget,
        )
        proxy.delay_seconds = 0.4
        started = time.monotonic()
        assert not link.ping()
        assert time.monotonic() - started < 1.5
        proxy.delay_seconds = 0
        assert link.ping()
        link.close()
