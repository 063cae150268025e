"""The share of users' requests that fail through a whole violation, for four arrangements of HAProxy and Readygate.

    .venv/bin/pip install -q -r bench/requirements.txt
    .venv/bin/python bench/violation.py             (six minutes; writes docs/figures/violation.json and .svg)
    .venv/bin/python bench/violation.py --quick     (one minute, short intervals; prints only)
    .venv/bin/python bench/violation.py --draw      (the picture anew, from the figures)

Two real servers on one real PostgreSQL, behind HAProxy with deploy/haproxy.cfg. The second starts without a license,
its grace passes, the violation stands, and then one of them ends: the second is stopped, or the first crashes. Users'
requests come all along at a steady pace, each on a connection of its own, without a second try.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from figures import save  # noqa: E402  # the import path is set first

# isort: split
import postgres as pg  # noqa: E402  # the import path is set first
from balancer import Answered, Scene, haproxy, on_liveness, on_one  # noqa: E402

FIGURES = ROOT / "docs" / "figures"
ENDS = {"stop": "the second server is stopped", "crash": "the first server crashes"}


@dataclass(frozen=True)
class Arrangement:
    """What HAProxy asks, and what the servers answer."""

    name: str
    title: str
    exclude: str
    change: Callable[[str], str] = str


ARRANGEMENTS = [
    Arrangement("healthz", "check on /healthz, as before", "all", on_liveness),
    Arrangement("all", "check on /readyz, READYGATE_EXCLUDE=all (default)", "all"),
    Arrangement("surplus", "check on /readyz, READYGATE_EXCLUDE=surplus", "surplus"),
    Arrangement("surplus-on-one", "the same, and HAProxy keeps all requests on one server", "surplus", on_one),
]


@dataclass(frozen=True)
class Times:
    """The pace of a run, in seconds."""

    heartbeat: float = 5.0
    grace: float = 60.0
    alone: float = 10.0
    violation: float = 40.0
    after: float = 40.0
    per_second: float = 40.0


def main() -> None:
    """Measure, write the figures and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short intervals; writes nothing")
    parser.add_argument("--draw", action="store_true", help="only draw what docs/figures/violation.json says")
    arguments = parser.parse_args()
    figures = FIGURES / "violation.json"
    if not arguments.draw:
        quick = Times(heartbeat=0.5, grace=4, alone=2, violation=6, after=8)
        runs = measure(quick if arguments.quick else Times())
        print(table(runs["runs"]))
        if arguments.quick:
            return
        figures.parent.mkdir(parents=True, exist_ok=True)
        figures.write_text(dump(runs))
    draw(json.loads(figures.read_text()))


def measure(times: Times) -> dict[str, Any]:
    """All arrangements side by side, once for each end."""
    program = shutil.which("haproxy") or sys.exit("haproxy is not installed")
    server = pg.Server(settings={"max_connections": "200"})
    runs = []
    try:
        for end in ENDS:
            with ThreadPoolExecutor(len(ARRANGEMENTS)) as pool:
                one = partial(run, program=program, database=server.url(), end=end, times=times)
                runs += list(pool.map(one, ARRANGEMENTS))
    finally:
        server.remove()
    return {
        "command": "python bench/violation.py",
        "settings": {"heartbeat": times.heartbeat, "stale_after": 3 * times.heartbeat, "grace": times.grace},
        "requests_per_second": times.per_second,
        "runs": runs,
    }


def run(arrangement: Arrangement, *, program: str, database: str, end: str, times: Times) -> dict[str, Any]:
    """One violation from beginning to end."""
    variables: dict[str, Any] = {
        "READYGATE_EXCLUDE": arrangement.exclude,
        "READYGATE_HEARTBEAT_SECONDS": str(times.heartbeat),
        "READYGATE_REPLICA_GRACE_SECONDS": str(times.grace),
        "READYGATE_DATABASE_TIMEOUT_SECONDS": "5",
    }
    balance = partial(haproxy, program, change=arrangement.change)
    with (
        pg.new_database(database) as url,
        Scene(url, balance, per_second=times.per_second, **variables) as scene,
    ):
        began = time.monotonic()
        time.sleep(times.alone)
        started = time.monotonic()
        scene.start_second()
        violation = grace_ends(url)
        sleep_until(violation + times.violation)
        ended = time.monotonic()
        if end == "stop":
            scene.two.stop()
        else:
            scene.one.kill_all()
        sleep_until(ended + times.after)
        finished = time.monotonic()
        scene.clients.close()
        requests = scene.clients.between(began, finished)
        changes = scene.balancer.changes()
    phases = {
        "one server": (began, started),
        "grace": (started, violation),
        "violation": (violation, ended),
        "after its end": (ended, finished),
    }
    return {
        "arrangement": arrangement.name,
        "title": arrangement.title,
        "end": end,
        "phases": {name: phase(requests, *span, origin=violation) for name, span in phases.items()},
        "in flight at the end": count([one for one in requests if one.sent < ended < one.received]),
        "balancer": changes,
        "seconds": per_second(requests, origin=violation),
    }


def phase(requests: Sequence[Answered], start: float, end: float, *, origin: float) -> dict[str, Any]:
    """What became of the requests sent in a phase; instants count from the beginning of the violation."""
    within = [one for one in requests if start <= one.sent < end]
    failed = [one for one in within if one.failed]
    found: dict[str, Any] = {"from": round(start - origin, 1), "to": round(end - origin, 1), **count(within)}
    if failed:
        found["first_failed_after"] = round(failed[0].sent - start, 2)
        found["last_failed_after"] = round(failed[-1].sent - start, 2)
        found["statuses"] = {
            str(code): sum(one.status == code for one in failed) for code in {f.status for f in failed}
        }
    return found


def count(requests: Sequence[Answered]) -> dict[str, Any]:
    """How many, and how many of them failed."""
    failed = sum(one.failed for one in requests)
    return {"requests": len(requests), "failed": failed, "share": round(failed / max(1, len(requests)), 4)}


def per_second(requests: Sequence[Answered], *, origin: float) -> list[tuple[int, int, int]]:
    """Second from the beginning of the violation, answered, failed."""
    seconds: dict[int, list[int]] = {}
    for one in requests:
        seconds.setdefault(int((one.sent - origin) // 1), [0, 0])[one.failed] += 1
    # The first and the last second are not whole.
    return [(second, *seconds[second]) for second in sorted(seconds)[1:-1]]  # type: ignore[misc]


def grace_ends(url: str) -> float:
    """The monotonic instant at which the last server's grace ends. The database's clock is this host's."""
    ends = pg.execute(url, "SELECT max(started_at + grace) FROM readygate_replicas")[0][0]
    assert isinstance(ends, int)
    return ends / 1_000_000 - time.time() + time.monotonic()


def sleep_until(instant: float) -> None:
    """Sleep until the monotonic instant."""
    time.sleep(max(0.0, instant - time.monotonic()))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The figures for a person."""
    lines = [
        f"{'arrangement':15} {'end':6} {'phase':14} {'requests':>8} {'failed':>7} {'share':>7}  failed from..to (s)"
    ]
    for one in runs:
        for name, found in one["phases"].items():
            span = f"{found['first_failed_after']}..{found['last_failed_after']}" if found["failed"] else "-"
            lines.append(
                f"{one['arrangement']:15} {one['end']:6} {name:14} {found['requests']:8} {found['failed']:7}"
                f" {found['share']:7.1%}  {span}"
            )
    return "\n".join(lines)


def dump(runs: dict[str, Any]) -> str:
    """JSON that a person can compare: a line for each run's seconds."""
    text = json.dumps({**runs, "runs": [{**one, "seconds": f"@{n}"} for n, one in enumerate(runs["runs"])]}, indent=1)
    for n, one in enumerate(runs["runs"]):
        text = text.replace(f'"@{n}"', json.dumps(one["seconds"], separators=(",", ":")))
    return text + "\n"


def draw(runs: dict[str, Any]) -> None:
    """Requests over time, answered and failed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    plt.rcParams.update({"svg.hashsalt": "readygate", "font.size": 9, "axes.spines.top": False})
    answered_colour, failed_colour = "#9ecae1", "#d94801"
    rate = runs["requests_per_second"]
    figure, panels = plt.subplots(len(ARRANGEMENTS), len(ENDS), sharex=True, sharey=True, figsize=(11, 8.5))
    for one in runs["runs"]:
        row = [arrangement.name for arrangement in ARRANGEMENTS].index(one["arrangement"])
        column = list(ENDS).index(one["end"])
        axes = panels[row][column]
        edges, failed, answered = steps(one["seconds"])
        axes.stairs(answered, edges, baseline=failed, fill=True, color=answered_colour, linewidth=0)
        axes.stairs(failed, edges, fill=True, color=failed_colour, linewidth=0)
        axes.set_ylim(0, rate * 1.5)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_yticks([0, rate / 2, rate])
        for name in ("grace", "violation", "after its end"):
            found = one["phases"][name]
            axes.axvline(found["from"], color="#444444", linewidth=0.8, linestyle=":")
            middle = (max(found["from"], edges[0]) + min(found["to"], edges[-1])) / 2
            axes.text(middle, rate * 1.43, f"{name}\n{_failed(found)}", ha="center", va="top", fontsize=8)
        if column == 0:
            axes.set_title(one["title"], loc="left", fontweight="bold", fontsize=10)
            axes.set_ylabel("requests/s")
        if row == 0:
            axes.text(0.5, 1.24, f"It ends when {ENDS[one['end']]}", ha="center", fontsize=11, transform=axes.transAxes)
        if row == len(ARRANGEMENTS) - 1:
            axes.set_xlabel("seconds from the beginning of the violation")
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in (answered_colour, failed_colour)]
    figure.legend(handles, ["answered", "failed"], loc="upper center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    save(figure, "violation")
    plt.close(figure)


def steps(seconds: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
    """Edges, failed, and failed and answered together, where either changes."""
    edges, failed, both = [seconds[0][0]], [seconds[0][2]], [seconds[0][1] + seconds[0][2]]
    for second, good, bad in seconds[1:]:
        if (bad, good + bad) != (failed[-1], both[-1]):
            edges.append(second)
            failed.append(bad)
            both.append(good + bad)
    return [*edges, seconds[-1][0] + 1], failed, both


def _failed(found: dict[str, Any]) -> str:
    if not found["failed"]:
        return "none failed"
    few = f"{found['failed']} of {found['requests']}"
    text = few if found["share"] < 0.05 else f"{found['share']:.0%}"
    if found["from"] > 0:
        # How long it lasted is what counts; the share depends on how long one looks.
        text = f"all for {found['last_failed_after']:.1f} s" if found["share"] >= 0.05 else few
    return f"{text} failed"


if __name__ == "__main__":
    main()
