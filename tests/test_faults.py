"""What a failing PostgreSQL does to real servers: liveness never suffers, readiness tells, recovery needs nobody.

Each fault runs with one combination of worker class and preload_app, and with every one on demand (--all-workers),
under a flood of probes and API calls. The times go to docs/figures/faults.json with --write-faults.
"""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pg8000.native
import postgres as pg
import pytest
from crowd import Bare, Threaded, ask
from faults import (
    ADMIN,
    HUNG_SECONDS,
    LEASE_SECONDS,
    LIVENESS_P99_SECONDS,
    RECOVERED_SECONDS,
    REFUSED_SECONDS,
    SHORT,
    TIMEOUT,
    UNREACHABLE,
    Case,
    Figures,
    Watch,
    asking,
    ended,
    judge,
    missing,
    noticed,
    recovered,
    started,
    told,
    watched,
)
from proxy import Proxy
from servers import HEARTBEAT, ROOT, Gunicorn, answers, gunicorn, ready, until

import schema
from database import background_engine

pytestmark = pytest.mark.server

#: How long a fault goes on once it was noticed.
_AWHILE = 3.0
_READ_ONLY = "heartbeat failed: read only (25006)"


@pytest.fixture(scope="module")
def server() -> Iterator[pg.Server]:
    """A PostgreSQL of this file's own, which its tests treat badly."""
    server = pg.Server(settings={"max_connections": "40"})
    yield server
    server.remove()


@pytest.fixture
def database(server: pg.Server) -> Iterator[str]:
    with pg.new_database(server.url()) as url:
        yield url


@pytest.fixture
def proxy(server: pg.Server) -> Iterator[Proxy]:
    with contextlib.closing(Proxy(server.port)) as proxy:
        yield proxy


@pytest.fixture
def proxied(server: pg.Server, database: str, proxy: Proxy) -> str:
    """The database as it is seen through the proxy."""
    return database.replace(f":{server.port}/", f":{proxy.port}/")


def test_those_who_watch_see_a_stall_that_is_one_question_to_who_asks_in_turn() -> None:
    stalled = threading.Lock()

    class Stalling(Bare):
        def do_GET(self) -> None:  # noqa: N802  # the library's name
            with stalled:
                super().do_GET()

    with Threaded(("127.0.0.1", 0), Stalling) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        process = asking("liveness", ("127.0.0.1", server.server_port))
        time.sleep(5)
        with stalled:
            time.sleep(1)
        time.sleep(1)
        seen = ended(process)
        server.shutdown()
    # A stall of one second in seven is more than one of a hundred answers.
    with pytest.raises(AssertionError, match="p99 0"):
        judge(Watch(), seen["asked"], seen["late"], one_at_a_time=False)
    # But for it they would have held.
    before = [(due, seconds) for due, seconds in seen["asked"] if seconds < LIVENESS_P99_SECONDS]
    judge(Watch(), before, seen["late"], one_at_a_time=False)


@pytest.mark.workers("gthread", False)
def test_refused(server: pg.Server, database: str, case: Case, figures: Figures) -> None:
    with case.serve(database) as master:
        started(master)
        with watched(master) as watch:
            at = watch.begins(server.crash())
            try:
                seconds = noticed(master, UNREACHABLE, within=REFUSED_SECONDS, since=at)
                time.sleep(_AWHILE)
            finally:
                server.start()
            back = recovered(master)
        told(master, watch)
    figures.note("refused", case, watch, noticed=seconds, promised=REFUSED_SECONDS, recovered=back)


@pytest.mark.workers("sync", True)
def test_hung(server: pg.Server, database: str, case: Case, figures: Figures) -> None:
    with case.serve(database, workers=1 if case.kind == "gevent" else _hardest(case)) as master:
        started(master)
        with watched(master) as watch:
            at = watch.begins()
            server.hang()
            try:
                seconds = noticed(master, UNREACHABLE, within=HUNG_SECONDS, since=at)
                time.sleep(_AWHILE)
            finally:
                server.resume()
            back = recovered(master)
        told(master, watch)
    figures.note("hung", case, watch, noticed=seconds, promised=HUNG_SECONDS, recovered=back)


@pytest.mark.workers("gevent", True)
def test_cut_off(proxied: str, proxy: Proxy, case: Case, figures: Figures) -> None:
    with case.serve(proxied) as master:
        started(master)
        with watched(master) as watch:
            at, proxy.cut = watch.begins(), True
            seconds = noticed(master, UNREACHABLE, within=HUNG_SECONDS, since=at)
            time.sleep(_AWHILE)
            proxy.cut = False
            back = recovered(master)
        told(master, watch)
    figures.note("cut off", case, watch, noticed=seconds, promised=HUNG_SECONDS, recovered=back)


@pytest.mark.workers("gevent", False)
def test_slow_by_200_ms(proxied: str, proxy: Proxy, case: Case, figures: Figures) -> None:
    # A sync of three statements then takes over a second: within the lease of any heartbeat that suits such a network.
    with case.serve(proxied, READYGATE_HEARTBEAT_SECONDS="2", workers=_hardest(case)) as master:
        started(master)
        with watched(master) as watch:
            watch.begins()
            proxy.delay_seconds = 0.2
            time.sleep(8)
            proxy.delay_seconds = 0.0
        assert set(watch.ready) == {"200 OK"}
        # Six callers share two connections, and some give up: that is the API's, and nothing of this replica.
        assert [message for message in told(master, watch) if not message.startswith("readygate.api: ")] == []
    figures.note("slow, 200 ms", case, watch)


@pytest.mark.workers("gthread", True)
def test_slow_by_2_s_where_that_is_too_long(proxied: str, proxy: Proxy, case: Case, figures: Figures) -> None:
    with case.serve(proxied, workers=_hardest(case)) as master:
        started(master)
        with watched(master) as watch:
            at, proxy.delay_seconds = watch.begins(), 2.0
            seconds = noticed(master, UNREACHABLE, within=HUNG_SECONDS, since=at)
            # Two attempts at least: each waits for the timeout of a second, and then for the next ping.
            time.sleep(5)
            proxy.delay_seconds = 0.0
            # What the proxy still holds comes first.
            back = recovered(master, within=RECOVERED_SECONDS + 2.0)
        told(master, watch)
    promises = {"promised": HUNG_SECONDS, "recovered_promised": RECOVERED_SECONDS + 2.0}
    figures.note("slow, 2 s", case, watch, noticed=seconds, recovered=back, **promises)


#: What a server has unless it is told otherwise.
_DEFAULTS: dict[str, str] = {
    "READYGATE_DATABASE_TIMEOUT_SECONDS": "",
    "READYGATE_HEARTBEAT_SECONDS": "",
    "READYGATE_REPLICA_GRACE_SECONDS": "0",
}
#: A ping, three statements of a sync and the pause between two: two of these cycles are watched.
_SLOW_CYCLE_SECONDS = 13.0


@pytest.mark.workers("sync", False)
def test_slow_by_2_s_where_that_is_in_time(proxied: str, proxy: Proxy, case: Case, figures: Figures) -> None:
    with case.serve(proxied, workers=_hardest(case), **_DEFAULTS) as master:  # type: ignore[arg-type]
        started(master)
        with watched(master) as watch:
            watch.begins()
            proxy.delay_seconds = 2.0
            time.sleep(2 * _SLOW_CYCLE_SECONDS)
            proxy.delay_seconds = 0.0
        # Policy `all`, without a license: no other could take its place, so nobody is out. What the log says of the
        # heartbeat is the next test's.
        assert set(watch.ready) == {"200 OK"}
        assert "database unreachable" not in master.lines
        assert "Traceback" not in master.lines
    figures.note("slow, 2 s, with the default timeout", case, watch)


@pytest.mark.workers("gthread", False)
def test_slow_by_2_s_where_another_could_take_its_place(
    proxied: str, proxy: Proxy, case: Case, figures: Figures
) -> None:
    # A lease of ten seconds counts from before a sync, whose three statements take six, and five more pass until the
    # next. So it cannot hold; what is promised is that it is out, says why, and is back.
    with case.serve(proxied, READYGATE_EXCLUDE="surplus", **_DEFAULTS) as master:  # type: ignore[arg-type]
        started(master)
        with watched(master) as watch:
            at = watch.begins()
            proxy.delay_seconds = 2.0
            time.sleep(2 * _SLOW_CYCLE_SECONDS)
            proxy.delay_seconds = 0.0
            mended = time.monotonic()
            # It is at the statement that it sent last, and beats after its pause at the latest.
            back = recovered(master, within=_SLOW_CYCLE_SECONDS, since=mended)
        assert set(watch.ready) == {"200 OK", "503 heartbeat lost"}
        out = watch.ready["503 heartbeat lost"] / sum(watch.ready.values())
        assert "Traceback" not in master.lines
        times = master.lines.count("not ready: heartbeat lost")
        assert mended - at > 2 * _SLOW_CYCLE_SECONDS - 1
    figures.note(
        "slow, 2 s, surplus",
        case,
        watch,
        recovered=back,
        recovered_promised=_SLOW_CYCLE_SECONDS,
        share_out=out,
        seconds=2 * _SLOW_CYCLE_SECONDS,
        times_out=times,
    )


def _hardest(case: Case) -> int:
    """How many workers make a fault hardest: one, that does one thing at a time, or two that share their work."""
    return 1 if case.kind == "sync" else 2


@pytest.mark.workers("gthread", False)
def test_connections_exhausted(server: pg.Server, database: str, case: Case, figures: Figures) -> None:
    name = database.rsplit("/", 1)[1]
    # To a superuser the bound of a database is none.
    if not pg.execute(server.url(), "SELECT FROM pg_roles WHERE rolname = 'tenant'"):
        pg.execute(server.url(), "CREATE ROLE tenant LOGIN")
    pg.execute(server.url(), f"ALTER DATABASE {name} OWNER TO tenant")
    with case.serve(database.replace("postgres@", "tenant@")) as master, contextlib.ExitStack() as stack:
        started(master)
        with watched(master) as watch:
            administrator = stack.enter_context(contextlib.closing(_connect(server, "postgres")))
            _take_all(server, stack)
            # Who has a connection keeps it: nobody is out.
            assert ready(master)
            before = len(master.lines)
            # A worker may be quicker than we are with what comes free, so from here the database gives it none.
            administrator.run(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
            at = watch.begins()
            administrator.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            seconds = noticed(master, UNREACHABLE, within=REFUSED_SECONDS, since=at)
            time.sleep(_AWHILE)
            # A worker that starts now has no connection to lose: it says what keeps it from one.
            master.send(signal.SIGTTIN)
            until(lambda: "too many connections (53300)" in master.lines)
            assert "too many connections" not in master.lines[:before]
            until(lambda: answers(master, UNREACHABLE))
            administrator.run(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
            stack.close()
            back = recovered(master)
        told(master, watch)
    figures.note("connections exhausted", case, watch, noticed=seconds, promised=REFUSED_SECONDS, recovered=back)


def _connect(server: pg.Server, database: str) -> Any:
    return pg8000.native.Connection("postgres", host="127.0.0.1", port=server.port, database=database, timeout=10)


def _take_all(server: pg.Server, stack: contextlib.ExitStack) -> None:
    """Every connection that the server still has."""
    for _ in range(60):
        try:
            stack.enter_context(contextlib.closing(_connect(server, "postgres")))
        except pg8000.native.DatabaseError:
            return
    pytest.fail("the connections did not run out")


@pytest.mark.workers("gthread", True)
def test_password_rotated(server: pg.Server, database: str, case: Case, tmp_path: Path, figures: Figures) -> None:
    role = f"r{database.rsplit('_', 1)[1]}"
    # It may be there already, where a machine that was too busy had this measured once more.
    pg.execute(server.url(), f"DROP ROLE IF EXISTS {role}")
    pg.execute(server.url(), f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'first'")
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f"host all {role} 127.0.0.1/32 scram-sha-256\n" + before)
    pg.execute(server.url(), "SELECT pg_reload_conf()")
    file = tmp_path / "url"
    url = database.replace("postgres@", f"{role}:%s@")
    file.write_text(url % "first")

    def rotate(password: str) -> float:
        pg.execute(server.url(), f"ALTER ROLE {role} PASSWORD '{password}'")
        at = time.monotonic()
        pg.execute(server.url(), f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
        return at

    try:
        with case.serve("", DATABASE_URL_FILE=str(file)) as master:
            started(master)
            with watched(master) as watch:
                at = watch.begins(rotate("second"))
                seconds = noticed(master, UNREACHABLE, within=REFUSED_SECONDS, since=at)
                # A worker that boots meanwhile finds a file that is no good either, and waits like the others.
                file.write_text("")
                time.sleep(_AWHILE)
                file.write_text(url % "second")
                back = recovered(master)
            told(master, watch)
            assert master.get("/readyz?verbose")[1].count("[+]") == 3
            assert all(word not in master.lines for word in ("first", "second", role))
    finally:
        hba.write_text(before)
        pg.execute(server.url(), "SELECT pg_reload_conf()")
    figures.note("password rotated", case, watch, noticed=seconds, promised=REFUSED_SECONDS, recovered=back)


@pytest.mark.workers("sync", True)
def test_table_locked_by_a_migration(server: pg.Server, database: str, case: Case, figures: Figures) -> None:
    # Another could take the place of one that cannot beat, so it is out, and says why; the database is not to blame.
    with case.serve(database, READYGATE_EXCLUDE="surplus") as master:
        started(master)
        with contextlib.closing(_connect(server, database.rsplit("/", 1)[1])) as migration, watched(master) as watch:
            migration.run("BEGIN")
            # It may be there already, where a machine that was too busy had this measured once more.
            migration.run("ALTER TABLE readygate_replicas ADD COLUMN IF NOT EXISTS something int")
            at = watch.begins()
            seconds = noticed(master, "heartbeat lost", within=LEASE_SECONDS, since=at)
            ends = time.monotonic() + _AWHILE
            while time.monotonic() < ends:
                assert master.get("/readyz/database") == (200, "OK")
            # No statement that was given up on is left behind: of each of two workers wait its thread's, and those of
            # the two connections that its calls share.
            waiting = pg.execute(server.url(), "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            assert waiting[0][0] <= 6  # type: ignore[operator]
            migration.run("COMMIT")
            back = recovered(master)
        assert "heartbeat failed: timeout (57014)" in master.lines
        told(master, watch)
    figures.note("table locked", case, watch, noticed=seconds, promised=LEASE_SECONDS, recovered=back)


@pytest.mark.system  # It needs git, and this repository's history.
@pytest.mark.workers("sync", False)
def test_the_previous_release_on_this_schema(database: str, case: Case, tmp_path: Path, figures: Figures) -> None:
    previous = _previous_release(tmp_path)
    with case.serve(database, READYGATE_REPLICA_GRACE_SECONDS="60") as master:
        started(master)
        older = gunicorn(
            database, *case.arguments, folder=previous, **{**SHORT, "READYGATE_REPLICA_GRACE_SECONDS": "60"}
        )
        with watched(master) as watch, older as old:
            until(lambda: ready(old))
            time.sleep(4 * HEARTBEAT)
            assert ready(old)
            assert pg.execute(database, "SELECT count(*) FROM readygate_replicas WHERE stopped_at IS NULL") == [(2,)]
            old.stop()
            assert "Traceback" not in old.lines
        assert set(watch.ready) == {"200 OK"}
        assert told(master, watch) == []
    figures.note("the previous release's code beside this one", case, watch)


def _previous_release(folder: Path) -> Path:
    """The code as it was before the newest migration."""
    newest = max(ROOT.glob("migrations/versions/*.py")).relative_to(ROOT)

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout

    try:
        added = git("log", "--diff-filter=A", "--format=%H", "--", str(newest)).decode().split()
        archive = git("archive", f"{added[-1]}^")
    except (OSError, subprocess.CalledProcessError, IndexError):
        missing("needs the history of this repository, back to the newest migration")
    with tarfile.open(fileobj=io.BytesIO(archive)) as code:
        code.extractall(folder, filter="data")
    return folder


@pytest.mark.workers("gthread", True)
def test_a_standby_promoted_and_back(proxy: Proxy, case: Case, figures: Figures) -> None:
    with contextlib.ExitStack() as stack:
        first = pg.Server()
        stack.callback(first.remove)
        pg.execute(first.url(), "CREATE DATABASE shop")
        proxy.target_port = first.port
        master = stack.enter_context(case.serve(pg_url(proxy, "shop"), READYGATE_EXCLUDE="surplus"))
        until(lambda: ready(master))
        seconds, back = 0.0, 0.0
        primary = first
        for _ in range(2):
            standby = pg.Server(primary=primary)
            stack.callback(standby.remove)
            assert pg.execute(standby.url(), "SELECT pg_is_in_recovery()") == [(True,)]
            before = len(master.lines)
            with watched(master) as watch:
                proxy.target_port = standby.port
                at = watch.begins(primary.crash())
                seconds = max(seconds, noticed(master, "heartbeat lost", within=LEASE_SECONDS, since=at))
                assert master.get("/readyz/database") == (200, "OK")
                until(partial(_refused_since, master, before))
                time.sleep(_AWHILE)
                at = time.monotonic()
                standby.promote()
                back = max(back, recovered(master, since=at))
            assert _READ_ONLY in "".join(told(master, watch, after=before))
            primary = standby
        # The same replica, in the same row.
        assert pg.execute(primary.url("shop"), "SELECT count(*) FROM readygate_replicas") == [(1,)]
        assert "Traceback" not in master.lines
    figures.note(
        "failover to a read-only standby", case, watch, noticed=seconds, promised=LEASE_SECONDS, recovered=back
    )


def _refused_since(master: Gunicorn, before: int) -> bool:
    """Whether a worker has told that it may not write, after so much of the log."""
    return _READ_ONLY in master.lines[before:]


def pg_url(proxy: Proxy, name: str) -> str:
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}"


def test_a_database_that_is_down_at_start_is_waited_for(server: pg.Server, database: str) -> None:
    server.stop()
    try:
        with gunicorn(database, **SHORT) as master:
            until(lambda: master.get("/healthz") == (200, "OK"))
            noticed(master, UNREACHABLE, within=REFUSED_SECONDS)
            server.start()
            assert until(lambda: ready(master)) < 4
    finally:
        with contextlib.suppress(Exception):
            server.start()


def test_a_hung_database_at_start_leaves_liveness_alone(server: pg.Server, database: str) -> None:
    server.hang()
    try:
        with gunicorn(database, *Case("sync", False).arguments, workers=1, **SHORT) as master:
            until(lambda: master.get("/healthz") == (200, "OK"))
            # The first calls come before the first ping has failed.
            at = time.monotonic()
            with watched(master) as watch:
                watch.begins(at)
                noticed(master, UNREACHABLE, within=HUNG_SECONDS)
                time.sleep(3)
    finally:
        server.resume()


def test_an_outage_is_noticed_as_promised_with_the_default_times(server: pg.Server, database: str) -> None:
    with gunicorn(database, **_DEFAULTS) as master:  # type: ignore[arg-type]
        started(master)
        at = server.crash()
        try:
            noticed(master, UNREACHABLE, within=REFUSED_SECONDS, since=at)
        finally:
            server.start()
        recovered(master, within=_TIMEOUT + 2.0)
        at = time.monotonic()
        server.hang()
        try:
            noticed(master, UNREACHABLE, within=_TIMEOUT + 1.5, since=at)
        finally:
            server.resume()
        recovered(master, within=_TIMEOUT + 2.0)


#: Of READYGATE_DATABASE_TIMEOUT_SECONDS, in seconds.
_TIMEOUT = 5.0


def test_a_slow_database_delays_the_exit_by_its_timeout_at_most(proxied: str, proxy: Proxy) -> None:
    def farewell(delay_seconds: float) -> float:
        """Seconds from the end of the workers to the master's."""
        with gunicorn(proxied, **SHORT) as master:
            started(master)
            # A connect alone is several messages; each is in time, and together they are not.
            proxy.delay_seconds = delay_seconds
            master.send(signal.SIGTERM)
            until(lambda: "Shutting down: Master" in master.lines)
            at = time.monotonic()
            master.process.wait(20)
            proxy.delay_seconds = 0.0
            assert ("leaving failed: timeout" in master.lines) == (delay_seconds > 0)
            return time.monotonic() - at

    usual = farewell(0.0)
    assert farewell(0.45 * TIMEOUT) < usual + TIMEOUT + 0.5


def test_calls_at_once_are_all_answered_under_gevent_with_preload(database: str) -> None:
    with Case("gevent", True).serve(database, workers=1) as master, ThreadPoolExecutor(6) as pool:
        started(master)
        for number in (2, 6) * 5:
            asked = [pool.submit(ask, master.host, master.port, "/api/v2/replicas", ADMIN) for _ in range(number)]
            assert [call.result(20)[0] for call in asked] == [200] * number


#: What docs/reusing.md shows, of the folders here.
_HOSTS = {
    "health": """
app.register_blueprint(health.blueprint(ready={"disk": lambda: None}))
""",
    "replicas": """
engine = create_engine(os.environ["DATABASE_URL"], connect_args={"timeout": 5})
membership = replicas.Membership(engine, replica_id=gunicorn.replica_id, version="2.4")
app.extensions["readygate"] = membership
checks = health.disclosed(database=membership.database_reason, replica=membership.reason)
app.register_blueprint(health.blueprint(measured=checks, start=membership.start))
""",
}
_HOOKS = "from replicas.gunicorn import on_exit, on_starting, post_worker_init, pre_exec\n"
_IMPORTS = """\
import os

from flask import Flask
from sqlalchemy import create_engine

import health
import replicas
from replicas import gunicorn

app = Flask(__name__)
"""


@pytest.mark.parametrize("host", _HOSTS)
def test_many_probes_at_once_find_a_preloaded_host_under_gevent_answering(
    database: str, tmp_path: Path, host: str
) -> None:
    engine = background_engine(lambda: database, timeout_seconds=10)
    schema.upgrade(engine)
    (tmp_path / "host.py").write_text(_IMPORTS + _HOSTS[host])
    (tmp_path / "gunicorn.conf.py").write_text(
        (_HOOKS if host == "replicas" else "")
        + "import os\nbind = '127.0.0.1:' + os.environ['PORT']\ncontrol_socket_disable = True\n"
    )
    url = database.replace("postgresql://", "postgresql+pg8000://")
    arguments = ("--worker-class", "gevent", "--preload", "host:app")
    with gunicorn(url, *arguments, workers=1, folder=tmp_path, PYTHONPATH=str(ROOT)) as master:
        until(lambda: "Booting worker" in master.lines)
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(master.get, timeout=10) for _ in range(20)]
            answered = [each.result(20) for each in asked]
        assert {status for status, _ in answered} <= {200, 503}
        until(lambda: ready(master))
        assert master.get("/healthz") == (200, "OK")
        assert "Traceback" not in master.lines
        at = time.monotonic()
        assert master.stop() - at < 5


def test_a_read_only_database_takes_nobody_out_and_is_named_in_the_log(server: pg.Server, database: str) -> None:
    with gunicorn(database, **SHORT) as master:
        started(master)
        name = database.rsplit("/", 1)[1]
        pg.execute(server.url(), f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        pg.execute(server.url(), f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        until(lambda: "read only (25006)" in master.lines)
        time.sleep(3 * HEARTBEAT)
        # Policy `all`: nothing can take its place, so losing the heartbeat takes nobody out.
        until(lambda: ready(master), seconds=3)
        assert "[!]replica warning: heartbeat lost" in master.get("/readyz?verbose")[1]
        assert master.lines.count("heartbeat failed: read only") == len(master.workers())
        pg.execute(server.url(), f"ALTER DATABASE {name} RESET default_transaction_read_only")
        pg.execute(server.url(), f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        until(lambda: "[!]" not in master.get("/readyz?verbose")[1] and ready(master))


def test_probes_cost_the_database_one_ping_a_second_per_worker(server: pg.Server, database: str) -> None:
    rare: dict[str, Any] = {"READYGATE_HEARTBEAT_SECONDS": "3600", "READYGATE_STALE_AFTER_SECONDS": "10800"}
    # No grace, at whose end it would sync.
    rare["READYGATE_REPLICA_GRACE_SECONDS"] = "0"
    with contextlib.closing(Proxy(server.port)) as proxy:
        url = database.replace(f":{server.port}/", f":{proxy.port}/")
        with gunicorn(url, **rare) as master:
            started(master)
            time.sleep(1)
            began, before = time.monotonic(), proxy.messages
            probes = 0
            while time.monotonic() < began + 8:
                assert master.get() == (200, "OK")
                probes += 1
            seconds = time.monotonic() - began
            assert probes > 200
            # Each statement is one message.
            assert 2 * (seconds - 2) <= proxy.messages - before <= 2 * (seconds + 1)
