"""Four unlicensed servers with the policy `surplus` on one PostgreSQL: whatever happens, never two serve at once.

Each is asked for /readyz all along by a witness (see witness.py).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from networks import Network
from proxy import Proxy
from servers import GRACE, HEARTBEAT, Gunicorn, ready, until
from witness import Witness, gap, overlaps, tell_of_a_broken_guarantee

pytestmark = pytest.mark.server

STALE = 3 * HEARTBEAT
#: Spec, section 11: from a crash, a pause or a partition; and from the exit of a master that was stopped.
TAKEN_OVER, HANDED_OVER = STALE + HEARTBEAT + 1, HEARTBEAT + 1
NAMES = "abcd"


class Line:
    """Servers in the order of their joining, each with a witness."""

    def __init__(self, url: str, **variables: str) -> None:
        self._url = url
        self._variables: dict[str, Any] = {"READYGATE_EXCLUDE": "surplus", **variables}
        self._stack = contextlib.ExitStack()
        self.servers: dict[str, Gunicorn] = {}
        self.witnesses: dict[str, Witness] = {}

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def join(self, name: str, *, url: str | None = None, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        """Start a server, wait until it has its place, and ask it all along from then on, its grace apart."""
        server = self.servers[name] = Gunicorn(url or self._url, prefix=prefix, **self._variables)
        server.host = host
        self._stack.callback(server.log.unlink)
        self._stack.callback(server.kill_all)
        until(lambda: server.get() == (200, "OK"), seconds=30)
        witness = self.witnesses[name] = Witness(server.port, host=host)
        witness.aged_at = self._aged_at(name)
        self._stack.callback(witness.close)

    def settle(self) -> None:
        """Wait until every grace is over, all have been asked since, and the first alone is ready."""
        time.sleep(max(0.0, max(one.aged_at for one in self.witnesses.values()) - time.monotonic()) + 2 * HEARTBEAT)
        assert self.serving() == list(self.servers)[:1]

    def serving(self) -> list[str]:
        """The names of those that answer 200 now."""
        return [name for name, server in self.servers.items() if server.get(timeout=1)[0] == 200]

    def alone(self) -> str:
        """Wait until exactly one answers 200; its name."""
        found: list[str] = []

        def one() -> bool:
            found[:] = self.serving()
            return len(found) == 1

        until(one)
        return found[0]

    def order(self) -> list[str]:
        """The names in the line's order, as the table has it."""
        rows = pg.execute(
            self._url, "SELECT id FROM readygate_replicas WHERE stopped_at IS NULL ORDER BY created_at, id"
        )
        ids = {self._id(name): name for name in self.servers}
        return [ids[str(row[0])] for row in rows]

    def takes_over(self, name: str, since: float, *, within: float) -> None:
        """Wait until the server is ready; it must be, within the bound after `since`."""
        until(partial(ready, self.servers[name]))
        seconds = time.monotonic() - since
        print(f"{name} is ready {seconds:.2f} s after, of {within:g} s")
        assert seconds < within, self.logs()
        # Long enough to be seen at it.
        time.sleep(HEARTBEAT)

    def never_two(self) -> None:
        """No two were ready at once."""
        if found := overlaps(self.witnesses):
            tell_of_a_broken_guarantee(found)
        assert found == [], self.logs()

    def check(self, *handovers: tuple[str, str]) -> None:
        """Nobody was ready at once with another; `handovers`: pairs of names, whose gap is told."""
        asked = {name: len(witness.samples()) for name, witness in self.witnesses.items()}
        print(f"answers: {asked}; ready: { {name: len(one.yes()) for name, one in self.witnesses.items()} }")
        assert min(asked.values()) > 20
        for before, after in handovers:
            least, most = gap(self.witnesses[before], self.witnesses[after])
            print(f"from {before} to {after}: nobody ready for {least:.3f} to {most:.3f} s")
            # After another's first yes, none was asked for and given.
            assert most > 0, self.logs()
        self.never_two()

    def logs(self) -> str:
        """What all of them have logged."""
        return "\n".join(f"--- {name}\n{server.lines}" for name, server in self.servers.items())

    def _id(self, name: str) -> str:
        return self.servers[name].lines.split("readygate: replica ", 1)[1].split(",", 1)[0]

    def _aged_at(self, name: str) -> float:
        """The monotonic instant at which its grace ends. The database's clock is this host's."""
        until(lambda: "readygate: replica " in self.servers[name].lines)
        aged = f"SELECT started_at + grace FROM readygate_replicas WHERE id = '{self._id(name)}'"
        if self._url.startswith("sqlite"):
            return time.monotonic() + GRACE
        instant = pg.execute(self._url, aged)[0][0]
        assert isinstance(instant, int)
        return instant / 1_000_000 - time.time() + time.monotonic()


def test_the_witnesses_see_two_that_are_ready_at_once(tmp_path: Path) -> None:
    with Line(f"sqlite:///{tmp_path}/one.db") as one, Line(f"sqlite:///{tmp_path}/other.db") as other:
        witnesses: dict[str, Witness] = {}
        for name, line in {"one": one, "other": other}.items():
            line.join(name)
            witnesses |= line.witnesses
        time.sleep(GRACE + 1)
        assert [(first, second) for first, second, _ in overlaps(witnesses)] == [("one", "other")]


@pytest.fixture
def line(postgres_url: str) -> Iterator[Line]:
    """Four servers, the first of which serves."""
    with Line(postgres_url) as line:
        for name in NAMES:
            line.join(name)
        line.settle()
        yield line


def test_the_next_in_line_takes_over_from_a_killed_one_and_a_newcomer_comes_last(line: Line) -> None:
    for before, after in itertools.pairwise(NAMES):
        killed = time.monotonic()
        line.servers[before].kill_all()
        if before == "a":
            line.join("e")
        line.takes_over(after, killed, within=TAKEN_OVER)
    killed = time.monotonic()
    line.servers["d"].kill_all()
    line.takes_over("e", killed, within=TAKEN_OVER)
    line.check(*itertools.pairwise("abcde"))


def test_a_stopped_one_hands_over_at_once(line: Line) -> None:
    for before, after in itertools.pairwise(NAMES):
        gone = line.servers[before].stop()
        line.takes_over(after, gone, within=HANDED_OVER)
    line.check(*itertools.pairwise("abcd"))


def test_a_paused_one_goes_to_the_end_of_the_line(line: Line) -> None:
    with paused(line.servers["a"]) as since:
        line.takes_over("b", since, within=TAKEN_OVER)
        time.sleep(STALE)
    until(partial(excluded, line.servers["a"]))
    assert line.order() == ["b", "c", "d", "a"]
    time.sleep(2 * HEARTBEAT)
    line.check(*itertools.pairwise("ab"))
    for before, after in itertools.pairwise("bcd"):
        killed = time.monotonic()
        line.servers[before].kill_all()
        line.takes_over(after, killed, within=TAKEN_OVER)
    line.check(*itertools.pairwise("abcd"))
    killed = time.monotonic()
    line.servers["d"].kill_all()
    line.takes_over("a", killed, within=TAKEN_OVER)
    line.never_two()


def test_pauses_of_any_length_never_let_two_serve_at_once(line: Line, pytestconfig: pytest.Config) -> None:
    seed = pytestconfig.getoption("simulate_seed")
    if seed is None:
        seed = random.SystemRandom().randrange(10**6)
    lengths = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(8):
        one = line.alone()
        # Around the ends of the lease and of the staleness: the awkward moments to wake up.
        with paused(line.servers[one]):
            time.sleep(lengths.uniform(0.5 * STALE, 1.5 * STALE + HEARTBEAT))
    line.alone()
    line.check()


def test_a_partitioned_one_is_out_before_the_next_is_in(postgres_url: str) -> None:
    port = int(postgres_url.rsplit(":", 1)[1].split("/")[0])
    with contextlib.ExitStack() as stack, Line(postgres_url) as line:
        proxies = {name: stack.enter_context(contextlib.closing(Proxy(port))) for name in NAMES}
        for name, proxy in proxies.items():
            line.join(name, url=postgres_url.replace(f":{port}/", f":{proxy.port}/"))
        line.settle()
        for before, after in itertools.pairwise("abc"):
            cut = time.monotonic()
            proxies[before].cut = True
            line.takes_over(after, cut, within=TAKEN_OVER)
            assert line.servers[before].get() in [(503, "heartbeat lost"), (503, "database unreachable")]
        line.check(*itertools.pairwise("abc"))
        # What was held back arrives late, and changes nothing.
        proxies["a"].cut = proxies["b"].cut = False
        for name in "ab":
            until(partial(excluded, line.servers[name]))
        assert line.order()[:2] == ["c", "d"]
        assert sorted(line.order()[2:]) == ["a", "b"]
        time.sleep(2 * HEARTBEAT)
        line.check(*itertools.pairwise("abc"))


@pytest.mark.system
def test_a_partitioned_network_is_no_different_one_way_or_both(postgres_url: str, need: Callable[[str], str]) -> None:
    port = int(postgres_url.rsplit(":", 1)[1].split("/")[0])
    with contextlib.ExitStack() as stack, Line(postgres_url) as line:
        networks = {
            name: stack.enter_context(contextlib.closing(Network(need("ip"), n))) for n, name in enumerate("ab")
        }
        for name, network in networks.items():
            proxy = stack.enter_context(contextlib.closing(Proxy(port, host=network.database)))
            url = postgres_url.replace(f"127.0.0.1:{port}/", f"{network.database}:{proxy.port}/")
            line.join(name, url=url, host=network.server, prefix=network.prefix)
        line.join("c")
        line.join("d")
        line.settle()
        cut = time.monotonic()
        networks["a"].cut()
        line.takes_over("b", cut, within=TAKEN_OVER)
        cut = time.monotonic()
        networks["b"].cut_replies()
        # One more heartbeat of it may arrive, whose answer it never sees.
        line.takes_over("c", cut, within=TAKEN_OVER + HEARTBEAT)
        line.check(*itertools.pairwise("abc"))
        for network in networks.values():
            network.heal()
        for name in "ab":
            until(partial(excluded, line.servers[name]), seconds=40)
        assert line.order()[:2] == ["c", "d"]
        time.sleep(2 * HEARTBEAT)
        line.check(*itertools.pairwise("abc"))


def excluded(server: Gunicorn) -> bool:
    """Whether it answers as one of the surplus."""
    return server.get() == (503, "entitlement error")


@contextlib.contextmanager
def paused(server: Gunicorn) -> Iterator[float]:
    """The whole server, master and workers, stopped in its tracks; since when."""
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        yield time.monotonic()
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
