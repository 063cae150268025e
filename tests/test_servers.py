"""Real gunicorn masters on one real database: identity, violation, recovery, licenses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from click.testing import Result
from flask.testing import FlaskCliRunner
from servers import GRACE, HEARTBEAT, Gunicorn, all_ready, answers, get, gunicorn, ready, until

import settings
from app import create_app

pytestmark = pytest.mark.server

#: Spec, section 11: noticed and recovered within one heartbeat and a second.
PROMISE = HEARTBEAT + 1
STALE = 3 * HEARTBEAT


@contextlib.contextmanager
def sampled(*servers: Gunicorn, path: str = "/readyz") -> Iterator[list[tuple[int, str]]]:
    """Every answer of the servers while the block runs, some 50 a second each."""
    answered: list[tuple[int, str]] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.is_set():
            answered.extend(server.get(path) for server in servers)
            stop.wait(0.01)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield answered
    finally:
        stop.set()
        thread.join(20)
    assert len(answered) > 20


def rows(url: str) -> list[str]:
    """The ids of the replicas that have not stopped, on either database."""
    return [row["id"] for row in json.loads(flask(url, "replicas", "list", "--json").output)]


def others(server: Gunicorn, before: set[int]) -> bool:
    """Whether its workers are not those of before."""
    return {worker.pid for worker in server.workers()} != before


def flask(url: str, *arguments: str, **variables: str) -> Result:
    """A command, as `flask --app app` runs it."""
    app = create_app(settings.read({"DATABASE_URL": url, **variables}))
    result = FlaskCliRunner(app).invoke(args=list(arguments))
    app.extensions["readygate"].engine.dispose()
    return result


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key, with the public set beside it."""
    folder = tmp_path_factory.mktemp("keys")
    result = flask("sqlite:////nowhere/none.db", "license", "keygen", "--out", str(folder / "key.pem"))
    assert result.exit_code == 0, result.output
    return folder / "key.pem"


def public(key: Path) -> str:
    return str(key.with_suffix(".public.json"))


def add_license(url: str, key: Path, *features: str) -> int:
    """Issue a license with `features` and store it with the command; its id."""
    chosen = [word for feature in features for word in ("--feature", feature)]
    text = flask(url, "license", "issue", "--key", str(key), "--account-id", "acme", *chosen).output
    file = key.parent / "license.jwt"
    file.write_text(text)
    result = flask(url, "license", "add", str(file), "--json", READYGATE_LICENSE_KEYS=public(key))
    assert result.exit_code == 0, result.output
    return int(json.loads(result.output)[0]["id"])


def test_gunicorn_alone_is_ready_within_three_seconds_on_a_new_sqlite_database(sqlite_url: str) -> None:
    with gunicorn(sqlite_url) as server:
        until(lambda: server.get() == (200, "OK"))
        assert time.monotonic() - server.started < 3
        assert server.get("/healthz") == (200, "OK")


def test_four_workers_are_one_replica_whatever_becomes_of_them(database_url: str) -> None:
    with gunicorn(database_url, "--graceful-timeout", "3", workers=4) as server:
        until(lambda: ready(server))
        until(lambda: len(rows(database_url)) == 1)
        identity = rows(database_url)
        with sampled(server) as answered:
            for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP):
                before = {worker.pid for worker in server.workers()}
                server.send(number)
                until(partial(others, server, before))
            time.sleep(4)
            assert rows(database_url) == identity
        assert set(answered) == {(200, "OK")}
        # A killed worker takes the answer it was giving with it; the replica stays what it was.
        server.workers()[0].kill()
        until(lambda: len(server.workers()) == 4)
        until(lambda: ready(server))
        assert rows(database_url) == identity


def test_recycling_by_max_requests_changes_neither_the_replica_nor_its_readiness(database_url: str) -> None:
    with gunicorn(database_url, "--max-requests", "40", "--max-requests-jitter", "20") as server:
        until(lambda: ready(server) and all_ready(server))
        identity = rows(database_url)
        first = {worker.pid for worker in server.workers()}
        with sampled(server) as answered:
            until(lambda: first.isdisjoint(worker.pid for worker in server.workers()), seconds=40)
        # The request after a worker's last may meet a closed connection; no answer is ever another than OK.
        assert {answer for answer in answered if answer[0]} == {(200, "OK")}
        assert rows(database_url) == identity


def test_a_master_made_by_sigusr2_is_another_replica(database_url: str) -> None:
    with gunicorn(database_url) as server:
        until(lambda: ready(server))
        first = rows(database_url)
        server.send(signal.SIGHUP)
        time.sleep(1)
        server.send(signal.SIGUSR2)
        until(lambda: len(rows(database_url)) == 2)
        assert set(first) < set(rows(database_url))


def test_two_unlicensed_servers_fail_together_and_recover_when_one_stops(database_url: str) -> None:
    # Long enough for a second server that starts slowly to be seen in it.
    grace = 3 * GRACE
    variables: dict[str, Any] = {"READYGATE_REPLICA_GRACE_SECONDS": str(grace)}
    with gunicorn(database_url, **variables) as one:
        until(lambda: ready(one))
        with gunicorn(database_url, **variables) as two, sampled(one, two, path="/healthz") as alive:
            until(lambda: ready(two))
            joined = time.monotonic()
            with sampled(one, two) as in_grace:
                # It joined after its start, and nobody ends a 200 before four fifths of what is left of the grace.
                while time.monotonic() < two.started + 0.75 * grace:
                    time.sleep(0.01)
            assert set(in_grace) == {(200, "OK")}
            until(lambda: answers(one, "entitlement error") and answers(two, "entitlement error"))
            assert time.monotonic() - joined < grace + PROMISE
            gone = two.stop()
            until(lambda: ready(one))
            assert time.monotonic() - gone < PROMISE
        assert (503, "entitlement error") not in alive
        assert {answer for answer in alive if answer[0]} == {(200, "OK")}


def test_a_server_killed_with_its_workers_is_counted_until_it_is_stale(database_url: str) -> None:
    with gunicorn(database_url) as one, gunicorn(database_url) as two:
        until(lambda: answers(one, "entitlement error") and answers(two, "entitlement error"))
        two.kill_all()
        killed = time.monotonic()
        until(lambda: ready(one))
        assert time.monotonic() - killed < STALE + PROMISE


def test_workers_without_their_master_answer_heartbeat_lost(database_url: str) -> None:
    arguments = ("--worker-class", "sync", "--threads", "1", "--timeout", "30")
    with gunicorn(database_url, *arguments, workers=1) as server:
        until(lambda: ready(server))
        assert "Using worker: sync\n" in server.lines
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(5)
        # A sync worker lives on until its accept loop wakes, and looks for its master after the answer that woke it.
        assert server.get() == (503, "heartbeat lost")
        seen = [server.get() for _ in range(3)]
        assert {answer for answer in seen if answer[0]} <= {(503, "heartbeat lost")}


def test_a_license_lets_both_serve_and_its_removal_takes_both_out(database_url: str, keys: Path) -> None:
    variables: dict[str, Any] = {"READYGATE_LICENSE_KEYS": public(keys)}
    with gunicorn(database_url, **variables) as one, gunicorn(database_url, **variables) as two:
        until(lambda: answers(one, "entitlement error") and answers(two, "entitlement error"))
        stored = add_license(database_url, keys, "high_availability")
        assert until(lambda: ready(one) and ready(two)) < PROMISE
        result = flask(database_url, "license", "remove", str(stored))
        assert result.exit_code == 0, result.output
        assert until(lambda: answers(one, "entitlement error") and answers(two, "entitlement error")) < PROMISE


def test_a_replica_limit_keeps_the_longest_serving(database_url: str, keys: Path) -> None:
    variables: dict[str, Any] = {"READYGATE_LICENSE_KEYS": public(keys)}
    with contextlib.ExitStack() as stack:
        servers = []
        for _ in range(3):
            servers.append(stack.enter_context(gunicorn(database_url, **variables)))
            until(lambda: servers[-1].get() == (200, "OK"))
            if len(servers) == 1:
                add_license(database_url, keys, "high_availability", "replica_limit=2")
        with sampled(*servers[:2]) as kept:
            until(lambda: answers(servers[2], "entitlement error"))
            time.sleep(2 * HEARTBEAT)
            assert answers(servers[2], "entitlement error")
        assert set(kept) == {(200, "OK")}
        gone = servers[0].stop()
        until(lambda: ready(servers[2]))
        assert time.monotonic() - gone < PROMISE


def test_an_unreadable_license_in_the_table_takes_nobody_out(postgres_url: str) -> None:
    with gunicorn(postgres_url) as server:
        until(lambda: ready(server))
        with sampled(server) as answered:
            pg.execute(
                postgres_url,
                "INSERT INTO readygate_licenses (uuid, jwt, uploaded_at)"
                " VALUES ('8e0f4b1c-2222-4333-8444-555566667777', 'not.a.license', 1)",
            )
            until(lambda: "invalid_license begins" in server.lines)
            time.sleep(HEARTBEAT)
        assert set(answered) == {(200, "OK")}


def test_a_new_master_never_takes_an_identity_from_outside(postgres_url: str) -> None:
    given = "11111111-2222-4333-8444-555555555555"
    with gunicorn(postgres_url, READYGATE_REPLICA_ID=given) as server:
        until(lambda: ready(server))
        assert given not in rows(postgres_url)


def test_ten_servers_starting_at_once_on_an_empty_database_all_come_up(postgres_url: str) -> None:
    with contextlib.ExitStack() as stack:
        long: dict[str, Any] = {"READYGATE_REPLICA_GRACE_SECONDS": "600", "READYGATE_DATABASE_TIMEOUT_SECONDS": "10"}
        servers = [stack.enter_context(gunicorn(postgres_url, workers=1, **long)) for _ in range(10)]
        for server in servers:
            until(partial(ready, server), seconds=60)
        assert len(rows(postgres_url)) == 10


def test_sigterm_sigint_and_sigquit_all_leave(postgres_url: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        with gunicorn(postgres_url, workers=1) as server:
            until(partial(ready, server))
            server.stop(number)
            assert rows(postgres_url) == []


def test_a_wrong_variable_stops_the_start_with_one_line_that_names_it(sqlite_url: str) -> None:
    with gunicorn(sqlite_url, READYGATE_HEARTBEAT_SECONDS="soon") as server:
        assert server.process.wait(20) == 1
        assert [line for line in server.lines.splitlines() if "READYGATE_HEARTBEAT_SECONDS" in line] != []
        assert "Traceback" not in server.lines


def test_gevent_on_sqlite_is_refused_at_start(sqlite_url: str) -> None:
    with gunicorn(sqlite_url, "--worker-class", "gevent") as server:
        assert server.process.wait(20) == 1
        assert "gevent needs PostgreSQL" in server.lines
        assert "Traceback" not in server.lines


def test_a_key_file_that_turns_bad_survives_sighup(postgres_url: str, keys: Path, tmp_path: Path) -> None:
    copy = tmp_path / "keys.json"
    copy.write_text(Path(public(keys)).read_text())
    variables: dict[str, Any] = {"READYGATE_LICENSE_KEYS": str(copy)}
    with gunicorn(postgres_url, **variables) as one, gunicorn(postgres_url, **variables) as two:
        until(lambda: ready(one) and ready(two))
        add_license(postgres_url, keys, "high_availability")
        time.sleep(GRACE + PROMISE)
        copy.write_text("{")
        with sampled(one, two) as answered:
            one.send(signal.SIGHUP)
            time.sleep(3)
        assert set(answered) == {(200, "OK")}
        assert one.process.poll() is None


def test_head_is_answered_without_a_body(sqlite_url: str) -> None:
    with gunicorn(sqlite_url) as server:
        until(lambda: ready(server))
        assert get(server.port, "/readyz", method="HEAD") == (200, "")
        assert get(server.port, "/healthz", method="HEAD") == (200, "")


@pytest.mark.parametrize("preload", [False, True])
def test_a_database_file_that_is_gone_when_a_worker_boots_is_the_databases_failure(
    postgres_url: str, tmp_path: Path, preload: bool
) -> None:
    file = tmp_path / "url"
    file.write_text(postgres_url)
    arguments = ["--preload"] if preload else []
    with gunicorn("", *arguments, DATABASE_URL_FILE=str(file)) as server:
        until(lambda: ready(server))
        file.rename(tmp_path / "away")
        # A connection that stands asks for no password; a new worker's does.
        before = {worker.pid for worker in server.workers()}
        server.send(signal.SIGHUP)
        until(lambda: before.isdisjoint(worker.pid for worker in server.workers()))
        until(lambda: answers(server, "database unreachable"))
        assert server.get("/healthz") == (200, "OK")
        assert server.lines.count(": other (DATABASE_URL_FILE)") == 2
        (tmp_path / "away").rename(file)
        until(lambda: ready(server), seconds=3)
        assert server.lines.count("answers again") == 2
        assert "Traceback" not in server.lines


def test_replicas_with_different_policies_say_so_once(postgres_url: str) -> None:
    with gunicorn(postgres_url, workers=1) as one:
        until(lambda: ready(one))
        with gunicorn(postgres_url, workers=1, READYGATE_EXCLUDE="surplus") as two:
            until(lambda: "different policies (all, surplus)" in one.lines and "different policies" in two.lines)
            assert "different policies: all, surplus" in flask(postgres_url, "status").output
            two.stop()
        until(lambda: "one policy again: all" in one.lines)
        assert one.lines.count("different policies") == 1
