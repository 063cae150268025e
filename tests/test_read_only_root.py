"""The service on a root that nobody can write to, as a user that owns nothing: what the manifests ask of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from postgres import execute
from servers import ROOT, Gunicorn, gunicorn, ready, until

pytestmark = [pytest.mark.server, pytest.mark.system]

#: The image's uid. No such user need exist.
UID = 10001
TOKEN = "a" * 40
Need = Callable[[str], str]


@pytest.fixture
def prefix(need: Need) -> Iterator[tuple[str, ...]]:
    """Runs what follows in a mount namespace of its own: all of the disk read-only, and no privilege left."""
    unshare, setpriv = need("unshare"), need("setpriv")
    if os.geteuid() != 0:
        pytest.skip("only root can make a mount namespace and become another user")
    # The interpreter may live in root's home, which is nobody else's.
    closed = [
        (folder, folder.stat().st_mode)
        for path in (ROOT, Path(sys.prefix).resolve(), Path(sys.executable).resolve())
        for folder in (path, *path.parents)
        if not folder.stat().st_mode & 0o001
    ]
    for folder, mode in closed:
        folder.chmod(mode | 0o001)
    # Every file system that is a disk's, not only the root's; what is left is memory: /dev/shm.
    script = (
        "for at in $(awk '$5 !~ /^\\/(proc|sys|dev)(\\/|$)/ {print $5}' /proc/self/mountinfo); do"
        ' mount -o remount,bind,ro "$at" 2>/dev/null; done;'
        f" exec {setpriv} --reuid={UID} --regid={UID} --clear-groups --no-new-privs --bounding-set=-all"
        ' --inh-caps=-all "$@"'
    )
    yield (unshare, "--mount", "sh", "-c", script, "-")
    for folder, mode in closed:
        folder.chmod(mode)


@pytest.fixture
def secrets(postgres_url: str) -> Iterator[Path]:
    """A folder as Kubernetes mounts one: root's, with a group that is ours."""
    with tempfile.TemporaryDirectory(prefix="readygate-secrets-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file, text in {"database-url": postgres_url, "admin-token": TOKEN}.items():
            (folder / file).write_text(text + "\n")
            (folder / file).chmod(0o440)
            os.chown(folder / file, 0, UID)
        yield folder


def variables(secrets: Path) -> dict[str, Any]:
    return {
        "DATABASE_URL_FILE": str(secrets / "database-url"),
        "READYGATE_ADMIN_TOKEN_FILE": str(secrets / "admin-token"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nowhere",
    }


def starts(server: Gunicorn) -> None:
    """Until it is ready; and it is as restricted as it should be."""
    until(lambda: ready(server) and len(server.workers()) == 2, seconds=30)
    for process in [psutil.Process(server.process.pid), *server.workers()]:
        assert process.uids() == (UID, UID, UID)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
    for line in Path(f"/proc/{server.process.pid}/mountinfo").read_text().splitlines():
        _, _, _, _, at, options, *_ = line.split()
        if at == "/":
            assert "ro" in options.split(",")


def test_it_serves_and_stops_on_a_read_only_root_as_nobody(
    postgres_url: str, secrets: Path, prefix: tuple[str, ...]
) -> None:
    with gunicorn("", prefix=prefix, **variables(secrets)) as server:
        starts(server)
        assert server.get("/healthz") == (200, "OK")
        # A body of more than what a server keeps in memory would need a place to write.
        license_ = '{"license": "' + "x" * 60_000 + '"}'
        run = subprocess.run(
            [
                "curl",
                "-s",
                f"-HAuthorization: Bearer {TOKEN}",
                "-HContent-Type: application/json",
                "-d@-",
                f"http://127.0.0.1:{server.port}/api/v2/licenses",
            ],
            input=license_,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert '"message"' in run.stdout
        server.stop()
        assert server.process.returncode == 0
        assert "Read-only" not in server.lines
        assert "Error" not in server.lines, server.lines
    assert execute(postgres_url, "SELECT count(*) FROM readygate_replicas WHERE stopped_at IS NULL") == [(0,)]


def test_the_drain_of_pre_stop_works_there_and_answers_within_its_bound(secrets: Path, prefix: tuple[str, ...]) -> None:
    with gunicorn("", prefix=prefix, **variables(secrets)) as server:
        starts(server)
        flask = Path(sys.executable).with_name("flask")
        run = subprocess.run(
            [*prefix, "timeout", "15", flask, "--app", "app", "replicas", "drain", "--now"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **variables(secrets)},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (run.returncode, run.stderr) == (0, "")
        until(lambda: server.get() == (503, "draining"))
        assert server.get("/healthz") == (200, "OK")


def test_without_a_readable_secret_it_says_so_in_one_line(secrets: Path, prefix: tuple[str, ...]) -> None:
    (secrets / "database-url").chmod(0o400)
    with gunicorn("", prefix=prefix, **variables(secrets)) as server:
        assert server.process.wait(20) == 1
        last = server.lines.strip().splitlines()[-1]
    assert last.startswith("DATABASE_URL_FILE: ")
