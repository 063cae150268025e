"""What a failing SQLite file does to real servers (see test_faults.py)."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import (
    LEASE_SECONDS,
    RECOVERED_SECONDS,
    Case,
    Figures,
    missing,
    noticed,
    recovered,
    seconds_until,
    started,
    told,
    watched,
)
from servers import ready, until

pytestmark = pytest.mark.server

#: gevent is refused with SQLite.
KINDS = {"kinds": ("sync", "gthread")}
_AWHILE = 4.0
_NOBODY = 65534


@pytest.mark.workers("sync", True, **KINDS)
def test_file_deleted(tmp_path: Path, case: Case, figures: Figures) -> None:
    folder = tmp_path / "data"
    with case.serve(f"sqlite:///{folder}/test.db") as master:
        started(master)
        before = len(master.lines)
        with watched(master) as watch:
            at = watch.begins()
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
            # A new file, with a new schema: what was in the old one is gone, and the replica is not.
            seconds_until(lambda: (folder / "test.db").exists(), within=1.5, since=at)
            back = recovered(master, since=at)
            time.sleep(_AWHILE)
            assert ready(master)
        told(master, watch, after=before)
    figures.note("SQLite file deleted", case, watch, recovered=back, recovered_promised=RECOVERED_SECONDS)


@pytest.mark.workers("gthread", False, **KINDS)
def test_file_deleted_alone(tmp_path: Path, case: Case, figures: Figures) -> None:
    # As `rm` does it: what SQLite keeps beside the file is still there, and belongs to another file.
    file = tmp_path / "test.db"
    with case.serve(f"sqlite:///{file}") as master:
        started(master)
        before = len(master.lines)
        assert file.with_name("test.db-wal").exists()
        with watched(master) as watch:
            at = watch.begins()
            file.unlink()
            seconds_until(lambda: file.exists() and _is_new(file), within=RECOVERED_SECONDS, since=at)
            back = recovered(master, since=at)
            time.sleep(_AWHILE)
            assert ready(master)
        told(master, watch, after=before)
        assert _replicas(file) == 1
    figures.note("SQLite file deleted alone", case, watch, recovered=back, recovered_promised=RECOVERED_SECONDS)


def _is_new(file: Path) -> bool:
    """Whether a replica has joined in a file that was made anew."""
    with contextlib.suppress(sqlite3.Error):
        return _replicas(file) == 1
    return False


def _replicas(file: Path) -> int:
    """How many live, as who opens the file now sees it."""
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5)) as connection:
        shown = connection.execute("SELECT count(*) FROM readygate_replicas WHERE stopped_at IS NULL").fetchone()
    return int(shown[0])


@pytest.mark.system
@pytest.mark.workers("gthread", False, **KINDS)
def test_file_read_only(open_folder: Path, need: Callable[[str], str], case: Case, figures: Figures) -> None:
    # To root every file can be written.
    prefix: tuple[str, ...] = ()
    file = open_folder / "test.db"
    if os.geteuid() == 0:
        prefix = (need("setpriv"), f"--reuid={_NOBODY}", "--clear-groups", "--inh-caps=-all")
        os.chown(open_folder, _NOBODY, -1)
    with case.serve(f"sqlite:///{file}", prefix=prefix, READYGATE_EXCLUDE="surplus") as master:
        started(master)
        # A connection that is open goes on writing; those of new workers do not.
        _mode(open_folder, 0o444, 0o555)
        before = {worker.pid for worker in master.workers()}
        for worker in master.workers():
            worker.kill()
        until(lambda: len(master.workers()) == 2 and before.isdisjoint(worker.pid for worker in master.workers()))
        until(lambda: master.get("/healthz") == (200, "OK"))
        with watched(master) as watch:
            watch.begins()
            noticed(master, "starting", within=LEASE_SECONDS)
            assert master.get("/readyz/database") == (200, "OK")
            until(lambda: master.lines.count("heartbeat failed: read only") == 2)
            time.sleep(_AWHILE)
            _mode(open_folder, 0o644, 0o755)
            back = recovered(master)
        told(master, watch)
    figures.note("SQLite file read-only", case, watch, recovered=back)


def _mode(folder: Path, files: int, own: int) -> None:
    for file in folder.iterdir():
        file.chmod(files)
    folder.chmod(own)


@pytest.fixture
def small_disk(tmp_path: Path, need: Callable[[str], str]) -> Iterator[Path]:
    """A disk of 2 MiB."""
    if os.geteuid() != 0:
        missing("only root may mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run([need("mount"), "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], check=True)
    yield folder
    subprocess.run([need("umount"), "-l", str(folder)], check=True)


@pytest.mark.system
@pytest.mark.workers("gthread", True, **KINDS)
def test_disk_full(small_disk: Path, case: Case, figures: Figures) -> None:
    with case.serve(f"sqlite:///{small_disk}/test.db", READYGATE_EXCLUDE="surplus") as master:
        started(master)
        with watched(master) as watch:
            at = watch.begins()
            # The log of a few writes is kept for the next ones, so some of them still succeed.
            fill(small_disk / "ballast")
            seconds = noticed(master, "heartbeat lost", within=60, since=at)
            assert master.get("/readyz/database") == (200, "OK")
            time.sleep(_AWHILE)
            (small_disk / "ballast").unlink()
            back = recovered(master)
        assert "heartbeat failed: other (SQLITE_FULL)" in master.lines
        told(master, watch)
    figures.note("SQLite disk full", case, watch, noticed=seconds, recovered=back)


def fill(file: Path) -> None:
    """Take all that is left of a disk."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as opened:
        while opened.write(b"x" * 4096):
            pass
