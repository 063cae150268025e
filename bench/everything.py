"""Every figure anew, one after the other, then the pages and pictures: two hours, with nothing beside it.

    .venv/bin/pip install -q -r bench/requirements.txt && .venv/bin/python bench/everything.py
    .venv/bin/python bench/everything.py gates startup      (some of them)

Needs root, wrk, and of Debian's packages what the tests need (HAProxy, PgBouncer, faketime, iproute2).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = sys.executable
#: What a machine cannot measure is a failure here, as in CI, and no gap in the table.
ENVIRONMENT = {**os.environ, "CI": "true"}
FAULTS = ["-m", "pytest", "-q", "-n", "0", "--write-faults"]
#: What makes each, and how many seconds it may take.
STEPS: dict[str, tuple[list[str], int]] = {
    "gates": ([str(HERE / "gates.py")], 600),
    "startup": ([str(HERE / "startup.py")], 600),
    "readyz": ([str(HERE / "readyz.py")], 900),
    "fleet": ([str(HERE / "fleet.py")], 1200),
    "violation": ([str(HERE / "violation.py")], 1200),
    # Each fault with every combination of workers; nothing of an earlier run stays.
    "faults": (
        [
            *FAULTS,
            "--all-workers",
            "--faults-anew",
            *(f"tests/test_{name}.py" for name in ("faults", "faults_processes", "faults_sqlite", "faults_system")),
        ],
        5400,
    ),
    # In the place of the few times that the step before tried it.
    "recycling": ([*FAULTS, "--recycles", "1000", "tests/test_faults_processes.py", "-k", "recycled"], 3600),
    "soak": ([*FAULTS, "--soak-seconds", "600", "tests/test_soak.py"], 1200),
}


def main() -> int:
    """Run the steps; the exit status is 1 where one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", choices=[*STEPS, []], default=[], help=f"of {', '.join(STEPS)}; none: all")
    wanted = parser.parse_args().steps or list(STEPS)
    failed = []
    for name in wanted:
        print(f"--- {name}", flush=True)
        command, seconds = STEPS[name]
        done = subprocess.run([PYTHON, *command], cwd=HERE.parent, env=ENVIRONMENT, timeout=seconds, check=False)
        if done.returncode:
            failed.append(name)
    for page in ("faults_page.py", "page.py"):
        subprocess.run([PYTHON, str(HERE / page)], cwd=HERE.parent, timeout=120, check=True)
    print("failed: " + ", ".join(failed) if failed else "done")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
