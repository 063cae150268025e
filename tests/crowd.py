"""Those who ask a server all along, each in a process of its own, so that no test's work slows what they measure.

    python tests/crowd.py liveness HOST PORT
    python tests/crowd.py flood HOST PORT TOKEN [CALLERS]

Each says `asking` once it has been answered, asks until its standard input ends, and then prints what it saw as JSON.
Nothing of the project is imported: it must be there at once.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

_LIVENESS_EVERY, _PROBE_PAUSE, _API_PAUSE = 0.02, 0.02, 0.1
PROBERS, CALLERS = 4, 6
#: Requests for /healthz that may be under way at once. What is due meanwhile waits, and its time counts.
_UNDER_WAY = 200
_ROUTES = ("/api/v2/entitlements", "/api/v2/replicas", "/api/v2/licenses")


def ask(host: str, port: int, path: str, token: str | None = None) -> tuple[int, str]:
    """Status and body; (0, what went wrong) where there was no answer."""
    headers = {"Connection": "close", **({"Authorization": f"Bearer {token}"} if token else {})}
    connection = http.client.HTTPConnection(host, port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, type(error).__name__
    finally:
        connection.close()


def liveness(stop: threading.Event, host: str, port: int) -> dict[str, object]:
    """Ask for /healthz at fixed instants, whatever became of the questions before: a stall is seen by each that it met.

    The times count from the instant at which a question was due. Beside it, for the machine's own noise: by how much
    this process was late for it, and how long a server takes, asked in the same way, that does nothing but answer.
    """
    #: When it was due, on the monotonic clock that all processes share, and the seconds until the answer was there.
    asked: list[tuple[float, float]] = []
    late: list[tuple[float, float]] = []
    noise: list[float] = []
    bad: list[tuple[int, str]] = []

    def one(due: float) -> None:
        answer = ask(host, port, "/healthz")
        seconds = time.monotonic() - due
        if answer == (200, "OK"):
            asked.append((due, seconds))
        else:
            bad.append(answer)

    with bare_server() as bare, ThreadPoolExecutor(_UNDER_WAY) as pool, ThreadPoolExecutor(_UNDER_WAY) as beside:

        def other(due: float) -> None:
            ask("127.0.0.1", bare, "/")
            noise.append(time.monotonic() - due)

        ask(host, port, "/healthz")
        asking()
        due = time.monotonic()
        while not stop.is_set():
            due += _LIVENESS_EVERY
            time.sleep(max(0.0, due - time.monotonic()))
            late.append((due, time.monotonic() - due))
            pool.submit(one, due)
            beside.submit(other, due)
    return {"asked": asked, "late": late, "noise": noise, "bad": bad}


@contextlib.contextmanager
def bare_server() -> Iterator[int]:
    """The port of a process that answers everything."""
    process = subprocess.Popen([sys.executable, __file__, "bare"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait(10)


class Bare(http.server.BaseHTTPRequestHandler):
    """Answers, and does nothing else."""

    def do_GET(self) -> None:
        """200 OK."""
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"OK")

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Threaded(http.server.ThreadingHTTPServer):
    """A server with room for who waits: a connection that finds none tries again after a second."""

    request_queue_size = 512


def answer_everything() -> None:
    """Serve until killed; print the port first."""
    with Threaded(("127.0.0.1", 0), Bare) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def flood(stop: threading.Event, host: str, port: int, token: str, callers: int = CALLERS) -> dict[str, object]:
    """Ask for /readyz, and for the API, several at once of each, with a short pause after each answer."""
    ready: dict[str, int] = {}
    called: dict[str, int] = {}
    slowest = [0.0]
    lock = threading.Lock()
    all_have_asked = threading.Barrier(PROBERS + callers, action=asking)

    def probe() -> None:
        ask(host, port, "/readyz")
        all_have_asked.wait(60)
        while not stop.wait(_PROBE_PAUSE):
            answer = ask(host, port, "/readyz")
            with lock:
                count(ready, answer)

    def call(number: int) -> None:
        ask(host, port, _ROUTES[number % len(_ROUTES)], token)
        all_have_asked.wait(60)
        while not stop.wait(_API_PAUSE):
            started = time.monotonic()
            status, body = ask(host, port, _ROUTES[number % len(_ROUTES)], token)
            seconds = time.monotonic() - started
            with lock:
                slowest[0] = max(slowest[0], seconds)
                count(called, (status, body if status != 200 else ""))
            number += 1

    together([probe] * PROBERS + [partial(call, number) for number in range(callers)])
    return {"ready": ready, "called": called, "slowest": slowest[0]}


def count(seen: dict[str, int], answer: tuple[int, str]) -> None:
    """Note an answer."""
    key = f"{answer[0]} {answer[1].strip()}"
    seen[key] = seen.get(key, 0) + 1


def together(work: Sequence[Callable[[], None]]) -> None:
    """Do all of it, each in a thread, and wait."""
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def asking() -> None:
    """Tell who started this that it may begin."""
    print("asking", flush=True)


def until_told(stop: threading.Event) -> None:
    """Wait for the end of the standard input."""
    sys.stdin.read()
    stop.set()


def main() -> None:
    """As the module says."""
    if sys.argv[1:] == ["bare"]:
        answer_everything()
        return
    kind, host, port, *more = sys.argv[1:]
    stop = threading.Event()
    threading.Thread(target=until_told, args=(stop,), daemon=True).start()
    where = (stop, host, int(port))
    found = liveness(*where) if kind == "liveness" else flood(*where, more[0], *map(int, more[1:]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
