"""/healthz and /readyz: exact answers, from memory."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clock import Clock
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

import database
import health
import schema
import settings
from app import Replica, create_app
from health.checks import Measured
from replicas import Registry


class Reasons:
    """What three checks in memory say, and how often they were asked."""

    def __init__(self) -> None:
        self.now: dict[str, str | None] = {"database": None, "replica": None, "entitlements": None}
        self.asked = 0

    def check(self, name: str) -> Callable[[], str | None]:
        def ask() -> str | None:
            self.asked += 1
            return self.now[name]

        return ask


@pytest.fixture
def reasons() -> Reasons:
    return Reasons()


@pytest.fixture
def client(reasons: Reasons) -> FlaskClient:
    return a_client(measured={name: reasons.check(name) for name in reasons.now})


def a_client(**options: object) -> FlaskClient:
    app = Flask("host")
    app.register_blueprint(health.blueprint(**options))  # type: ignore[arg-type]
    return app.test_client()


def answer(response: TestResponse) -> tuple[int, str]:
    return response.status_code, response.get_data(as_text=True)


def settled(client: FlaskClient, expected: tuple[int, str], path: str = "/readyz") -> bool:
    """Whether the answer comes to be the expected one within some seconds."""
    ends = time.monotonic() + 5
    while answer(client.get(path)) != expected and time.monotonic() < ends:
        time.sleep(0.01)
    return answer(client.get(path)) == expected


def test_all_well_is_exactly_ok(client: FlaskClient) -> None:
    for path in ("/healthz", "/readyz", "/readyz/database", "/readyz/replica", "/readyz/entitlements"):
        assert answer(client.get(path)) == (200, "OK")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/readyz?verbose", "/readyz/database", "/readyz/none"])
@pytest.mark.parametrize("reason", [None, health.Public("database unreachable")])
def test_every_answer_is_plain_text_that_nobody_stores(
    client: FlaskClient, reasons: Reasons, path: str, reason: str | None
) -> None:
    reasons.now["database"] = reason
    for response in (client.get(path), client.head(path)):
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-store"


def test_head_is_get_without_the_body(client: FlaskClient, reasons: Reasons) -> None:
    assert answer(client.head("/healthz")) == answer(client.head("/readyz")) == (200, "")
    assert client.head("/readyz").headers["Content-Length"] == "2"
    reasons.now["replica"] = health.Public("starting")
    assert answer(client.head("/readyz")) == answer(client.head("/readyz/replica")) == (503, "")


def test_other_methods_are_not_allowed(client: FlaskClient) -> None:
    assert client.post("/healthz").status_code == client.delete("/readyz").status_code == 405


def test_the_first_reason_in_order_is_the_answer(client: FlaskClient, reasons: Reasons) -> None:
    texts = {"entitlements": "entitlement error", "replica": "draining", "database": "database unreachable"}
    for name, text in texts.items():
        reasons.now[name] = health.Public(text)
        assert answer(client.get("/readyz")) == (503, text)
        assert answer(client.get("/healthz")) == (200, "OK")


def test_one_check_is_answered_alone(client: FlaskClient, reasons: Reasons) -> None:
    reasons.now["database"] = health.Public("database unreachable")
    assert answer(client.get("/readyz/database")) == (503, "database unreachable")
    assert answer(client.get("/readyz/entitlements")) == (200, "OK")
    assert answer(client.get("/readyz/disk")) == (404, "unknown check; there are: database, replica, entitlements")


def test_verbose_answers_line_by_line(client: FlaskClient, reasons: Reasons) -> None:
    assert answer(client.get("/readyz?verbose")) == (
        200,
        "[+]database ok\n[+]replica ok\n[+]entitlements ok\nreadyz check passed\n",
    )
    reasons.now["entitlements"] = health.Public("entitlement error")
    assert answer(client.get("/readyz?verbose")) == (
        503,
        "[+]database ok\n[+]replica ok\n[-]entitlements failed: entitlement error\nreadyz check failed\n",
    )


def test_a_remark_takes_nothing_out_and_shows_when_asked(client: FlaskClient, reasons: Reasons) -> None:
    reasons.now["replica"] = health.Remark("heartbeat lost")
    assert answer(client.get("/readyz")) == answer(client.get("/readyz/replica")) == (200, "OK")
    assert answer(client.get("/readyz?verbose")) == (
        200,
        "[+]database ok\n[+]replica ok\n[!]replica warning: heartbeat lost\n[+]entitlements ok\nreadyz check passed\n",
    )


def test_checks_may_be_left_out(client: FlaskClient, reasons: Reasons) -> None:
    reasons.now |= {"database": health.Public("database unreachable"), "replica": health.Public("draining")}
    assert answer(client.get("/readyz?exclude=database")) == (503, "draining")
    assert answer(client.get("/readyz?exclude=database&exclude=replica")) == (200, "OK")
    assert answer(client.get("/readyz?verbose&exclude=database&exclude=replica")) == (
        200,
        "[+]entitlements ok\nreadyz check passed\n",
    )


@pytest.mark.parametrize("query", ["exclude=disk", "exclude=", "exclude=database&exclude=x", "verbose&exclude=disk"])
def test_an_unknown_check_cannot_be_left_out(client: FlaskClient, query: str) -> None:
    status, body = answer(client.get(f"/readyz?{query}"))
    assert (status, body) == (400, "unknown check; there are: database, replica, entitlements")


def test_liveness_asks_no_check(client: FlaskClient, reasons: Reasons) -> None:
    for _ in range(10):
        client.get("/healthz")
    assert reasons.asked == 0


def test_the_start_hook_is_called_by_readiness_and_not_by_liveness() -> None:
    called: list[None] = []
    client = a_client(start=lambda: called.append(None))
    client.get("/healthz")
    assert called == []
    client.get("/readyz")
    client.get("/readyz/none")
    assert len(called) == 2


# A host app's own checks


def test_an_app_without_checks_is_ready() -> None:
    assert answer(a_client().get("/readyz")) == (200, "OK")


def test_a_hosts_check_is_measured_before_the_first_answer() -> None:
    assert answer(a_client(ready={"disk": lambda: None}).get("/readyz")) == (200, "OK")


def test_what_a_hosts_check_found_goes_to_the_log_alone(logged: list[str]) -> None:
    client = a_client(ready={"disk": lambda: "/srv/data is full"}, interval_seconds=0.01)
    for path in ("/readyz", "/readyz/disk"):
        assert answer(client.get(path)) == (503, "disk failed")
    assert answer(client.get("/readyz?verbose")) == (503, "[-]disk failed: reason withheld\nreadyz check failed\n")
    time.sleep(0.1)
    assert logged == ["check disk failed: /srv/data is full"]


def test_a_hosts_check_may_make_its_reason_public() -> None:
    client = a_client(ready={"disk": lambda: health.Public("disk full")})
    assert answer(client.get("/readyz")) == (503, "disk full")


def test_a_check_that_raises_has_failed(logged: list[str]) -> None:
    def check() -> str | None:
        raise OSError("/srv/data: sesame")

    client = a_client(ready={"disk": check})
    assert answer(client.get("/readyz")) == (503, "disk failed")
    assert logged == ["check disk failed: raised OSError"]


def test_a_measured_check_that_raises_has_failed_too_and_is_told_once(logged: list[str]) -> None:
    def check() -> str | None:
        raise OSError("/srv/data: sesame")

    client = a_client(measured={"disk": check, "queue": lambda: None})
    for _ in range(2):
        assert answer(client.get("/readyz")) == (503, "disk failed")
        assert answer(client.get("/readyz/disk")) == (503, "disk failed")
        assert answer(client.get("/readyz?verbose"))[1].startswith("[-]disk failed: reason withheld\n[+]queue ok\n")
    assert logged == ["check disk failed: raised OSError"]


def test_a_remark_of_a_hosts_check_is_no_failure_in_the_log_either(logged: list[str]) -> None:
    client = a_client(ready={"disk": lambda: health.Remark("nearly full")})
    assert answer(client.get("/readyz")) == (200, "OK")
    assert logged == ["check disk: nearly full"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/readyz/database"])
def test_probes_know_no_options(client: FlaskClient, path: str) -> None:
    assert client.options(path).status_code == 405


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_check_that_ended_its_own_thread_has_failed() -> None:
    def check() -> str | None:
        raise SystemExit

    client = a_client(ready={"disk": check}, timeout_seconds=0.05)
    assert settled(client, (503, "disk failed"))


def test_a_check_that_hangs_has_failed_and_recovers_alone(logged: list[str]) -> None:
    free, hang = threading.Event(), threading.Event()

    def check() -> str | None:
        if hang.is_set():
            free.wait(10)
        return None

    client = a_client(ready={"disk": check}, interval_seconds=0.01, timeout_seconds=0.1)
    assert answer(client.get("/readyz")) == (200, "OK")
    hang.set()
    assert settled(client, (503, "disk failed"))
    started = time.monotonic()
    for _ in range(100):
        client.get("/readyz")
    assert time.monotonic() - started < 1
    hang.clear()
    free.set()
    assert settled(client, (200, "OK"))
    assert logged == ["check disk failed: exceeded its timeout", "check disk: ok again"]


def test_checks_that_hang_from_the_first_call_on_cost_the_first_probe_half_a_second_in_all() -> None:
    free = threading.Event()

    def check() -> str | None:
        free.wait(10)
        return None

    client = a_client(ready={"one": check, "two": check, "three": check})
    started = time.monotonic()
    assert answer(client.get("/readyz?verbose"))[0] == 503
    assert time.monotonic() - started < 0.9
    assert answer(client.get("/readyz")) == (503, "one failed")
    free.set()
    assert settled(client, (200, "OK"))


def test_a_thousand_probes_run_no_check() -> None:
    calls: list[None] = []

    def check() -> None:
        calls.append(None)

    client = a_client(ready={"disk": check}, interval_seconds=3600)
    for _ in range(1000):
        assert client.get("/readyz").status_code == 200
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x?", "database"])
def test_a_check_takes_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ValueError, match="takes a name of its own"):
        health.blueprint(ready={name: lambda: None}, measured={"database": lambda: None})


def test_two_apps_in_one_process_never_meet() -> None:
    full, fine = a_client(ready={"disk": lambda: "full"}), a_client(ready={"disk": lambda: None})
    other = a_client(measured={"queue": lambda: None})
    assert answer(full.get("/readyz")) == (503, "disk failed")
    assert answer(fine.get("/readyz")) == (200, "OK")
    assert answer(other.get("/readyz/disk")) == (404, "unknown check; there are: queue")


def test_a_result_is_called_late_by_the_clock_of_the_check() -> None:
    clock, free, begun = Clock(), threading.Event(), threading.Event()

    def check() -> str | None:
        begun.set()
        free.wait(10)
        return None

    measured = Measured("disk", check, timeout_seconds=5, clock=clock)
    assert measured() == "has no result yet"
    assert begun.wait(5)
    clock.now += 5
    assert measured() == "has no result yet"
    clock.now += 0.1
    assert measured() == "exceeded its timeout of 5 s"
    measured.stop()
    free.set()


# The service itself


@pytest.fixture
def service(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FlaskClient, Replica]]:
    """The service on SQLite, whose thread is this test."""
    environment = {"DATABASE_URL": sqlite_url, "READYGATE_REPLICA_GRACE_SECONDS": "0"}
    app = create_app(settings.read(environment))
    replica: Replica = app.extensions["readygate"]
    monkeypatch.setattr(replica.heartbeat, "start", lambda: None)
    yield app.test_client(), replica
    replica.link.close()


def test_the_services_reasons_come_in_their_order(
    service: tuple[FlaskClient, Replica], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, replica = service

    def said() -> str:
        assert answer(client.get("/healthz")) == (200, "OK")
        status, body = answer(client.get("/readyz"))
        assert status == (200 if body == "OK" else 503)
        return body

    assert said() == "starting"
    assert replica.link.ping()
    assert said() == "starting"
    replica.sync()
    assert said() == "schema outdated"
    own = database.background_engine(lambda: sqlite_url, timeout_seconds=5)
    schema.upgrade(own)
    replica.sync()
    assert said() == "OK"
    with own.connect() as connection:
        Registry(replica_id=str(uuid.uuid4()), hostname="two", version="1", grace_seconds=0).sync(
            connection, limit=None
        )
        replica.sync()
        assert said() == "entitlement error"
        row = f"WHERE id = '{replica.registry.id}'"
        connection.exec_driver_sql(f"UPDATE readygate_replicas SET draining_at = 1 {row}")
        replica.sync()
        assert said() == "draining"
        assert answer(client.get("/readyz?exclude=replica")) == (200, "OK")
        replica.lease.follow_parent(-1)
        assert said() == "heartbeat lost"
        connection.exec_driver_sql("DROP TABLE readygate_replicas")
        with pytest.raises(Exception, match="no such table"):
            replica.sync()
        assert said() == "schema outdated"
    now = time.monotonic()
    monkeypatch.setattr(replica.link, "_clock", lambda: now + 8)
    assert said() == "database unreachable"
    assert answer(client.get("/readyz?verbose"))[1].startswith("[-]database failed: database unreachable\n")


@pytest.mark.parametrize("host", ["a..b", "x" * 70, "my_service:8000", ""])
def test_liveness_does_not_fail_of_the_name_it_is_asked_by(sqlite_url: str, host: str) -> None:
    client = create_app(settings.read({"DATABASE_URL": sqlite_url})).test_client()
    assert answer(client.get("/healthz", headers={"Host": host})) == (200, "OK")
    refused = client.get("/healthz/", headers={"Host": host})
    assert refused.status_code == 404
    assert refused.headers["Cache-Control"] == "no-store"


def test_making_the_app_touches_no_database(tmp_path: Path) -> None:
    app = create_app(settings.read({"DATABASE_URL": "postgresql://app@203.0.113.1/none"}))
    assert answer(app.test_client().get("/healthz")) == (200, "OK")
    create_app(settings.read({"DATABASE_URL": f"sqlite:///{tmp_path}/new/gate.db"}))
    assert list(tmp_path.iterdir()) == []
