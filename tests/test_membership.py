"""A host's own engine, of any driver: one object makes the app a replica, and no fault of the database hangs it."""

from __future__ import annotations

import gc
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import postgres as pg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from servers import until
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import OperationalError

import entitlements
import health
import replicas
from entitlements import EntitlementsService, signing
from replicas import Membership, RegistryError, gunicorn

_KEY = Ed25519PrivateKey.generate()
_PUBLIC = signing.jwk(_KEY.public_key())


def driven(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://")


@pytest.fixture(params=["sqlite", "pg8000", "psycopg", "flask-sqlalchemy"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An ordinary engine, as a host makes it, with the tables made by the host."""
    if request.param == "sqlite":
        made = create_engine(request.getfixturevalue("sqlite_url"))
    elif request.param == "flask-sqlalchemy":
        app = Flask("shop")
        app.config["SQLALCHEMY_DATABASE_URI"] = driven(request.getfixturevalue("postgres_url"), "psycopg")
        db = SQLAlchemy(app)
        with app.app_context():
            made = db.engine
    else:
        made = create_engine(driven(request.getfixturevalue("postgres_url"), request.param))
    for metadata in (replicas.metadata, entitlements.metadata):
        metadata.create_all(made)
    yield made
    made.dispose()


@contextmanager
def member(engine: Engine, **options: Any) -> Iterator[Membership]:
    """A membership whose thread runs."""
    options = {"heartbeat_seconds": 0.3, "timeout_seconds": 1.0, "grace_seconds": 0, **options}
    found = Membership(engine, **{"replica_id": str(uuid.uuid4()), "version": "1.0", **options})
    found.start()
    try:
        yield found
    finally:
        found.heartbeat.stop()
        if found._connection is not None:
            found._connection.close()
        if found._own is not None:
            found._own.dispose()


def reasons(found: Membership) -> tuple[str | None, str | None]:
    return found.database_reason(), found.reason()


def soon(what: Callable[[], bool]) -> None:
    until(what, seconds=10)


def test_it_joins_beats_and_leaves_on_the_hosts_engine(engine: Engine) -> None:
    # A % is a placeholder to some drivers.
    with member(engine, hostname="100%s", version="1%") as found:
        soon(lambda: reasons(found) == (None, None))
        with found.connect() as connection:
            (row,) = found.registry.active(connection, count=2)
            assert (row.hostname, row.version) == ("100%s", "1%")
        first = row.updated_at
        with found.connect() as connection:
            soon(lambda: found.registry.active(connection, count=1)[0].updated_at > first)
        found.heartbeat.stop()
        found.leave()
        with found.connect() as connection:
            assert found.registry.active(connection, count=1) == []


def test_a_violation_takes_the_surplus_out_and_a_license_ends_it(engine: Engine) -> None:
    services = [EntitlementsService(keys=lambda: keys, exclude="surplus") for _ in range(2)]
    keys = entitlements.key_set(f'{{"keys": [{_PUBLIC}]}}'.replace("'", '"'))
    with ExitStack() as stack:
        one = stack.enter_context(member(engine, judge=services[0]))
        soon(lambda: one.reason() is None)
        two = stack.enter_context(member(engine, judge=services[1]))
        soon(lambda: services[1].reason() == "entitlement error")
        assert services[0].reason() is None
        now = int(time.time())
        text = signing.issue(
            _KEY,
            now=now,
            not_before=now - 60,
            license_expires=now + 86400,
            expires=now + 86400,
            account_type="company",
            account_id="acme",
            features={"high_availability": 1},
        )
        with two.connect() as connection:
            assert services[1].allowed(connection) == (1, False)
            services[1].add(connection, text)
            assert services[1].allowed(connection) == (None, True)
        assert two.refresh()
        assert services[1].reason() is None


def test_a_deployment_has_one_id_also_where_a_hosts_migration_made_the_table(engine: Engine) -> None:
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        first = EntitlementsService(keys=dict).deployment_id(connection)
        assert str(uuid.UUID(first)) == first
        assert EntitlementsService(keys=dict).deployment_id(connection) == first
        assert connection.exec_driver_sql("SELECT count(*) FROM readygate_deployment").scalar() == 1


def test_requests_that_hold_every_connection_of_the_pool_take_nothing_from_it(postgres_url: str) -> None:
    engine = create_engine(driven(postgres_url, "pg8000"), pool_size=1, max_overflow=0)
    replicas.metadata.create_all(engine)
    with engine.connect(), member(engine) as found:
        soon(lambda: reasons(found) == (None, None))
    engine.dispose()


def test_a_table_that_is_not_there_yet_is_said_and_waited_for(sqlite_url: str, logged: list[str]) -> None:
    engine = create_engine(sqlite_url)
    with member(engine) as found:
        soon(lambda: found.database_reason() == "schema outdated")
        assert found.reason() == "starting"
        replicas.metadata.create_all(engine)
        soon(lambda: reasons(found) == (None, None))
    assert any("is missing; add the metadata" in line for line in logged)
    engine.dispose()


# pg8000 leaves the socket of a connection that was lost to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("driver", ["pg8000", "psycopg"])
def test_a_database_that_stops_hangs_and_returns(postgres_server: pg.Server, driver: str, logged: list[str]) -> None:
    with pg.new_database(postgres_server.url()) as url:
        engine = create_engine(driven(url, driver))
        replicas.metadata.create_all(engine)
        with member(engine) as found:
            soon(lambda: reasons(found) == (None, None))
            postgres_server.hang()
            try:
                soon(found.stalled)
                soon(lambda: found.database_reason() == "database unreachable")
                started = time.monotonic()
                found.leave()
                assert time.monotonic() - started < 2
            finally:
                postgres_server.resume()
            soon(lambda: reasons(found) == (None, None))
            postgres_server.stop("immediate")
            soon(lambda: found.database_reason() == "database unreachable")
            postgres_server.start()
            soon(lambda: reasons(found) == (None, None))
        engine.dispose()
        gc.collect()
    assert any(line.startswith("leaving failed: timeout") for line in logged)
    assert not any("127.0.0.1" in line or "SELECT" in line for line in logged)


def test_the_blueprints_answer_503_where_there_is_no_connection(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/nowhere/none.db")
    found = Membership(engine, replica_id=str(uuid.uuid4()), version="1.0")
    app = Flask("host")
    app.register_blueprint(
        replicas.blueprint(found.registry, connect=found.connect, guard=lambda role: None, stalled=lambda: False)
    )
    answer = app.test_client().get("/api/v2/replicas")
    assert (answer.status_code, answer.json) == (503, {"message": "database unreachable"})


def test_readyz_shows_disclosed_reasons_as_they_stand(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    with member(engine) as found:
        app = Flask("host")
        checks = health.disclosed(database=found.database_reason, replica=found.reason)
        app.register_blueprint(health.blueprint(measured=checks, start=found.start))
        soon(lambda: app.test_client().get("/readyz").text == "schema outdated")
        assert app.test_client().get("/readyz/replica").text == "starting"
        replicas.metadata.create_all(engine)
        soon(lambda: app.test_client().get("/readyz").text == "OK")
    engine.dispose()


def test_a_remark_stays_a_remark() -> None:
    told = health.disclosed(one=lambda: health.Remark("by the way"), two=lambda: None, three=lambda: "no")
    assert isinstance(told["one"](), health.Remark)
    assert told["two"]() is None
    assert isinstance(told["three"](), health.Public)


def test_three_heartbeats_are_the_least_that_a_replica_may_be_silent_for(sqlite_url: str) -> None:
    with pytest.raises(ValueError, match="three heartbeats"):
        Membership(create_engine(sqlite_url), replica_id="x", version="1", stale_after_seconds=14)


def test_a_gunicorn_without_the_hooks_never_makes_a_replica_of_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/27.0.1")
    with pytest.raises(RegistryError, match="on_starting"):
        gunicorn.replica_id()
    # One that came from outside may be the same for all of them.
    monkeypatch.setenv(gunicorn.VARIABLE, "set by somebody")
    with pytest.raises(RegistryError, match="on_starting"):
        gunicorn.replica_id()
    monkeypatch.setenv(gunicorn.MAKER, str(os.getppid()))
    assert gunicorn.replica_id() == "set by somebody"


def test_no_server_takes_its_identity_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVER_SOFTWARE", raising=False)
    given = str(uuid.uuid4())
    monkeypatch.setenv(gunicorn.VARIABLE, given)
    monkeypatch.setenv(gunicorn.MAKER, "1")
    own = gunicorn.replica_id()
    assert own != given
    assert gunicorn.replica_id() == own


def test_only_postgresql_and_sqlite_are_taken() -> None:
    engine = SimpleNamespace(dialect=SimpleNamespace(name="mysql"))
    with pytest.raises(ValueError, match="PostgreSQL or SQLite, not mysql"):
        Membership(engine, replica_id="x", version="1")  # type: ignore[arg-type]


def test_what_no_table_is_there_for_is_called_by_its_name(sqlite_url: str) -> None:
    found = Membership(create_engine(sqlite_url), replica_id=str(uuid.uuid4()), version="1.0")
    app = Flask("host")
    app.register_blueprint(replicas.blueprint(found.registry, connect=found.connect, guard=lambda role: None))
    answer = app.test_client().get("/api/v2/replicas")
    assert (answer.status_code, answer.json) == (503, {"message": "schema outdated"})


def test_a_thread_that_was_started_before_the_fork_leaves_its_connection_alone(postgres_url: str) -> None:
    engine = create_engine(driven(postgres_url, "psycopg"))
    replicas.metadata.create_all(engine)
    with member(engine) as found:
        soon(lambda: reasons(found) == (None, None))
        before = found._connection
        child = os.fork()
        if child == 0:  # What a worker of a preloaded app is.
            found.start()
            ends = time.monotonic() + 10
            while found._connection in (None, before) and time.monotonic() < ends:
                time.sleep(0.01)
            os._exit(0 if found._connection not in (None, before) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        time.sleep(1.2)
        assert found._connection is before
        assert reasons(found) == (None, None)
    engine.dispose()


def test_no_hook_ends_a_server_whatever_the_app_does(logged: list[str]) -> None:
    gunicorn.post_worker_init(SimpleNamespace(wsgi=Flask("without"), ppid=1))

    def fail() -> None:
        raise SystemExit("the app changed its mind")

    gunicorn.on_exit(SimpleNamespace(app=SimpleNamespace(wsgi=fail)))
    assert [line.split(";")[0] for line in logged] == ["no membership to start", "leaving failed: SystemExit"]


def test_the_hooks_start_and_leave_what_the_app_keeps(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    replicas.metadata.create_all(engine)
    with member(engine) as found:
        wrapped = SimpleNamespace(inner=found)
        gunicorn.starter(lambda app: app.inner)(SimpleNamespace(wsgi=wrapped, ppid=-1))
        assert found.reason() == "heartbeat lost"
        gunicorn.leaver(lambda app: app.inner)(SimpleNamespace(app=SimpleNamespace(wsgi=lambda: wrapped)))
        with found.connect() as connection:
            assert found.registry.active(connection, count=1) == []
    engine.dispose()


def test_a_failure_is_logged_without_the_drivers_words(postgres_url: str) -> None:
    from replicas.membership import _words

    for driver in ("pg8000", "psycopg"):
        engine = create_engine(driven(postgres_url, driver))
        with engine.connect() as connection, pytest.raises(Exception, match="1") as caught:
            connection.exec_driver_sql("SELECT 1 / 0")
        assert _words(caught.value).endswith("(22012)")
        engine.dispose()
    assert _words(OperationalError("SELECT 'secret'", {}, Exception("secret"))) == "Exception"
