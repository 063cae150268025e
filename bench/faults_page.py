"""docs/faults.md from the figures that the tests of faults wrote, and their picture.

    .venv/bin/python bench/everything.py faults recycling soak      (the figures: an hour and a half; then the page)
    .venv/bin/python bench/faults_page.py                           (the page; needs bench/requirements.txt)

One fault again, with one combination of workers or with all of them:

    .venv/bin/pytest -n 0 tests/test_faults.py -k hung --all-workers --write-faults
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from figures import ROOT, read, save

# isort: split
from crowd import CALLERS, PROBERS
from faults import HELD_SECONDS

PAGE = ROOT / "docs" / "faults.md"

#: What an operator sees of each: of /readyz, and in the log.
SEEN = {
    "refused": ("`database unreachable`", "`connection lost`, then `answers again`"),
    "hung": ("`database unreachable`", "`timeout`, then `answers again`"),
    "cut off": ("`database unreachable`", "`timeout`, then `answers again`"),
    "black-holed, replies": ("`database unreachable`", "`timeout`, then `answers again`"),
    "black-holed": ("`database unreachable`", "`timeout`, then `answers again`"),
    "slow, 200 ms": ("`OK`", "nothing but of the API: six callers share two connections, and some give up"),
    "slow, 2 s": ("`database unreachable`, as the timeout is 1 s", "`timeout`, then `answers again`"),
    "slow, 2 s, with the default timeout": (
        "`OK`, and a line in `?verbose` now and then: no other could take its place",
        "`heartbeat lost` comes and goes",
    ),
    "slow, 2 s, surplus": ("`heartbeat lost` now and then, see below", "`heartbeat lost` comes and goes"),
    "connections exhausted": (
        "`OK` for who has a connection, else `database unreachable`",
        "`connection lost` or `too many connections (53300)`, then `answers again`",
    ),
    "password rotated": (
        "`database unreachable` until the file holds the new one",
        "`connection lost`, `authentication (28P01)` or `other (DATABASE_URL_FILE)`, then `answers again`",
    ),
    "the first of two addresses black-holed": (
        "`OK`; `database unreachable` while it connects anew",
        "`connection lost`, then `answers again`",
    ),
    "table locked": (
        "`heartbeat lost` where another could take the place; else `OK` and a line in `?verbose`",
        "`heartbeat failed: timeout (57014)`, then `heartbeat succeeds again`",
    ),
    "the previous release's code beside this one": ("`OK` from both", "nothing"),
    "failover to a read-only standby": (
        "`heartbeat lost` until it is promoted (surplus); else `OK` and a line in `?verbose`",
        "`heartbeat failed: read only (25006)`, then `heartbeat succeeds again`",
    ),
    "new address, same name": (
        "`database unreachable` until the name leads to it",
        "`connection lost`, then `answers again`",
    ),
    "database's clock +60 s": ("`OK` from one of two, which may be the other one now", "`entitlement error` moves"),
    "database's clock -60 s": ("`OK` from one of two, which may be the other one now", "`entitlement error` moves"),
    "PgBouncer restarted": ("`database unreachable`", "`connection lost`, then `answers again`"),
    "hung behind PgBouncer": ("`database unreachable`", "`timeout`, then `answers again`"),
    "SQLite file deleted": ("`schema outdated` for a moment: a new file is made", "`schema: at revision …`"),
    "SQLite file deleted alone": (
        "`database unreachable` or `schema outdated` for a moment, likewise",
        "`schema: at revision …`",
    ),
    "SQLite file read-only": (
        "`OK` for who has it open, `starting` from new workers",
        "`heartbeat failed: read only`, then `heartbeat succeeds again`",
    ),
    "SQLite disk full": (
        "`heartbeat lost` once no write succeeds any more (surplus)",
        "`heartbeat failed: other (SQLITE_FULL)`, then `heartbeat succeeds again`",
    ),
    "master SIGKILLed": (
        "`heartbeat lost` from its workers, for as long as they live",
        "of the others: the `entitlement error` ends",
    ),
    "worker SIGKILLed": ("`OK`; the answers that it was giving are lost", "gunicorn's line; the new worker's `ready`"),
    "worker hung, timeout of 3 s": ("`OK` from the others", "gunicorn's `WORKER TIMEOUT`; the new worker's `ready`"),
    "SIGUSR2": ("`OK` from both masters, which are two replicas", "gunicorn's lines"),
    "workers recycled by SIGHUP": ("`OK`", "gunicorn's lines"),
}
_TEXT = """\
# Faults

What a fault does to a running server, and how long it took to notice it and to recover from it, without anybody's
doing. Written by `bench/faults_page.py` from [the figures](figures/faults.json), which the tests measured on real
servers and a real PostgreSQL ({postgresql}; {cores} cores, Python {python}), under a flood of {probers} probers and
{callers} API callers at once (two where a worker does one thing at a time).
The slowest of the combinations that ran is shown: sync, gthread and gevent with
`preload_app` on and off. `sync` means one thread, and one worker where the database hangs or is slow.

The database's timeout is 1 s and the heartbeat 0.5 s here. With the defaults (5 s, 5 s) what hangs is noticed
within 6.5 s. Each worker's log says once that a fault begins and once that it ends.

| fault | `/readyz` | the log | noticed | promised | recovered | promised | `/healthz` p99 | slowest |
|---|---|---|---|---|---|---|---|---|
{rows}

![Time to notice and to recover](figures/faults.svg)

- *Recovered* counts from the moment at which the fault was mended; of a process that died, from its death until the
  new one, or the other server, is ready; of a clock, from its jump until exactly one serves.
- `/healthz` is asked every 20 ms, whatever became of the questions before, and its time counts from the instant at
  which it was due. Time in which the asking process itself was not given a processor is taken off.
- A `sync` worker has one thread. An API call that is under way at the instant at which the database stops answering
  holds it for its bound of a second at most, once per outage, and `/healthz` with it: what was due in the first
  {held} s of a fault is left out of its p99, and no answer took longer than that. With gthread, the default, and
  gevent nothing is left out.
- A database whose statements take 2 s is too slow for a heartbeat of 5 s: a sync sends three of them one after the
  other, the lease of 10 s counts from before the first, and the next verdict comes after the pause and six seconds
  more. Where another could take its place (`surplus`), a replica answered `heartbeat lost` for {share_out} of the
  time, and said so {times_out} times in {slow_seconds} s. Once a statement takes more than about a ninth of
  `READYGATE_STALE_AFTER_SECONDS`, raise that and `READYGATE_HEARTBEAT_SECONDS`.
- After a jump of the database's clock two may serve for one lease at most; here they did so for {both} s.
- At SIGHUP without `preload_app` gunicorn stops the old workers while the new ones still load the application:
  requests wait for that long, and none is lost. Workers were recycled {recycled}.
- A password that is rotated costs nothing where the file holds the new one before the old connections end.
- A clock of the database that steps back makes each replica join anew, at the end of the line and as old as it was:
  it does not get another grace.
- What an SQLite file held is lost with it. The replica makes a new one and serves; licenses have to be added again,
  or come from `READYGATE_LICENSE_FILE`.

## All of it at random

{soak}
"""


def main() -> None:
    """Write the page, and draw the picture."""
    PAGE.write_text(page())
    draw()


def page() -> str:
    """All of docs/faults.md."""
    kept = read("faults")
    figures: dict[str, dict[str, dict[str, Any]]] = kept["faults"]
    slow = figures["slow, 2 s, surplus"].values()
    clocks = [one for fault, cases in figures.items() if "clock" in fault for one in cases.values()]
    return _TEXT.format(
        **kept["machine"],
        probers=PROBERS,
        callers=CALLERS,
        held=HELD_SECONDS,
        rows="\n".join(_row(fault, figures[fault].values()) for fault in SEEN),
        share_out=f"{max(one['share_out'] for one in slow):.0%}",
        times_out=max(one["times_out"] for one in slow),
        slow_seconds=f"{max(one['seconds'] for one in slow):.0f}",
        both=f"{max(one['both_served'] for one in clocks):.1f}",
        recycled=_recycled(figures["workers recycled by SIGHUP"]),
        soak=_soak(next(iter(figures["at random"].values()))),
    )


def _recycled(found: dict[str, dict[str, Any]]) -> str:
    by_number: dict[int, list[str]] = {}
    for case, one in sorted(found.items()):
        by_number.setdefault(one["times"], []).append(case)
    return ", ".join(
        f"{number:,} times ({', '.join(cases)})" for number, cases in sorted(by_number.items(), reverse=True)
    )


def _row(fault: str, measured: Iterable[dict[str, Any]]) -> str:
    worst = {name: _worst(measured, name) for name in (*_SECONDS, *_MILLISECONDS)}
    shown = [*(_shown(worst[name], "s") for name in _SECONDS), *(_shown(worst[name], "ms") for name in _MILLISECONDS)]
    return f"| {' | '.join([fault, *SEEN[fault], *shown])} |"


_SECONDS = ("noticed", "promised", "recovered", "recovered_promised")
_MILLISECONDS = ("healthz_p99_ms", "healthz_max_ms")


def _worst(measured: Iterable[dict[str, Any]], name: str) -> float | None:
    return max((each[name] for each in measured if name in each), default=None)


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.1f} {unit}" if unit == "s" else f"{value:,.0f} {unit}"


def _soak(found: dict[str, Any]) -> str:
    (threads, files, connections, _), (threads_now, files_now, connections_now, _) = found["before"], found["after"]
    return (
        f"{found['faults']} faults in {found['seconds']} s, of a fixed seed: a hung, crashed, cut off or slow\n"
        f"database, connections thrown out, a worker paused; in the first third workers killed or recycled, too,\n"
        f"{found['replaced']} of them. From then on the same workers lived through all of it. They began with\n"
        f"{threads} threads, {files} file descriptors and {connections} connections, and ended with {threads_now},"
        f" {files_now} and {connections_now}, of which six\n"
        "threads and four connections may be made when requests need them; their memory was"
        f" {found['memory_grown']:.2f} times\nwhat it was."
    )


def draw() -> None:
    """Noticed and recovered, the slowest combination of each fault, with what is promised."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "readygate"
    import matplotlib.pyplot as plt

    figures = read("faults")["faults"]
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(9, 7.5))
    faults = [fault for fault in reversed(SEEN) if any("recovered" in one for one in figures[fault].values())]
    for axes, what, promise in zip(panels, ("noticed", "recovered"), ("promised", "recovered_promised"), strict=True):
        for place, fault in enumerate(faults):
            seconds, promised = (_worst(figures[fault].values(), name) for name in (what, promise))
            if seconds is None:
                continue
            axes.barh(place, seconds, color="#0072b2")
            if promised is not None:
                axes.plot([promised, promised], [place - 0.4, place + 0.4], color="#d94801", linewidth=2)
        axes.set_xlabel(f"seconds until {what}; the mark is the promise")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(faults)), faults, fontsize=8)
    figure.tight_layout()
    save(figure, "faults")
    plt.close(figure)


if __name__ == "__main__":
    main()
