"""Requests a second, latency and cost of /readyz, beside a bare Flask view, the proposal's sketch and four peers.

    .venv/bin/python bench/readyz.py             (two minutes; writes docs/figures/readyz.json)
    .venv/bin/python bench/readyz.py --quick     (short rounds; prints only)

Each is served by the same gunicorn, 2 gthread workers of 4 threads, from an environment of its own that this makes in
bench/.venv. wrk (Debian's) asks them in turn, round by round, so that the machine's noise hits all alike: 16
connections, each closed after its answer, as a kubelet or HAProxy probes. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from figures import ROOT, cpu_seconds, ratios, record, spread

# isort: split
import postgres as pg
from servers import get, until

HERE = Path(__file__).resolve().parent
WORKERS, THREADS, CONNECTIONS = 2, 4, 16


@dataclass(frozen=True)
class Contender:
    """Something that answers readiness probes."""

    name: str
    #: For gunicorn; None: its configuration says it.
    application: str | None
    path: str = "/readyz"
    #: On top of our requirements.txt, so that Flask, gunicorn, SQLAlchemy and pg8000 are the same everywhere.
    requires: tuple[str, ...] = ()


CONTENDERS = (
    Contender("bare Flask view", "peers:bare()"),
    Contender("readygate", None),
    Contender("the proposal's sketch", "peers:sketch()"),
    Contender("flask-healthz", "peers:flask_healthz()", "/healthz/ready", ("flask-healthz==1.0.1",)),
    Contender("py-healthcheck, no cache", "peers:py_healthcheck(cached=False)", requires=("py-healthcheck==1.10.1",)),
    Contender("py-healthcheck, cached 27 s", "peers:py_healthcheck()", requires=("py-healthcheck==1.10.1",)),
    Contender("dockerflow", "peers:dockerflow()", "/__heartbeat__", ("dockerflow==2026.3.4",)),
    Contender(
        "django-health-check",
        "peers:django_health_check()",
        requires=("django-health-check==4.8.0", "django==5.2.19", "psycopg[binary]==3.3.9"),
    ),
)
BARE, OURS, SKETCH = CONTENDERS[:3]


@dataclass
class Rounds:
    """What the rounds of one contender found, in their order."""

    per_second: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    failed: int = 0


def main() -> None:
    """Measure, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rounds; writes nothing")
    quick = parser.parse_args().quick
    found = record("readyz", lambda: measure(rounds=2 if quick else 11, seconds=1), file=not quick)
    print(json.dumps(found, indent=1) if quick else table(found))


def measure(*, rounds: int, seconds: int) -> dict[str, Any]:
    """All contenders, beside each other."""
    wrk = shutil.which("wrk") or sys.exit("wrk is not installed; `apt-get install wrk`")
    for contender in CONTENDERS:
        environment_of(contender)
    server = pg.Server(
        settings={"max_connections": "300", "shared_preload_libraries": "pg_stat_statements", "jit": "off"}
    )
    try:
        pg.execute(server.url(), "CREATE EXTENSION pg_stat_statements")
        with ExitStack() as stack:
            running = {one: stack.enter_context(served(one, server.url())) for one in CONTENDERS}
            close = in_turn(wrk, running, rounds=rounds, seconds=seconds, close=True)
            costs = {one.name: statements(wrk, server, one, running[one][0], seconds) for one in CONTENDERS}
            idle = statements_without_probes(server, seconds=6)
        with ExitStack() as stack:
            # Of two workers one often gets all connections that are kept, by chance: one worker is no such lottery.
            some = {one: stack.enter_context(served(one, server.url(), workers=1)) for one in (BARE, OURS, SKETCH)}
            kept = in_turn(wrk, some, rounds=rounds, seconds=seconds, close=False)
    finally:
        server.remove()
    return {
        "served_by": f"gunicorn, {WORKERS} gthread workers of {THREADS} threads",
        "asked_by": f"wrk, {CONNECTIONS} connections, {rounds} rounds of {seconds} s each, in turn",
        "one connection per request": summary(close, costs),
        "kept connections, one worker": summary(kept, {}),
        "readygate, statements per second without probes": idle,
    }


def environment_of(contender: Contender) -> Path:
    """The environment's folder of programs; made where it is not there yet, or is not what is asked for."""
    folder = HERE / ".venv" / re.sub(r"\W+", "-", contender.name)
    wanted = "\n".join([(ROOT / "requirements.txt").read_text(), (ROOT / "constraints.txt").read_text()])
    wanted += "\n".join(contender.requires)
    stamp = folder / "made-of"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making the environment of {contender.name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", ROOT / "requirements.txt", *contender.requires], check=True, timeout=300)
        stamp.write_text(wanted)
    return folder / "bin"


@contextmanager
def served(contender: Contender, url: str, *, workers: int = WORKERS) -> Iterator[tuple[int, int]]:
    """A server of the contender: its port and its master's process id."""
    port = pg.free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": url,
        "PORT": str(port),
        "WEB_CONCURRENCY": str(workers),
    }
    command: list[str | Path] = [environment_of(contender) / "gunicorn"]
    if contender.application is not None:
        command += [contender.application, "--bind", f"127.0.0.1:{port}", "--worker-class", "gthread"]
        command += ["--threads", str(THREADS), "--worker-tmp-dir", "/dev/shm", "--no-control-socket"]
    process = subprocess.Popen(
        command,
        cwd=ROOT if contender.application is None else HERE,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: all(get(port, contender.path)[0] == 200 for _ in range(8)), seconds=30)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(40)


def in_turn(
    wrk: str, running: dict[Contender, tuple[int, int]], *, rounds: int, seconds: int, close: bool
) -> dict[str, Rounds]:
    """Rounds of all of them; the order turns, so that none always comes after the same other."""
    found = {one.name: Rounds() for one in running}
    order = list(running)
    for one in order:
        probe(wrk, one, running[one], seconds=1, close=close)
    for number in range(rounds):
        for one in order[number % len(order) :] + order[: number % len(order)]:
            answer = probe(wrk, one, running[one], seconds=seconds, close=close)
            rounds_ = found[one.name]
            rounds_.per_second.append(answer["per_second"])
            rounds_.p99_ms.append(answer["p99_ms"])
            rounds_.cpu_us.append(answer["cpu_us"])
            rounds_.failed += int(answer["failed"])
    return found


#: So that wrk prints numbers instead of sentences.
_LUA = """
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("%d %d %f %d\\n", summary.requests, summary.duration, latency:percentile(99),
    e.status + e.connect + e.read + e.write + e.timeout))
end
"""


def probe(wrk: str, contender: Contender, where: tuple[int, int], *, seconds: int, close: bool) -> dict[str, float]:
    """One round: requests a second, p99, CPU microseconds of the server per request, failures."""
    port, pid = where
    script = HERE / ".venv" / "done.lua"
    script.write_text(_LUA)
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script)]
    command += ["-H", "Connection: close"] if close else []
    before = cpu_seconds(pid)
    result = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{contender.path}"], check=True, capture_output=True, text=True, timeout=60
    )
    requests, microseconds, p99, failed = map(float, result.stdout.split("\n")[-2].split())
    return {
        "per_second": requests / microseconds * 1e6,
        "p99_ms": p99 / 1000,
        "cpu_us": (cpu_seconds(pid) - before) / max(1.0, requests) * 1e6,
        "failed": failed,
        "requests": requests,
    }


def statements(wrk: str, server: pg.Server, contender: Contender, port: int, seconds: int) -> dict[str, float]:
    """Statements on the database because of a flood of probes: per request. Those of our threads count as well."""
    before, started = executed(server), time.monotonic()
    answer = probe(wrk, contender, (port, os.getpid()), seconds=seconds, close=True)
    others = IDLE_PER_SECOND * (time.monotonic() - started)
    return {"per_request": round(max(0.0, executed(server) - before - others) / answer["requests"], 2)}


#: What readygate's two workers send all along: two pings, and the syncs' three or four statements every 4.5 s or more.
IDLE_PER_SECOND = 4.0


def statements_without_probes(server: pg.Server, *, seconds: float) -> float:
    """What the only one with threads sends while nobody asks."""
    before = executed(server)
    time.sleep(seconds)
    return round((executed(server) - before - 1) / seconds, 2)


def executed(server: pg.Server) -> int:
    """How many statements the server has executed, BEGIN and ROLLBACK among them."""
    found = pg.execute(server.url(), "SELECT sum(calls)::bigint FROM pg_stat_statements")[0][0]
    return int(str(found))


def summary(found: dict[str, Rounds], costs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The spreads, and the ratios to the bare view and to the sketch, round by round."""
    bare, sketch = found[BARE.name], found[SKETCH.name]
    shown = {}
    for name, one in found.items():
        shown[name] = {
            "requests_per_second": spread(one.per_second, 0),
            "p99_ms": spread(one.p99_ms, 1),
            "server_cpu_us_per_request": spread(one.cpu_us, 0),
            "to_bare": ratios(one.per_second, bare.per_second),
            "to_sketch": ratios(one.per_second, sketch.per_second),
            "failed": one.failed,
        }
        if name in costs:
            shown[name]["statements_per_request"] = costs[name]["per_request"]
    return shown


def table(found: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = [f"{'':28} {'requests/s':>10} {'p99 ms':>7} {'to bare':>8} {'to sketch':>9} {'statements':>10}"]
    for name, one in found["one connection per request"].items():
        lines.append(
            f"{name:28} {one['requests_per_second']['median']:10.0f} {one['p99_ms']['median']:7.1f}"
            f" {one['to_bare']['median']:8.2f} {one['to_sketch']['median']:9.2f} {one['statements_per_request']:10.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
