"""docs/faults.md from the figures that the tests of faults wrote.

.venv/bin/pytest -m server tests/test_faults*.py tests/test_soak.py --write-faults    (the figures; --all-workers: all)
.venv/bin/python bench/faults_page.py                                                      (the page)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIGURES, PAGE = ROOT / "docs" / "figures" / "faults.json", ROOT / "docs" / "faults.md"

#: What an operator sees of each: of /readyz, and in the log.
SEEN = {
    "refused": ("`database unreachable`", "`connection lost`, then `answers again`"),
    "hung": ("`database unreachable`", "`timeout`, then `answers again`"),
    "cut off": ("`database unreachable`", "`timeout`, then `answers again`"),
    "black-holed": ("`database unreachable`", "`timeout`, then `answers again`"),
    "slow, 200 ms": ("`OK`", "nothing"),
    "slow, 2 s": ("`database unreachable`, as the timeout is 1 s", "`timeout`, then `answers again`"),
    "slow, 2 s, with the default timeout": ("`OK`", "nothing"),
    "connections exhausted": (
        "`OK` for who has a connection, else `database unreachable`",
        "`connection lost` or `too many connections (53300)`, then `answers again`",
    ),
    "password rotated": (
        "`database unreachable` until the file holds the new one",
        "`connection lost`, `authentication (28P01)` or `other (DATABASE_URL_FILE)`, then `answers again`",
    ),
    "table locked": (
        "`heartbeat lost` where another could take the place; else `OK` and a line in `?verbose`",
        "`heartbeat failed: timeout (57014)`, then `heartbeat succeeds again`",
    ),
    "the previous release's code beside this one": ("`OK` from both", "nothing"),
    "read-only standby": (
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
    "SQLite file read-only": (
        "`OK` for who has it open, `starting` from new workers",
        "`heartbeat failed: read only`, then `heartbeat succeeds again`",
    ),
    "SQLite disk full": (
        "`heartbeat lost` once no write succeeds any more (surplus)",
        "`heartbeat failed: other (SQLITE_FULL)`, then `heartbeat succeeds again`",
    ),
    "master SIGKILLed": ("`heartbeat lost` from its workers, for as long as they live", "its death, on the others"),
    "worker SIGKILLed": ("`OK`; the answers that it was giving are lost", "gunicorn's line"),
    "worker hung, timeout of 3 s": ("`OK` from the others", "gunicorn's `WORKER TIMEOUT`"),
    "SIGUSR2": ("`OK` from both masters, which are two replicas", "gunicorn's lines"),
    "workers recycled by SIGHUP": ("`OK`", "gunicorn's lines"),
}
_TEXT = """\
# Faults

What a fault does to a running server, and how long it took to notice it and to recover from it, without anybody's
doing. Written by `bench/faults_page.py` from [the figures](figures/faults.json), which the tests measured on real
servers and a real PostgreSQL, under a flood of probes and API calls, on a machine of two cores that others used as
well. The slowest of the combinations that ran is shown; all of them, sync, gthread and gevent with `preload_app` on
and off, run with `--all-workers`.

The database's timeout is 1 s and the heartbeat 0.5 s here. With the defaults (5 s, 5 s) what hangs is noticed
within 6.5 s. Through all of it `/healthz` answers, 99 of 100 times within 50 ms, and each worker's log says once
that a fault begins and once that it ends.

| fault | `/readyz` | the log | noticed | promised | recovered | `/healthz` p99 |
|---|---|---|---|---|---|---|
{rows}

- *Recovered* counts from the moment at which the fault was mended; of a process that died, from its death; of a
  clock, from its jump.
- With `sync` workers an API call holds its worker while the database is slow: probes wait for a free one. Give
  `sync` two workers, or keep `gthread`.
- A password that is rotated costs nothing where the file holds the new one before the old connections end.
- A clock of the database that steps back makes each replica join anew, at the end of the line and as old as it was:
  it does not get another grace.
- What an SQLite file held is lost with it. The replica makes a new one and serves; licenses have to be added again,
  or come from `READYGATE_LICENSE_FILE`.

## All of it at random

{soak}
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


def page() -> str:
    """All of docs/faults.md."""
    figures: dict[str, dict[str, dict[str, Any]]] = json.loads(FIGURES.read_text())
    rows = [_row(fault, figures[fault].values()) for fault in SEEN if fault in figures]
    soak = next(iter(figures.get("at random", {}).values()), None)
    return _TEXT.format(rows="\n".join(rows), soak=_soak(soak))


def _row(fault: str, measured: Iterable[dict[str, Any]]) -> str:
    worst = {
        name: max((each[name] for each in measured if name in each), default=None)
        for name in ("noticed", "promised", "recovered", "healthz_p99_ms")
    }
    seconds = [_shown(worst[name], "s") for name in ("noticed", "promised", "recovered")]
    return f"| {' | '.join([fault, *SEEN[fault], *seconds, _shown(worst['healthz_p99_ms'], 'ms')])} |"


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.1f} {unit}" if unit == "s" else f"{value:.0f} {unit}"


def _soak(found: dict[str, Any] | None) -> str:
    if found is None:
        return "`pytest tests/test_soak.py --soak-seconds 600 --write-faults` has not been run yet."
    threads, files, connections, _ = found["before"]
    return (
        f"{found['faults']} faults in {found['seconds']} s, of a fixed seed: a hung, crashed, cut off or slow\n"
        "database, connections thrown out, a worker killed or paused, all of them recycled. It began with\n"
        f"{threads} threads, {files} file descriptors and {connections} connections, and ended with no more but for\n"
        "those threads and connections (six and four at most) that are made when requests need them; its memory\n"
        f"was {found['memory_grown']:.2f} times what it was."
    )


if __name__ == "__main__":
    main()
