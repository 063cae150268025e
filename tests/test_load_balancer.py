"""What users behind a real load balancer see of a violation: HAProxy and nginx with the configurations of deploy/."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from balancer import HAPROXY_SECONDS, Answered, Clients, Scene, haproxy, nginx, on_liveness, on_one, share
from servers import GRACE, HEARTBEAT, answers, get, until

pytestmark = [pytest.mark.server, pytest.mark.system]

STALE = 3 * HEARTBEAT
#: Spec, section 11, and what the load balancer needs to notice; a check's own answer and the sampling on top.
NOTICED = HEARTBEAT + 1 + HAPROXY_SECONDS + 0.3
VIOLATION_SECONDS = 4.0
#: For how long nginx sets a server aside.
NGINX_SECONDS = 10.0
Need = Callable[[str], str]


@contextlib.contextmanager
def in_violation(scene: Scene) -> Iterator[Scene]:
    """The scene, once the second server is started, its grace over and the load balancer's time to notice too."""
    with scene:
        noticed = scene.start_second() + GRACE + NOTICED
        time.sleep(max(0.0, noticed - time.monotonic()))
        yield scene


def what_failed(requests: list[Answered]) -> set[tuple[int, str]]:
    """Status and first line of the answers that were no workspace."""
    return {(one.status, one.body.split("\n", 1)[0]) for one in requests if one.failed}


def test_with_liveness_as_the_check_users_lose_every_second_request(postgres_url: str, need: Need) -> None:
    with in_violation(Scene(postgres_url, partial(haproxy, need("haproxy"), change=on_liveness))) as scene:
        began = time.monotonic()
        assert answers(scene.one, "entitlement error")
        time.sleep(VIOLATION_SECONDS)
        assert 0.4 < share(scene.clients.between(began)) < 0.6
        assert what_failed(scene.clients.between(began)) == {(502, "the agent is not connected here")}


def test_policy_all_turns_every_request_away_until_one_server_stops(postgres_url: str, need: Need) -> None:
    with in_violation(Scene(postgres_url, partial(haproxy, need("haproxy")), READYGATE_EXCLUDE="all")) as scene:
        began = time.monotonic()
        time.sleep(VIOLATION_SECONDS)
        gone = scene.two.stop()
        time.sleep(NOTICED + 2)
        # The load balancer's own answer: no server is asked, so nothing is done by halves.
        assert {one.status for one in scene.clients.between(began, gone)} == {503}
        assert what_failed(scene.clients.between(gone + NOTICED)) == set()
        assert len(scene.clients.between(gone + NOTICED)) > 40


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_policy_surplus_loses_nothing_whether_the_surplus_stops_or_crashes(
    postgres_url: str, need: Need, end: str
) -> None:
    with in_violation(Scene(postgres_url, partial(haproxy, need("haproxy")), READYGATE_EXCLUDE="surplus")) as scene:
        began = time.monotonic()
        time.sleep(VIOLATION_SECONDS)
        assert answers(scene.two, "entitlement error")
        if end == "stop":
            scene.two.stop()
        else:
            scene.two.kill_all()
        time.sleep(STALE + NOTICED)
        assert what_failed(scene.clients.between(began)) == set()
        assert len(scene.clients.between(began)) > 40 * VIOLATION_SECONDS
        assert scene.balancer.changes() == ["two DOWN", "two UP", "two DOWN"]


@pytest.mark.parametrize("end", ["stop", "crash"])
def test_policy_surplus_hands_over_to_the_next_in_line_and_fails_only_meanwhile(
    postgres_url: str, need: Need, end: str
) -> None:
    with in_violation(Scene(postgres_url, partial(haproxy, need("haproxy")), READYGATE_EXCLUDE="surplus")) as scene:
        began = time.monotonic()
        time.sleep(VIOLATION_SECONDS)
        ended = time.monotonic()
        if end == "stop":
            # The agent's connection has no end of its own, so the master waits for it as long as it was told to.
            taken_over = scene.one.stop(signal.SIGTERM) + NOTICED
        else:
            scene.one.kill_all()
            taken_over = ended + STALE + NOTICED
        # The agent comes again within a tenth of a second.
        taken_over += 0.5
        time.sleep(max(0.0, taken_over - time.monotonic()) + 2)
        in_flight = [one for one in scene.clients.between(began, ended) if one.received > ended]
        assert what_failed([one for one in scene.clients.between(began, ended) if one not in in_flight]) == set()
        assert what_failed(scene.clients.between(taken_over)) == set()
        assert len(scene.clients.between(taken_over)) > 40
        assert scene.two.get() == (200, "OK")


def test_all_requests_on_one_server_spares_users_the_newcomers_grace_too(postgres_url: str, need: Need) -> None:
    scene = Scene(postgres_url, partial(haproxy, need("haproxy"), change=on_one), READYGATE_EXCLUDE="surplus")
    with scene:
        begins = time.monotonic()
        scene.start_second()
        until(lambda: answers(scene.two, "entitlement error"))
        time.sleep(VIOLATION_SECONDS)
        scene.two.kill_all()
        time.sleep(STALE + NOTICED)
        assert what_failed(scene.clients.between(begins)) == set()
        # And it moves when it must.
        scene.start_second()
        until(lambda: scene.balancer.changes()[-1] == "two UP")
        scene.one.kill_all()
        until(lambda: get(scene.balancer.port, "/workspace") == (200, "workspace"))


def test_nginx_carries_a_refusal_to_the_next_server_unless_it_is_of_a_post(postgres_url: str, need: Need) -> None:
    surplus: dict[str, Any] = {"READYGATE_EXCLUDE": "surplus", "REFUSE": "1"}
    with in_violation(Scene(postgres_url, partial(nginx, need("nginx")), per_second=10, **surplus)) as scene:
        began = time.monotonic()
        # In another beat than the GETs, or the two would share the servers between them.
        posts = Clients(scene.balancer.port, per_second=7, method="POST")
        time.sleep(NGINX_SECONDS + 2)
        posts.close()
        assert what_failed(scene.clients.between(began)) == set()
        assert what_failed(posts.between(began)) <= {(503, "entitlement error")}
        print(f"{share(posts.between(began)):.1%} of POSTs refused")
        assert share(posts.between(began)) < 0.1
    assert len(scene.clients.between(began)) > 10 * NGINX_SECONDS


def test_nginx_hands_a_refused_post_to_the_user_as_it_stands(postgres_url: str, need: Need) -> None:
    surplus: dict[str, Any] = {"READYGATE_EXCLUDE": "surplus", "REFUSE": "1"}
    with in_violation(Scene(postgres_url, partial(nginx, need("nginx")), method="POST", **surplus)) as scene:
        # It found the second dead before its start, and tries it again only now.
        until(lambda: what_failed(scene.clients.between(0)) != set(), seconds=NGINX_SECONDS + 2)
        began = time.monotonic()
        time.sleep(3)
        assert 0.4 < share(scene.clients.between(began)) < 0.6
        assert what_failed(scene.clients.between(began)) == {(503, "entitlement error")}


def test_nginx_answers_502_by_itself_where_every_server_refuses(postgres_url: str, need: Need) -> None:
    both: dict[str, Any] = {"READYGATE_EXCLUDE": "all", "REFUSE": "1"}
    with in_violation(Scene(postgres_url, partial(nginx, need("nginx")), **both)) as scene:
        began = time.monotonic()
        time.sleep(3)
        assert {one.status for one in scene.clients.between(began)} == {502}
