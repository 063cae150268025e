"""`flask --app app ...`: what people and programs are told, and by which exit status."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import click
import postgres as pg
import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskCliRunner
from werkzeug.serving import make_server

import database
import health
import schema
import settings
from app import create_app
from entitlements.notices import NO_LICENSE_MESSAGE
from replicas import Registry

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "sqlite:////nowhere/at/all/none.db"
#: Every command that needs the database, but `status`, which tells of more.
OF_THE_DATABASE = [
    ("replicas", "list"),
    ("replicas", "drain", NO_ID := "8b6299a5-6919-4228-9354-4004f670bc13"),
    ("replicas", "undrain", NO_ID),
    ("license", "add", "README.md"),
    ("license", "list"),
    ("license", "remove", "1"),
    ("token", "create", "ci", "--role", "viewer"),
    ("token", "list"),
    ("token", "revoke", "ci"),
    ("db", "upgrade"),
]
#: Seconds that the database may take, and what a busy machine may add.
TIMEOUT, SLACK = 0.5, 1.0


def run(url: str, *arguments: str, **variables: str) -> Result:
    """A command, as `flask --app app` runs it."""
    app = create_app(settings.read({"DATABASE_URL": url, **variables}))
    try:
        return FlaskCliRunner(app).invoke(args=list(arguments))
    finally:
        app.extensions["readygate"].engine.dispose()


def one_line(result: Result) -> str:
    """The error line of a command that failed, and that said nothing else."""
    assert result.exit_code == 1, result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert "Traceback" not in result.output
    return result.output.removeprefix("Error: ").strip()


def every_command(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from every_command(command, *path, name)
        else:
            yield *path, name


def ours() -> list[tuple[str, ...]]:
    return list(every_command(create_app(settings.read({"DATABASE_URL": NOWHERE})).cli))


def a_registry(**options: object) -> Registry:
    defaults: dict[str, object] = {"replica_id": str(uuid.uuid4()), "hostname": "web", "version": "1"}
    return Registry(**{**defaults, **options})  # type: ignore[arg-type]


def join(url: str, *registries: Registry) -> None:
    with database.background_engine(lambda: url, timeout_seconds=5).connect() as connection:
        for registry in registries:
            registry.sync(connection, limit=None)


@pytest.fixture
def upgraded(database_url: str) -> str:
    """A database with the schema."""
    schema.upgrade(database.background_engine(lambda: database_url, timeout_seconds=5))
    return database_url


@pytest.fixture
def hung() -> Iterator[str]:
    """The URL of a server that accepts and never answers, with a password in it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"postgresql://app:sesame@127.0.0.1:{listener.getsockname()[1]}/shop?sslmode=disable"


@pytest.fixture
def replica() -> Iterator[tuple[str, list[str | None]]]:
    """The URL of something that answers /readyz, and the reason that it gives."""
    reason: list[str | None] = [None]

    def check() -> str | None:
        return None if reason[0] is None else health.Public(reason[0])

    app = Flask("host")
    app.register_blueprint(health.blueprint(measured={"database": check}))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}", reason
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_there_are_the_commands_of_the_contract() -> None:
    expected = {("status",), ("db", "upgrade"), ("replicas", "list"), ("license", "list"), ("license", "add")}
    expected |= {("token", "create"), ("token", "list"), ("token", "revoke")}
    assert expected <= set(ours())


@pytest.mark.parametrize("path", ours(), ids=" ".join)
def test_every_command_has_help_with_an_example_that_keeps_its_lines(path: tuple[str, ...]) -> None:
    result = run(NOWHERE, *path, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    flask --app app {' '.join(path)}" in result.output


@pytest.mark.parametrize("path", ours(), ids=" ".join)
def test_every_command_speaks_to_programs_too(path: tuple[str, ...]) -> None:
    assert "--json" in run(NOWHERE, *path, "--help").output


@pytest.mark.parametrize(
    "arguments", [("replicas", "list", "--limit", "0"), ("replicas", "none"), ("status", "--none")]
)
def test_a_wrong_word_is_exit_status_2(arguments: tuple[str, ...]) -> None:
    assert run(NOWHERE, *arguments).exit_code == 2


def test_what_programs_read_is_json(upgraded: str, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    made = json.loads(run(upgraded, "license", "keygen", "--out", str(key), "--json").stdout)
    assert made[0]["private_key"] == str(key)
    issued = run(upgraded, "license", "issue", "--key", str(key), "--account-id", "acme", "--json")
    (tmp_path / "license").write_text(json.loads(issued.stdout)["license"])
    keys = {"READYGATE_LICENSE_KEYS": made[0]["public_keys"]}
    stored = json.loads(run(upgraded, "license", "add", str(tmp_path / "license"), "--json", **keys).stdout)
    removed = run(upgraded, "license", "remove", str(stored[0]["id"]), "--json")
    assert json.loads(removed.stdout) == [{"removed": stored[0]["id"]}]
    assert json.loads(run(upgraded, "db", "upgrade", "--json").stdout) == [{"revision": schema.REVISION}]


# db upgrade


def test_db_upgrade_makes_the_schema_and_may_be_repeated(database_url: str) -> None:
    for _ in range(2):
        result = run(database_url, "db", "upgrade")
        assert (result.exit_code, result.output) == (0, f"the schema is at revision {schema.REVISION} or newer\n")
    assert run(database_url, "replicas", "list").exit_code == 0


def test_db_upgrade_refuses_another_major_version_in_one_line(upgraded: str) -> None:
    with database.background_engine(lambda: upgraded, timeout_seconds=5).connect() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '2_0001'")
    assert "another major version" in one_line(run(upgraded, "db", "upgrade"))
    assert "not one that this release can use" in one_line(run(upgraded, "replicas", "list"))


# replicas list


def test_no_replica_is_none(upgraded: str) -> None:
    assert run(upgraded, "replicas", "list").output == "none\n"
    assert run(upgraded, "replicas", "list", "--json").output == "[]\n"


def test_replicas_are_listed_longest_serving_first(upgraded: str) -> None:
    first, second, third = a_registry(grace_seconds=0), a_registry(hostname="two"), a_registry(grace_seconds=0)
    join(upgraded, first, second, third)
    with database.background_engine(lambda: upgraded, timeout_seconds=5).connect() as connection:
        connection.exec_driver_sql(f"UPDATE readygate_replicas SET draining_at = 1 WHERE id = '{third.id}'")
    rows = json.loads(run(upgraded, "replicas", "list", "--json").output)
    assert [row["id"] for row in rows] == [first.id, second.id, third.id]
    assert rows[1]["hostname"] == "two"
    # The third has not been seen by anybody to have given up its place: under the policy all, everybody goes.
    assert [row["state"] for row in rows] == ["excluded", "excluded", "draining"]
    assert rows[0]["created_at"].endswith("Z")
    names = "id hostname version created_at started_at updated_at draining_at database_latency state"
    assert " ".join(rows[0]) == names
    assert [row["id"] for row in json.loads(run(upgraded, "replicas", "list", "--json", "--limit", "2").output)] == [
        first.id,
        second.id,
    ]
    table = run(upgraded, "replicas", "list").output.splitlines()
    assert table[0].split()[:4] == ["id", "hostname", "version", "state"]
    assert len(table) == 4
    assert table[2].split()[:4] == [second.id, "two", "1", "excluded"]
    assert table[2].split()[-1] == "-"


def test_a_drain_that_waits_tells_when_somebody_takes_it_back(upgraded: str) -> None:
    replica = a_registry(stale_after_seconds=15)
    join(upgraded, replica)
    # In a process of its own: two commands in one would share their output.
    waiting = subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "app", "replicas", "drain", replica.id, "--wait", "--json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": upgraded},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ends = time.monotonic() + 10
    while [row["draining_at"] for row in json.loads(run(upgraded, "replicas", "list", "--json").output)] == [None]:
        assert time.monotonic() < ends
    assert run(upgraded, "replicas", "undrain", replica.id).exit_code == 0
    printed, complained = waiting.communicate(timeout=20)
    assert (waiting.returncode, printed) == (1, "")
    assert complained == "Error: the drain was taken back meanwhile; the replica serves on\n"


def test_a_drain_at_once_has_nothing_to_wait_for(upgraded: str) -> None:
    replica = a_registry()
    join(upgraded, replica)
    rows = json.loads(run(upgraded, "replicas", "drain", replica.id, "--now", "--wait", "--json").output)
    assert [row["state"] for row in rows] == ["draining"]


def test_replicas_that_stopped_or_are_stale_are_not_listed(upgraded: str) -> None:
    stopped, stale = a_registry(), a_registry()
    join(upgraded, stopped, stale)
    with database.background_engine(lambda: upgraded, timeout_seconds=5).connect() as connection:
        stopped.leave(connection)
        connection.exec_driver_sql(f"UPDATE readygate_replicas SET updated_at = 1 WHERE id = '{stale.id}'")
    assert run(upgraded, "replicas", "list", "--json").output == "[]\n"


# status


def test_status_of_a_ready_replica_is_exit_status_0(upgraded: str, replica: tuple[str, list[str | None]]) -> None:
    join(upgraded, a_registry(), a_registry())
    result = run(upgraded, "status", "--url", replica[0], READYGATE_EXCLUDE="surplus")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[:4] == [
        "ready",
        "  [+]database ok",
        "  readyz check passed",
        "policy: surplus (a violation takes only the surplus out of service)",
    ]
    assert "warning: replicas run different policies" not in result.output
    assert lines[5:9] == [
        "licenses: 0 stored, 0 of them refused",
        "  high_availability: not entitled",
        "  replica_limit: not entitled",
        "replicas: 2 active, 1 may serve",
    ]
    assert [line.split()[-1] for line in lines[9:]] == ["grace", "grace"]


def test_status_of_a_replica_that_is_not_ready_is_exit_status_1(
    upgraded: str, replica: tuple[str, list[str | None]]
) -> None:
    url, reason = replica
    reason[0] = "database unreachable"
    result = run(upgraded, "status", "--url", url)
    assert result.exit_code == 1
    assert result.output.startswith("not ready\n  [-]database failed: database unreachable\n  readyz check failed\n")


def test_status_is_json_for_programs(upgraded: str, replica: tuple[str, list[str | None]]) -> None:
    one, two = a_registry(exclude="all"), a_registry(exclude="surplus")
    join(upgraded, one, two)
    result = run(upgraded, "status", "--json", "--url", replica[0])
    assert result.exit_code == 0
    found = json.loads(result.output)
    uuid.UUID(found.pop("deployment_id"))
    for row in found["replicas"]:
        assert row.pop("updated_at").endswith("Z")
    rows = [
        {"id": each.id, "hostname": "web", "version": "1", "state": "grace", "policy": policy, "draining_at": None}
        for each, policy in ((one, "all"), (two, "surplus"))
    ]
    assert found == {
        "ready": True,
        "readyz": ["[+]database ok", "readyz check passed"],
        "policy": "all",
        "licenses": [],
        "allowed": 1,
        "violation": False,
        "features": {
            name: {"entitlement": "not_entitled", "limit": None, "ends": None}
            for name in ("high_availability", "replica_limit")
        },
        "notices": [],
        "replicas": rows,
        "complete": True,
        "policies": ["all", "surplus"],
    }
    assert "replicas run different policies: all, surplus" in run(upgraded, "status", "--url", replica[0]).output


def test_status_tells_of_a_violation_who_stays_and_what_to_do(
    upgraded: str, replica: tuple[str, list[str | None]]
) -> None:
    one, two = (a_registry(exclude="surplus", grace_seconds=0) for _ in range(2))
    join(upgraded, one, two)
    # By the fleet's own policy: the shell in which an operator types it may know none.
    found = json.loads(run(upgraded, "status", "--json", "--url", replica[0]).output)
    assert (found["violation"], found["allowed"], found["policies"]) == (True, 1, ["surplus"])
    assert [row["state"] for row in found["replicas"]] == ["serving", "excluded"]
    (notice,) = found["notices"]
    assert (notice["code"], notice["message"], notice["blocking"]) == (
        "multi_replica_without_ha",
        NO_LICENSE_MESSAGE,
        True,
    )
    assert notice["detail"].startswith("Since 20")
    assert f"allowed: 1; staying in service: {one.id}. Stop replicas until 1 runs" in notice["detail"]
    lines = run(upgraded, "status", "--url", replica[0]).output.splitlines()
    assert f"error: {NO_LICENSE_MESSAGE}" in lines
    assert f"  {notice['detail']}" in lines
    assert lines[-2].split() == [one.id, "web", "serving"]
    assert lines[-1].split() == [two.id, "web", "excluded"]


def test_status_under_the_policy_all_says_that_nobody_stays(
    upgraded: str, replica: tuple[str, list[str | None]]
) -> None:
    join(upgraded, *(a_registry(grace_seconds=0) for _ in range(2)))
    found = json.loads(run(upgraded, "status", "--json", "--url", replica[0]).output)
    assert "staying in service: none" in found["notices"][0]["detail"]
    assert [row["state"] for row in found["replicas"]] == ["excluded", "excluded"]


def test_status_shows_a_drain_before_and_after_its_instant(
    upgraded: str, replica: tuple[str, list[str | None]]
) -> None:
    one, two = (a_registry(grace_seconds=0) for _ in range(2))
    join(upgraded, one, two)
    run(upgraded, "replicas", "drain", one.id, "--now")
    run(upgraded, "replicas", "drain", two.id)
    with database.background_engine(lambda: upgraded, timeout_seconds=5).connect() as connection:
        two.sync(connection, limit=1)  # It writes down that the other's place is free.
    lines = run(upgraded, "status", "--url", replica[0]).output.splitlines()
    assert lines[-2].endswith("  draining")
    assert "  serving, hands its place over at 20" in lines[-1]


def test_status_without_a_replica_says_what_to_do(upgraded: str) -> None:
    port = str(pg.free_port())
    result = run(upgraded, "status", PORT=port)
    assert result.exit_code == 1
    assert f"no replica answers at http://127.0.0.1:{port}; start it with `gunicorn`" in result.output


@pytest.mark.parametrize("url", ["", "nonsense", "http://", "http://127.0.0.1:99999", "http://[", "http://a b"])
def test_status_of_no_url_is_no_replica(sqlite_url: str, url: str) -> None:
    result = run(sqlite_url, "status", "--url", url)
    assert result.exit_code == 1
    assert "no replica answers at" in result.output


def test_status_of_something_that_does_not_speak_http_is_no_replica(sqlite_url: str) -> None:
    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4096)
            client.sendall(b"220 mail ready\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        result = run(sqlite_url, "status", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(5)
    assert result.exit_code == 1
    assert "no replica answers at" in result.output


def test_status_asks_this_host_past_any_proxy(
    upgraded: str, replica: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{pg.free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert run(upgraded, "status", "--url", replica[0]).exit_code == 0


def test_status_tells_of_the_replica_even_where_the_database_is_down(replica: tuple[str, list[str | None]]) -> None:
    url = f"postgresql://app:sesame@127.0.0.1:{pg.free_port()}/shop"
    found = json.loads(run(url, "status", "--json", "--url", replica[0]).output)
    assert found["ready"]
    assert "refused" in found["database"]
    assert "sesame" not in str(found)


@pytest.mark.parametrize("slash", ["", "/"])
def test_status_takes_an_address_with_a_slash_at_its_end(
    upgraded: str, replica: tuple[str, list[str | None]], slash: str
) -> None:
    assert run(upgraded, "status", "--url", replica[0] + slash).exit_code == 0


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 503 X\r\nContent-Length: 99\r\n\r\n", b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\nzz"]
)
def test_status_of_a_server_that_breaks_off_is_no_traceback(upgraded: str, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            client, _ = listening.accept()
            with client:
                client.recv(4096)
                client.sendall(said)
                time.sleep(2.5)

        thread = threading.Thread(target=answer)
        thread.start()
        result = run(upgraded, "status", "--url", f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join(10)
    assert result.exit_code == 1
    assert "no replica answers" in result.output


def test_status_tells_what_is_granted_and_until_when(upgraded: str, tmp_path: Path) -> None:
    key = tmp_path / "vendor.pem"
    run(upgraded, "license", "keygen", "--out", str(key))
    (tmp_path / "one.jwt").write_text(
        run(upgraded, "license", "issue", "--key", str(key), "--account-id", "acme", "--feature", "seats=3").stdout
    )
    keys = {"READYGATE_LICENSE_KEYS": str(key.with_suffix(".public.json")), "PORT": str(pg.free_port())}
    run(upgraded, "license", "add", str(tmp_path / "one.jwt"), **keys)
    features = json.loads(run(upgraded, "status", "--json", **keys).output)["features"]
    assert features["high_availability"] == {"entitlement": "not_entitled", "limit": None, "ends": None}
    assert (features["seats"]["entitlement"], features["seats"]["limit"]) == ("entitled", 3)
    assert features["seats"]["ends"].endswith("Z")
    shown = run(upgraded, "status", **keys).output
    assert "  high_availability: not entitled\n" in shown
    assert re.search(r"  seats: entitled \(3\) until 20\d\d-\d\d-\d\d\n", shown)


# What no command does


@pytest.mark.parametrize("arguments", [*OF_THE_DATABASE[:-1], ("status",)], ids=" ".join)
def test_no_command_migrates_by_the_way(database_url: str, arguments: tuple[str, ...]) -> None:
    result = run(database_url, *arguments, PORT=str(pg.free_port()))
    assert result.exit_code == 1
    assert "the schema is missing; run `flask --app app db upgrade`" in result.output
    with database.background_engine(lambda: database_url, timeout_seconds=5).connect() as connection:
        assert schema.revision(connection) is None


def test_no_command_beats_or_imports_by_the_way(upgraded: str, tmp_path: Path) -> None:
    key, file = tmp_path / "vendor.pem", tmp_path / "one.jwt"
    run(upgraded, "license", "keygen", "--out", str(key))
    file.write_text(run(upgraded, "license", "issue", "--key", str(key), "--account-id", "acme").stdout)
    given = {"READYGATE_LICENSE_KEYS": str(key.with_suffix(".public.json")), "READYGATE_LICENSE_FILE": str(file)}
    for arguments in (*OF_THE_DATABASE, ("status",)):
        if arguments[:2] != ("license", "add"):
            run(upgraded, *arguments, PORT=str(pg.free_port()), **given)
    with database.background_engine(lambda: upgraded, timeout_seconds=5).connect() as connection:
        for table in ("readygate_replicas", "readygate_licenses"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0
    # It is one that would have been imported.
    assert run(upgraded, "license", "add", str(file), **given).exit_code == 0


@pytest.mark.parametrize("arguments", OF_THE_DATABASE, ids=" ".join)
def test_a_database_that_is_down_is_one_line(arguments: tuple[str, ...]) -> None:
    port = pg.free_port()
    line = one_line(run(f"postgresql://app:sesame@127.0.0.1:{port}/shop", *arguments))
    assert line == f"database 127.0.0.1:{port}/shop: refused; is it up, and is DATABASE_URL right?"


@pytest.mark.parametrize("arguments", OF_THE_DATABASE, ids=" ".join)
def test_a_database_that_hangs_is_one_line_within_the_timeout(hung: str, arguments: tuple[str, ...]) -> None:
    started = time.monotonic()
    line = one_line(run(hung, *arguments, READYGATE_DATABASE_TIMEOUT_SECONDS=str(TIMEOUT)))
    assert time.monotonic() - started < TIMEOUT + SLACK
    assert ": timeout; is it up" in line
    assert "sesame" not in line


def test_status_with_a_database_that_hangs_ends_within_the_timeout(hung: str) -> None:
    started = time.monotonic()
    port = str(pg.free_port())
    result = run(hung, "status", PORT=port, READYGATE_DATABASE_TIMEOUT_SECONDS=str(TIMEOUT))
    assert time.monotonic() - started < TIMEOUT + SLACK
    assert result.exit_code == 1
    assert ": timeout; is it up" in result.output
    assert "sesame" not in result.output


def test_a_file_of_sqlite_that_cannot_be_made_is_one_line() -> None:
    line = one_line(run("sqlite:////dev/null/gate.db", "replicas", "list"))
    assert line.startswith("database sqlite:gate.db: ")
    assert "/dev/null" not in line


def test_a_wrong_variable_is_one_line_that_names_it() -> None:
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": "mysql://app:sesame@db/shop"}
    result = subprocess.run(
        [Path(sys.executable).with_name("flask"), "--app", "app", "replicas", "list"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: DATABASE_URL: takes postgresql://")
    assert result.stderr.count("\n") == 1
    assert "sesame" not in result.stderr + result.stdout
