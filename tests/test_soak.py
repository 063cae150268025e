"""Faults at random, one after the other, for a minute or for --soak-seconds: nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import postgres as pg
import psutil
import pytest
from faults import Case, Figures, recovered, watched
from proxy import Proxy
from servers import Gunicorn, ready, until
from test_faults_processes import at_rest, no_more

pytestmark = pytest.mark.server

#: What a process may have grown by: allocators keep some of what they were once given.
_GROWN = 1.15


@pytest.mark.workers("gthread", True)
def test_faults_at_random_leave_nothing_behind(request: pytest.FixtureRequest, case: Case, figures: Figures) -> None:
    seconds: int = request.config.getoption("--soak-seconds")
    chance = random.Random(request.config.getoption("--soak-seed"))
    with contextlib.ExitStack() as stack:
        server = pg.Server()
        stack.callback(server.remove)
        proxy = stack.enter_context(contextlib.closing(Proxy(server.port)))
        url = server.url().replace(f":{server.port}/", f":{proxy.port}/")
        master = stack.enter_context(case.serve(url, "--timeout", "5", "--graceful-timeout", "5"))
        until(lambda: ready(master))
        # Once each, so that what is made on first use is there.
        for fault in FAULTS:
            fault(server, proxy, master, 1.5)
            recovered(master, within=10)
        # Threads for requests, and their connections, are made when they are needed.
        with watched(master):
            time.sleep(4)
        before, size = rested(master, server), memory(master)
        ends, happened = time.monotonic() + seconds, 0
        # A killed worker takes a few answers with it, and a new master's first ones come late.
        with watched(master, lost=10 + seconds) as watch:
            while time.monotonic() < ends:
                chance.choice(FAULTS)(server, proxy, master, chance.uniform(0.1, 3.0))
                recovered(master, within=10)
                happened += 1
                time.sleep(chance.uniform(0.0, 1.0))
        after = rested(master, server)
        assert no_more(after, before), (before, after)
        grown = memory(master) / size
        assert grown < _GROWN
        assert "Traceback" not in master.lines
        assert "no place in the line" not in master.lines
    ends_with = {"before": list(before), "after": list(after)}
    figures.note("at random", case, watch, seconds=seconds, faults=happened, memory_grown=grown, **ends_with)


def rested(master: Gunicorn, server: pg.Server) -> tuple[int, int, int, int]:
    """Threads, files, connections and rows once the requests' connections have gone to rest."""
    return at_rest(master, server.url())


def memory(master: Gunicorn) -> int:
    """Bytes that belong to its processes alone, all together."""
    processes = [psutil.Process(master.process.pid), *master.workers()]
    return sum(int(process.memory_full_info().uss) for process in processes)


def hung(server: pg.Server, proxy: Proxy, master: Gunicorn, seconds: float) -> None:
    server.hang()
    try:
        time.sleep(seconds)
    finally:
        server.resume()


def crashed(server: pg.Server, proxy: Proxy, master: Gunicorn, seconds: float) -> None:
    server.crash()
    time.sleep(seconds)
    server.start()


def cut(server: pg.Server, proxy: Proxy, master: Gunicorn, seconds: float) -> None:
    proxy.cut = True
    time.sleep(seconds)
    proxy.cut = False


def slow(server: pg.Server, proxy: Proxy, master: Gunicorn, seconds: float) -> None:
    proxy.delay_seconds = seconds / 2
    time.sleep(2 * seconds)
    proxy.delay_seconds = 0.0


def thrown_out(server: pg.Server, proxy: Proxy, master: Gunicorn, seconds: float) -> None:
    pg.execute(server.url(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")


def worker_killed(server: pg.Server, proxy: Proxy, master: Gunicorn, seconds: float) -> None:
    worker = min(master.workers(), key=lambda worker: worker.pid)
    worker.kill()
    until(lambda: len(master.workers()) == 2 and worker.pid not in {each.pid for each in master.workers()})


def worker_paused(server: pg.Server, proxy: Proxy, master: Gunicorn, seconds: float) -> None:
    worker = min(master.workers(), key=lambda worker: worker.pid)
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(worker.pid, signal.SIGCONT)


def recycled(server: pg.Server, proxy: Proxy, master: Gunicorn, seconds: float) -> None:
    before = {worker.pid for worker in master.workers()}
    master.send(signal.SIGHUP)
    until(lambda: len(master.workers()) == 2 and before.isdisjoint(worker.pid for worker in master.workers()))


FAULTS: list[Callable[[pg.Server, Proxy, Gunicorn, float], None]] = [
    hung,
    crashed,
    cut,
    slow,
    thrown_out,
    worker_killed,
    worker_paused,
    recycled,
]
