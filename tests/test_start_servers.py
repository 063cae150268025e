"""What real servers do at their start and at their end, and what their workers' coming and going leaves alone."""

from __future__ import annotations

import json
import os
import signal
import time
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import postgres as pg
import psutil
import pytest
from alembic import command
from alembic.config import Config
from servers import HEARTBEAT, ROOT, Gunicorn, all_ready, get, gunicorn, ready, until
from test_servers import flask, keys, public

import database

pytestmark = pytest.mark.server
__all__ = ["keys"]  # A fixture, known by its name.

PROMISE = HEARTBEAT + 1


def rows(url: str) -> list[tuple[str, str]]:
    """Which replicas there are, and since when they stand in the line."""
    found = json.loads(flask(url, "replicas", "list", "--json").output)
    return [(row["id"], row["created_at"]) for row in found]


def a_license(key: Path, *features: str) -> str:
    chosen = [word for feature in features for word in ("--feature", feature)]
    none = "sqlite:////nowhere/none.db"
    return flask(none, "license", "issue", "--key", str(key), "--account-id", "acme", *chosen).stdout.strip()


@pytest.mark.parametrize("policy", ["all", "surplus"])
def test_the_start_says_which_policy_it_has_and_what_that_would_do(sqlite_url: str, policy: str) -> None:
    does = {"all": "a violation takes every replica out", "surplus": "a violation takes the surplus out"}[policy]
    with gunicorn(sqlite_url, READYGATE_EXCLUDE=policy) as server:
        until(lambda: ready(server))
        assert f"policy {policy}: {does}" in server.lines
        assert "database sqlite:test.db" in server.lines


def test_a_license_in_a_file_is_imported_at_the_start_and_when_the_file_changes(
    database_url: str, keys: Path, tmp_path: Path
) -> None:
    file = tmp_path / "license.jwt"
    file.write_text(a_license(keys, "one"))
    given = {"READYGATE_LICENSE_KEYS": public(keys), "READYGATE_LICENSE_FILE": str(file)}

    def stored() -> list[str]:
        shown = json.loads(flask(database_url, "license", "list", "--json", **given).output)
        return [name for row in shown for name in row["claims"]["features"]]

    with gunicorn(database_url, **given) as server:  # type: ignore[arg-type]
        until(lambda: ready(server))
        assert stored() == ["one"]
        file.write_text("no license at all")
        until(lambda: "license file license.jwt: this is no license" in server.lines, seconds=PROMISE)
        assert ready(server)
        changed = tmp_path / "new"
        changed.write_text(a_license(keys, "two"))
        changed.replace(file)
        until(lambda: stored() == ["one", "two"], seconds=PROMISE + 2)
        # A pipe by mistake holds nobody up.
        file.unlink()
        os.mkfifo(file)
        until(lambda: "license file license.jwt: cannot be read" in server.lines, seconds=PROMISE)
        time.sleep(2 * HEARTBEAT)
        assert ready(server)


def test_workers_come_and_go_and_the_replica_keeps_its_place(database_url: str) -> None:
    # Stale after six seconds: on a busy machine all workers together may be silent for two.
    with gunicorn(database_url, READYGATE_HEARTBEAT_SECONDS="2") as server:
        until(lambda: ready(server) and all_ready(server))
        [before] = rows(database_url)
        seen: set[tuple[str, str]] = set()
        for act in (
            lambda: server.workers()[0].terminate(),
            lambda: server.workers()[0].kill(),
            lambda: server.send(signal.SIGHUP),
            lambda: server.send(signal.SIGTTIN),
            lambda: server.send(signal.SIGTTOU),
        ):
            pids = {worker.pid for worker in server.workers()}
            act()
            until(lambda pids=pids: {worker.pid for worker in server.workers()} != pids)  # type: ignore[misc]
            until(lambda: len(server.workers()) >= 2 and all_ready(server))
            seen |= set(rows(database_url))
        # A row that had stopped for a moment would be back with another place.
        assert seen == {before}


def test_rows_that_ended_long_ago_are_swept_by_a_server_that_starts(database_url: str) -> None:
    with gunicorn(database_url) as server:
        until(lambda: ready(server))
        server.stop()
    engine = database.background_engine(lambda: database_url, timeout_seconds=5)
    with engine.connect() as connection:
        past = "stopped_at = stopped_at - 90000000000, updated_at = updated_at - 90000000000"
        connection.exec_driver_sql(f"UPDATE readygate_replicas SET {past}")
        with gunicorn(database_url) as server:
            until(lambda: ready(server))
            until(
                lambda: connection.exec_driver_sql("SELECT count(*) FROM readygate_replicas").scalar() == 1,
                seconds=PROMISE,
            )


def test_a_service_in_the_background_outlives_a_key_file_that_turns_bad(
    sqlite_url: str, keys: Path, tmp_path: Path
) -> None:
    """A daemon is another process than the one that was started, and that one had checked the start."""
    file, pidfile, log = tmp_path / "keys.json", tmp_path / "pid", tmp_path / "log"
    file.write_text(Path(public(keys)).read_text())
    more = ("--daemon", "--pid", str(pidfile), "--error-logfile", str(log))
    with gunicorn(sqlite_url, *more, READYGATE_LICENSE_KEYS=str(file)) as server:
        until(pidfile.exists)
        master = psutil.Process(int(pidfile.read_text()))
        try:
            until(lambda: get(server.port, "/readyz") == (200, "OK"))
            file.write_text("{}")
            before = {worker.pid for worker in master.children()}
            master.send_signal(signal.SIGHUP)
            until(lambda: len(master.children()) == 2 and before.isdisjoint({one.pid for one in master.children()}))
            until(lambda: get(server.port, "/readyz") == (200, "OK"))
            assert "the keys loaded before stay in use" in log.read_text()
        finally:
            master.terminate()
            psutil.wait_procs([master], timeout=20)
    assert "Traceback" not in log.read_text()


def test_servers_that_start_together_on_an_old_database_upgrade_it_once_and_keep_what_it_held(
    postgres_url: str, keys: Path
) -> None:
    _as_the_first_release_left_it(postgres_url, a_license(keys, "high_availability"))
    servers: list[Gunicorn] = []
    try:
        given: dict[str, Any] = {"READYGATE_LICENSE_KEYS": public(keys)}
        # A start returns at once, so they come up together.
        servers += [Gunicorn(postgres_url, workers=1, **given) for _ in range(5)]
        until(lambda: all(ready(server) for server in servers), seconds=60)
        assert len(rows(postgres_url)) == 5
        assert pg.execute(postgres_url, "SELECT version_num FROM readygate_alembic_version") == [("1_0002",)]
        shown = json.loads(flask(postgres_url, "license", "list", "--json", **given).output)
        assert shown[0]["claims"]["features"] == {"high_availability": 1}
        assert all("Traceback" not in server.lines for server in servers)
    finally:
        for server in servers:
            server.kill_all()
            server.log.unlink()


def _as_the_first_release_left_it(url: str, text: str) -> None:
    config = Config(attributes={})
    config.set_main_option("script_location", str(ROOT / "migrations"))
    with database.background_engine(lambda: url, timeout_seconds=30).connect() as connection:
        connection.exec_driver_sql("BEGIN")
        config.attributes["connection"] = connection
        command.upgrade(config, "1_0001")
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql(
            "INSERT INTO readygate_licenses (uuid, jwt, uploaded_at) VALUES"
            f" ('{_jti(text)}', '{text}', 1700000000000000)"
        )


def _jti(text: str) -> str:
    return str(json.loads(urlsafe_b64decode(text.split(".")[1] + "=="))["jti"])
