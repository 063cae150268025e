"""docs/figures.md, and the README's table of figures, from what the programs beside this one have kept.

    .venv/bin/python bench/page.py              (both, and the pictures; needs bench/requirements.txt)

`tests/test_figures.py` holds both texts against the figures, and the figures against what is promised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from figures import ROOT, read, save

PAGE, README = ROOT / "docs" / "figures.md", ROOT / "README.md"
BEGINS, ENDS = "<!-- figures -->\n", "<!-- end of figures -->\n"
SMALL, LARGE = "10", "10000"
#: What one replica of two workers asks of the database: a ping a second each, a sync each a heartbeat.
WORKERS, HEARTBEAT = 2, 5.0

_TEXT = """# Figures

Written by `bench/page.py` from the files in [figures/](figures), which one command makes:

    .venv/bin/pip install -q -r bench/requirements.txt && .venv/bin/python bench/everything.py

Ratios were taken within one run, round by round, with the contenders in turn: the machine is small and noisy, and its
absolute numbers are only there to be compared with each other. What is shown is the median, and in parentheses the
smallest and the largest.

## /readyz beside others

{readyz_setting}. Each connection serves one request, as probes do.

{readyz}

![Requests a second of each](figures/readyz.svg)

The sketch was to be beaten three times over. No view that Flask serves does that here where each
connection serves one request: the bare one is {bare_to_sketch} times the sketch, since most of a
request's cost is its connection, and ours is {to_bare} of the bare one. With connections that are
kept, and one worker, the bare view is {kept_bare} times the sketch, and ours {kept} times. More
would take an answer before Flask: a middleware of the server's, and no blueprint.

Two workers send the database {idle} statements a second, at any rate of probes: a ping each, their
syncs, and the `SET LOCAL statement_timeout` that travels in one message with each.
`tests/test_faults.py` holds that as a gate.

## A fleet

One PostgreSQL, and rows of replicas that live. *To 10* is the time of a sync beside that in a fleet of ten, in turn.

{syncs}

![A sync's time beside the fleet's size](figures/fleet.svg)

An hour's beats, one transaction each, as fast as they go, with no vacuum all along:

{beats}

Two graces end before eight real threads; from the end of the second until each of them is blocked,
which may be a moment before it: who does not know any better counts a fifth of the time as over
already.

{violation}

A sync reads at most the allowed number and one more of those that are in line, its own row, and the next whose grace
ends: hence 3 rows without a license, and 52 with a limit of 50. The contract's "allowed + 1" counts the line alone.

Rows that any query of a sync read in vain, at most, in fleets of every kind, and blocks that it touched:

{passed_over}

### Where the design stops

{stops}

## Start and memory

{startup}

{memory}

## Questions of a host app

Nanoseconds a call, alone and from {threads} threads at once, which take turns every {switch_us} µs, beside a function
that returns False. There is no lock: the ratio is about that of the function, and far from that of one which takes one.

{gates}

## Faults

The time to notice each fault, and to recover from it, is in [faults.md](faults.md).

{machines}
"""

_STOPS = """\
A replica of two workers sends two pings a second and two syncs a heartbeat. By the CPU that they
cost the database here ({ping} ms a ping, {sync} ms a sync without a license, {unbounded} ms under a
license without bound), one core of the database is enough for about {per_core} replicas, or
{per_core_unbounded} without bound. The table stays small: {dead} dead tuples per replica after an
hour without any vacuum, {hot} % of the updates in place.

What runs out first is connections: each worker keeps one, so {per_core} replicas hold
{connections}, and PostgreSQL's default is 100. Up to some hundred replicas, raise
`max_connections`; beyond that, PgBouncer in transaction mode in between, as the tests have it. Past
the core, most of the load is the syncs: a longer `READYGATE_HEARTBEAT_SECONDS` divides it, and
slows the take-over after a crash by as much; or one worker would have to beat for its replica's
others, and tell them by shared memory. What a sync reads grows with the license's `replica_limit`,
and not with the fleet."""


def main() -> None:
    """Write the page, the table and the pictures."""
    PAGE.write_text(page())
    text = README.read_text()
    README.write_text(with_table(text))
    draw()


def with_table(readme: str) -> str:
    """The README, with the table as the figures have it."""
    before, rest = readme.split(BEGINS)
    return before + BEGINS + summary() + "\n" + ENDS + rest.split(ENDS)[1]


def summary() -> str:
    """The figures that are promised, and what was measured."""
    readyz, fleet, startup, gates = (read(name) for name in ("readyz", "fleet", "startup", "gates"))
    ours, bare = (readyz["one connection per request"][name] for name in ("readygate", "bare Flask view"))
    rows = [
        ("`/readyz`, requests a second", "at least 0.9 of a bare Flask view's", shown(ours["to_bare"])),
        (
            "the same, beside the proposal's sketch",
            "at least 3 times",
            f"{shown(ours['to_sketch'])}; a bare Flask view: {shown(bare['to_sketch'])}",
        ),
        (
            "statements that a probe sends to the database",
            "0",
            f"{ours['statements_per_request']:g}; dockerflow's, for one, sends"
            f" {readyz['one connection per request']['dockerflow']['statements_per_request']:g}",
        ),
        (
            "statements a second of two workers, at any rate of probes",
            "a ping a second each, and their syncs",
            f"{readyz['readygate, statements per second without probes']:.1f}",
        ),
        *in_faults(),
        (
            "a sync among 10,000 replicas, beside 10",
            "at most 1.5 times",
            shown(worst_ratio(fleet)),
        ),
        (
            "a violation among 10,000, until all see it",
            "a heartbeat and a second: 6 s",
            after_the_instant(largest(fleet)),
        ),
        ("`gunicorn` to ready, new SQLite", "3 s", f"{shown(startup['seconds_to_ready']['SQLite, new'])} s"),
        (
            "`has_blocking_errors()` in a host app",
            "memory only, no lock",
            f"{gates['questions']['has_blocking_errors()']['ns']['median']:.0f} ns",
        ),
    ]
    return table(("what", "promised", "measured"), rows)


def in_faults() -> list[tuple[str, str, str]]:
    """The worst of what is promised of a database that fails, over the faults of each kind."""
    faults = read("faults")["faults"]

    def worst(what: str, of: Sequence[str]) -> float:
        return max(float(one[what]) for fault in of for one in faults[fault].values() if what in one)

    hung = ("hung", "cut off", "black-holed", "slow, 2 s")
    return [
        (
            "a database that refuses, until all workers say so",
            "1.5 s",
            f"{worst('noticed', ['refused']):.1f} s at worst",
        ),
        (
            "one that hangs or is slow, likewise",
            "the timeout (here 1 s) and 1.5 s",
            f"{worst('noticed', hung):.1f} s at worst",
        ),
        (
            "ready again, once it answers",
            "its timeout and 2 s",
            f"{worst('recovered', ['refused', *hung]):.1f} s at worst",
        ),
        (
            "ready again, once another server was SIGKILLed",
            "stale, a heartbeat (here 0.5 s) and 1 s: 3 s",
            f"{worst('recovered', ['master SIGKILLed']):.1f} s at worst",
        ),
        ("`/healthz` in any fault, p99", "50 ms", f"{worst('healthz_p99_ms', list(faults)):.0f} ms at worst"),
    ]


def after_the_instant(seconds: Mapping[str, float]) -> str:
    """How long it took at worst; what was seen before the instant was foreseen."""
    if seconds["max"] > 0:
        return f"{seconds['max']:.2f} s at worst"
    return f"at the instant, or up to {-seconds['min']:.1f} s before it"


def worst_ratio(fleet: Mapping[str, Any]) -> Mapping[str, float]:
    """Over the licenses and policies, the sync that grows most."""
    found: Mapping[str, float] = max(
        (case["to the smallest"][LARGE] for case in fleet["syncs"].values()), key=lambda ratio: ratio["median"]
    )
    return found


def largest(fleet: Mapping[str, Any]) -> Mapping[str, float]:
    """Seconds until those who watch the largest fleet see a violation."""
    found: Mapping[str, float] = max(fleet["violation"], key=lambda one: one["replicas"])["seconds"]
    return found


def page() -> str:
    """All of docs/figures.md."""
    readyz, fleet, startup, gates = (read(name) for name in ("readyz", "fleet", "startup", "gates"))
    return _TEXT.format(
        readyz_setting=f"Served by {readyz['served_by']}, asked by {readyz['asked_by']}",
        readyz=_readyz(readyz),
        bare_to_sketch=shown(readyz["one connection per request"]["bare Flask view"]["to_sketch"]),
        to_bare=shown(readyz["one connection per request"]["readygate"]["to_bare"]),
        kept_bare=shown(readyz["kept connections, one worker"]["bare Flask view"]["to_sketch"]),
        kept=shown(readyz["kept connections, one worker"]["readygate"]["to_sketch"]),
        idle=f"{readyz['readygate, statements per second without probes']:.1f}",
        syncs=_syncs(fleet),
        beats=_beats(fleet),
        violation=table(
            ("replicas", "seconds"), [(_number(one["replicas"]), shown(one["seconds"])) for one in fleet["violation"]]
        ),
        passed_over=_passed_over(fleet),
        stops=_stops(fleet),
        startup=table(
            ("from `gunicorn` to the first 200", "seconds"),
            [(kind, shown(seconds)) for kind, seconds in startup["seconds_to_ready"].items()],
        ),
        memory=table(
            ("a worker's memory, MiB", "its own (USS)", "with its share (PSS)"),
            [(kind, f"{one['uss']:.0f}", f"{one['pss']:.0f}") for kind, one in startup["megabytes_per_worker"].items()],
        ),
        machines=_machines(),
        threads=gates["threads"],
        switch_us=gates["switch_us"],
        gates=table(
            ("question", "ns", f"ns, {gates['threads']} threads", "ratio"),
            [
                (
                    f"`{name}`" if "(" in name else name,
                    shown(one["ns"], 0),
                    shown(one["ns_from_all_threads"], 0),
                    shown(one["all_threads_to_one"]),
                )
                for name, one in gates["questions"].items()
            ],
        ),
    )


def _machines() -> str:
    """What measured, as each file says."""
    seen = read("faults")["machine"]
    return (
        f"All of it was measured on {seen['cores']} cores, with Python {seen['python']} and PostgreSQL"
        f" {seen['postgresql']}."
    )


def _readyz(found: Mapping[str, Any]) -> str:
    return table(
        ("", "requests/s", "to the bare view", "to the sketch", "p99 ms", "CPU µs", "statements", "failed"),
        [
            (
                name,
                f"{one['requests_per_second']['median']:,.0f}",
                shown(one["to_bare"]),
                shown(one["to_sketch"]),
                f"{one['p99_ms']['median']:.1f}",
                f"{one['server_cpu_us_per_request']['median']:.0f}",
                f"{one['statements_per_request']:g}",
                str(one["failed"]),
            )
            for name, one in found["one connection per request"].items()
        ],
    )


def _syncs(fleet: Mapping[str, Any]) -> str:
    return table(
        ("license, policy", "replicas", "ms", "to 10", "rows read", "database's CPU, ms"),
        [
            (
                case,
                _number(int(size)),
                shown(sizes[size]["ms"]),
                shown(sizes["to the smallest"][size]),
                str(sizes[size]["rows"]),
                f"{sizes[size]['database_cpu_ms']:.2f}",
            )
            for case, sizes in fleet["syncs"].items()
            for size in sizes["to the smallest"]
        ],
    )


def _beats(fleet: Mapping[str, Any]) -> str:
    return table(
        ("replicas", "beats", "in place", "dead tuples", "of each replica", "KiB before", "after", "CPU µs a beat"),
        [
            (
                _number(one["replicas"]),
                _number(one["beats"]),
                f"{one['hot_share']:.1%}",
                _number(one["dead_tuples"]),
                f"{one['dead_per_replica']:.1f}",
                _number(one["kilobytes_before"]),
                _number(one["kilobytes_after"]),
                f"{one['database_cpu_us_per_beat']:.0f}",
            )
            for one in fleet["an hour's beats"]
        ],
    )


def _passed_over(fleet: Mapping[str, Any]) -> str:
    found = fleet["rows passed over"]
    return table(
        ("fleet", *(f"{what}, of {_number(int(size))}" for size in (SMALL, LARGE) for what in ("in vain", "blocks"))),
        [
            (kind, *(str(sizes[size][what]) for size in (SMALL, LARGE) for what in ("rows_in_vain", "blocks")))
            for kind, sizes in found.items()
        ],
    )


def _stops(fleet: Mapping[str, Any]) -> str:
    ping = fleet["ping"]["database_cpu_ms"]
    sync = fleet["syncs"]["no license, all"][LARGE]["database_cpu_ms"]
    unbounded = fleet["syncs"]["no bound, all"][LARGE]["database_cpu_ms"]
    per_core, without_bound = (round(1000 / (WORKERS * (ping + one / HEARTBEAT)), -2) for one in (sync, unbounded))
    beats = max(fleet["an hour's beats"], key=lambda one: one["replicas"])
    return _STOPS.format(
        ping=f"{ping:.2g}",
        sync=f"{sync:.2g}",
        unbounded=f"{unbounded:.2g}",
        per_core=_number(per_core),
        per_core_unbounded=_number(without_bound),
        connections=_number(per_core * WORKERS),
        dead=f"{beats['dead_per_replica']:.1f}",
        hot=f"{beats['hot_share'] * 100:.1f}",
    )


def shown(spread: Mapping[str, float], digits: int = 2) -> str:
    """Median (minimum to maximum)."""
    return f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f} to {spread['max']:.{digits}f})"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    return "\n".join(_lines(head, rows))


def _lines(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def draw() -> None:
    """The pictures."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures make the same file.
    mpl.rcParams["svg.hashsalt"] = "readygate"
    import matplotlib.pyplot as plt

    found = read("readyz")["one connection per request"]
    figure, axes = plt.subplots(figsize=(8, 3.4))
    names = list(reversed(found))
    spreads = [found[name]["requests_per_second"] for name in names]
    middles = [one["median"] for one in spreads]
    errors = [[one["median"] - one["min"] for one in spreads], [one["max"] - one["median"] for one in spreads]]
    colours = ["#0072b2" if name == "readygate" else "#999999" for name in names]
    axes.barh(names, middles, xerr=errors, color=colours, error_kw={"elinewidth": 1})
    axes.set_xlabel("requests a second: median, smallest and largest round")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save(figure, "readyz")
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(8, 3.4))
    for case, sizes in read("fleet")["syncs"].items():
        ratios = sizes["to the smallest"]
        axes.plot([int(size) for size in ratios], [one["median"] for one in ratios.values()], marker="o", label=case)
    axes.axhline(1.5, color="#444444", linestyle=":", linewidth=1)
    axes.text(10, 1.52, "promised: at most 1.5", fontsize=8)
    axes.set_xscale("log")
    axes.set_ylim(0, 2)
    axes.set_xlabel("replicas")
    axes.set_ylabel("time of a sync, to that of 10")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left", ncols=2)
    figure.tight_layout()
    save(figure, "fleet")
    plt.close(figure)


if __name__ == "__main__":
    main()
