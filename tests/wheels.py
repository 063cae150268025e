"""The wheel, and environments that hold it and nothing of the checkout, as a host app's developer would make them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from servers import ROOT


def build(folder: Path) -> Path:
    """The wheel, as `pip wheel .` builds it."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT), cwd=folder)
    (wheel,) = folder.glob("readygate-*.whl")
    return wheel


def environment(folder: Path, *packages: str) -> Path:
    """The folder of programs of a new environment with `packages`, at the versions that we pin."""
    run(sys.executable, "-m", "venv", str(folder), cwd=folder.parent)
    files = [ROOT / name for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    # As constraints: a file that names another with -r would install it.
    pins = folder.parent / "pins.txt"
    pins.write_text("\n".join(line for line in lines if "==" in line))
    run(str(folder / "bin" / "pip"), "install", "-q", "-c", str(pins), *packages, cwd=folder.parent)
    return folder / "bin"


def run(*command: str, cwd: Path, **variables: str) -> str:
    """What a program prints; it must succeed. Nothing of the checkout is on its path."""
    names = ("PATH", "HOME", "SSL_CERT_FILE", "HTTPS_PROXY", "NO_PROXY")
    # Where pip finds packages is the machine's to say.
    kept = {name: value for name, value in os.environ.items() if name in names or name.startswith("PIP_")}
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout
