"""The API of real servers: what one of them is told, all of them do; and a database that fails starves no probe."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from proxy import Proxy
from servers import Gunicorn, answers, gunicorn, ready, until, worker_class
from test_servers import PROMISE, flask, keys, public

import openapi

pytestmark = pytest.mark.server
__all__ = ["keys"]  # A fixture, known by its name.

ADMIN = "an-admin-token-of-the-secret-store"
TIMEOUT = 1.0
ROUTE = "/api/v2/replicas"
#: Every route of the API.
ROUTES = [
    (method.upper(), path.replace("{id}", "1"))
    for path, methods in openapi.DOCUMENT["paths"].items()
    for method in methods
]


def ask(
    server: Gunicorn, path: str, *, method: str = "GET", token: str | None = ADMIN, body: object = None
) -> tuple[int, Any, float]:
    """Status, JSON (None where there is none) and seconds; 0 where nothing answered."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"Connection": "close", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = None
    if body is not None:
        data, headers["Content-Type"] = json.dumps(body), "application/json"
    started = time.monotonic()
    try:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        found = answer.read()
        shown = json.loads(found) if found and answer.headers.get_content_type() == "application/json" else None
        return answer.status, shown, time.monotonic() - started
    except (OSError, http.client.HTTPException):
        return 0, None, time.monotonic() - started
    finally:
        connection.close()


def a_license(key: Path, *features: str) -> str:
    chosen = [word for feature in features for word in ("--feature", feature)]
    none = "sqlite:////nowhere/none.db"
    return flask(none, "license", "issue", "--key", str(key), "--account-id", "acme", *chosen).stdout.strip()


def variables(keys: Path, **more: str) -> dict[str, Any]:
    return {"READYGATE_LICENSE_KEYS": public(keys), "READYGATE_ADMIN_TOKEN": ADMIN, **more}


def test_a_license_posted_to_an_excluded_server_cures_all_of_them(database_url: str, keys: Path) -> None:
    with gunicorn(database_url, **variables(keys)) as one, gunicorn(database_url, **variables(keys)) as two:
        until(lambda: answers(one, "entitlement error") and answers(two, "entitlement error"))
        # Each worker answers what it read itself, at most a heartbeat ago.
        until(lambda: all(ask(one, "/api/v2/entitlements")[1]["errors"] for _ in range(12)), seconds=PROMISE)
        until(lambda: {row["state"] for row in ask(two, "/api/v2/replicas")[1]} == {"excluded"}, seconds=PROMISE)
        assert len(ask(two, "/api/v2/replicas")[1]) == 2
        text = a_license(keys, "high_availability")
        status, stored, _ = ask(two, "/api/v2/licenses", method="POST", body={"license": text})
        posted = time.monotonic()
        assert status == 201
        until(lambda: ready(one) and ready(two))
        assert time.monotonic() - posted < PROMISE
        until(lambda: {row["state"] for row in ask(one, "/api/v2/replicas")[1]} == {"serving"}, seconds=PROMISE)
        assert ask(one, f"/api/v2/licenses/{stored['id']}", method="DELETE")[0] == 204
        removed = time.monotonic()
        until(lambda: answers(one, "entitlement error") and answers(two, "entitlement error"))
        assert time.monotonic() - removed < PROMISE
        assert text not in one.lines + two.lines


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_a_license_counts_at_once_on_the_worker_that_took_it(postgres_url: str, keys: Path, kind: str) -> None:
    long = {"READYGATE_HEARTBEAT_SECONDS": "60", "READYGATE_STALE_AFTER_SECONDS": "180"}
    with gunicorn(postgres_url, *worker_class(kind), workers=1, **variables(keys, **long)) as server:
        until(lambda: ready(server))
        for _ in range(5):
            text = a_license(keys, "high_availability")
            status, stored, seconds = ask(server, "/api/v2/licenses", method="POST", body={"license": text})
            assert status == 201
            assert seconds < 1
            assert ask(server, "/api/v2/entitlements")[1]["features"]["high_availability"]["enabled"] is True
            status, _, seconds = ask(server, f"/api/v2/licenses/{stored['id']}", method="DELETE")
            assert status == 204
            assert seconds < 1
            assert ask(server, "/api/v2/entitlements")[1]["features"]["high_availability"]["enabled"] is False


def test_many_licenses_posted_at_once_are_all_judged(postgres_url: str, keys: Path) -> None:
    # As many as one worker takes at once: one of its threads is left for probes.
    texts = [a_license(keys, f"feature_{number}") for number in range(7)]
    results: list[int] = []
    with gunicorn(postgres_url, "--threads", "8", workers=1, **variables(keys)) as server:
        until(lambda: ready(server))

        def post(text: str) -> None:
            results.append(ask(server, "/api/v2/licenses", method="POST", body={"license": text})[0])

        threads = [threading.Thread(target=post, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        features = ask(server, "/api/v2/entitlements")[1]["features"]
    assert results == [201] * 7
    assert sum(feature["enabled"] for feature in features.values()) == 7


def test_a_revoked_token_stops_on_every_server_within_one_heartbeat(database_url: str) -> None:
    slow = {"READYGATE_HEARTBEAT_SECONDS": "2"}
    with gunicorn(database_url, **slow) as one, gunicorn(database_url, **slow) as two:  # type: ignore[arg-type]
        until(lambda: ready(one) and ready(two))
        token = flask(database_url, "token", "create", "ci", "--role", "viewer").stdout.strip()

        def statuses() -> set[int]:
            return {ask(server, "/api/v2/replicas", token=token)[0] for server in (one, two) for _ in range(6)}

        assert statuses() == {200}
        stop = threading.Event()
        seen: list[tuple[float, int]] = []

        def use() -> None:
            # Being used keeps nothing alive.
            while not stop.is_set():
                started = time.monotonic()
                seen.extend((started, ask(server, "/api/v2/replicas", token=token)[0]) for server in (one, two))

        user = threading.Thread(target=use)
        user.start()
        assert flask(database_url, "token", "revoke", "ci").exit_code == 0
        revoked = time.monotonic()
        time.sleep(3)
        stop.set()
        user.join(20)
        assert {status for _, status in seen} == {200, 401}
        assert {status for at, status in seen if at > revoked + 2} == {401}
        assert statuses() == {401}
        assert token not in one.lines + two.lines


# A database that fails


@pytest.fixture(scope="module")
def server() -> Iterator[pg.Server]:
    """A PostgreSQL of this file's own, which its tests treat badly."""
    server = pg.Server()
    yield server
    server.remove()


@pytest.fixture
def database(server: pg.Server) -> Iterator[str]:
    with pg.new_database(server.url()) as url:
        yield url


def fails_fast(master: Gunicorn, token: str) -> None:
    """Every route answers 503 in JSON at once, to anybody, and probes go at full speed meanwhile."""
    for method, path in ROUTES:
        for known in (None, token, ADMIN):
            status, found, seconds = ask(master, path, method=method, token=known)
            assert (status, seconds < 0.5) == (503, True), (method, path, seconds)
            assert method == "HEAD" or found == {"message": "database unreachable"}
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            ask(master, "/api/v2/replicas", token=token)

    threads = [threading.Thread(target=flood) for _ in range(3)]
    for thread in threads:
        thread.start()
    seconds_each = []
    for _ in range(100):
        started = time.monotonic()
        assert master.get("/healthz") == (200, "OK")
        assert master.get() == (503, "database unreachable")
        seconds_each.append(time.monotonic() - started)
    stop.set()
    for thread in threads:
        thread.join(20)
    assert sorted(seconds_each)[98] < 0.2


@pytest.mark.parametrize(("kind", "workers"), [("sync", 1), ("gthread", 1)])
@pytest.mark.parametrize("how", ["hung", "down"])
def test_a_failing_database_is_503_everywhere_at_once_and_starves_no_probe(
    server: pg.Server, database: str, kind: str, workers: int, how: str
) -> None:
    short: dict[str, Any] = {"READYGATE_DATABASE_TIMEOUT_SECONDS": str(TIMEOUT), "READYGATE_ADMIN_TOKEN": ADMIN}
    with gunicorn(database, *worker_class(kind), workers=workers, **short) as master:
        until(lambda: ready(master))
        token = flask(database, "token", "create", "ci", "--role", "viewer").stdout.strip()
        assert ask(master, "/api/v2/replicas", token=token)[0] == 200
        if how == "hung":
            server.hang()
        else:
            server.stop("immediate")
        try:
            # Requests that were sent before anybody could know: a bound each, then an error in JSON.
            early = [ask(master, "/api/v2/replicas", token=token) for _ in range(3)]
            assert {status for status, _, _ in early} == {503}
            assert max(seconds for _, _, seconds in early) < 3
            until(lambda: master.get() == (503, "database unreachable"), seconds=5)
            fails_fast(master, token)
        finally:
            server.resume() if how == "hung" else server.start()
        until(lambda: ready(master))
        assert until(lambda: ask(master, "/api/v2/replicas", token=token)[0] == 200) < 2
        assert "Traceback" not in master.lines


def test_one_request_caught_by_a_hung_database_holds_a_sync_worker_for_a_bounded_time(
    server: pg.Server, database: str
) -> None:
    long: dict[str, Any] = {"READYGATE_ADMIN_TOKEN": ADMIN, "READYGATE_DATABASE_TIMEOUT_SECONDS": "10"}
    with gunicorn(database, *worker_class("sync"), workers=1, **long) as master:
        until(lambda: ready(master))
        assert ask(master, "/api/v2/replicas")[0] == 200
        server.hang()
        try:
            threads = [threading.Thread(target=ask, args=(master, "/api/v2/replicas")) for _ in range(8)]
            for thread in threads:
                thread.start()
            time.sleep(0.05)
            started = time.monotonic()
            assert master.get("/healthz", timeout=20) == (200, "OK")
            # A second for the one that was caught; the others are told at once what it learnt.
            assert time.monotonic() - started < 1.6
            assert "Using worker: sync" in master.lines
            for thread in threads:
                thread.join(20)
        finally:
            server.resume()


def test_a_slow_database_keeps_no_probe_waiting_however_many_call_the_api(server: pg.Server, database: str) -> None:
    with contextlib.closing(Proxy(server.port)) as proxy:
        url = database.replace(f":{server.port}/", f":{proxy.port}/")
        with gunicorn(url, workers=1, **{"READYGATE_ADMIN_TOKEN": ADMIN}) as master:
            until(lambda: ready(master))
            proxy.delay_seconds = 0.2
            stop, seen = threading.Event(), set()

            def call() -> None:
                while not stop.is_set():
                    seen.add(ask(master, "/api/v2/replicas")[0])

            threads = [threading.Thread(target=call) for _ in range(12)]
            for thread in threads:
                thread.start()
            time.sleep(1)
            seconds = []
            for _ in range(100):
                started = time.monotonic()
                assert master.get("/healthz") == (200, "OK")
                seconds.append(time.monotonic() - started)
                time.sleep(0.02)
            stop.set()
            for thread in threads:
                thread.join(20)
    assert seen <= {200, 503}
    assert 503 in seen
    # Without a thread of their own they waited for 0.3 s and more.
    assert sorted(seconds)[90] < 0.1


def test_a_slow_database_is_refused_where_probes_would_wait_for_it(server: pg.Server, database: str) -> None:
    with contextlib.closing(Proxy(server.port)) as proxy:
        url = database.replace(f":{server.port}/", f":{proxy.port}/")
        alone: dict[str, Any] = {"READYGATE_ADMIN_TOKEN": ADMIN}
        with gunicorn(url, *worker_class("sync"), workers=1, **alone) as master:
            until(lambda: ready(master))
            assert ask(master, "/api/v2/replicas")[0] == 200
            proxy.delay_seconds = 0.2
            until(lambda: ask(master, "/api/v2/replicas")[0] == 503, seconds=5)
            time.sleep(1)
            for _ in range(30):
                status, _, seconds = ask(master, "/api/v2/replicas")
                assert (status, seconds < 0.1) == (503, True)
            assert master.get() == (200, "OK")
            proxy.delay_seconds = 0
            assert until(lambda: ask(master, "/api/v2/replicas")[0] == 200, seconds=5) < 3


def test_two_calls_at_once_connect_under_gevent_though_it_was_preloaded(postgres_url: str) -> None:
    """What was made before gevent patched is the system's: a lock of it that is held while waiting stops everybody."""
    given: dict[str, Any] = {"READYGATE_ADMIN_TOKEN": ADMIN}
    with gunicorn(postgres_url, *worker_class("gevent"), "--preload", workers=1, **given) as master:
        until(lambda: ready(master))
        results: list[int] = []
        threads = [threading.Thread(target=lambda: results.append(ask(master, ROUTE)[0])) for _ in range(6)]
        for thread in threads:
            thread.start()
        seconds = []
        for _ in range(20):
            started = time.monotonic()
            assert master.get("/healthz") == (200, "OK")
            seconds.append(time.monotonic() - started)
        for thread in threads:
            thread.join(20)
        assert results == [200] * 6
        assert max(seconds) < 0.5
        assert "MonkeyPatchWarning" not in master.lines


def test_the_api_of_a_server_without_a_schema_says_so(postgres_url: str) -> None:
    none: dict[str, Any] = {"READYGATE_AUTO_MIGRATE": "0", "READYGATE_ADMIN_TOKEN": ADMIN}
    with gunicorn(postgres_url, **none) as master:
        until(lambda: answers(master, "schema outdated"))
        assert ask(master, "/api/v2/replicas")[:2] == (503, {"message": "schema outdated"})
        assert flask(postgres_url, "db", "upgrade").exit_code == 0
        until(lambda: ready(master))
        assert ask(master, "/api/v2/replicas")[0] == 200


def test_the_admin_tokens_file_is_rotated_under_a_running_server(sqlite_url: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(ADMIN)
    given: dict[str, Any] = {"READYGATE_ADMIN_TOKEN_FILE": str(file)}
    with gunicorn(sqlite_url, **given) as server:
        until(lambda: ready(server))
        assert ask(server, "/api/v2/replicas")[0] == 200
        file.write_text("bad")
        assert ask(server, "/api/v2/replicas")[0] == 401
        before = {worker.pid for worker in server.workers()}
        server.send(1)
        until(lambda: {worker.pid for worker in server.workers()}.isdisjoint(before) and ready(server))
        assert server.process.poll() is None
        file.write_text(ADMIN[::-1])
        assert ask(server, "/api/v2/replicas")[0] == 401
        assert ask(server, "/api/v2/replicas", token=ADMIN[::-1])[0] == 200


def test_a_short_admin_token_stops_the_start_with_one_line(sqlite_url: str) -> None:
    with gunicorn(sqlite_url, **{"READYGATE_ADMIN_TOKEN": "too-short-a-secret"}) as server:  # type: ignore[arg-type]
        assert server.process.wait(20) == 1
        assert "READYGATE_ADMIN_TOKEN: takes 32" in server.lines
        assert "Traceback" not in server.lines
        assert "too-short-a-secret" not in server.lines
