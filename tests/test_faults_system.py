"""Faults of a PostgreSQL that need root or programs of the system (see test_faults.py)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from faults import (
    HELD_SECONDS,
    HUNG_SECONDS,
    LEASE_SECONDS,
    RECOVERED_SECONDS,
    REFUSED_SECONDS,
    STALE,
    UNREACHABLE,
    Case,
    Figures,
    missing,
    noticed,
    recovered,
    started,
    told,
    watched,
)
from networks import Network
from pooler import Pooler
from servers import GRACE, HEARTBEAT, Gunicorn, answers, gunicorn, ready, until

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
        before = len(master.lines)
        with watched(master) as watch:
            at = watch.begins()
            # What is sent arrives, and no answer comes back: neither to connections that stand nor to new ones.
            network.cut_replies()
            seconds = noticed(master, UNREACHABLE, within=HUNG_SECONDS, since=at)
            time.sleep(2 * _AWHILE)
            network.heal()
            back = recovered(master)
        told(master, watch, after=before)
        before = len(master.lines)
        with watched(master) as deaf:
            at = deaf.begins()
            network.cut()
            both_ways = noticed(master, UNREACHABLE, within=HUNG_SECONDS, since=at)
            time.sleep(_AWHILE)
            network.heal()
            back_again = recovered(master)
        told(master, deaf, after=before)
    figures.note("black-holed, replies", case, watch, noticed=seconds, promised=HUNG_SECONDS, recovered=back)
    figures.note("black-holed", case, deaf, noticed=both_ways, promised=HUNG_SECONDS, recovered=back_again)


@pytest.mark.workers("gthread", True)
def test_the_first_of_two_addresses_is_black_holed(
    need: Callable[[str], str], case: Case, tmp_path: Path, figures: Figures
) -> None:
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(contextlib.closing(Network(need("ip"), 8)))
        nowhere, somewhere = network.two_addresses()
        server = pg.Server(settings={"listen_addresses": "0.0.0.0"})
        stack.callback(server.remove)
        (server.data / "pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
        pg.execute(server.url(), "SELECT pg_reload_conf()")
        hosts = tmp_path / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{nowhere} db.test\n{somewhere} db.test\n")
        prefix = (*network.prefix, *_with_hosts(need, hosts))
        # The order is the system's: it is the one that is tried.
        shown = subprocess.run(
            [*prefix, sys.executable, "-c", "import socket; print(socket.gethostbyname_ex('db.test')[2])"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert shown.strip() == str([nowhere, somewhere])
        master = stack.enter_context(case.serve(server.url().replace("127.0.0.1", "db.test"), prefix=prefix))
        master.host = network.server
        started(master)
        before = len(master.lines)
        # A worker that does one thing at a time is held by each call that connects: by its first, too.
        asked_first = time.monotonic()
        with watched(master) as watch:
            watch.begins(asked_first)
            time.sleep(1)
            at = watch.begins()
            ours = "application_name = 'readygate'"
            pg.execute(server.url(), f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
            # Each connect tries the one that leads nowhere, and has time left for the other.
            until(lambda: "connection lost" in master.lines[before:] or "timeout" in master.lines[before:])
            # And once it is ready again, by the first one that connects anew.
            watch.begins(at + HELD_SECONDS)
            back = recovered(master, since=at)
            time.sleep(_AWHILE)
        told(master, watch, after=before)
    figures.note(
        "the first of two addresses black-holed", case, watch, recovered=back, recovered_promised=RECOVERED_SECONDS
    )


def _with_hosts(need: Callable[[str], str], hosts: Path) -> tuple[str, ...]:
    """A prefix for a program that is to see this file where others see /etc/hosts."""
    if os.geteuid() != 0:
        missing("only root may give a process names of its own")
    return (need("unshare"), "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh")


@pytest.mark.workers("sync", False)
def test_a_new_address_behind_the_same_name(
    need: Callable[[str], str], case: Case, tmp_path: Path, figures: Figures
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost db.test\n")
    prefix = _with_hosts(need, hosts)
    with contextlib.ExitStack() as stack:
        server = pg.Server()
        stack.callback(server.remove)
        (server.data / "pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
        url = server.url().replace("127.0.0.1", "db.test")
        master = stack.enter_context(case.serve(url, prefix=prefix))
        until(lambda: ready(master))
        with watched(master) as watch:
            at = watch.begins(server.crash())
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
    file.write_text("+0\n")
    surplus: dict[str, Any] = {"READYGATE_EXCLUDE": "surplus"}
    with case.serve(server.url(), **surplus) as one, case.serve(server.url(), **surplus) as two:
        until(
            lambda: (
                (ready(one) and answers(two, "entitlement error")) or (ready(two) and answers(one, "entitlement error"))
            )
        )
        logged = [len(master.lines) for master in (one, two)]
        with watched(one) as watch, both(one, two) as seen:
            time.sleep(0.5)
            before = datetime.now(UTC)
            at = watch.begins()
            file.write_text(f"{jump}\n")
            # Both rows are stale at once, or dated in the future: each joins anew, and the line has a new order.
            time.sleep(STALE + 2 * HEARTBEAT + 1 + _AWHILE)
            shown = pg.execute(server.url(), "SELECT clock_timestamp()")[0][0]
            assert abs((shown - before).total_seconds()) > 50  # type: ignore[operator]
        assert {serving for when, serving in seen if when < at} == {1}
        # From the last instant at which it was not exactly one that answered.
        back = max((when - at for when, serving in seen if serving != 1), default=0.0)
        assert back < _ONE_AGAIN_SECONDS
        twice = [when for when, serving in seen if serving == 2]
        # Spec, section 5: after a step of the clock two may serve, for at most one lease.
        overlap = max(twice) - min(twice) if twice else 0.0
        assert overlap < LEASE_SECONDS - 1
        for master, length in zip((one, two), logged, strict=True):
            told(master, watch, after=length)
    figures.note(
        f"database's clock {jump} s",
        case,
        watch,
        recovered=back,
        recovered_promised=_ONE_AGAIN_SECONDS,
        both_served=overlap,
    )


#: One aged replica serves again within stale and two heartbeats (spec, section 5); a second for its answers.
_ONE_AGAIN_SECONDS = STALE + 2 * HEARTBEAT + 1


@contextlib.contextmanager
def both(*masters: Gunicorn) -> Iterator[list[tuple[float, int]]]:
    """How many of the servers answered 200 while the block runs, and when, some fifty times a second."""
    seen: list[tuple[float, int]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.01):
            when = time.monotonic()
            seen.append((when, sum(master.get()[0] == 200 for master in masters)))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(20)
    assert len(seen) > 100


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
                at = watch.begins()
                pooler.stop()
                seconds = noticed(master, UNREACHABLE, within=REFUSED_SECONDS, since=at)
                time.sleep(_AWHILE)
                pooler.start()
                back = recovered(master)
            told(master, watch)
        # Then the database behind it hangs: the pooler accepts, and nobody answers.
        with case.serve(through) as master:
            started(master)
            with watched(master) as behind:
                at = behind.begins()
                postgres_server.hang()
                try:
                    hung = noticed(master, UNREACHABLE, within=HUNG_SECONDS, since=at)
                    time.sleep(_AWHILE)
                finally:
                    postgres_server.resume()
                back_again = recovered(master)
            told(master, behind)
            # The row of the first, which was killed, has gone stale; the second has one.
            alive = f"stopped_at IS NULL AND updated_at > {_NOW} - stale_after"
            until(
                lambda: pg.execute(url, f"SELECT count(*) FROM readygate_replicas WHERE {alive}") == [(1,)], seconds=3
            )
    figures.note("PgBouncer restarted", case, watch, noticed=seconds, promised=REFUSED_SECONDS, recovered=back)
    figures.note("hung behind PgBouncer", case, behind, noticed=hung, promised=HUNG_SECONDS, recovered=back_again)


#: As the rows count: in microseconds.
_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


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
