"""Faults at random, one after the other, for a minute or for --soak-seconds: nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import postgres as pg
import psutil
import pytest
from faults import (
    NOISE_SECONDS,
    TAKEN_ALONG,
    Case,
    Figures,
    NoisyMachineError,
    Watch,
    recovered,
    started,
    told,
    watched,
)
from proxy import Proxy
from servers import Gunicorn, until
from test_faults_processes import at_rest, no_more

pytestmark = pytest.mark.server

Fault = Callable[[pg.Server, Proxy, Gunicorn, float], None]

#: What the processes may have grown by: allocators keep some of what they were once given.
_GROWN = 1.05


# Without preload_app the new workers load the application while the old ones have stopped already, at SIGHUP: nobody
# answers for as long as that takes.
@pytest.mark.workers("gthread", True, preloads=(True,))
def test_faults_at_random_leave_nothing_behind(request: pytest.FixtureRequest, case: Case, figures: Figures) -> None:
    seconds: int = request.config.getoption("--soak-seconds")
    chance = random.Random(request.config.getoption("--soak-seed"))
    with contextlib.ExitStack() as stack:
        server = pg.Server()
        stack.callback(server.remove)
        proxy = stack.enter_context(contextlib.closing(Proxy(server.port)))
        url = server.url().replace(f":{server.port}/", f":{proxy.port}/")
        master = stack.enter_context(case.serve(url, "--timeout", "5", "--graceful-timeout", "5"))
        started(master)
        # In the first third workers are replaced as well: the master must not grow from it.
        scene = Scene(server, proxy, master, chance)
        happened = scene.faults([*REPLACING, *LASTING], seconds / 3).happened
        # What they leak shows only in workers that live on: from here they do. Once each, so that what is made on
        # first use is there; then threads for requests, and their connections, which are made when they are needed.
        scene.faults([], 0, first=LASTING)
        with watched(master):
            time.sleep(4)
        workers = {worker.pid for worker in master.workers()}
        before, size = rested(master, server), memory(master)
        later = scene.faults(LASTING, seconds * 2 / 3)
        with watched(master):
            time.sleep(4)
        after, grown = rested(master, server), memory(master) / size
        assert {worker.pid for worker in master.workers()} == workers
        assert no_more(after, before), (before, after)
        assert grown < _GROWN, f"{grown:.3f}"
        assert "Traceback" not in master.lines
        assert "no place in the line" not in master.lines
    figures.note(
        "at random",
        case,
        later.watch,
        seconds=seconds,
        faults=happened + later.happened,
        replaced=scene.replaced,
        memory_grown=grown,
        before=list(before),
        after=list(after),
    )


@dataclass(frozen=True)
class Happened:
    """What came of a time with faults."""

    watch: Watch
    happened: int


class Scene:
    """A server, its database, and faults that come one after the other."""

    def __init__(self, server: pg.Server, proxy: Proxy, master: Gunicorn, chance: random.Random) -> None:
        self._there = (server, proxy, master)
        self._master = master
        self._chance = chance
        #: How many workers were killed or recycled.
        self.replaced = 0

    def faults(self, kinds: Sequence[Fault], seconds: float, *, first: Sequence[Fault] = ()) -> Happened:
        """`first` one after the other, then some of `kinds` for so long, each told once when it begins and ends."""
        ends, happened, twice = time.monotonic() + seconds, 0, []
        waiting = list(first)
        with watched(self._master, slowest=8.0) as watch:
            while waiting or time.monotonic() < ends:
                fault = waiting.pop() if waiting else self._chance.choice(kinds)
                if fault in REPLACING:
                    self.replaced += 1 if fault is worker_killed else 2
                # A killed worker takes with it what it is answering; one that ends by itself takes nothing.
                watch.lost += TAKEN_ALONG if fault is worker_killed else 0
                before = len(self._master.lines)
                fault(*self._there, self._chance.uniform(0.1, 3.0))
                recovered(self._master, within=10)
                if fault in TOLD:
                    try:
                        told(self._master, after=before)
                    except AssertionError as error:
                        twice.append(f"{fault.__name__}: {error}")
                happened += 1
                time.sleep(self._chance.uniform(0.0, 1.0))
        if twice and watch.noise_seconds > NOISE_SECONDS:
            raise NoisyMachineError(f"told twice, where a bare server takes {watch.noise_seconds:.3f} s: {twice}")
        assert twice == []
        return Happened(watch, happened)


def rested(master: Gunicorn, server: pg.Server) -> tuple[int, int, int, int]:
    """Threads, files, connections and rows once the requests' connections have gone to rest."""
    return at_rest(master, server.url())


def memory(master: Gunicorn) -> int:
    """Bytes of its processes, all together.

    What is shared counts in each: a worker of a preloaded application makes its own of more and more of it, and that is
    no leak.
    """
    processes = [psutil.Process(master.process.pid), *master.workers()]
    return sum(int(process.memory_info().rss) for process in processes)


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


#: Faults after which a worker is another one.
REPLACING: list[Fault] = [worker_killed, recycled]
#: Faults that a worker lives through.
LASTING: list[Fault] = [hung, crashed, cut, slow, thrown_out, worker_paused]
#: What can be told once. A database that is slow by about the timeout answers some pings in time, and others not.
TOLD: list[Fault] = [hung, crashed, cut, thrown_out]
