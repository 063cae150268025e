"""How long a worker may believe what it read, on a clock moved by hand."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

import pytest
from clock import Clock

from replicas import HASTE, Facts, Lease, Registry, Replica, elapsed

#: Microseconds: the database's clock when the facts were read.
NOW = 1_800_000_000_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


def facts(clock: Clock, *, draining_in: float | None = None, took: float = 0.0) -> Facts:
    """What a sync read that began `took` seconds ago."""
    me = Replica(
        id="8e0f4b1c-2222-4333-8444-555566667777",
        hostname="web",
        version="1",
        created_at=NOW,
        started_at=NOW,
        updated_at=NOW,
        stopped_at=None,
        draining_at=None if draining_in is None else NOW + round(draining_in * 1_000_000),
        drained_at=None,
        stale_after=15_000_000,
        grace=0,
        exclude="all",
        database_latency=None,
        stale=False,
    )
    return Facts(now=NOW, touched_local=clock.now - took, read_local=clock.now, me=me, limit=1, members=(me,))


def a_lease(clock: Clock, *, replaceable: bool = True, stale_after_seconds: float = 15, parent: int = 1) -> Lease:
    return Lease(
        stale_after_seconds=stale_after_seconds, replaceable=lambda: replaceable, parent=lambda: parent, clock=clock
    )


def test_a_worker_without_facts_is_starting(clock: Clock) -> None:
    lease = a_lease(clock)
    assert lease.reason() == "starting"
    assert not lease.lost()
    clock.now += 3600
    assert lease.reason() == "starting"


def test_fresh_facts_let_it_serve(clock: Clock) -> None:
    lease = a_lease(clock)
    lease.renew(facts(clock))
    assert lease.reason() is None


@pytest.mark.parametrize(("stale_after", "lasts"), [(15, 10), (30, 20), (0.15, 0.1)])
def test_facts_are_believed_for_two_thirds_of_stale_after(clock: Clock, stale_after: float, lasts: float) -> None:
    lease = a_lease(clock, stale_after_seconds=stale_after)
    lease.renew(facts(clock))
    clock.now += lasts * 0.999
    assert lease.reason() is None
    clock.now += lasts * 0.002
    assert lease.lost()
    assert lease.reason() == "heartbeat lost"


def test_the_lease_ends_before_a_peer_may_bury_it_though_both_clocks_err_by_a_tenth(clock: Clock) -> None:
    lease = a_lease(clock)
    lease.renew(facts(clock))
    # Here 10 % slow, there 10 % fast: when 15 s have passed there, so many have passed here.
    clock.now += 15 / 1.1 * 0.9
    assert lease.reason() == "heartbeat lost"


def test_the_lease_counts_from_before_the_touch_was_sent(clock: Clock) -> None:
    lease = a_lease(clock)
    lease.renew(facts(clock, took=6))
    clock.now += 3.9
    assert lease.reason() is None
    clock.now += 0.2
    assert lease.reason() == "heartbeat lost"


def test_a_new_sync_ends_the_loss(clock: Clock) -> None:
    lease = a_lease(clock)
    lease.renew(facts(clock))
    clock.now += 100
    assert lease.reason() == "heartbeat lost"
    lease.renew(facts(clock))
    assert lease.reason() is None


def test_a_replica_that_nobody_could_replace_serves_on(clock: Clock) -> None:
    lease = a_lease(clock, replaceable=False)
    lease.renew(facts(clock))
    clock.now += 3600
    assert lease.lost()
    assert lease.reason() is None


def test_a_drained_replica_is_out_at_its_instant_and_never_later(clock: Clock) -> None:
    lease = a_lease(clock, replaceable=False)
    lease.renew(facts(clock, draining_in=10))
    assert lease.reason() is None
    clock.now += 10 / HASTE - 0.01
    assert lease.reason() is None
    clock.now += 0.02
    assert lease.reason() == "draining"
    # Also where the local clock is 10 % slow and the database's 10 % fast.
    assert 10 / HASTE <= 10 / 1.1 * 0.9


def test_a_drain_of_the_past_counts_at_once(clock: Clock) -> None:
    lease = a_lease(clock)
    lease.renew(facts(clock, draining_in=0))
    assert lease.reason() == "draining"


def test_an_undrained_replica_serves_again_with_its_next_sync(clock: Clock) -> None:
    lease = a_lease(clock)
    lease.renew(facts(clock, draining_in=0))
    lease.renew(facts(clock))
    assert lease.reason() is None


def test_a_lost_heartbeat_comes_before_a_drain(clock: Clock) -> None:
    lease = a_lease(clock)
    lease.renew(facts(clock, draining_in=0))
    clock.now += 10
    assert lease.reason() == "heartbeat lost"


@pytest.mark.parametrize("replaceable", [True, False])
def test_an_orphan_is_out_at_once(clock: Clock, replaceable: bool) -> None:
    parents = [42]
    lease = Lease(stale_after_seconds=15, replaceable=lambda: replaceable, parent=lambda: parents[0], clock=clock)
    lease.renew(facts(clock))
    assert not lease.orphaned()
    lease.follow_parent(42)
    assert lease.reason() is None
    parents[0] = 1
    assert lease.orphaned()
    assert lease.reason() == "heartbeat lost"


def test_an_orphan_before_its_first_sync_does_not_promise_to_start(clock: Clock) -> None:
    parents = [42]
    lease = Lease(stale_after_seconds=15, parent=lambda: parents[0], clock=clock)
    lease.follow_parent(42)
    assert lease.reason() == "starting"
    parents[0] = 1
    assert lease.reason() == "heartbeat lost"


def test_a_process_without_a_master_is_no_orphan(clock: Clock) -> None:
    lease = a_lease(clock, parent=1)
    lease.renew(facts(clock))
    assert not lease.orphaned()
    assert lease.reason() is None


@pytest.mark.parametrize(("left", "returns"), [(0.5, False), (5.0, True)])
def test_a_place_that_was_given_up_a_moment_early_is_not_taken_back_for_the_rest(
    clock: Clock, left: float, returns: bool
) -> None:
    lease = a_lease(clock, replaceable=False)
    lease.renew(facts(clock, draining_in=40))
    clock.now += 40 - left
    assert lease.reason() == "draining"
    read = facts(clock)
    at = NOW + 40_000_000
    read = replace(read, now=at - round(left * 1_000_000), me=replace(read.me, draining_at=at))
    lease.renew(read)
    assert lease.reason() == (None if returns else "draining")
    # It was taken back in time.
    lease.renew(replace(read, me=replace(read.me, draining_at=None)))
    assert lease.reason() is None


def test_the_clock_of_a_lease_counts_what_the_system_sleeps_through() -> None:
    assert abs(elapsed() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1
    assert Lease(stale_after_seconds=15)._clock is elapsed
    registry = Registry(replica_id=str(uuid.uuid4()), hostname="web", version="1")
    assert registry._monotonic is elapsed
