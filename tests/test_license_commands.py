"""`flask --app app license ...`: what it makes, stores, shows and says."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from click.testing import Result
from flask.testing import FlaskCliRunner
from test_license import JWK_SET, OTHER_KEY, a_license, claims, sign

import database
import schema
import settings
from app import create_app
from entitlements import key_set, read, signing

DAY, YEAR = 86400, 365 * 86400
#: Where no database is.
NOWHERE = "sqlite:////nowhere/none.db"
COMMANDS = ("keygen", "issue", "add", "list", "remove")


def flask(url: str, *arguments: str, stdin: str | bytes | None = None, **variables: str) -> Result:
    """A command, as `flask --app app license` runs it."""
    app = create_app(settings.read({"DATABASE_URL": url, **variables}))
    result = FlaskCliRunner(app).invoke(args=["license", *arguments], input=stdin)
    app.extensions["readygate"].engine.dispose()
    return result


def refused(result: Result, status: int = 1) -> str:
    """The one line that it failed with."""
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    assert len(lines) == 1 or status == 2
    return lines[-1].removeprefix("Error: ")


def printed(result: Result) -> str:
    """What it printed; it succeeded."""
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key, with the public set beside it."""
    file = tmp_path_factory.mktemp("keys") / "vendor.pem"
    printed(flask(NOWHERE, "keygen", "--out", str(file)))
    return file


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def migrated_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database of each kind with the schema, made once."""
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path_factory.mktemp('commands')}/test.db"
        if request.param == "postgres":
            url = stack.enter_context(pg.new_database(request.getfixturevalue("postgres_base")))
        schema.upgrade(database.background_engine(lambda: url, timeout_seconds=5))
        yield url


@pytest.fixture
def url(migrated_url: str) -> str:
    execute(migrated_url, "DELETE FROM readygate_licenses")
    return migrated_url


def execute(url: str, statement: str) -> None:
    with database.background_engine(lambda: url, timeout_seconds=5).connect() as connection:
        connection.exec_driver_sql(statement)


def keys(key: Path) -> dict[str, str]:
    """The variable that names the public set."""
    return {"READYGATE_LICENSE_KEYS": str(key.with_suffix(".public.json"))}


def issue(key: Path, *options: str) -> str:
    return printed(flask(NOWHERE, "issue", "--key", str(key), "--account-id", "acme", *options))


def issued(key: Path, *options: str) -> dict[str, Any]:
    """The claims of what `license issue` prints."""
    return read(issue(key, *options), key_set(key.with_suffix(".public.json").read_text())).claims()


def listed(url: str, key: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(printed(flask(url, "list", "--json", **keys(key))))
    return found


# keygen


def test_keygen_writes_a_private_key_that_only_its_owner_reads_and_the_public_set_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "vendor.pem"
    before = os.umask(0)
    try:
        output = printed(flask(NOWHERE, "keygen", "--out", str(file)))
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    public = tmp_path / "vendor.public.json"
    (kid,) = key_set(public.read_text())
    assert kid == signing.jwk(signing.load(file).public_key())["kid"]
    assert f"kid: {kid}" in output
    assert '"d"' not in public.read_text()
    assert "PRIVATE" not in output


@pytest.mark.parametrize("there", ["vendor.pem", "vendor.public.json"])
def test_keygen_overwrites_nothing(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    assert "exists" in refused(flask(NOWHERE, "keygen", "--out", str(tmp_path / "vendor.pem")))
    assert [file.name for file in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "precious"


def test_keygen_that_cannot_write_says_so(tmp_path: Path) -> None:
    assert "cannot be written" in refused(flask(NOWHERE, "keygen", "--out", str(tmp_path / "none" / "vendor.pem")))


def test_keygen_that_cannot_write_the_public_set_leaves_no_private_key(tmp_path: Path) -> None:
    # With its longer ending the name of the second file is too long for a file system.
    private = tmp_path / ("v" * 245 + ".pem")
    assert "cannot be written: File name too long" in refused(flask(NOWHERE, "keygen", "--out", str(private)))
    assert list(tmp_path.iterdir()) == []


def test_keygen_that_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        refusal = refused(flask(NOWHERE, "keygen", "--out", str(tmp_path / "vendor.pem")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot be written: File too large" in refusal
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", [".", "", "/"])
def test_keygen_takes_the_name_of_a_file(out: str) -> None:
    assert "name of a file" in refused(flask(NOWHERE, "keygen", "--out", out), 2)


# issue


def test_issue_prints_one_license_and_nothing_else(key: Path) -> None:
    output = issue(key, "--feature", "high_availability", "--feature", "replica_limit=3")
    assert output.count("\n") == 1
    found = read(output, key_set(key.with_suffix(".public.json").read_text()))
    assert found.features == {"high_availability": 1, "replica_limit": 3}
    assert (found.account_id, found.account_type) == ("acme", "company")
    assert (found.trial, found.deployment_ids) == (False, None)


def test_issue_is_for_a_year_from_now_and_a_fortnight_of_grace(key: Path) -> None:
    found = issued(key)
    assert abs(found["iat"] - time.time()) < 60
    assert found["nbf"] == found["iat"]
    assert found["license_expires"] == found["nbf"] + YEAR
    assert found["exp"] == found["license_expires"] + 14 * DAY


def test_issue_says_what_it_was_told(key: Path) -> None:
    deployment = str(uuid.uuid4())
    found = issued(
        key,
        *("--account-type", "person", "--subject", "a remark", "--trial", "--deployment-id", deployment),
        *("--starts-in", "3d", "--term", "2w", "--grace", "1d", "--feature", "audit_log", "--feature", "none=0"),
    )
    assert (found["account_type"], found["sub"], found["trial"]) == ("person", "a remark", True)
    assert found["deployment_ids"] == [deployment]
    assert found["features"] == {"audit_log": 1, "none": 0}
    instants = found["nbf"] - found["iat"], found["license_expires"] - found["nbf"], found["exp"] - found["nbf"]
    assert instants == (3 * DAY, 14 * DAY, 15 * DAY)


def test_two_licenses_are_never_the_same_one(key: Path) -> None:
    assert issued(key)["jti"] != issued(key)["jti"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--feature", "replica_limit=0"], "would allow nothing"),
        (["--feature", "replica_limit=-1"], "NAME or NAME=NUMBER"),
        (["--feature", "seats=1.5"], "NAME or NAME=NUMBER"),
        (["--feature", "seats=many"], "NAME or NAME=NUMBER"),
        (["--feature", f"seats={10**15}"], "NAME or NAME=NUMBER"),
        (["--feature", "Audit Log"], "NAME or NAME=NUMBER"),
        (["--feature", ""], "NAME or NAME=NUMBER"),
        (["--term", "90"], "days, weeks or years"),
        (["--term", "-1d"], "days, weeks or years"),
        (["--term", "1m"], "days, weeks or years"),
        (["--term", "6y"], "at most 5y"),
        (["--starts-in", "4y", "--term", "2y"], "at most 5y"),
        (["--grace", "366d"], "at most 1y"),
    ],
)
def test_issue_refuses_what_would_be_refused_at_the_door(key: Path, options: list[str], words: str) -> None:
    arguments = ["issue", "--key", str(key), "--account-id", "acme", *options]
    assert words in refused(flask(NOWHERE, *arguments), 2)


@pytest.mark.parametrize("option", ["--account-id", "--account-type", "--subject"])
def test_issue_makes_no_license_that_no_reader_takes(key: Path, option: str) -> None:
    arguments = ["issue", "--key", str(key), "--account-id", "acme", option, "x" * 1001]
    assert "at most 1000 characters" in refused(flask(NOWHERE, *arguments))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"", "no private key"),
        (JWK_SET.encode(), "no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key"),
        (b"\xff\xfe", "no private key"),
    ],
    ids=["missing", "empty", "the public set", "cut", "no text"],
)
def test_issue_without_a_usable_key_says_so(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "vendor.pem"
    if content is not None:
        file.write_bytes(content)
    assert words in refused(flask(NOWHERE, "issue", "--key", str(file), "--account-id", "acme"))


def test_issue_with_a_key_that_openssl_does_not_know_says_so(tmp_path: Path) -> None:
    file = tmp_path / "curve.pem"
    # An EC key on secp112r1, a curve that cryptography knows nothing of.
    file.write_text(
        "-----BEGIN PRIVATE KEY-----\n"
        "ME4CAQAwEAYHKoZIzj0CAQYFK4EEAAYENzA1AgEBBA6DoycGXRfudfUarSqiG6Eg\n"
        "Ax4ABLz74Rzse+54vj0E3PZAqYuWGlYTGoUsmk8el4k=\n"
        "-----END PRIVATE KEY-----\n"
    )
    assert "holds no private key" in refused(flask(NOWHERE, "issue", "--key", str(file), "--account-id", "acme"))


def test_issue_makes_no_license_that_has_ended_before_it_begins(key: Path) -> None:
    refusal = flask(NOWHERE, "issue", "--key", str(key), "--account-id", "acme", "--term", "0d", "--grace", "0d")
    assert "--term takes a day or more" in refused(refusal, 2)


def test_issue_makes_no_license_of_half_a_character(key: Path) -> None:
    # What Python makes of a byte of Latin-1 on the command line.
    refusal = flask(NOWHERE, "issue", "--key", str(key), "--account-id", "caf\udce9")
    assert "account_id is no text" in refused(refusal)


# add


def test_add_stores_a_file_and_shows_it(url: str, key: Path, tmp_path: Path) -> None:
    file = tmp_path / "acme.jwt"
    file.write_text(issue(key, "--feature", "high_availability", "--feature", "replica_limit=3"))
    header, row = printed(flask(url, "add", str(file), **keys(key))).splitlines()
    assert header.split() == ["id", "uuid", "state", "term", "features"]
    assert row.endswith("high_availability=1 replica_limit=3")
    assert " valid " in row
    assert [one["claims"]["account_id"] for one in listed(url, key)] == ["acme"]


def test_add_takes_standard_input(url: str, key: Path) -> None:
    text = issue(key)
    (added,) = json.loads(printed(flask(url, "add", "-", "--json", stdin=f"\n{text}\n", **keys(key))))
    assert listed(url, key) == [added]
    assert set(added) == {"id", "uuid", "uploaded_at", "claims", "refusal"}
    assert added["uploaded_at"].endswith("Z")


def test_add_of_the_same_license_twice_fails(url: str, key: Path) -> None:
    text = issue(key)
    printed(flask(url, "add", "-", stdin=text, **keys(key)))
    assert refused(flask(url, "add", "-", stdin=text, **keys(key))) == "this license is stored already"
    assert len(listed(url, key)) == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("is empty", ""),
        ("no license", "garbage"),
        ("no license", b"\xff\xfe\x00"),
        ("over 64 KiB", "x" * 70_000),
        ("not in READYGATE_LICENSE_KEYS", sign(claims(), key=OTHER_KEY)),
    ],
    ids=["empty", "garbage", "no text", "too large", "unknown key"],
)
def test_add_of_a_bad_license_fails_in_words(url: str, key: Path, words: str, text: str | bytes) -> None:
    assert words in refused(flask(url, "add", "-", stdin=text, **keys(key)))
    assert listed(url, key) == []


def test_add_without_keys_says_what_to_set(url: str) -> None:
    assert "READYGATE_LICENSE_KEYS" in refused(flask(url, "add", "-", stdin=a_license()))


def test_add_for_another_deployment_names_this_one(url: str, key: Path) -> None:
    text = issue(key, "--deployment-id", str(uuid.uuid4()))
    own = refused(flask(url, "add", "-", stdin=text, **keys(key))).split()[-1]
    printed(flask(url, "add", "-", stdin=issue(key, "--deployment-id", own), **keys(key)))


def test_add_of_what_cannot_be_read_says_so(url: str) -> None:
    assert "cannot be read" in refused(flask(url, "add", "/proc/self/mem"))


def test_add_without_any_standard_input_says_so() -> None:
    command = [sys.executable, "-m", "flask", "--app", "app", "license", "add", "-"]
    # Closed, and not empty: `<&-` in a shell.
    run = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command],
        cwd=Path(__file__).parent.parent,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": NOWHERE},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert "standard input is closed" in run.stderr


def test_add_of_a_file_that_is_not_there_is_a_wrong_use(url: str, tmp_path: Path) -> None:
    assert "does not exist" in refused(flask(url, "add", str(tmp_path / "none.jwt")), 2)


def test_a_license_beyond_the_thousandth_is_refused_at_the_door(url: str, key: Path) -> None:
    values = ", ".join(f"('{uuid.uuid4()}', 'x', 1)" for _ in range(1000))
    execute(url, f"INSERT INTO readygate_licenses (uuid, jwt, uploaded_at) VALUES {values}")
    assert "1000 licenses are stored" in refused(flask(url, "add", "-", stdin=issue(key), **keys(key)))


# list


def test_list_tells_what_a_license_is_good_for_by_now(url: str, key: Path) -> None:
    for options in (("--term", "1d"), ("--starts-in", "3d")):
        printed(flask(url, "add", "-", stdin=issue(key, *options), **keys(key)))
    table = printed(flask(url, "list", **keys(key))).splitlines()
    assert [line.split("  ")[2].strip() for line in table[1:]] == ["valid", "not yet"]


def test_list_without_licenses_says_so(url: str) -> None:
    assert printed(flask(url, "list")) == "none\n"
    assert printed(flask(url, "list", "--json")) == "[]\n"


def test_list_never_shows_the_signed_text(url: str, key: Path) -> None:
    text = issue(key)
    printed(flask(url, "add", "-", stdin=text, **keys(key)))
    for output in (flask(url, "list", **keys(key)), flask(url, "list", "--json", **keys(key))):
        assert not [part for part in text.strip().split(".") if part in printed(output)]


def test_list_shows_why_a_stored_license_grants_nothing(url: str, key: Path) -> None:
    printed(flask(url, "add", "-", stdin=issue(key), **keys(key)))
    execute(url, "UPDATE readygate_licenses SET jwt = 'x'")
    assert "this is no license" in printed(flask(url, "list", **keys(key)))
    (row,) = listed(url, key)
    assert row["claims"] is None
    assert "no license" in row["refusal"]


def test_list_shows_instants_beyond_the_calendar(url: str, tmp_path: Path) -> None:
    public = tmp_path / "set.json"
    public.write_text(JWK_SET)
    # Nobody may add such a one; but the database is not trusted.
    text = a_license(license_expires=2**40 - 2, exp=2**40 - 1)
    with database.background_engine(lambda: url, timeout_seconds=5).connect() as connection:
        uuid = json.loads(base64.urlsafe_b64decode(text.split(".")[1] + "=="))["jti"]
        connection.exec_driver_sql(
            f"INSERT INTO readygate_licenses (uuid, jwt, uploaded_at) VALUES ('{uuid}', '{text}', {2**62})"
        )
    assert "9999-12-31" in printed(flask(url, "list", READYGATE_LICENSE_KEYS=str(public)))


# remove


def test_remove_deletes_the_license_of_that_id_alone(url: str, key: Path) -> None:
    for _ in range(2):
        printed(flask(url, "add", "-", stdin=issue(key), **keys(key)))
    first, second = (row["id"] for row in listed(url, key))
    assert printed(flask(url, "remove", str(first))) == f"removed license {first}\n"
    assert [row["id"] for row in listed(url, key)] == [second]
    assert "license list" in refused(flask(url, "remove", str(first)))


@pytest.mark.parametrize("unknown", ["0", "999999", str(2**31), str(10**30)])
def test_remove_of_an_unknown_id_fails(url: str, unknown: str) -> None:
    assert "no license has this id" in refused(flask(url, "remove", unknown))


@pytest.mark.parametrize("wrong", ["one", "1.5", "1; DROP TABLE readygate_licenses"])
def test_remove_of_what_is_no_id_is_a_wrong_use(wrong: str) -> None:
    assert "not a valid integer" in refused(flask(NOWHERE, "remove", wrong), 2)


# All of them


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_has_an_example_that_begins_with_flask(command: str) -> None:
    lines = [line.strip() for line in printed(flask(NOWHERE, command, "--help")).splitlines()]
    assert lines[lines.index("Example:") + 1].startswith(f"flask --app app license {command} ")


def test_the_groups_help_names_each() -> None:
    output = printed(flask(NOWHERE, "--help"))
    assert all(f"  {command} " in output for command in COMMANDS)


NEED_THE_DATABASE = [["list"], ["list", "--json"], ["add", "-"], ["remove", "1"]]


@pytest.mark.parametrize("arguments", NEED_THE_DATABASE, ids=" ".join)
def test_a_database_that_is_down_is_one_clear_line(arguments: list[str]) -> None:
    url = f"postgresql://reader:hunter2@127.0.0.1:{pg.free_port()}/fleet"
    line = refused(flask(url, *arguments, stdin="x"))
    assert "/fleet: refused" in line
    assert "DATABASE_URL" in line
    assert "hunter2" not in line
    assert "reader" not in line


@pytest.mark.parametrize("arguments", NEED_THE_DATABASE, ids=" ".join)
def test_a_sqlite_database_that_cannot_be_opened_is_one_clear_line(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "DATABASE_URL" in refused(flask(f"sqlite:///{tmp_path}/file/test.db", *arguments, stdin="x"))


@pytest.mark.parametrize("arguments", NEED_THE_DATABASE, ids=" ".join)
def test_a_missing_schema_says_who_makes_it(sqlite_url: str, arguments: list[str]) -> None:
    line = refused(flask(sqlite_url, *arguments, stdin="x"))
    assert line == "the schema is missing; run `flask --app app db upgrade`"


def test_a_missing_schema_on_postgresql_says_who_makes_it_too(postgres_url: str) -> None:
    assert refused(flask(postgres_url, "list")) == "the schema is missing; run `flask --app app db upgrade`"
