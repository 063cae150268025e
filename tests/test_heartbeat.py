"""The thread's steps, on a clock moved by hand."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable

import pytest
from clock import Clock

from replicas import Heartbeat


class World:
    """A database that answers or not, and what was asked of it when."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.answers: bool | Exception = True
        self.outcome: float | Exception | None = None
        #: How long a sync takes.
        self.takes = 0.0
        self.pings: list[float] = []
        self.syncs: list[float] = []
        self.during: Callable[[], None] = lambda: None

    def ping(self) -> bool:
        self.pings.append(self.clock.now)
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers

    def sync(self) -> float | None:
        self.syncs.append(self.clock.now)
        self.during()
        self.clock.now += self.takes
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def run(self, heartbeat: Heartbeat, seconds: float) -> None:
        """Step as the thread would, for `seconds`."""
        ends = self.clock.now + seconds
        while self.clock.now < ends:
            self.clock.now += heartbeat.step()


@pytest.fixture
def world() -> World:
    return World()


def a_heartbeat(world: World, **options: object) -> Heartbeat:
    defaults: dict[str, object] = {"heartbeat_seconds": 5, "describe": str, "clock": world.clock, "early": lambda: 0.0}
    return Heartbeat(ping=world.ping, sync=world.sync, **{**defaults, **options})  # type: ignore[arg-type]


def gaps(instants: list[float]) -> set[float]:
    return {round(after - before, 3) for before, after in itertools.pairwise(instants)}


def test_it_pings_once_a_second_and_syncs_once_a_heartbeat(world: World) -> None:
    world.run(a_heartbeat(world), 60)
    assert gaps(world.pings) == {1}
    assert gaps(world.syncs) == {5}


@pytest.mark.parametrize(("early", "gap"), [(0.0, 5), (0.5, 4.75), (1.0, 4.5)])
def test_a_sync_comes_at_most_a_tenth_early_and_never_late(world: World, early: float, gap: float) -> None:
    world.run(a_heartbeat(world, early=lambda: early), 30)
    assert gaps(world.syncs) == {gap}


def test_no_sync_is_tried_while_pings_fail_and_one_comes_with_the_first_answer(world: World) -> None:
    world.answers = False
    heartbeat = a_heartbeat(world)
    world.run(heartbeat, 10)
    assert (gaps(world.pings), world.syncs) == ({1}, [])
    world.answers = True
    world.run(heartbeat, 1)
    assert world.syncs == [world.pings[-1]]


def test_a_failed_sync_is_tried_again_with_the_next_ping(world: World) -> None:
    world.outcome = OSError("no")
    world.run(a_heartbeat(world), 10)
    assert gaps(world.syncs) == gaps(world.pings) == {1}


def test_a_short_heartbeat_is_kept_while_syncs_fail(world: World) -> None:
    world.outcome = OSError("no")
    world.run(a_heartbeat(world, heartbeat_seconds=0.2), 3)
    assert gaps(world.syncs) == {0.2}


def test_syncs_that_fail_are_logged_once_when_it_begins_and_once_when_it_ends(world: World, logged: list[str]) -> None:
    heartbeat = a_heartbeat(world)
    world.run(heartbeat, 5)
    assert logged == []
    world.outcome = OSError("read only")
    world.run(heartbeat, 20)
    assert logged == ["heartbeat failed: read only"]
    assert heartbeat.failures > 10
    world.outcome = None
    world.run(heartbeat, 20)
    assert logged == ["heartbeat failed: read only", "heartbeat succeeds again"]


def test_another_failure_is_another_line(world: World, logged: list[str]) -> None:
    heartbeat = a_heartbeat(world)
    for text in ("one", "two"):
        world.outcome = OSError(text)
        world.run(heartbeat, 3)
    assert logged == ["heartbeat failed: one", "heartbeat failed: two"]


def test_a_ping_that_raises_ends_nothing(world: World, logged: list[str]) -> None:
    world.answers = RuntimeError("broken")
    heartbeat = a_heartbeat(world)
    world.run(heartbeat, 5)
    assert (gaps(world.pings), world.syncs) == ({1}, [])
    assert logged == ["heartbeat failed: broken"]
    world.answers = True
    world.run(heartbeat, 5)
    assert world.syncs != []
    assert logged[1:] == ["heartbeat succeeds again"]


def test_the_next_sync_comes_at_the_instant_of_the_next_change(world: World) -> None:
    world.outcome = 1.6
    world.run(a_heartbeat(world), 10)
    assert gaps(world.syncs) == {1.6}


def test_a_change_later_than_the_heartbeat_is_not_waited_for(world: World) -> None:
    world.outcome = 100.0
    world.run(a_heartbeat(world), 20)
    assert gaps(world.syncs) == {5}


@pytest.mark.parametrize("change", [0.0, -3.0])
def test_a_change_that_is_due_never_makes_it_spin(world: World, change: float) -> None:
    world.outcome = change
    world.run(a_heartbeat(world), 1)
    assert len(world.syncs) <= 21


def test_a_slow_sync_delays_no_ping_by_more_than_itself(world: World) -> None:
    world.takes = 2.5
    world.run(a_heartbeat(world), 30)
    assert max(gaps(world.pings)) < 2.6


def test_soon_syncs_at_the_next_step(world: World) -> None:
    heartbeat = a_heartbeat(world)
    world.run(heartbeat, 0.5)
    heartbeat.soon()
    heartbeat.step()
    heartbeat.step()
    assert len(world.syncs) == 2


def test_soon_during_a_sync_asks_for_another(world: World) -> None:
    heartbeat = a_heartbeat(world)
    world.during = heartbeat.soon
    heartbeat.step()
    world.during = lambda: None
    heartbeat.step()
    heartbeat.step()
    assert len(world.syncs) == 2


# The thread


def test_who_starts_it_waits_for_its_first_outcome(world: World) -> None:
    heartbeat = a_heartbeat(world, clock=time.monotonic)
    heartbeat.start()
    assert len(world.syncs) == 1
    heartbeat.stop()


def test_a_hanging_first_outcome_is_waited_for_half_a_second_at_most(world: World) -> None:
    free = threading.Event()
    world.during = lambda: (free.wait(10), None)[1]
    heartbeat = a_heartbeat(world, clock=time.monotonic)
    started = time.monotonic()
    heartbeat.start()
    assert 0.4 < time.monotonic() - started < 1
    started = time.monotonic()
    heartbeat.start()
    assert time.monotonic() - started < 0.1
    free.set()
    heartbeat.stop()


def test_stopping_never_waits_for_an_interval(world: World) -> None:
    heartbeat = a_heartbeat(world, heartbeat_seconds=3600, clock=time.monotonic)
    heartbeat.start()
    started = time.monotonic()
    heartbeat.stop()
    assert time.monotonic() - started < 0.5
    assert heartbeat._thread is not None
    assert not heartbeat._thread.is_alive()


def test_it_starts_once_whoever_asks(world: World) -> None:
    def running() -> int:
        return sum(thread.name == "readygate-heartbeat" for thread in threading.enumerate())

    heartbeat, before = a_heartbeat(world, clock=time.monotonic), running()
    together = [threading.Thread(target=heartbeat.start) for _ in range(10)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join(5)
    assert running() == before + 1
    heartbeat.stop()


def test_an_orphan_stops_beating_and_blames_the_database_for_nothing(world: World) -> None:
    orphaned = [False]
    heartbeat = a_heartbeat(world, orphaned=lambda: orphaned[0])
    heartbeat.step()
    orphaned[0] = True
    syncs, pings = len(world.syncs), len(world.pings)
    heartbeat.soon()
    for _ in range(20):
        world.clock.now += max(0.1, heartbeat.step())
    assert len(world.syncs) == syncs
    assert pings < len(world.pings) <= pings + 20


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_starts_its_own(world: World) -> None:
    heartbeat = a_heartbeat(world, clock=time.monotonic)
    heartbeat.start()
    child = os.fork()
    if child == 0:
        heartbeat.start()
        alive = heartbeat._thread is not None and heartbeat._thread.is_alive()
        os._exit(0 if alive and len(world.syncs) == 2 else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    heartbeat.stop()
