"""One line for every change of what a worker says of itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from servers import until
from test_api import Api, make

from watch import Watch

__all__ = ["make"]  # A fixture, known by its name.


class Statement:
    """Something that is said until it is changed."""

    def __init__(self, text: str, level: int = logging.INFO) -> None:
        self.text, self.level = text, level

    def __call__(self) -> tuple[int, str]:
        return self.level, self.text


def watch(statement: Statement, **options: Any) -> Watch:
    return Watch({"it": statement}, subject=lambda: "replica one", **{"running": lambda: True, **options})


def test_a_change_is_one_line_however_often_it_is_looked_at(logged: list[str]) -> None:
    said = Statement("not ready: starting")
    watching = watch(said)
    for text in ("not ready: starting", "ready", "not ready: draining", "ready"):
        said.text = text
        for _ in range(5):
            watching.look()
    assert logged == [
        "replica one: not ready: starting",
        "replica one: ready",
        "replica one: not ready: draining",
        "replica one: ready",
    ]


def test_what_goes_without_saying_is_said_once_it_was_otherwise(logged: list[str]) -> None:
    said = Statement("heartbeat is back")
    watching = watch(said, usual={"it": "heartbeat is back"})
    for text in ("heartbeat is back", "heartbeat lost", "heartbeat is back"):
        said.text = text
        watching.look()
    assert logged == ["replica one: heartbeat lost", "replica one: heartbeat is back"]


def test_the_thread_starts_once_looks_a_last_time_and_ends(logged: list[str]) -> None:
    said, runs = Statement("ready"), threading.Event()
    runs.set()
    watching = watch(said, running=runs.is_set)
    before = threading.active_count()
    for _ in range(3):
        watching.start()
    assert threading.active_count() == before + 1
    until(lambda: logged == ["replica one: ready"])
    said.text = "not ready: heartbeat lost"
    runs.clear()
    until(lambda: threading.active_count() == before)
    assert logged == ["replica one: ready", "replica one: not ready: heartbeat lost"]


def test_what_a_service_says_of_itself(
    make: Callable[..., Api], database_url: str, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = make(database_url)
    replica, name = api.replica, f"replica {api.replica.registry.id}"
    monkeypatch.setattr(replica.watch, "start", lambda: None)

    def lines() -> list[str]:
        logged.clear()
        replica.refresh()
        for _ in range(3):
            api.ask("/readyz", None)
            replica.watch.look()
        return [line for line in logged if line.startswith(name)]

    assert lines() == [f"{name}: ready"]
    assert lines() == []
    peer = api.add_replica()
    assert lines() == [f"{name}: not ready: entitlement error"]
    assert any(line.startswith("multi_replica_without_ha begins") for line in logged)
    peer.leave(api.connection)
    assert lines() == [f"{name}: ready"]
    replica.registry.drain(api.connection, replica.registry.id)
    (appointed,) = lines()
    assert appointed.startswith(f"{name}: draining: gives up its place at 20")
    replica.registry.undrain(api.connection, replica.registry.id)
    assert lines() == [f"{name}: draining: taken back"]
    monkeypatch.setattr(replica.lease, "lost", lambda: True)
    # Nothing could take its place, so it stays ready.
    assert lines() == [f"{name}: heartbeat lost"]
    monkeypatch.undo()


def test_a_request_looks_at_nothing(make: Callable[..., Api], sqlite_url: str, logged: list[str]) -> None:
    api = make(sqlite_url)
    looked: list[str] = []

    def look() -> tuple[int, str]:
        looked.append(threading.current_thread().name)
        return logging.INFO, "as ever"

    api.replica.watch._statements = {"it": look}
    for _ in range(20):
        api.ask("/readyz", None)
    until(lambda: len(looked) > 0)
    assert set(looked) == {"readygate-watch"}
