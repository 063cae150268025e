"""How figures are kept: a spread instead of one number, the machine's load beside them, a file in docs/figures/."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "figures"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {
        "min": round(min(values), digits),
        "median": round(statistics.median(values), digits),
        "max": round(max(values), digits),
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The spread of ours/theirs, round by round."""
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def record(name: str, measure: Callable[[], dict[str, Any]], *, file: bool = True) -> dict[str, Any]:
    """What `measure` finds, with the machine's load before and after; kept in docs/figures/<name>.json."""
    before, started = os.getloadavg(), time.monotonic()
    found = measure()
    machine = {
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": [round(value, 2) for value in before],
        "load_after": [round(value, 2) for value in os.getloadavg()],
        "seconds": round(time.monotonic() - started),
    }
    kept = {"command": f"python bench/{name}.py", "machine": machine, **found}
    if file:
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")
    return kept


def read(name: str) -> dict[str, Any]:
    """What docs/figures/<name>.json keeps."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def digest(name: str) -> str:
    """What tells docs/figures/<name>.json from any other, as its picture names it."""
    return f"{name}.json, sha256 {hashlib.sha256((FOLDER / f'{name}.json').read_bytes()).hexdigest()}"


def save(figure: Any, name: str) -> None:
    """Keep a picture of docs/figures/<name>.json beside it. The same figures make the same file."""
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Description": digest(name)})


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its living children."""
    import psutil

    total = 0.0
    with suppress(psutil.NoSuchProcess):
        main = psutil.Process(pid)
        for process in [main, *main.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
    return total
