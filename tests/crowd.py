"""Those who ask a server all along, each in a process of its own, so that no test's work slows what they measure.

    python tests/crowd.py liveness HOST PORT
    python tests/crowd.py flood HOST PORT TOKEN

Each asks until its standard input ends, and then prints what it saw as JSON. Nothing of the project is imported: it
must be there at once.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable

_LIVENESS_PAUSE, _PROBE_PAUSE, _API_PAUSE = 0.02, 0.005, 0.02
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
    """Ask for /healthz, and note by how much each pause was too long: that is the machine's own noise."""
    seconds: list[float] = []
    noise: list[float] = []
    bad: list[tuple[int, str]] = []
    while not stop.is_set():
        started = time.perf_counter()
        answer = ask(host, port, "/healthz")
        answered = time.perf_counter()
        seconds.append(answered - started)
        if answer != (200, "OK"):
            bad.append(answer)
        time.sleep(_LIVENESS_PAUSE)
        noise.append(time.perf_counter() - answered - _LIVENESS_PAUSE)
    return {"seconds": seconds, "noise": noise, "bad": bad}


def flood(stop: threading.Event, host: str, port: int, token: str) -> dict[str, object]:
    """Ask for /readyz, and for the API, as fast as a few short pauses let it."""
    ready: dict[str, int] = {}
    called: dict[str, int] = {}
    slowest = [0.0]

    def probe() -> None:
        while not stop.wait(_PROBE_PAUSE):
            count(ready, ask(host, port, "/readyz"))

    def call() -> None:
        number = 0
        while not stop.wait(_API_PAUSE):
            started = time.perf_counter()
            status, body = ask(host, port, _ROUTES[number % len(_ROUTES)], token)
            slowest[0] = max(slowest[0], time.perf_counter() - started)
            count(called, (status, body if status != 200 else ""))
            number += 1

    both([probe, call])
    return {"ready": ready, "called": called, "slowest": slowest[0]}


def count(seen: dict[str, int], answer: tuple[int, str]) -> None:
    """Note an answer."""
    key = f"{answer[0]} {answer[1].strip()}"
    seen[key] = seen.get(key, 0) + 1


def both(work: list[Callable[[], None]]) -> None:
    """Do all of it, each in a thread, and wait."""
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until_told(stop: threading.Event) -> None:
    """Wait for the end of the standard input."""
    sys.stdin.read()
    stop.set()


def main() -> None:
    """As the module says."""
    kind, host, port, *token = sys.argv[1:]
    stop = threading.Event()
    threading.Thread(target=until_told, args=(stop,), daemon=True).start()
    found = liveness(stop, host, int(port)) if kind == "liveness" else flood(stop, host, int(port), token[0])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
