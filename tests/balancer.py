"""Load balancers with the configurations of deploy/, and the people behind them: an agent, and a stream of requests."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postgres import free_port
from servers import ROOT, Gunicorn, get, until
from workspaces import ANSWER

DEPLOY = ROOT / "deploy"
#: What deploy/haproxy.cfg promises: a no, or a yes, has its effect within inter + fastinter.
HAPROXY_SECONDS = 1.2
#: The options of a server with the application of `workspaces`: one worker, and threads enough for held connections.
APPLICATION = ("--threads", "8", "--graceful-timeout", "2", "workspaces:create_app()")
_WAIT_SECONDS = 5.0


def application(url: str, port: int, **variables: str) -> Gunicorn:
    """A server with the application of `workspaces`, on `port`."""
    given: dict[str, Any] = {"PYTHONPATH": str(ROOT / "tests"), "PORT": str(port), **variables}
    server = Gunicorn(url, *APPLICATION, workers=1, **given)
    server.port = port
    return server


class Balancer:
    """A running load balancer."""

    def __init__(
        self, command: Sequence[str], port: int, folder: Path, *, checks: bool = False, **variables: str
    ) -> None:
        """`checks`: whether it checks its servers by itself, and logs what it finds."""
        self.port, self.checks = port, checks
        self._log = folder / "log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={"PATH": os.environ["PATH"], **variables}
            )
        until(lambda: get(port, "/")[0] != 0)

    @property
    def lines(self) -> str:
        """All it has logged."""
        return self._log.read_text(errors="replace")

    def changes(self) -> list[str]:
        """The servers it took out and in again, in turn: `two DOWN`, `two UP`."""
        found = [" ".join(one) for one in re.findall(r"Server replicas/(\w+) is (DOWN|UP)", self.lines)]
        # Some of them it says twice, once as an alert.
        return [one for one, before in zip(found, ["", *found], strict=False) if one != before]

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def haproxy(program: str, *replicas: int, change: Callable[[str], str] = lambda text: text) -> Iterator[Balancer]:
    """HAProxy with deploy/haproxy.cfg as it stands, in front of two ports; `change`: what a test does to the text."""
    with tempfile.TemporaryDirectory(prefix="readygate-haproxy-") as folder:
        file = Path(folder) / "haproxy.cfg"
        file.write_text(change((DEPLOY / "haproxy.cfg").read_text()))
        port = free_port()
        addresses: dict[str, Any] = {f"REPLICA_{n}": f"127.0.0.1:{replica}" for n, replica in enumerate(replicas, 1)}
        addresses["LISTEN"] = f"127.0.0.1:{port}"
        balancer = Balancer([program, "-f", str(file)], port, Path(folder), checks=True, **addresses)
        try:
            yield balancer
        finally:
            balancer.stop()


@contextlib.contextmanager
def nginx(program: str, *replicas: int) -> Iterator[Balancer]:
    """nginx with deploy/nginx.conf, its addresses and port replaced."""
    with tempfile.TemporaryDirectory(prefix="readygate-nginx-") as folder:
        port = free_port()
        text = (DEPLOY / "nginx.conf").read_text().replace("listen 80;", f"listen 127.0.0.1:{port};")
        for n, replica in enumerate(replicas, 11):
            text = text.replace(f"192.0.2.{n}:8000", f"127.0.0.1:{replica}")
        file = Path(folder) / "nginx.conf"
        file.write_text(text)
        own = f"daemon off; master_process off; pid {folder}/pid;"
        balancer = Balancer([program, "-e", "stderr", "-p", folder, "-c", str(file), "-g", own], port, Path(folder))
        try:
            yield balancer
        finally:
            balancer.stop()


def on_liveness(text: str) -> str:
    """HAProxy's configuration with today's check, the liveness route."""
    return text.replace("GET /readyz", "GET /healthz")


def on_one(text: str) -> str:
    """HAProxy's configuration with the option for one allowed replica: all requests to the same one."""
    return text.replace("# stick-table", "stick-table").replace("# stick on", "stick on")


class Agent:
    """A workspace's agent: holds one connection through the load balancer, and makes another when it ends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.connections = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it and its connection."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_WAIT_SECONDS)
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/agent")
                response = connection.getresponse()
                self.connections += response.status == 200
                while response.status == 200 and response.read1(100) and not self._stop.is_set():
                    pass
            connection.close()


@dataclass(frozen=True)
class Answered:
    """A client's request: when it was sent and answered (monotonic), and with what; status 0 is no answer."""

    sent: float
    received: float
    status: int
    body: str

    @property
    def failed(self) -> bool:
        """Whether the user did not get the workspace."""
        return (self.status, self.body) != (200, ANSWER)


class Clients:
    """A steady stream of requests, each on a connection of its own; three seconds' worth may wait for answers."""

    def __init__(self, port: int, *, per_second: float, method: str = "GET") -> None:
        self.answered: list[Answered] = []
        self._port, self._method = port, method
        self._stop = threading.Event()
        count = round(3 * per_second)
        started = time.monotonic()
        self._threads = [
            threading.Thread(target=self._run, args=(started + n / per_second, count / per_second), daemon=True)
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the stream, and wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _WAIT_SECONDS)

    def between(self, start: float, end: float = float("inf")) -> list[Answered]:
        """The requests sent from `start` until before `end`."""
        return sorted((one for one in list(self.answered) if start <= one.sent < end), key=lambda one: one.sent)

    def _run(self, due: float, interval: float) -> None:
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            sent = time.monotonic()
            status, body = get(self._port, "/workspace", timeout=_WAIT_SECONDS, method=self._method)
            self.answered.append(Answered(sent, time.monotonic(), status, body))
            # After a long answer it goes on in its own beat; it does not catch up.
            due += interval * max(1, -(-(time.monotonic() - due) // interval))


def share(requests: Sequence[Answered]) -> float:
    """The share of them that failed."""
    return sum(one.failed for one in requests) / len(requests)


class Scene:
    """Two servers behind a load balancer, the second not started yet; an agent with the first; a stream of clients."""

    def __init__(
        self,
        url: str,
        balance: Callable[[int, int], contextlib.AbstractContextManager[Balancer]],
        *,
        per_second: float = 40,
        method: str = "GET",
        **variables: str,
    ) -> None:
        self._url, self._variables = url, variables
        self._stack = contextlib.ExitStack()
        ports = free_port(), free_port()
        self._second_port = ports[1]
        try:
            self.one = self._start(ports[0])
            until(lambda: self.one.get() == (200, "OK"), seconds=60)
            self.balancer = self._stack.enter_context(balance(*ports))
            until(lambda: get(self.balancer.port, "/healthz") == (200, "OK") and not self._second_tried())
            self.agent = Agent(self.balancer.port)
            self._stack.callback(self.agent.close)
            until(lambda: self.agent.connections > 0)
            self.clients = Clients(self.balancer.port, per_second=per_second, method=method)
            self._stack.callback(self.clients.close)
        except BaseException:
            self.close()
            raise

    def start_second(self) -> float:
        """Start the second server and wait until it is ready; the instant at which it was seen ready."""
        self.two = self._start(self._second_port)
        until(lambda: self.two.get() == (200, "OK"), seconds=60)
        return time.monotonic()

    def close(self) -> None:
        """End everything."""
        self._stack.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, port: int) -> Gunicorn:
        server = application(self._url, port, **self._variables)
        self._stack.callback(server.log.unlink)
        self._stack.callback(server.kill_all)
        return server

    def _second_tried(self) -> bool:
        """Whether HAProxy, which begins by trusting every server, still tries the one that is not there."""
        return self.balancer.checks and "two DOWN" not in self.balancer.changes()
