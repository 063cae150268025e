"""Replicas in the table: on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy.engine import Connection

import database
import schema
from replicas import DrainEnded, Facts, Registry, RegistryError, ReplicaNotFound


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    engine = database.background_engine(lambda: database_url, timeout_seconds=5)
    schema.upgrade(engine)
    with engine.connect() as connection:
        yield connection


def a_registry(**options: object) -> Registry:
    defaults: dict[str, object] = {
        "replica_id": str(uuid.uuid4()),
        "hostname": "web",
        "version": "1",
        "grace_seconds": 0,
    }
    return Registry(**{**defaults, **options})  # type: ignore[arg-type]


def sync(registry: Registry, connection: Connection, limit: int | None = 1) -> Facts:
    return registry.sync(connection, limit=limit)


def move(connection: Connection, registry: Registry, column: str, seconds: float) -> None:
    """Shift an instant of a row, as time, a stepped clock or a person would."""
    shift = f"{column} = {column} + {round(seconds * 1_000_000)}"
    connection.exec_driver_sql(f"UPDATE readygate_replicas SET {shift} WHERE id = '{registry.id}'")


def ids(facts: Facts) -> list[str]:
    return [row.id for row in sorted(facts.members, key=lambda row: (row.created_at, row.id))]


def test_the_first_sync_joins(connection: Connection) -> None:
    registry = a_registry(hostname="it's a \\ host", version="1.2")
    facts = sync(registry, connection)
    assert (facts.me.id, facts.me.hostname, facts.me.version) == (registry.id, "it's a \\ host", "1.2")
    assert facts.me.created_at == facts.me.started_at == facts.me.updated_at <= facts.now


def test_a_touch_is_written_once_per_half_heartbeat(connection: Connection) -> None:
    registry = a_registry()
    first = sync(registry, connection).me.updated_at
    assert sync(registry, connection).me.updated_at == first
    move(connection, registry, "updated_at", -3)
    assert sync(registry, connection).me.updated_at >= first


def test_a_row_that_vanished_joins_with_the_age_of_its_server(connection: Connection) -> None:
    registry, other = a_registry(), a_registry()
    started = sync(registry, connection).me.started_at
    sync(other, connection)
    connection.exec_driver_sql(f"DELETE FROM readygate_replicas WHERE id = '{registry.id}'")
    facts = sync(registry, connection)
    assert facts.me.started_at == started
    assert ids(facts) == [other.id, registry.id]


def test_a_clock_that_steps_back_gives_nobody_a_new_grace(connection: Connection) -> None:
    registry, other = a_registry(grace_seconds=60), a_registry(grace_seconds=60)
    for each in (registry, other):
        sync(each, connection)
        move(connection, each, "started_at", -100)
        sync(each, connection)
    # To the clock after its step, all of this lies ahead.
    for each in (registry, other):
        for column in ("created_at", "started_at", "updated_at"):
            move(connection, each, column, 3600)
    assert ids(sync(registry, connection)) == [registry.id]
    facts = sync(other, connection)
    assert ids(facts) == [registry.id, other.id]
    assert all(row.aged_at <= facts.now for row in facts.members)


def test_a_stale_row_joins_at_the_end_of_the_line(connection: Connection) -> None:
    registry, other = a_registry(), a_registry()
    started = sync(registry, connection).me.started_at
    sync(other, connection)
    move(connection, registry, "updated_at", -16)
    facts = sync(registry, connection)
    assert facts.me.started_at == started
    assert ids(facts) == [other.id, registry.id]


def test_a_row_just_short_of_stale_keeps_its_place(connection: Connection) -> None:
    registry, other = a_registry(), a_registry()
    sync(registry, connection)
    sync(other, connection)
    move(connection, registry, "updated_at", -13)
    assert ids(sync(registry, connection)) == [registry.id, other.id]


def test_a_stopped_row_joins_at_the_end_of_the_line(connection: Connection) -> None:
    registry, other = a_registry(), a_registry()
    sync(registry, connection)
    sync(other, connection)
    registry.leave(connection)
    assert ids(sync(other, connection)) == [other.id]
    assert ids(sync(registry, connection)) == [other.id, registry.id]


def test_a_stale_peer_is_buried_before_it_is_counted_no_more(connection: Connection) -> None:
    registry, dead = a_registry(), a_registry()
    sync(dead, connection)
    sync(registry, connection)
    move(connection, dead, "updated_at", -16)
    assert ids(sync(registry, connection)) == [registry.id]
    stopped = connection.exec_driver_sql(f"SELECT stopped_at FROM readygate_replicas WHERE id = '{dead.id}'").scalar()
    assert stopped is not None


def test_a_touch_of_a_buried_row_fails_and_joins_anew(connection: Connection) -> None:
    registry, dead = a_registry(), a_registry()
    before = sync(dead, connection).me
    sync(registry, connection)
    move(connection, dead, "updated_at", -16)
    sync(registry, connection)
    dead.beat(connection)
    row = connection.exec_driver_sql(f"SELECT stopped_at FROM readygate_replicas WHERE id = '{dead.id}'").scalar()
    assert row is not None
    assert sync(dead, connection).me.created_at > before.created_at


def test_peers_judge_a_row_by_its_own_settings(connection: Connection) -> None:
    slow, quick = a_registry(heartbeat_seconds=20, stale_after_seconds=60), a_registry()
    sync(slow, connection)
    sync(quick, connection)
    move(connection, slow, "updated_at", -50)
    assert ids(sync(quick, connection)) == [slow.id, quick.id]


def test_a_row_dated_more_than_a_heartbeat_ahead_is_stale(connection: Connection) -> None:
    registry, peer = a_registry(), a_registry()
    sync(peer, connection)
    sync(registry, connection)
    move(connection, peer, "updated_at", 3600)
    assert ids(sync(registry, connection)) == [registry.id]


def test_a_row_dated_a_little_ahead_is_due_at_once(connection: Connection) -> None:
    registry = a_registry()
    sync(registry, connection)
    move(connection, registry, "updated_at", 4)
    facts = sync(registry, connection)
    assert facts.me.updated_at <= facts.now


def test_a_sync_reads_one_row_more_than_are_allowed(connection: Connection) -> None:
    registries = [a_registry() for _ in range(6)]
    for registry in registries:
        sync(registry, connection)
    assert ids(sync(registries[0], connection, 2)) == [registry.id for registry in registries[:3]]
    last = sync(registries[5], connection, 2)
    assert ids(last) == [registry.id for registry in (*registries[:3], registries[5])]


def test_a_sync_without_a_bound_reads_no_other_row(connection: Connection) -> None:
    registry = a_registry()
    sync(a_registry(), connection)
    assert sync(registry, connection, None).members == ()


def test_replicas_in_their_grace_are_read_by_its_end(connection: Connection) -> None:
    old = a_registry()
    sync(old, connection)
    late, soon = a_registry(grace_seconds=60), a_registry(grace_seconds=30)
    sync(late, connection)
    sync(soon, connection)
    facts = sync(old, connection, 1)
    assert {row.id for row in facts.members} == {old.id, late.id, soon.id}
    assert sorted(row.aged_at > facts.now for row in facts.members) == [False, True, True]


def test_a_drained_replica_is_counted_no_more(connection: Connection) -> None:
    registry, drained = a_registry(), a_registry()
    sync(drained, connection)
    sync(registry, connection)
    drained.drain(connection, drained.id, now=True)
    assert ids(sync(registry, connection)) == [registry.id]


def test_a_drain_is_an_appointment_in_the_row_s_own_stale_after(connection: Connection) -> None:
    registry, peer = a_registry(stale_after_seconds=42), a_registry()
    sync(registry, connection)
    before = registry.now(connection)
    row = peer.drain(connection, registry.id)
    assert row.draining_at is not None
    assert 0 <= row.draining_at - before - 42_000_000 < 5_000_000
    assert ids(sync(peer, connection)) == [registry.id, peer.id]


def test_a_second_drain_never_postpones_the_first(connection: Connection) -> None:
    registry = a_registry()
    sync(registry, connection)
    first = registry.drain(connection, registry.id).draining_at
    assert first is not None
    move(connection, registry, "draining_at", -5)
    assert registry.drain(connection, registry.id).draining_at == first - 5_000_000
    at_once = registry.drain(connection, registry.id, now=True).draining_at
    assert at_once is not None
    assert at_once < first - 5_000_000
    assert registry.drain(connection, registry.id).draining_at == at_once


def test_undrain_takes_a_drain_back_before_its_instant_only(connection: Connection) -> None:
    registry = a_registry()
    sync(registry, connection)
    registry.drain(connection, registry.id)
    assert registry.undrain(connection, registry.id).draining_at is None
    assert registry.undrain(connection, registry.id).draining_at is None
    registry.drain(connection, registry.id, now=True)
    with pytest.raises(DrainEnded):
        registry.undrain(connection, registry.id)


def test_a_place_is_given_up_in_writing_and_then_for_good(connection: Connection) -> None:
    registry, peer = a_registry(), a_registry()
    sync(registry, connection)
    sync(peer, connection)
    registry.drain(connection, registry.id, now=True)
    assert ids(sync(peer, connection)) == [peer.id]
    assert sync(registry, connection).me.drained_at is not None
    move(connection, registry, "draining_at", 3600)
    with pytest.raises(DrainEnded):
        registry.undrain(connection, registry.id)


def test_an_undrain_that_has_not_committed_yet_keeps_its_replica_counted(postgres_url: str) -> None:
    engine = database.background_engine(lambda: postgres_url, timeout_seconds=5)
    schema.upgrade(engine)
    registry, peer = a_registry(), a_registry()
    with engine.connect() as connection, engine.connect() as other:
        sync(registry, connection)
        sync(peer, connection)
        registry.drain(connection, registry.id)
        move(connection, registry, "draining_at", -14.5)
        other.exec_driver_sql("BEGIN")
        registry.undrain(other, registry.id)
        time.sleep(0.6)  # The appointment passes, by the database's clock, before the undrain commits.
        assert ids(sync(peer, connection)) == [registry.id, peer.id]
        other.exec_driver_sql("COMMIT")
        assert ids(sync(peer, connection)) == [registry.id, peer.id]


def test_a_touch_that_commits_late_is_followed_by_another_before_it_is_believed(postgres_url: str) -> None:
    engine = database.background_engine(lambda: postgres_url, timeout_seconds=5)
    schema.upgrade(engine)
    registry = a_registry()
    with engine.connect() as connection, engine.connect() as other:
        sync(registry, connection)
        move(connection, registry, "updated_at", -16)
        other.exec_driver_sql("BEGIN")
        move(other, registry, "updated_at", 6)  # Evaluated ten seconds ago, in a transaction that hung until now.
        late = threading.Timer(0.5, other.exec_driver_sql, ["COMMIT"])
        late.start()
        facts = sync(registry, connection)
        late.join()
    # It joined in vain: the row stands again. Its lease is counted from this sync, so its heartbeat must be, too.
    assert facts.now - facts.me.updated_at < 1_000_000


def test_a_replica_that_stopped_or_never_was_cannot_be_drained(connection: Connection) -> None:
    registry = a_registry()
    sync(registry, connection)
    registry.leave(connection)
    for unknown in (registry.id, str(uuid.uuid4()), "x'; DROP TABLE readygate_replicas; --", ""):
        with pytest.raises(ReplicaNotFound):
            registry.drain(connection, unknown)
        with pytest.raises(ReplicaNotFound):
            registry.undrain(connection, unknown)


def test_a_drained_replica_that_was_taken_for_dead_stays_drained(connection: Connection) -> None:
    registry, peer = a_registry(), a_registry()
    sync(registry, connection)
    sync(peer, connection)
    registry.drain(connection, registry.id, now=True)
    move(connection, registry, "updated_at", -16)
    sync(peer, connection)
    facts = sync(registry, connection)
    assert facts.me.draining_at is not None
    assert ids(sync(peer, connection)) == [peer.id]


def test_a_join_gets_a_place_later_than_every_other_even_after_a_clock_step(connection: Connection) -> None:
    registry, ahead = a_registry(), a_registry()
    sync(ahead, connection)
    move(connection, ahead, "created_at", 3600)
    assert ids(sync(registry, connection)) == [ahead.id, registry.id]


def test_rows_that_ended_over_a_day_ago_are_swept(connection: Connection) -> None:
    registry, stopped, stale, recent = a_registry(), a_registry(), a_registry(), a_registry()
    for one in (registry, stopped, stale, recent):
        sync(one, connection)
    stopped.leave(connection)
    recent.leave(connection)
    move(connection, stopped, "stopped_at", -90_000)
    move(connection, stale, "updated_at", -90_000)
    assert registry.sweep(connection) == 2
    left = {row.id for row in connection.exec_driver_sql("SELECT id FROM readygate_replicas")}
    assert left == {registry.id, recent.id}


def test_an_id_that_is_no_uuid_is_refused(connection: Connection) -> None:
    with pytest.raises(RegistryError, match="uuid4"):
        sync(a_registry(replica_id="pod-1"), connection)


def test_workers_that_were_started_anew_tell_what_they_run(connection: Connection) -> None:
    """After a SIGHUP the id stays, and the code and its settings may be others."""
    known = str(uuid.uuid4())
    old = a_registry(replica_id=known, version="1", stale_after_seconds=15)
    sync(old, connection)
    new = a_registry(replica_id=known, version="2", stale_after_seconds=60, exclude="surplus", grace_seconds=30)
    move(connection, new, "updated_at", -4)
    me = sync(new, connection).me
    assert (me.version, me.exclude, me.stale_after, me.grace) == ("2", "surplus", 60_000_000, 0)
    # Some worker may still rely on the larger one.
    shorter = a_registry(replica_id=known, version="3", stale_after_seconds=15)
    move(connection, shorter, "updated_at", -4)
    assert sync(shorter, connection).me.stale_after == 60_000_000
    move(connection, shorter, "updated_at", -3600)
    assert sync(shorter, connection).me.stale_after == 60_000_000


def test_a_peer_does_not_bury_who_may_be_silent_for_longer_by_now(connection: Connection) -> None:
    known = str(uuid.uuid4())
    sync(a_registry(replica_id=known, stale_after_seconds=15), connection)
    reloaded = a_registry(replica_id=known, stale_after_seconds=60)
    move(connection, reloaded, "updated_at", -4)
    sync(reloaded, connection)
    move(connection, reloaded, "updated_at", -20)
    assert known in ids(sync(a_registry(), connection))


def test_thirty_replicas_joining_at_once_get_thirty_places(database_url: str, connection: Connection) -> None:
    registries = [a_registry() for _ in range(30)]
    failures: list[Exception] = []

    def join(registry: Registry) -> None:
        try:
            with database.background_engine(lambda: database_url, timeout_seconds=10).connect() as own:
                sync(registry, own)
        except Exception as error:  # noqa: BLE001  # shown below, whatever it is
            failures.append(error)

    threads = [threading.Thread(target=join, args=(registry,)) for registry in registries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    places = [row.created_at for row in a_registry().active(connection, count=100)]
    assert len(set(places)) == 30
