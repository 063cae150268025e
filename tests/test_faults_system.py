"""Faults of a PostgreSQL that need root or programs of the system (see test_faults.py)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from faults import (
    HUNG_SECONDS,
    LEASE_SECONDS,
    REFUSED_SECONDS,
    STALE,
    UNREACHABLE,
    Case,
    Figures,
    noticed,
    recovered,
    started,
    told,
    watched,
)
from networks import Network
from pooler import Pooler
from servers import GRACE, HEARTBEAT, answers, gunicorn, ready, until

pytestmark = [pytest.mark.server, pytest.mark.system]

_AWHILE = 3.0


@pytest.mark.workers("gthread", False)
def test_black_holed(need: Callable[[str], str], case: Case, figures: Figures) -> None:
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(contextlib.closing(Network(need("ip"), 7)))
        server = pg.Server(settings={"listen_addresses": network.database})
        stack.callback(server.remove)
        (server.data / "pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
        server.stop()
        server.start()
        url = server.url().replace("127.0.0.1", network.database)
        master = stack.enter_context(case.serve(url, prefix=network.prefix))
        master.host = network.server
        until(lambda: ready(master))
        with watched(master) as watch:
            at = time.monotonic()
            # What is sent arrives, and no answer comes back: neither to connections that stand nor to new ones.
            network.cut_replies()
            seconds = noticed(master, UNREACHABLE, within=HUNG_SECONDS, since=at)
            time.sleep(2 * _AWHILE)
            network.heal()
            back = recovered(master)
        told(master, watch)
        with watched(master):
            at = time.monotonic()
            network.cut()
            seconds = max(seconds, noticed(master, UNREACHABLE, within=HUNG_SECONDS, since=at))
            time.sleep(_AWHILE)
            network.heal()
            back = max(back, recovered(master))
    figures.note("black-holed", case, watch, noticed=seconds, promised=HUNG_SECONDS, recovered=back)


@pytest.mark.workers("sync", False)
def test_a_new_address_behind_the_same_name(
    need: Callable[[str], str], case: Case, tmp_path: Path, figures: Figures
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a process names of its own")
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost db.test\n")
    # The server sees this file where others see /etc/hosts.
    prefix = (need("unshare"), "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")
    with contextlib.ExitStack() as stack:
        server = pg.Server()
        stack.callback(server.remove)
        (server.data / "pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
        url = server.url().replace("127.0.0.1", "db.test")
        master = stack.enter_context(case.serve(url, prefix=prefix))
        until(lambda: ready(master))
        with watched(master) as watch:
            at = server.crash()
            server.settings["listen_addresses"] = "127.0.0.2"
            server.start()
            seconds = noticed(master, UNREACHABLE, within=REFUSED_SECONDS, since=at)
            time.sleep(_AWHILE)
            hosts.write_text("127.0.0.1 localhost\n127.0.0.2 db.test\n")
            back = recovered(master)
        told(master, watch)
    figures.note("new address, same name", case, watch, noticed=seconds, promised=REFUSED_SECONDS, recovered=back)


@pytest.fixture
def timepiece(need: Callable[[str], str], open_folder: Path) -> Iterator[tuple[pg.Server, Path]]:
    """A PostgreSQL whose clock is off by what stands in a file."""
    shown = subprocess.run([need("faketime"), "-f", "+0", "env"], check=True, capture_output=True, text=True).stdout
    library = next(line for line in shown.splitlines() if line.startswith("LD_PRELOAD="))
    file = open_folder / "clock"
    file.write_text("+0\n")
    server = pg.Server(
        environment={
            "LD_PRELOAD": library.removeprefix("LD_PRELOAD="),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
    )
    yield server, file
    file.write_text("+0\n")
    server.remove()


@pytest.mark.workers("gthread", True)
@pytest.mark.parametrize("jump", ["+60", "-60"])
def test_the_databases_clock_jumps_a_minute(
    timepiece: tuple[pg.Server, Path], case: Case, jump: str, figures: Figures
) -> None:
    server, file = timepiece
    surplus: dict[str, Any] = {"READYGATE_EXCLUDE": "surplus"}
    with case.serve(server.url(), **surplus) as one, case.serve(server.url(), **surplus) as two:
        until(
            lambda: (
                (ready(one) and answers(two, "entitlement error")) or (ready(two) and answers(one, "entitlement error"))
            )
        )

        def serving() -> int:
            return sum(ready(master) for master in (one, two))

        with watched(one) as watch:
            before = datetime.now(UTC)
            at = time.monotonic()
            file.write_text(f"{jump}\n")
            # Both rows are stale at once, or dated in the future: each joins anew, and the line has a new order.
            time.sleep(LEASE_SECONDS)
            until(lambda: serving() == 1 and _excluded(one, two) == 1)
            back = time.monotonic() - at
            # One aged replica serves again within stale and two heartbeats (spec, section 5).
            assert back < max(STALE + 2 * HEARTBEAT, LEASE_SECONDS) + 1
            ends = time.monotonic() + _AWHILE
            while time.monotonic() < ends:
                assert serving() == 1
            shown = pg.execute(server.url(), "SELECT clock_timestamp()")[0][0]
            assert abs((shown - before).total_seconds()) > 50  # type: ignore[operator]
        assert "Traceback" not in one.lines + two.lines
    figures.note(f"database's clock {jump} s", case, watch, recovered=back)


def _excluded(*masters: Any) -> int:
    return sum(answers(master, "entitlement error") for master in masters)


@pytest.mark.workers("gevent", False)
def test_pgbouncer_in_between(
    postgres_server: pg.Server, need: Callable[[str], str], case: Case, open_folder: Path, figures: Figures
) -> None:
    with pg.new_database(postgres_server.url()) as url, contextlib.ExitStack() as stack:
        pooler = Pooler(need("pgbouncer"), postgres_server.port, open_folder)
        stack.callback(pooler.close)
        through = url.replace(f":{postgres_server.port}/", f":{pooler.port}/")
        with case.serve(through) as master:
            started(master)
            with watched(master) as watch:
                # The pooler goes and comes back.
                at = time.monotonic()
                pooler.stop()
                seconds = noticed(master, UNREACHABLE, within=REFUSED_SECONDS, since=at)
                time.sleep(_AWHILE)
                pooler.start()
                back = recovered(master)
            told(master, watch)
        # Then the database behind it hangs: the pooler accepts, and nobody answers.
        with case.serve(through) as master:
            started(master)
            with watched(master):
                at = time.monotonic()
                postgres_server.hang()
                try:
                    hung = noticed(master, UNREACHABLE, within=HUNG_SECONDS, since=at)
                    time.sleep(_AWHILE)
                finally:
                    postgres_server.resume()
                back = max(back, recovered(master))
            told(master, watch)
        rows = "SELECT count(*) FROM readygate_replicas WHERE stopped_at IS NULL AND updated_at > stale_after"
        assert pg.execute(url, rows)[0][0] in (1, 2)
    figures.note("PgBouncer restarted", case, watch, noticed=seconds, promised=REFUSED_SECONDS, recovered=back)
    figures.note("hung behind PgBouncer", case, noticed=hung, promised=HUNG_SECONDS, recovered=back)


@pytest.mark.parametrize("shift", ["-1d", "+1d"])
def test_a_host_clock_a_day_off_changes_nothing_on_postgres(
    postgres_url: str, shift: str, need: Callable[[str], str], tmp_path: Path
) -> None:
    # faketime breaks clock_nanosleep() where it leaves the monotonic clock alone, as a wrong host clock does: so these
    # processes sleep by select() instead.
    (tmp_path / "sitecustomize.py").write_text(
        "import select, time\ntime.sleep = lambda s: select.select([], [], [], s)\n"
    )
    off: dict[str, Any] = {"DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "PYTHONPATH": str(tmp_path)}
    prefix = (need("faketime"), "-f", shift)
    with gunicorn(postgres_url) as right, gunicorn(postgres_url, prefix=prefix, **off) as wrong:
        until(lambda: ready(right) and ready(wrong))
        day = (datetime.now(UTC) + timedelta(days=int(shift[:2]))).date().isoformat()
        assert f"[{day} " in wrong.lines
        started = time.monotonic()
        until(lambda: answers(right, "entitlement error") and answers(wrong, "entitlement error"))
        assert time.monotonic() - started < GRACE + HEARTBEAT + 1
        right.stop()
        until(lambda: ready(wrong))
