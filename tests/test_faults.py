"""What a failing database does to real servers: liveness never suffers, readiness tells, recovery needs nobody."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator

import postgres as pg
import pytest
from proxy import Proxy
from servers import GRACE, HEARTBEAT, Gunicorn, answers, gunicorn, ready, until

pytestmark = pytest.mark.server

TIMEOUT = 1.0
#: Spec, section 11.
REFUSED_SECONDS, HUNG_SECONDS = 1.5, TIMEOUT + 1.5
_SHORT = {"READYGATE_DATABASE_TIMEOUT_SECONDS": str(TIMEOUT)}
WORKERS = [("gthread", 2), ("sync", 1)]


@pytest.fixture(scope="module")
def server() -> Iterator[pg.Server]:
    """A PostgreSQL of this file's own, which its tests treat badly."""
    server = pg.Server(settings={"max_connections": "40"})
    yield server
    server.remove()


@pytest.fixture
def database(server: pg.Server) -> Iterator[str]:
    with pg.new_database(server.url()) as url:
        yield url


@contextlib.contextmanager
def live(master: Gunicorn) -> Iterator[None]:
    """Ask for /healthz all along; none is lost, and 99 of 100 answer within 50 ms (spec, section 11)."""
    seconds: list[float] = []
    lost: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            started = time.perf_counter()
            answer = master.get("/healthz", timeout=10)
            seconds.append(time.perf_counter() - started)
            if answer != (200, "OK"):
                lost.append(answer)
            stop.wait(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
    assert lost == []
    assert len(seconds) > 40
    assert sorted(seconds)[int(len(seconds) * 0.99)] < 0.05


def notices(master: Gunicorn, body: str, *, within: float) -> None:
    assert until(lambda: answers(master, body), seconds=within + 5) < within


def test_a_refusing_database_is_noticed_and_recovered_from(server: pg.Server, database: str) -> None:
    with gunicorn(database, **_SHORT) as master:
        until(lambda: ready(master))
        with live(master):
            server.stop("immediate")
            try:
                notices(master, "database unreachable", within=REFUSED_SECONDS)
                time.sleep(3)
            finally:
                server.start()
            assert until(lambda: ready(master)) < 2.5
        # Once when it begins and once when it ends, by each worker.
        assert master.lines.count("connection lost") + master.lines.count("refused") <= 2 * len(master.workers())
        assert master.lines.count("answers again") == len(master.workers())


@pytest.mark.parametrize(("kind", "workers"), WORKERS)
def test_a_hung_database_never_slows_liveness(server: pg.Server, database: str, kind: str, workers: int) -> None:
    with gunicorn(database, "--worker-class", kind, workers=workers, **_SHORT) as master:
        until(lambda: ready(master))
        with live(master):
            server.hang()
            try:
                notices(master, "database unreachable", within=HUNG_SECONDS)
                # A flood of readiness probes meanwhile: none of them waits for the database.
                started = time.monotonic()
                assert {master.get() for _ in range(50)} == {(503, "database unreachable")}
                assert time.monotonic() - started < 2
            finally:
                server.resume()
            assert until(lambda: ready(master)) < 3


@pytest.mark.parametrize(("kind", "workers"), WORKERS)
def test_a_slow_database_that_answers_in_time_keeps_its_replica_ready(
    server: pg.Server, database: str, kind: str, workers: int
) -> None:
    with contextlib.closing(Proxy(server.port)) as proxy:
        url = database.replace(f":{server.port}/", f":{proxy.port}/")
        slow = {"READYGATE_DATABASE_TIMEOUT_SECONDS": "5", "READYGATE_HEARTBEAT_SECONDS": "5"}
        with gunicorn(url, "--worker-class", kind, workers=workers, **slow) as master:
            until(lambda: ready(master))
            proxy.delay_seconds = 1.5
            with live(master):
                ends = time.monotonic() + 12
                while time.monotonic() < ends:
                    assert master.get() == (200, "OK")
                    time.sleep(0.05)


def test_a_database_too_slow_for_its_bound_is_unreachable(server: pg.Server, database: str) -> None:
    with contextlib.closing(Proxy(server.port)) as proxy:
        url = database.replace(f":{server.port}/", f":{proxy.port}/")
        with gunicorn(url, **_SHORT) as master:
            until(lambda: ready(master))
            proxy.delay_seconds = 1.5
            with live(master):
                notices(master, "database unreachable", within=HUNG_SECONDS)
                proxy.delay_seconds = 0
                assert until(lambda: ready(master)) < TIMEOUT + 3


def test_a_partition_is_noticed_and_recovered_from(server: pg.Server, database: str) -> None:
    with contextlib.closing(Proxy(server.port)) as proxy:
        url = database.replace(f":{server.port}/", f":{proxy.port}/")
        with gunicorn(url, **_SHORT) as master:
            until(lambda: ready(master))
            with live(master):
                proxy.cut = True
                notices(master, "database unreachable", within=HUNG_SECONDS)
                proxy.cut = False
                assert until(lambda: ready(master)) < TIMEOUT + 3


def test_a_database_that_is_down_at_start_is_waited_for(server: pg.Server, database: str) -> None:
    server.stop()
    try:
        with gunicorn(database, **_SHORT) as master:
            until(lambda: master.get("/healthz") == (200, "OK"))
            notices(master, "database unreachable", within=REFUSED_SECONDS)
            server.start()
            assert until(lambda: ready(master)) < 4
    finally:
        with contextlib.suppress(Exception):
            server.start()


def test_a_hung_database_at_start_leaves_liveness_alone(server: pg.Server, database: str) -> None:
    server.hang()
    try:
        with gunicorn(database, "--worker-class", "sync", workers=1, **_SHORT) as master:
            until(lambda: master.get("/healthz") == (200, "OK"))
            with live(master):
                notices(master, "database unreachable", within=HUNG_SECONDS)
    finally:
        server.resume()


def test_a_read_only_database_takes_nobody_out_and_is_named_in_the_log(server: pg.Server, database: str) -> None:
    with gunicorn(database, **_SHORT) as master:
        until(lambda: ready(master))
        name = database.rsplit("/", 1)[1]
        pg.execute(server.url(), f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        pg.execute(server.url(), f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        until(lambda: "read only (25006)" in master.lines)
        time.sleep(3 * HEARTBEAT)
        # Policy `all`: nothing can take its place, so losing the heartbeat takes nobody out.
        until(lambda: ready(master), seconds=3)
        assert "[!]replica warning: heartbeat lost" in master.get("/readyz?verbose")[1]
        assert master.lines.count("heartbeat failed: read only") == len(master.workers())
        pg.execute(server.url(), f"ALTER DATABASE {name} RESET default_transaction_read_only")
        pg.execute(server.url(), f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        until(lambda: "[!]" not in master.get("/readyz?verbose")[1] and ready(master))


def test_a_locked_table_leaves_the_database_reachable(server: pg.Server, database: str) -> None:
    import pg8000.native

    with gunicorn(database, **_SHORT) as master:
        until(lambda: ready(master))
        name = database.rsplit("/", 1)[1]
        with contextlib.closing(
            pg8000.native.Connection("postgres", host="127.0.0.1", port=server.port, database=name)
        ) as locker:
            locker.run("BEGIN")
            locker.run("LOCK TABLE readygate_replicas IN ACCESS EXCLUSIVE MODE")
            with live(master):
                ends = time.monotonic() + 5
                while time.monotonic() < ends:
                    assert master.get("/readyz/database") == (200, "OK")
                    time.sleep(0.05)
                # No statement that was given up on is left behind: one waits for each worker, at most.
                waiting = pg.execute(
                    server.url(), "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                )
                assert waiting[0][0] <= 2  # type: ignore[operator]
            locker.run("ROLLBACK")
        until(lambda: ready(master))


def test_probes_cost_the_database_one_ping_a_second_per_worker(server: pg.Server, database: str) -> None:
    with gunicorn(database, READYGATE_HEARTBEAT_SECONDS="3600", READYGATE_STALE_AFTER_SECONDS="10800") as master:
        until(lambda: ready(master))
        name = database.rsplit("/", 1)[1]
        count = f"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
        # Each backend hands its counts over about once a second.
        time.sleep(2)
        started, before = time.monotonic(), pg.execute(server.url(), count)[0][0]
        ends = time.monotonic() + 8
        probes = 0
        while time.monotonic() < ends:
            assert master.get() == (200, "OK")
            probes += 1
        after, seconds = pg.execute(server.url(), count)[0][0], time.monotonic() - started
        assert probes > 200
        assert isinstance(before, int)
        assert isinstance(after, int)
        assert after - before <= 2 * (seconds + 2)


@pytest.mark.system
@pytest.mark.parametrize("shift", ["-1d", "+1d"])
def test_a_host_clock_a_day_off_changes_nothing_on_postgres(
    database: str, shift: str, need: Callable[[str], str]
) -> None:
    with gunicorn(database) as right, gunicorn(database, prefix=(need("faketime"), "-f", shift)) as wrong:
        until(lambda: ready(right) and ready(wrong))
        started = time.monotonic()
        until(lambda: answers(right, "entitlement error") and answers(wrong, "entitlement error"))
        assert time.monotonic() - started < GRACE + HEARTBEAT + 1
        right.stop()
        until(lambda: ready(wrong))
    assert shutil.which("faketime")
