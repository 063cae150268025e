"""Every figure anew, one after the other, then the pages and pictures: half an hour, with nothing beside it.

    .venv/bin/pip install -q -r bench/requirements.txt && .venv/bin/python bench/everything.py
    .venv/bin/python bench/everything.py gates startup      (some of them)

Needs wrk and HAProxy, of Debian's packages.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON = sys.executable
FAULTS = ["-m", "pytest", "-q", "-n", "0", "-m", "server and not system", "--write-faults"]
#: What makes each, and how many seconds it may take.
STEPS: dict[str, tuple[list[str], int]] = {
    "gates": ([str(HERE / "gates.py")], 300),
    "startup": ([str(HERE / "startup.py")], 600),
    "readyz": ([str(HERE / "readyz.py")], 900),
    "fleet": ([str(HERE / "fleet.py")], 1200),
    "violation": ([str(HERE / "violation.py")], 1200),
    "faults": (
        [
            *FAULTS,
            *(f"tests/test_{name}.py" for name in ("faults", "faults_processes", "faults_sqlite", "soak")),
        ],
        1800,
    ),
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
        if subprocess.run([PYTHON, *command], cwd=HERE.parent, timeout=seconds, check=False).returncode:
            failed.append(name)
    for page in ("faults_page.py", "page.py"):
        subprocess.run([PYTHON, str(HERE / page)], cwd=HERE.parent, timeout=120, check=True)
    print("failed: " + ", ".join(failed) if failed else "done")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
