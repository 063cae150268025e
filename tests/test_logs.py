"""How log lines look, and what is never in them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from servers import HEARTBEAT, Gunicorn, answers, gunicorn, ready, until
from test_servers import flask

import farewell
import logs
import replicas.gunicorn
import settings
from app import Replica, create_app

USER, SECRET = "registrar", "open%2Fsesame"


@pytest.fixture
def fresh() -> Iterator[logging.Logger]:
    """The logger as in a process that has set nothing up."""
    logger = logging.getLogger("readygate")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:] = []
    # To a logger that does not propagate, pytest adds a handler of its own.
    logger.propagate = True
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def output(fresh: logging.Logger, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What went to standard error since it was asked last."""
    return lambda: capsys.readouterr().err


def test_a_line_of_json_has_its_six_fields(output: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(replicas.gunicorn.VARIABLE, "the-id")
    logs.set_up("json")
    logging.getLogger("readygate.database").warning("database %s: %s", "db:5432/shop", 'says "no"\nand ends')
    line = output()
    assert line.count("\n") == 1
    found = json.loads(line)
    when = datetime.fromisoformat(found.pop("time"))
    assert when.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - when) < timedelta(minutes=1)
    assert found == {
        "level": "warning",
        "logger": "readygate.database",
        "process": os.getpid(),
        "replica": "the-id",
        "message": 'database db:5432/shop: says "no"\nand ends',
    }


def test_a_line_of_text_is_for_people(output: Callable[[], str]) -> None:
    logs.set_up("text")
    logging.getLogger("readygate.health").warning("check %s failed", "disk")
    assert output().endswith(f"[{os.getpid()}] [WARNING] readygate.health: check disk failed\n")


def test_a_line_appears_once_however_often_it_is_set_up(output: Callable[[], str]) -> None:
    for form in ("text", "text", "json"):
        logs.set_up(form)
    logging.getLogger("readygate").info("one")
    assert output().count("one") == 1


def test_a_host_that_has_handlers_keeps_them(fresh: logging.Logger) -> None:
    own = logging.NullHandler()
    fresh.addHandler(own)
    logs.set_up("json")
    assert fresh.handlers == [own]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("kind", ["refused", "hung", "lost", "authentication", "tls", "name"])
def test_no_line_holds_user_or_password_while_connecting_fails(
    output: Callable[[], str], postgres_server: pg.Server, form: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end() -> None:
        with contextlib.suppress(OSError):  # The end of the listener.
            while True:
                listener.accept()[0].close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        if kind == "lost":
            threading.Thread(target=end, daemon=True).start()
        ports = {"refused": pg.free_port(), "authentication": postgres_server.port, "tls": postgres_server.port}
        port = ports.get(kind, listener.getsockname()[1])
        mode, host = "require" if kind == "tls" else "disable", "no..name" if kind == "name" else "127.0.0.1"
        environment = {
            "DATABASE_URL": f"postgresql://{USER}:{SECRET}@{host}:{port}/shop?sslmode={mode}&application_name=mine",
            "READYGATE_DATABASE_TIMEOUT_SECONDS": "0.2",
            "READYGATE_LOG": form,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        replica: Replica = create_app(settings.read(environment)).extensions["readygate"]
        for _ in range(2):
            replica.heartbeat._next_ping = float("-inf")
            replica.heartbeat.step()
        replica._migrator.start()
        assert replica._migrator._thread is not None
        replica._migrator._thread.join(5)
        farewell.leave()
    text = output()
    assert f"database {host}:{port}/shop: " in text
    # One line for the database, one for the migration, one for the farewell.
    assert text.count("\n") == 3
    for hidden in (USER, SECRET, "open/sesame", "sesame", "mine", "Traceback", "postgresql://", "FATAL"):
        assert hidden not in text


def test_no_line_holds_the_folder_of_a_file(output: Callable[[], str]) -> None:
    environment = {"DATABASE_URL": "sqlite:////dev/null/deep/gate.db"}
    replica: Replica = create_app(settings.read(environment)).extensions["readygate"]
    assert not replica.link.ping()
    text = output()
    assert "database sqlite:gate.db: " in text
    assert "/dev" not in text


# What a whole server writes


def parsed(server: Gunicorn) -> list[dict[str, Any]]:
    """Its lines, each of which is a JSON object."""
    return [json.loads(line) for line in server.lines.splitlines()]


def messages(server: Gunicorn, logger: str = "") -> list[str]:
    return [line["message"] for line in parsed(server) if line["logger"].startswith(logger)]


@pytest.mark.server
def test_every_line_of_a_server_is_json_and_names_its_replica(database_url: str) -> None:
    with gunicorn(database_url, "--access-logfile", "-", READYGATE_LOG="json") as server:
        until(lambda: ready(server))
        server.get("/nowhere")
        server.send(signal.SIGHUP)
        until(lambda: any("Handling signal: hup" in text for text in messages(server)))
        until(lambda: len(server.workers()) == 2 and ready(server))
        server.stop()
        found = parsed(server)
    keys = {"time", "level", "logger", "process", "replica", "message"}
    assert all(keys <= line.keys() <= keys | {"exception"} for line in found)
    ids = [line["replica"] for line in found]
    named = ids[1:]  # The first line comes before the master has made the id.
    assert len(set(named)) == 1
    assert named[0]
    assert {"gunicorn.error", "gunicorn.access", "readygate.watch", "readygate.replicas"} <= {
        line["logger"] for line in found
    }
    assert found[-1]["message"] == f"replica {named[0]}: stopped; its place is free"
    # After the SIGHUP, too.
    assert found[-1]["logger"] == "readygate.replicas"


@pytest.mark.server
def test_an_exception_is_one_line_of_json(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('on purpose')\n")
    arguments = ("--pythonpath", str(tmp_path), "--config", "gunicorn.conf.py", "broken:app")
    with gunicorn(sqlite_url, *arguments, workers=1, READYGATE_LOG="json") as server:
        server.process.wait(20)
        # Of what ends a start gunicorn prints one line more, past its logger: that is for whoever starts it.
        written = [json.loads(line) for line in server.lines.splitlines() if line.startswith("{")]
        failed = [line for line in written if "exception" in line]
    assert len(failed) >= 1
    assert failed[0]["level"] == "error"
    assert "RuntimeError: on purpose" in failed[0]["exception"]


@pytest.mark.server
@pytest.mark.parametrize("asked_for", [False, True])
def test_probes_are_in_the_access_log_only_where_they_are_asked_for(sqlite_url: str, asked_for: bool) -> None:
    wanted = {"READYGATE_LOG_PROBES": "1"} if asked_for else {}
    with gunicorn(sqlite_url, "--access-logfile", "-", READYGATE_LOG="json", **wanted) as server:  # type: ignore[arg-type]
        until(lambda: ready(server))
        probes = ("/healthz", "/readyz/database", "/readyz?verbose", "/metrics")
        for path in (*probes, "/api/v2/replicas", "/metricsandmore"):
            server.get(path)
        until(lambda: any('"GET /metricsandmore ' in text for text in messages(server, "gunicorn.access")))
        access = "\n".join(messages(server, "gunicorn.access"))
    assert '"GET /api/v2/replicas ' in access
    for path in probes:
        assert (f'"GET {path} ' in access) is asked_for


@pytest.mark.server
def test_without_being_asked_for_there_is_no_access_log(sqlite_url: str) -> None:
    with gunicorn(sqlite_url, READYGATE_LOG_PROBES="1") as server:
        until(lambda: ready(server))
        server.get("/api/v2/replicas")
        assert '"GET ' not in server.lines


@pytest.mark.server
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_credentials_are_in_the_access_log(sqlite_url: str, form: str) -> None:
    token, admin = "rg_" + 43 * "a", "an-admin-token-of-the-secret-store"
    every = "%(u)s %({authorization}i)s %({Authorization}i)s %({http_authorization}e)s %(r)s %(q)s %(U)s %(f)s"
    arguments = ("--access-logfile", "-", "--access-logformat", every)
    with gunicorn(sqlite_url, *arguments, READYGATE_LOG=form, READYGATE_ADMIN_TOKEN=admin) as server:
        until(lambda: ready(server))
        for credentials in (f"{admin}:", f"x:{admin}", f"{token}:{token}"):
            basic = base64.b64encode(credentials.encode()).decode()
            for authorization in (f"Basic {basic}", f"Bearer {admin}"):
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
                referer = f"http://localhost/?token={token}"
                headers = {"Authorization": authorization, "Referer": referer, "Connection": "close"}
                connection.request("GET", f"/api/v2/replicas?token={token}", headers=headers)
                connection.getresponse().read()
                connection.close()
            assert basic not in server.lines
        until(lambda: server.lines.count("GET /api/v2/replicas?token=rg_...") == 6)
        for hidden in (token, admin):
            assert hidden not in server.lines


def states(server: Gunicorn) -> list[tuple[int, str]]:
    """Process and statement of each line that tells of a change."""
    return [(line["process"], line["message"]) for line in parsed(server) if line["logger"] == "readygate.watch"]


@pytest.mark.server
def test_a_violation_and_its_end_are_a_line_each_in_every_worker(database_url: str) -> None:
    as_json = {"READYGATE_LOG": "json"}
    with gunicorn(database_url, **as_json) as one, gunicorn(database_url, **as_json) as two:  # type: ignore[arg-type]
        until(lambda: answers(one, "entitlement error") and answers(two, "entitlement error"))
        time.sleep(4 * HEARTBEAT)
        two.stop()
        until(lambda: ready(one))
        until(lambda: [text.split(": ", 1)[1] for _, text in states(one)].count("ready") == 4)
        time.sleep(4 * HEARTBEAT)
        said = states(one)
        name = parsed(one)[-1]["replica"]
        for worker in one.workers():
            own = [text for process, text in said if process == worker.pid]
            after = own[own.index(f"replica {name}: ready") :]
            changes = ["ready", "not ready: entitlement error", "ready"]
            assert after == [f"replica {name}: {change}" for change in changes]
        begins = [text for text in messages(one) if text.startswith("multi_replica_without_ha begins")]
        ends = [text for text in messages(one) if text == "multi_replica_without_ha ends"]
        assert (len(begins), len(ends)) == (2, 2)


@pytest.mark.server
def test_an_outage_a_drain_and_a_lost_master_are_told_with_their_reasons(postgres_server: pg.Server) -> None:
    with pg.new_database(postgres_server.url()) as url, gunicorn(url, workers=1, READYGATE_LOG="json") as server:
        until(lambda: ready(server))
        name = parsed(server)[-1]["replica"]

        def told(text: str) -> bool:
            return f"replica {name}: {text}" in [message for _, message in states(server)]

        postgres_server.stop("immediate")
        until(lambda: told("not ready: database unreachable"))
        postgres_server.start()
        until(lambda: ready(server) and states(server)[-1][1] == f"replica {name}: ready")
        # Not every second: one line when it began.
        assert [text for _, text in states(server)].count(f"replica {name}: not ready: database unreachable") == 1
        assert flask(url, "replicas", "drain", name, "--now").exit_code == 0
        until(lambda: told("not ready: draining"))
        assert any("draining: gives up its place at" in text for _, text in states(server))
        server.send(signal.SIGKILL)
        until(lambda: told("not ready: heartbeat lost"), seconds=5)
