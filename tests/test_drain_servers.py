"""Handover by appointment, on real servers: never two at once, never long nobody, and every way to ask for it."""

from __future__ import annotations

import itertools
import json
import signal
import time
import uuid
from collections.abc import Iterator
from functools import partial

import postgres as pg
import pytest
from servers import HEARTBEAT, answers, gunicorn, ready, until
from test_servers import flask
from test_surplus_servers import Line, excluded
from witness import gap

pytestmark = pytest.mark.server

STALE = 3 * HEARTBEAT
#: Spec, section 4, "drain": a second and a fifth of the interval.
GAP = 1 + STALE / 5


@pytest.fixture
def line(postgres_url: str) -> Iterator[Line]:
    """Three servers, the first of which serves."""
    with Line(postgres_url) as line:
        for name in "abc":
            line.join(name)
        line.settle()
        yield line


def drain(url: str, line: Line, name: str, *options: str) -> dict[str, str]:
    result = flask(url, "replicas", "drain", line._id(name), "--json", *options)
    assert result.exit_code == 0, result.output
    found: dict[str, str] = json.loads(result.output)[0]
    return found


def test_a_drained_replica_hands_over_by_appointment(line: Line, postgres_url: str) -> None:
    for before, after in (("a", "b"), ("b", "c")):
        asked = time.monotonic()
        drain(postgres_url, line, before)
        # It serves on until then.
        assert line.servers[before].get() == (200, "OK")
        until(partial(answers, line.servers[before], "draining"))
        assert time.monotonic() - asked > 0.8 * STALE - HEARTBEAT
        line.takes_over(after, asked + STALE, within=GAP)
    assert line.servers["a"].get("/healthz") == (200, "OK")
    line.check(("a", "b"), ("b", "c"))
    for before, after in (("a", "b"), ("b", "c")):
        assert gap(line.witnesses[before], line.witnesses[after])[0] < GAP
    # It goes once, and does not flicker about its appointment: a load balancer that counts two noes would not go along.
    said = [one.status == 200 for one in line.witnesses["a"].samples() if one.status]
    assert [one for one, _ in itertools.groupby(said)] == [True, False]


def test_a_drain_that_waits_returns_once_the_place_is_given_up(line: Line, postgres_url: str) -> None:
    started = time.monotonic()
    drain(postgres_url, line, "a", "--wait")
    waited = time.monotonic() - started
    assert STALE <= waited < STALE + 2
    assert answers(line.servers["a"], "draining")
    until(lambda: ready(line.servers["b"]), seconds=GAP)
    assert drain(postgres_url, line, "a", "--wait")["state"] == "draining"
    # Once it stops, the others need not hear of it again.
    assert line.servers["a"].stop(signal.SIGTERM)
    line.check(("a", "b"))


def test_a_drain_at_once_gives_the_place_up_within_a_heartbeat(line: Line, postgres_url: str) -> None:
    asked = time.monotonic()
    drain(postgres_url, line, "a", "--now")
    until(lambda: answers(line.servers["a"], "draining") and ready(line.servers["b"]))
    assert time.monotonic() - asked < HEARTBEAT + 1
    assert flask(postgres_url, "replicas", "undrain", line._id("a")).exit_code == 1


def test_a_drain_that_is_taken_back_changes_nothing(line: Line, postgres_url: str) -> None:
    first = drain(postgres_url, line, "a")
    assert drain(postgres_url, line, "a")["draining_at"] == first["draining_at"]
    result = flask(postgres_url, "replicas", "undrain", line._id("a"), "--json")
    assert result.exit_code == 0, result.output
    until(lambda: ready(line.servers["a"]), seconds=HEARTBEAT + 1)
    time.sleep(STALE + 2 * HEARTBEAT)
    assert line.serving() == ["a"]
    line.check()


def test_a_surplus_replica_that_is_drained_stays_out_when_its_turn_comes(line: Line, postgres_url: str) -> None:
    drain(postgres_url, line, "b", "--now")
    until(lambda: answers(line.servers["b"], "draining"))
    gone = line.servers["a"].stop()
    line.takes_over("c", gone, within=HEARTBEAT + 1)
    assert answers(line.servers["b"], "draining")
    line.check(("a", "c"))


def test_sigterm_without_a_drain_hands_over_as_before(line: Line) -> None:
    gone = line.servers["a"].stop(signal.SIGTERM)
    line.takes_over("b", gone, within=HEARTBEAT + 1)
    assert excluded(line.servers["c"])
    line.check(("a", "b"))


def test_without_an_id_the_replica_of_this_host_is_meant(postgres_url: str) -> None:
    assert (
        "no replica runs on this host"
        in flask(postgres_url, "db", "upgrade").output + flask(postgres_url, "replicas", "drain").output
    )
    with gunicorn(postgres_url) as one:
        until(lambda: ready(one))
        result = flask(postgres_url, "replicas", "drain", "--now")
        assert result.exit_code == 0, result.output
        until(lambda: answers(one, "draining"))
        with gunicorn(postgres_url) as two:
            until(lambda: ready(two))
            result = flask(postgres_url, "replicas", "drain")
            assert result.exit_code == 1
            assert "2 replicas run on this host" in result.output


@pytest.mark.parametrize("command", ["drain", "undrain"])
def test_an_unknown_or_stopped_replica_is_one_line_and_status_1(postgres_url: str, command: str) -> None:
    assert flask(postgres_url, "db", "upgrade").exit_code == 0
    with gunicorn(postgres_url) as server:
        until(lambda: ready(server))
        stopped = json.loads(flask(postgres_url, "replicas", "list", "--json").output)[0]["id"]
        server.stop()
    for unknown in (stopped, str(uuid.uuid4()), "x'; --"):
        result = flask(postgres_url, "replicas", command, unknown)
        assert result.exit_code == 1
        assert result.output.count("\n") == 1
        assert "no running replica has this id" in result.output


def test_a_drain_with_the_database_down_is_one_line_within_the_timeout() -> None:
    url = f"postgresql://postgres@127.0.0.1:{pg.free_port()}/nowhere"
    for command in ("drain", "undrain"):
        result = flask(url, "replicas", command, str(uuid.uuid4()), READYGATE_DATABASE_TIMEOUT_SECONDS="1")
        assert result.exit_code == 1
        assert result.output.count("\n") == 1
        assert "refused" in result.output
