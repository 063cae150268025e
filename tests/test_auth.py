"""Tokens: their spelling, their table, for how long they are remembered, and the commands."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask.testing import FlaskCliRunner
from postgres import free_port
from sqlalchemy.engine import Connection

import auth
import database
import schema
import settings
from app import create_app
from auth import Tokens, Verifier

ROOT = Path(__file__).resolve().parent.parent
ADMIN = "an-admin-token-of-the-secret-store"


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    engine = database.background_engine(lambda: database_url, timeout_seconds=5)
    schema.upgrade(engine)
    with engine.connect() as connection:
        yield connection


class Watched:
    """A verifier over a real table, with a clock moved by hand and a database that can be switched off."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        self.now, self.queries, self.stalled = 1000.0, 0, False
        self._connection = connection
        self.verify = Verifier(
            Tokens(),
            connect=self._connect,
            remember_seconds=5,
            stalled=lambda: self.stalled,
            clock=lambda: self.now,
            **options,
        )

    @contextlib.contextmanager
    def _connect(self) -> Iterator[Connection]:
        self.queries += 1
        yield self._connection

    def role(self, text: str) -> str | None:
        found = self.verify(text)
        return found.role if found else None


def create(connection: Connection, name: str = "ci", **options: Any) -> str:
    return Tokens().create(connection, name, **{"role": "viewer", **options})[0]


def test_a_token_is_rg_and_43_characters_and_no_two_are_alike(connection: Connection) -> None:
    made = {create(connection, f"t{number}") for number in range(50)}
    assert len(made) == 50
    assert all(len(text) == 46 and text.startswith("rg_") and auth.well_formed(text) for text in made)


def test_whatever_is_not_a_token_is_refused_without_a_query(connection: Connection) -> None:
    text, watched = create(connection), Watched(connection)
    other = [text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :] for at in range(3, len(text))]
    for wrong in ["", "rg_", text[:-1], text + "A", text.upper(), text[3:], f" {text}", "rg_" + "é" * 43, *other]:
        assert watched.role(wrong) is None
    assert watched.queries == 0
    assert watched.role(text) == "viewer"


def test_the_table_holds_digests_only(connection: Connection) -> None:
    text = create(connection)
    rows = [dict(row._mapping) for row in connection.exec_driver_sql("SELECT * FROM readygate_tokens")]
    assert len(rows) == 1
    assert text[3:] not in str(rows)
    assert len(rows[0]["digest"]) == 64


def test_a_name_is_taken_once_and_free_again_after_its_end(connection: Connection) -> None:
    create(connection)
    with pytest.raises(auth.TokenExists):
        create(connection)
    Tokens().revoke(connection, "ci")
    with pytest.raises(auth.TokenNotFound):
        Tokens().revoke(connection, "ci")
    create(connection)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a'b", "é", "x" * 101, "a\n", "a;DROP TABLE readygate_tokens"])
def test_a_name_that_is_none_is_refused(connection: Connection, name: str) -> None:
    with pytest.raises(auth.TokenNameError):
        create(connection, name)
    with pytest.raises(auth.TokenNotFound):
        Tokens().revoke(connection, name)


def test_an_expired_token_is_nobodys_also_where_it_is_remembered(connection: Connection) -> None:
    text, watched = create(connection, expires_seconds=3), Watched(connection)
    assert watched.role(text) == "viewer"
    watched.now += 2.9
    assert watched.role(text) == "viewer"
    assert watched.queries == 1
    connection.exec_driver_sql("UPDATE readygate_tokens SET expires_at = created_at")
    watched.now += 0.2
    assert watched.role(text) is None


def test_a_token_is_asked_for_once_a_heartbeat_and_its_end_is_seen_with_the_next(connection: Connection) -> None:
    text, watched = create(connection, role="admin"), Watched(connection)
    assert [watched.role(text) for _ in range(10)] == ["admin"] * 10
    assert watched.queries == 1
    Tokens().revoke(connection, "ci")
    watched.now += 4.9
    assert watched.role(text) == "admin"
    watched.now += 0.2
    assert watched.role(text) is None
    assert watched.role(text) is None


def test_while_the_database_is_unreachable_a_remembered_token_works_for_an_hour(connection: Connection) -> None:
    text, stranger, watched = create(connection), create(connection, "other"), Watched(connection)
    assert watched.role(text) == "viewer"
    watched.stalled = True
    watched.now += 3599
    assert watched.role(text) == "viewer"
    with pytest.raises(auth.UnverifiableError):
        watched.role(stranger)
    watched.now += 2
    with pytest.raises(auth.UnverifiableError):
        watched.role(text)
    assert watched.queries == 1
    watched.stalled = False
    assert watched.role(text) == "viewer"


def test_a_token_revoked_during_an_outage_ends_with_it(connection: Connection) -> None:
    text, watched = create(connection), Watched(connection)
    assert watched.role(text) == "viewer"
    watched.stalled, watched.now = True, watched.now + 60
    Tokens().revoke(connection, "ci")
    assert watched.role(text) == "viewer"
    watched.stalled = False
    assert watched.role(text) is None
    watched.stalled = True
    with pytest.raises(auth.UnverifiableError):
        watched.role(text)


def test_the_admin_token_needs_no_table(connection: Connection) -> None:
    watched = Watched(connection, admin_token=lambda: ADMIN)
    watched.stalled = True
    assert watched.role(ADMIN) == "admin"
    for wrong in (ADMIN[:-1], ADMIN + "x", ADMIN.upper(), "\udcff", "é"):
        assert watched.role(wrong) is None
    assert watched.queries == 0


def test_the_admin_tokens_file_is_read_again_and_lets_nobody_in_where_it_turned_bad(
    connection: Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{ADMIN}\n")
    read = settings.read({"READYGATE_ADMIN_TOKEN_FILE": str(file)})
    watched = Watched(connection, admin_token=read.current_admin_token)
    assert watched.role(ADMIN) == "admin"
    rotated = "another-token-of-thirty-two-characters"
    file.write_text(rotated)
    assert (watched.role(ADMIN), watched.role(rotated)) == (None, "admin")
    with caplog.at_level("ERROR", "readygate.auth"):
        file.write_text("short")
        assert (watched.role(rotated), watched.role("short")) == (None, None)
        file.unlink()
        assert watched.role(rotated) is None
    assert len(caplog.records) == 1
    assert "READYGATE_ADMIN_TOKEN_FILE" in caplog.text
    assert str(tmp_path) not in caplog.text
    file.write_text(ADMIN)
    assert watched.role(ADMIN) == "admin"


@pytest.mark.parametrize(
    "text", ["", "short", "x" * 31, "x" * 1025, "spaces in it, thirty-two of them or more", "é" * 32]
)
def test_a_bad_admin_token_stops_the_start_and_is_not_repeated(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    for environ in ({"READYGATE_ADMIN_TOKEN": text}, {"READYGATE_ADMIN_TOKEN_FILE": str(file)}):
        if not any(environ.values()):
            continue
        with pytest.raises(settings.SettingsError, match="READYGATE_ADMIN_TOKEN") as raised:
            settings.read(environ)
        assert not text or text not in str(raised.value)


def test_an_admin_token_is_given_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(ADMIN)
    with pytest.raises(settings.SettingsError, match="not both"):
        settings.read({"READYGATE_ADMIN_TOKEN": ADMIN, "READYGATE_ADMIN_TOKEN_FILE": str(file)})


def test_an_admin_tokens_file_that_turned_bad_stops_no_worker(tmp_path: Path) -> None:
    environ = {"READYGATE_ADMIN_TOKEN_FILE": str(tmp_path / "gone"), settings.CHECKED: "1"}
    read = settings.read(environ)
    with pytest.raises(settings.SettingsError):
        read.current_admin_token()


def test_settings_show_no_admin_token() -> None:
    assert ADMIN not in repr(settings.read({"READYGATE_ADMIN_TOKEN": ADMIN}))


# The commands


def flask(url: str, *arguments: str) -> Result:
    app = create_app(settings.read({"DATABASE_URL": url}))
    result = FlaskCliRunner(app).invoke(args=list(arguments))
    app.extensions["readygate"].engine.dispose()
    return result


def upgraded(url: str) -> str:
    assert flask(url, "db", "upgrade").exit_code == 0
    return url


def test_token_create_prints_the_token_alone_and_once(database_url: str, connection: Connection) -> None:
    made = flask(database_url, "token", "create", "ci", "--role", "viewer")
    assert made.exit_code == 0
    text = made.stdout.strip()
    assert auth.well_formed(text)
    assert Watched(connection).role(text) == "viewer"
    listed = flask(database_url, "token", "list")
    assert listed.exit_code == 0
    assert "ci" in listed.output
    assert "never" in listed.output
    assert text[3:] not in listed.output


def test_token_commands_speak_json(database_url: str, connection: Connection) -> None:
    made = json.loads(
        flask(database_url, "token", "create", "a", "--role", "admin", "--expires", "90d", "--json").stdout
    )
    assert Watched(connection).role(made[0].pop("token")) == "admin"
    assert json.loads(flask(database_url, "token", "list", "--json").stdout) == made
    assert made[0]["expires_at"] > made[0]["created_at"]
    assert made[0]["expires_at"].endswith("Z")
    assert json.loads(flask(database_url, "token", "revoke", "a", "--json").stdout) == [{"revoked": "a"}]
    assert json.loads(flask(database_url, "token", "list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("create", "ci", "--role", "viewer"), 1),
        (("create", "a b", "--role", "viewer"), 1),
        (("revoke", "nobody"), 1),
        (("create", "x"), 2),
        (("create", "x", "--role", "owner"), 2),
        (("create", "x", "--role", "viewer", "--expires", "soon"), 2),
        (("create", "x", "--role", "viewer", "--expires", "0d"), 2),
        (("create", "x", "--role", "viewer", "--expires", "99999y"), 2),
    ],
)
def test_a_mistake_is_one_line_and_a_status(sqlite_url: str, arguments: tuple[str, ...], status: int) -> None:
    assert flask(upgraded(sqlite_url), "token", "create", "ci", "--role", "viewer").exit_code == 0
    result = flask(sqlite_url, "token", *arguments)
    assert result.exit_code == status
    assert "\nError: " in f"\n{result.output}"
    assert "Traceback" not in result.output


def shell(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command as a person types it."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("flask")), "--app", "app", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_database_that_is_down_is_one_line_and_status_1_within_the_timeout() -> None:
    url = f"postgresql://someone:secret-word@127.0.0.1:{free_port()}/none"
    for arguments in (("list",), ("create", "x", "--role", "viewer"), ("revoke", "x")):
        started = time.monotonic()
        result = shell("token", *arguments, DATABASE_URL=url)
        assert time.monotonic() - started < 5 + 3
        assert result.returncode == 1
        assert "refused" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert "secret-word" not in result.stdout + result.stderr


def test_a_wrong_variable_is_one_line_and_a_status_for_commands_too() -> None:
    result = shell("token", "list", READYGATE_ADMIN_TOKEN="short")
    assert result.returncode != 0
    assert "READYGATE_ADMIN_TOKEN: takes 32" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.parametrize("command", ["create", "list", "revoke"])
def test_help_has_an_example(command: str) -> None:
    result = flask("sqlite:////nowhere/none.db", "token", command, "--help")
    assert result.exit_code == 0
    assert f"flask --app app token {command}" in result.output
    assert "--json" in result.output
