"""What becomes of a server whose processes die, hang or are recycled (see test_faults.py)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import postgres as pg
import psutil
import pytest
from faults import RECOVERED_SECONDS, STALE, TAKEN_ALONG, Case, Figures, seconds_until, started, told, watched
from servers import HEARTBEAT, Gunicorn, all_ready, answers, ready, until

pytestmark = pytest.mark.server

_AWHILE = 3.0


def rows(url: str) -> int:
    """How many replicas have not stopped."""
    return int(str(pg.execute(url, "SELECT count(*) FROM readygate_replicas WHERE stopped_at IS NULL")[0][0]))


def renewed(master: Gunicorn, before: set[int], number: int = 2) -> bool:
    """Whether it has `number` workers, none of them one of before."""
    now = {worker.pid for worker in master.workers()}
    return len(now) == number and before.isdisjoint(now)


@pytest.mark.workers("sync", False)
def test_master_killed(postgres_url: str, case: Case, figures: Figures) -> None:
    with case.serve(postgres_url, "--timeout", "10") as lost, case.serve(postgres_url) as other:
        # Without a license both are out once both have aged, until one of them is gone.
        until(lambda: answers(lost, "entitlement error") and answers(other, "entitlement error"))
        with watched(other) as watch:
            at = time.monotonic()
            os.kill(lost.process.pid, signal.SIGKILL)
            lost.process.wait(5)
            # Its workers live on until they look for it, and an idle one of sync looks after the next answer.
            with ThreadPoolExecutor(4) as pool:
                seen = [answer for answer in pool.map(lambda _: lost.get(timeout=2), range(4)) if answer[0]]
            assert set(seen) == {(503, "heartbeat lost")}
            back = seconds_until(lambda: ready(other), within=STALE + HEARTBEAT + 1, since=at)
            time.sleep(_AWHILE)
        assert rows(postgres_url) == 1
    figures.note("master SIGKILLed", case, watch, recovered=back, recovered_promised=STALE + HEARTBEAT + 1)


@pytest.mark.workers("gthread", True)
def test_worker_killed(postgres_url: str, case: Case, figures: Figures) -> None:
    with case.serve(postgres_url) as master:
        started(master)
        # It takes the answers with it that it was giving, and those that waited for it.
        with watched(master, lost=TAKEN_ALONG) as watch:
            before = {worker.pid for worker in master.workers()}
            at = time.monotonic()
            os.kill(min(before), signal.SIGKILL)
            # The other one never stopped serving: what counts is when the new one does.
            back = seconds_until(
                lambda: _replaced(master, min(before)) and all_ready(master), within=RECOVERED_SECONDS, since=at
            )
            time.sleep(_AWHILE)
        assert {answer for answer in watch.ready if not answer.startswith("0")} <= {"200 OK", "503 starting"}
        assert rows(postgres_url) == 1
        assert told(master, watch) == []
    figures.note("worker SIGKILLed", case, watch, recovered=back, recovered_promised=RECOVERED_SECONDS)


_HANGS_SECONDS = 3


@pytest.mark.workers("gthread", False)
def test_worker_hung(postgres_url: str, case: Case, figures: Figures) -> None:
    with case.serve(postgres_url, "--timeout", str(_HANGS_SECONDS)) as master:
        started(master)
        # Who asked it has waited all along, like the calls of the API.
        with watched(master, lost=TAKEN_ALONG, slowest=_HANGS_SECONDS + 5) as watch:
            hung = min(worker.pid for worker in master.workers())
            at = time.monotonic()
            os.kill(hung, signal.SIGSTOP)
            # gunicorn looks every second, and for its own timeout it does nothing.
            promised = _HANGS_SECONDS + 1 + RECOVERED_SECONDS
            back = seconds_until(lambda: _replaced(master, hung) and all_ready(master), within=promised, since=at)
            time.sleep(_AWHILE)
        assert "WORKER TIMEOUT" in master.lines
        assert rows(postgres_url) == 1
        assert told(master, watch) == []
    figures.note("worker hung, timeout of 3 s", case, watch, recovered=back, recovered_promised=promised)


def _replaced(master: Gunicorn, pid: int) -> bool:
    """Whether it has two workers, and the one that was `pid` is none of them."""
    now = {worker.pid for worker in master.workers()}
    return len(now) == 2 and pid not in now


@pytest.mark.workers("gthread", False)
def test_sigusr2(postgres_url: str, case: Case, figures: Figures) -> None:
    with case.serve(postgres_url, READYGATE_REPLICA_GRACE_SECONDS="60") as master:
        started(master)
        with watched(master, lost=2) as watch:
            master.send(signal.SIGUSR2)
            # The new master is a replica of its own, and the old one's child.
            at = time.monotonic()
            until(lambda: any(child.children() for child in master.workers()))
            new = next(child for child in master.workers() if child.children())
            old = [child for child in master.workers() if child.pid != new.pid]
            until(lambda: len(new.children()) == 2 and rows(postgres_url) >= 2)
            seconds = time.monotonic() - at
            master.send(signal.SIGTERM)
            master.process.wait(40)
            gone = time.monotonic()
            back = seconds_until(lambda: rows(postgres_url) == 1 and ready(master), within=HEARTBEAT + 1, since=gone)
            time.sleep(_AWHILE)
            assert not any(worker.is_running() for worker in old)
        assert {answer for answer in watch.ready if not answer.startswith("0")} == {"200 OK"}
    figures.note("SIGUSR2", case, watch, second_replica=seconds, recovered=back, recovered_promised=HEARTBEAT + 1)


@pytest.mark.workers("gthread", False)
def test_recycled_without_a_leak(
    postgres_url: str, case: Case, figures: Figures, request: pytest.FixtureRequest
) -> None:
    times: int = request.config.getoption("--recycles")
    with case.serve(postgres_url, "--graceful-timeout", "5") as master:
        started(master)
        recycle(master)
        settled = at_rest(master, postgres_url)
        for _ in range(times):
            recycle(master)
        until(lambda: no_more(at_rest(master, postgres_url), settled))
        assert rows(postgres_url) == 1
        assert "Traceback" not in master.lines
    figures.note("workers recycled by SIGHUP", case, times=times)


def recycle(master: Gunicorn) -> None:
    """SIGHUP, and wait for the new workers."""
    before = {worker.pid for worker in master.workers()}
    master.send(signal.SIGHUP)
    until(lambda: renewed(master, before))
    until(lambda: ready(master))


#: Made when they are needed, so that more of them are no leak: of each of two workers three of its four threads, and
#: the connections of two requests, which are files too.
_WHEN_NEEDED = (6, 4, 4, 0)


def no_more(now: tuple[int, ...], then: tuple[int, ...]) -> bool:
    """Whether nothing has grown since `then` by more than what is made when it is needed."""
    return all(one <= other + more for one, other, more in zip(now, then, _WHEN_NEEDED, strict=True))


def at_rest(master: Gunicorn, url: str) -> tuple[int, int, int, int]:
    """Threads and files of all its processes, its connections, and all the rows that it has ever made."""
    threads = files = 0
    for process in (psutil.Process(master.process.pid), *master.workers()):
        with contextlib.suppress(psutil.NoSuchProcess):
            threads += process.num_threads()
            files += process.num_fds()
    connections = pg.execute(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'readygate' AND datname = current_database()",
    )
    written = pg.execute(url, "SELECT count(*) FROM readygate_replicas")
    return threads, files, int(str(connections[0][0])), int(str(written[0][0]))
