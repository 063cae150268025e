"""Real gunicorn masters with real workers, started in the project's folder as a user would."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from postgres import free_port

ROOT = Path(__file__).resolve().parent.parent
#: Heartbeat and grace of the servers in the tests, in seconds.
HEARTBEAT, GRACE = 0.5, 2.0


class Gunicorn:
    """One master."""

    def __init__(
        self,
        url: str,
        *arguments: str,
        workers: int = 2,
        prefix: tuple[str, ...] = (),
        program: str = str(Path(sys.executable).with_name("gunicorn")),
        folder: Path = ROOT,
        **variables: str,
    ) -> None:
        """`program`: another gunicorn than ours. `folder`: where the code is, if not here."""
        self.host = "127.0.0.1"
        self.port = free_port()
        self.log = Path(tempfile.mkstemp(prefix="readygate-log-")[1])
        environment = {
            "PATH": os.environ["PATH"],
            "DATABASE_URL": url,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": str(workers),
            "READYGATE_HEARTBEAT_SECONDS": str(HEARTBEAT),
            "READYGATE_REPLICA_GRACE_SECONDS": str(GRACE),
            "READYGATE_DATABASE_TIMEOUT_SECONDS": "2",
            **variables,
        }
        self.started = time.monotonic()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*prefix, program, *arguments],
                cwd=folder,
                env={name: value for name, value in environment.items() if value},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def lines(self) -> str:
        """All it has logged."""
        return self.log.read_text(errors="replace")

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return list(psutil.Process(self.process.pid).children())

    def get(self, path: str = "/readyz", *, timeout: float = 5) -> tuple[int, str]:
        """Status and body; (0, what went wrong) where there was no answer."""
        return get(self.port, path, timeout=timeout, host=self.host)

    def send(self, number: int) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> float:
        """End it; the monotonic instant at which the master was gone."""
        if self.process.poll() is None:
            self.send(number)
        self.process.wait(40)
        return time.monotonic()

    def kill_all(self) -> None:
        """SIGKILL to master and workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGCONT)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def gunicorn(
    url: str,
    *arguments: str,
    workers: int = 2,
    **options: Any,
) -> Iterator[Gunicorn]:
    """A running master; nothing of it is left afterwards."""
    server = Gunicorn(url, *arguments, workers=workers, **options)
    try:
        yield server
    finally:
        server.kill_all()
        server.log.unlink()


def worker_class(kind: str) -> list[str]:
    """The arguments for workers of a kind: with more than one thread gunicorn would make `sync` a `gthread`."""
    return ["--worker-class", kind, *(["--threads", "1"] if kind == "sync" else [])]


def get(port: int, path: str, *, timeout: float = 5, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    """Status and body of a request on a connection of its own; (0, what went wrong) where there was no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, path, headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)
    finally:
        connection.close()


def until(what: Callable[[], bool], *, seconds: float = 20) -> float:
    """Seconds until `what` holds; fails where it does not within `seconds`."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds, f"not within {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - started


def ready(server: Gunicorn) -> bool:
    """Whether a dozen answers in a row are 200: one alone is one worker's."""
    return all(server.get() == (200, "OK") for _ in range(12))


def all_ready(server: Gunicorn) -> bool:
    """Whether each of its workers has logged that it is ready: those of an idle server need not all be asked."""
    return all(
        re.search(rf"\[{worker.pid}\] \[INFO\] readygate\.watch: .*: ready$", server.lines, re.MULTILINE)
        for worker in server.workers()
    )


def answers(server: Gunicorn, body: str) -> bool:
    """Whether a dozen answers in a row are 503 with `body`."""
    return all(server.get() == (503, body) for _ in range(12))
