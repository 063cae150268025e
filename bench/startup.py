"""From `gunicorn` to the first /readyz 200, and the memory of a worker.

    .venv/bin/python bench/startup.py             (two minutes; writes docs/figures/startup.json)
    .venv/bin/python bench/startup.py --quick     (prints only)

The memory is what belongs to a worker alone (USS), and that plus its share of what is shared (PSS), after /readyz was
asked a hundred times; beside a bare Flask view under the same gunicorn with the same settings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from figures import ROOT, record, spread

# isort: split
import postgres as pg
from servers import get, until

HERE = Path(__file__).resolve().parent
PROGRAM = str(Path(sys.executable).with_name("gunicorn"))
WORKERS, THREADS = 2, 4
BARE = ("peers:bare()", "--worker-class", "gthread", "--threads", str(THREADS), "--no-control-socket")


def main() -> None:
    """Measure, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer starts; writes nothing")
    quick = parser.parse_args().quick
    found = record("startup", lambda: measure(rounds=2 if quick else 9), file=not quick)
    print(json.dumps(found, indent=1))


def measure(*, rounds: int) -> dict[str, Any]:
    """Starts of every kind in turn, then the memory of each."""
    server = pg.Server()
    seconds: dict[str, list[float]] = {
        "bare Flask view": [],
        "SQLite, new": [],
        "PostgreSQL, new": [],
        "PostgreSQL, again": [],
    }
    try:
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder, pg.new_database(server.url()) as url:
                for kind, where, arguments in (
                    ("bare Flask view", "", BARE),
                    ("SQLite, new", f"sqlite:///{folder}/new.db", ()),
                    ("PostgreSQL, new", url, ()),
                    ("PostgreSQL, again", url, ()),
                ):
                    with running(where, *arguments) as (_, elapsed):
                        seconds[kind].append(elapsed)
        with pg.new_database(server.url()) as url:
            memory = {
                "bare Flask view": megabytes("", *BARE),
                "bare Flask view, --preload": megabytes("", *BARE, "--preload"),
                "readygate": megabytes(url),
                "readygate, --preload": megabytes(url, "--preload"),
            }
    finally:
        server.remove()
    return {
        "served_by": f"gunicorn, {WORKERS} gthread workers of {THREADS} threads",
        "seconds_to_ready": {kind: spread(found, 2) for kind, found in seconds.items()},
        "megabytes_per_worker": memory,
    }


@contextmanager
def running(url: str, *arguments: str) -> Iterator[tuple[psutil.Process, float]]:
    """A server: its master, and the seconds until its first 200."""
    port = pg.free_port()
    environment = {"PATH": os.environ["PATH"], "PORT": str(port), "WEB_CONCURRENCY": str(WORKERS)}
    if url:
        environment["DATABASE_URL"] = url
    bare = "peers:bare()" in arguments
    command = [PROGRAM, *arguments, *(["--bind", f"127.0.0.1:{port}"] if bare else [])]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=HERE if bare else ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: get(port, "/readyz", timeout=2)[0] == 200, seconds=30)
        elapsed = time.monotonic() - started
        for _ in range(100):
            get(port, "/readyz")
        yield psutil.Process(process.pid), elapsed
    finally:
        process.terminate()
        process.wait(40)


def megabytes(url: str, *arguments: str) -> dict[str, float]:
    """Of one of its workers, the mean of all."""
    with running(url, *arguments) as (master, _):
        time.sleep(3)
        infos = [worker.memory_full_info() for worker in master.children()]
    return {name: round(sum(getattr(info, name) for info in infos) / len(infos) / 2**20, 1) for name in ("uss", "pss")}


if __name__ == "__main__":
    main()
