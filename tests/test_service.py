"""Stored licenses and what a worker knows of them: on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import timeit
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from test_evaluate import a_fleet, a_member, bounded, replicas
from test_evaluate import a_license as granted
from test_license import DAY, JTI, JWK_SET, NOW, OTHER_KEY, YEAR, a_license, claims, sign

import database
import schema
from entitlements import (
    EntitlementsService,
    KeySet,
    License,
    LicenseError,
    LicenseExists,
    LicenseFiles,
    LicenseNotFound,
    Stored,
    StoredLicense,
    key_set,
    read,
    service,
    signing,
)
from entitlements.service import MOST_LICENSES, summary

KEYS = key_set(JWK_SET)
#: The databases' clocks stand still, at the instant at which the licenses were issued.
CLOCKS = {"postgresql": f"{NOW * 1_000_000}::bigint", "sqlite": str(NOW * 1_000_000)}


class Clock:
    """The local monotonic clock, moved by hand."""

    now = 500.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def migrated_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database of each kind with the schema, made once: migrations take longer than all that is tested here."""
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path_factory.mktemp('service')}/test.db"
        if request.param == "postgres":
            url = stack.enter_context(pg.new_database(request.getfixturevalue("postgres_base")))
        schema.upgrade(database.background_engine(lambda: url, timeout_seconds=5))
        yield url


@pytest.fixture
def connection(migrated_url: str) -> Iterator[Connection]:
    with database.background_engine(lambda: migrated_url, timeout_seconds=5).connect() as connection:
        connection.exec_driver_sql("DELETE FROM readygate_licenses")
        yield connection


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An application made by a test before this one keeps the lines of `readygate` to itself."""
    monkeypatch.setattr(logging.getLogger("readygate"), "propagate", True)
    caplog.set_level(logging.WARNING, "readygate")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def a_service(**options: Any) -> EntitlementsService:
    return EntitlementsService(**{"keys": lambda: KEYS, "clocks": CLOCKS, **options})


def stored(*licenses: License) -> Stored:
    rows = [
        StoredLicense(id=number, uuid=license_.uuid, uploaded_at=NOW, license=license_)
        for number, license_ in enumerate(licenses, 1)
    ]
    return Stored(now=NOW * 1_000_000, rows=tuple(rows))


def invalid(*numbers: int) -> Stored:
    rows = [StoredLicense(id=number, uuid="u", uploaded_at=NOW, license=None, refusal="broken") for number in numbers]
    return Stored(now=NOW * 1_000_000, rows=tuple(rows))


def insert(connection: Connection, uuid_: str, text: str) -> None:
    """A row that no door has judged, as a hand in the database makes it."""
    columns = "(uuid, jwt, uploaded_at)"
    connection.exec_driver_sql(f"INSERT INTO readygate_licenses {columns} VALUES ('{uuid_}', '{text}', 0)")


def refusals(connection: Connection, service_: EntitlementsService) -> list[str | None]:
    return [row.refusal for row in service_.read(connection).rows]


# Add, list, remove


def test_an_added_license_is_read_as_it_was_signed(connection: Connection) -> None:
    entitlements = a_service()
    added = entitlements.add(connection, sign(claims()))
    found = entitlements.read(connection)
    assert found.rows == (added,)
    assert (added.uuid, added.uploaded_at, found.now) == (JTI, NOW * 1_000_000, NOW * 1_000_000)
    assert [license_.claims() for license_ in found.valid] == [{**claims(), "trial": False}]


def test_an_empty_table_still_tells_the_databases_time(connection: Connection) -> None:
    found = EntitlementsService(keys=lambda: KEYS).read(connection)
    assert found.rows == ()
    assert abs(found.now / 1_000_000 - time.time()) < 10


def test_an_upload_is_dated_by_the_database(connection: Connection) -> None:
    added = EntitlementsService(keys=lambda: KEYS).add(connection, a_license())
    assert abs(added.uploaded_at / 1_000_000 - time.time()) < 10


def test_what_is_listed_never_holds_the_signed_text(connection: Connection) -> None:
    entitlements, text = a_service(), a_license()
    shown = [summary(entitlements.add(connection, text)), *map(summary, entitlements.read(connection).rows)]
    for part in text.split("."):
        assert part not in json.dumps(shown)
        assert part not in repr(entitlements.read(connection))


def test_the_text_is_stored_as_it_came(connection: Connection) -> None:
    text = f"\n {a_license()}\r\n\t"
    a_service().add(connection, text)
    assert connection.exec_driver_sql("SELECT jwt FROM readygate_licenses").scalar_one() == text
    assert refusals(connection, a_service()) == [None]


@pytest.mark.parametrize(
    "again",
    [
        sign(claims()),
        f"  {sign(claims())}\n",
        sign(claims(jti=JTI.upper())),
        sign(claims(account_id="another")),
        sign(claims(), typ="license"),
    ],
    ids=["as it was", "with white space", "its jti in capitals", "with other claims", "with another header"],
)
def test_the_same_license_twice_is_refused_whatever_its_spelling(connection: Connection, again: str) -> None:
    entitlements = a_service()
    entitlements.add(connection, sign(claims()))
    with pytest.raises(LicenseExists, match="stored already"):
        entitlements.add(connection, again)
    assert len(entitlements.read(connection).rows) == 1


def test_twelve_uploads_of_one_license_at_once_store_one(migrated_url: str, connection: Connection) -> None:
    outcomes: list[str] = []
    text = a_license()

    def upload() -> None:
        with database.background_engine(lambda: migrated_url, timeout_seconds=10).connect() as own:
            try:
                outcomes.append(a_service().add(own, text).uuid)
            except LicenseExists:
                outcomes.append("exists")

    threads = [threading.Thread(target=upload) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes.count("exists") == 11
    assert len(a_service().read(connection).rows) == 1


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("signature", sign(claims(), key=OTHER_KEY)),
        ("ended", a_license(nbf=0, license_expires=NOW - DAY, exp=NOW)),
        ("too_far_ahead", a_license(license_expires=NOW + 6 * YEAR, exp=NOW + 6 * YEAR)),
        ("other_deployment", a_license(deployment_ids=[str(uuid.uuid4())])),
        ("malformed", "'); DROP TABLE readygate_licenses; --"),
    ],
)
def test_what_is_refused_is_not_stored(connection: Connection, code: str, text: str) -> None:
    with pytest.raises(LicenseError) as caught:
        a_service().add(connection, text)
    assert caught.value.code == code
    assert a_service().read(connection).rows == ()


def test_the_door_goes_by_the_databases_clock(connection: Connection) -> None:
    # By this host's clock it ended decades ago; by this database's it is 1999.
    then = 915_148_800
    clocks = dict.fromkeys(CLOCKS, str(then * 1_000_000))
    old = a_license(iat=then, nbf=then, license_expires=then + DAY, exp=then + DAY)
    assert a_service(clocks=clocks).add(connection, old).id > 0


def test_a_license_for_this_deployment_is_taken(connection: Connection) -> None:
    own = a_service().deployment_id(connection)
    assert str(uuid.UUID(own)) == own
    a_service().add(connection, a_license(deployment_ids=[own]))
    assert refusals(connection, a_service()) == [None]


def test_a_license_may_be_stored_before_it_begins(connection: Connection) -> None:
    entitlements = a_service()
    entitlements.add(connection, a_license(nbf=NOW + DAY))
    found = entitlements.read(connection)
    assert entitlements.to_read(found) == 1
    assert [license_.active(NOW) for license_ in found.valid] == [False]


def test_a_removed_license_is_gone_and_its_id_is_given_to_no_other(connection: Connection) -> None:
    entitlements = a_service()
    first = entitlements.add(connection, a_license())
    entitlements.remove(connection, first.id)
    assert entitlements.read(connection).rows == ()
    assert entitlements.add(connection, a_license()).id > first.id


@pytest.mark.parametrize("unknown", [0, -1, 999, 2**31 - 1, 2**31, 2**63, 10**30])
def test_an_unknown_id_removes_nothing(connection: Connection, unknown: int) -> None:
    entitlements = a_service()
    entitlements.add(connection, a_license())
    with pytest.raises(LicenseNotFound, match="license list"):
        entitlements.remove(connection, unknown)
    assert len(entitlements.read(connection).rows) == 1


# The database is not trusted


def test_a_changed_text_in_the_table_is_an_invalid_license_and_spares_the_others(connection: Connection) -> None:
    entitlements = a_service()
    broken = entitlements.add(connection, a_license())
    entitlements.add(connection, a_license())
    forged = sign(claims(jti=broken.uuid, features={"high_availability": 1, "seats": 10**6}), key=OTHER_KEY)
    connection.exec_driver_sql(f"UPDATE readygate_licenses SET jwt = '{forged}' WHERE id = {broken.id}")
    found = entitlements.read(connection)
    assert [row.license is None for row in found.rows] == [True, False]
    assert len(found.valid) == 1
    judged = entitlements.update(found, replicas(2, limit=entitlements.to_read(found)), read_local=0)
    (error,) = judged.errors
    assert (error.code, error.blocking, judged.blocked) == ("invalid_license", False, False)
    assert f"License {broken.id}: " in error.detail
    assert forged not in error.detail


def test_capacity_that_a_changed_text_alone_granted_is_gone(connection: Connection) -> None:
    entitlements = a_service()
    entitlements.add(connection, a_license())
    assert entitlements.to_read(entitlements.read(connection)) is None
    connection.exec_driver_sql("UPDATE readygate_licenses SET jwt = 'x'")
    found = entitlements.read(connection)
    assert entitlements.to_read(found) == 1
    assert entitlements.update(found, replicas(2), read_local=0).blocked


@pytest.mark.parametrize("text", ["", " ", "x", "x" * 70_000, "\u00fc", "%s", a_license()])
def test_a_row_that_holds_anything_else_is_said_to_be_invalid(connection: Connection, text: str) -> None:
    insert(connection, JTI, text.replace("%", "%%") if connection.dialect.name == "postgresql" else text)
    assert None not in refusals(connection, a_service())


def test_one_license_under_two_names_is_one(connection: Connection) -> None:
    entitlements, text = a_service(), a_license()
    entitlements.add(connection, text)
    insert(connection, JTI, text)
    assert refusals(connection, entitlements) == [None, "the row has another jti than its license"]


def test_a_row_that_is_renamed_is_noticed_though_its_text_is_remembered(connection: Connection) -> None:
    entitlements = a_service()
    entitlements.add(connection, a_license())
    assert refusals(connection, entitlements) == [None]
    connection.exec_driver_sql(f"UPDATE readygate_licenses SET uuid = '{JTI}'")
    assert refusals(connection, entitlements) == ["the row has another jti than its license"]


def test_no_more_than_a_thousand_are_read(connection: Connection) -> None:
    for start in range(0, MOST_LICENSES + 10, 101):
        rows = ", ".join(f"('{uuid.uuid4()}', 'x', 0)" for _ in range(start, start + 101))
        connection.exec_driver_sql(f"INSERT INTO readygate_licenses (uuid, jwt, uploaded_at) VALUES {rows}")
    assert len(a_service().read(connection).rows) == MOST_LICENSES


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text whose signature is verified from here on."""
    texts: list[str] = []

    def spied(text: str, keys: KeySet) -> License:
        texts.append(text)
        return read(text, keys)

    monkeypatch.setattr(service, "read", spied)
    return texts


def test_what_did_not_change_is_verified_once(connection: Connection, verified: list[str]) -> None:
    entitlements = a_service()
    first, broken = a_license(), "x"
    entitlements.add(connection, first)
    insert(connection, JTI, broken)
    verified.clear()
    results = [entitlements.read(connection) for _ in range(3)]
    assert verified == [first, broken]
    assert results[0] == results[1] == results[2]
    second = a_license()
    entitlements.add(connection, second)
    verified.clear()
    entitlements.read(connection)
    assert verified == [second]


def test_a_set_that_is_made_anew_each_time_is_the_same_set(connection: Connection, verified: list[str]) -> None:
    entitlements = a_service(keys=lambda: key_set(JWK_SET))
    entitlements.add(connection, a_license())
    verified.clear()
    for _ in range(3):
        entitlements.read(connection)
    assert len(verified) == 1


def test_what_was_removed_is_forgotten(connection: Connection, verified: list[str]) -> None:
    entitlements, text = a_service(), a_license()
    added = entitlements.add(connection, text)
    entitlements.read(connection)
    entitlements.remove(connection, added.id)
    entitlements.read(connection)
    entitlements.add(connection, text)
    verified.clear()
    entitlements.read(connection)
    assert verified == [text]


def test_other_keys_judge_every_license_anew(connection: Connection) -> None:
    sets = [KEYS]
    entitlements = a_service(keys=lambda: sets[-1])
    entitlements.add(connection, a_license())
    assert refusals(connection, entitlements) == [None]
    sets.append(key_set(json.dumps({"keys": [signing.jwk(OTHER_KEY.public_key())]})))
    (refusal,) = refusals(connection, entitlements)
    assert "READYGATE_LICENSE_KEYS" in str(refusal)
    sets.append(KEYS)
    assert refusals(connection, entitlements) == [None]


# What the last sync found


def test_before_the_first_sync_nothing_blocks_and_nothing_is_enabled() -> None:
    entitlements = a_service()
    assert not entitlements.has_blocking_errors()
    assert entitlements.reason() == "starting"
    assert not entitlements.enabled("high_availability")
    assert entitlements.limit("high_availability") is None
    assert not entitlements.replaceable()
    assert entitlements.seconds_to_change() is None
    assert entitlements.entitlements is None


@pytest.mark.parametrize(
    ("exclude", "me", "blocked"), [("all", 0, True), ("all", 1, True), ("surplus", 0, False), ("surplus", 1, True)]
)
def test_has_blocking_errors_where_an_error_takes_this_replica_out(exclude: str, me: int, blocked: bool) -> None:
    entitlements = a_service(exclude=exclude)
    entitlements.update(stored(), replicas(2, me=me), read_local=0)
    assert entitlements.has_blocking_errors() is blocked
    assert entitlements.HasBlockingErrors() is blocked
    assert entitlements.reason() == ("entitlement error" if blocked else None)


def test_a_sync_that_finds_the_violation_over_ends_it() -> None:
    entitlements = a_service()
    entitlements.update(stored(), replicas(2), read_local=0)
    entitlements.update(stored(granted()), replicas(2, limit=None), read_local=0)
    assert (entitlements.has_blocking_errors(), entitlements.reason()) == (False, None)


def test_while_syncs_fail_a_verdict_stands_until_time_alone_ends_it_less_a_fifth(clock: Clock) -> None:
    entitlements = a_service(clock=clock)
    entitlements.update(stored(), a_fleet(a_member(0), a_member(1, aged=40)), read_local=clock.now)
    # The sync comes before the cut, so that where one succeeds nothing has to be given up yet.
    assert entitlements.seconds_to_change() == pytest.approx(40 / 1.4)
    clock.now += 31.9
    assert not entitlements.has_blocking_errors()
    clock.now += 0.1
    assert entitlements.has_blocking_errors()
    assert entitlements.seconds_to_change() == pytest.approx(40 / 1.4 - 32)


@pytest.mark.parametrize(("left", "returns"), [(0.5, False), (5.0, True)])
def test_what_was_given_up_a_moment_early_is_not_taken_back_for_the_rest(
    clock: Clock, left: float, returns: bool
) -> None:
    entitlements = a_service(clock=clock)
    entitlements.update(stored(), a_fleet(a_member(0), a_member(1, aged=40)), read_local=clock.now)
    clock.now += 40 - left
    assert entitlements.has_blocking_errors()
    later = replace(a_fleet(a_member(0), a_member(1, aged=40)), now=(NOW * 1_000_000) + round((40 - left) * 1_000_000))
    entitlements.update(stored(), later, read_local=clock.now)
    assert entitlements.has_blocking_errors() is not returns
    # Nor for longer than there was a reason: the second has left.
    entitlements.update(stored(), replace(later, members=later.members[:1]), read_local=clock.now)
    assert not entitlements.has_blocking_errors()


def test_elapsed_time_counts_from_before_the_read_was_sent(clock: Clock) -> None:
    entitlements = a_service(clock=clock)
    entitlements.update(stored(), a_fleet(a_member(0), a_member(1, aged=40)), read_local=clock.now - 32)
    assert entitlements.has_blocking_errors()


def test_only_a_sync_ends_a_block(clock: Clock) -> None:
    entitlements = a_service(clock=clock)
    entitlements.update(stored(granted(starts=100)), replicas(2), read_local=clock.now)
    clock.now += 10_000
    assert entitlements.has_blocking_errors()


def test_an_outage_takes_nobody_out_where_time_changes_nothing(clock: Clock) -> None:
    entitlements = a_service(clock=clock)
    entitlements.update(stored(), replicas(1), read_local=clock.now)
    clock.now += 10 * YEAR
    assert not entitlements.has_blocking_errors()


def test_an_outage_switches_a_feature_off_at_the_licenses_own_exp_and_not_before(clock: Clock) -> None:
    entitlements = a_service(clock=clock)
    license_ = granted(ends=100, grace=200, features={"audit_log": 1, "seats": 7, "none": 0})
    entitlements.update(stored(license_), replicas(1), read_local=clock.now)
    assert [entitlements.enabled(name) for name in ("audit_log", "seats", "none", "other")] == [
        True,
        True,
        False,
        False,
    ]
    assert [entitlements.limit(name) for name in ("audit_log", "seats", "none", "other")] == [1, 7, None, None]
    clock.now += 299.9
    assert (entitlements.enabled("audit_log"), entitlements.limit("seats")) == (True, 7)
    clock.now += 0.1
    assert (entitlements.enabled("audit_log"), entitlements.limit("seats")) == (False, None)


def test_an_outage_does_not_hold_up_a_renewal_that_is_stored(clock: Clock) -> None:
    entitlements = a_service(clock=clock)
    seats = [
        granted(ends=100, grace=0, features={"seats": 9}),
        granted(starts=100, ends=200, grace=0, features={"seats": 5}),
    ]
    entitlements.update(stored(*seats), replicas(1), read_local=clock.now)
    limits = []
    for _ in range(3):
        limits.append((entitlements.enabled("seats"), entitlements.limit("seats")))
        clock.now += 100
    assert limits == [(True, 9), (True, 5), (False, None)]


def test_a_question_of_a_host_costs_the_same_whatever_number_of_licenses_there_is(clock: Clock) -> None:
    few, many = (a_service(clock=clock) for _ in range(2))
    for one, number in ((few, 1), (many, 500)):
        licenses = [granted(ends=100 + n, features={"seats": n + 1, f"f{n}": 1}) for n in range(number)]
        one.update(stored(*licenses), replicas(1), read_local=clock.now)
    assert (few.limit("seats"), many.limit("seats")) == (1, 500)
    assert not many.enabled("nobody_sells_this")
    # The least of some rounds: a pause of the machine is none of theirs.
    times = {one: min(timeit.repeat(partial(one.limit, "seats"), number=200, repeat=9)) for one in (few, many)}
    assert times[many] < 3 * times[few]


def test_a_place_that_was_safe_can_be_lost_once_the_license_without_bound_ends(clock: Clock) -> None:
    entitlements = a_service(clock=clock, exclude="surplus")
    license_ = granted(ends=-DAY, grace=DAY + 100)
    entitlements.update(stored(license_), replicas(2), read_local=clock.now)
    assert not entitlements.replaceable()
    clock.now += 80
    assert entitlements.replaceable()
    assert not entitlements.has_blocking_errors()
    entitlements.update(stored(bounded(2)), replicas(2, limit=2), read_local=clock.now)
    assert entitlements.replaceable()


def test_what_begins_and_ends_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "readygate.entitlements")
    entitlements = a_service()
    for fleet in (replicas(2), replicas(2, me=1), replicas(3), replicas(1), replicas(1)):
        entitlements.update(stored(), fleet, read_local=0)
    assert [message.split(":")[0] for message in caplog.messages] == [
        "multi_replica_without_ha begins",
        "multi_replica_without_ha ends",
    ]


def test_every_invalid_license_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "readygate.entitlements")
    entitlements = a_service()
    for rows in (invalid(1), invalid(1), invalid(1, 2), invalid(2), invalid()):
        entitlements.update(rows, replicas(1), read_local=0)
    assert [("License 1" in message, "License 2" in message) for message in caplog.messages] == [
        (True, False),
        (False, True),
        (False, False),
        (False, False),
    ]
    assert caplog.messages[2:] == ["invalid_license ends"] * 2


# License files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "acme.jwt"


def jtis(connection: Connection) -> set[str]:
    return {row.uuid for row in a_service().read(connection).rows}


def test_a_file_is_imported_once_and_again_when_it_changes(
    connection: Connection, file: Path, verified: list[str]
) -> None:
    files, entitlements = LicenseFiles([file]), a_service()
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    file.write_text(a_license(jti=first) + "\n")
    for _ in range(3):
        files.import_into(entitlements, connection)
    assert (jtis(connection), len(verified)) == ({first}, 2)
    file.write_text(a_license(jti=second))
    files.import_into(entitlements, connection)
    assert jtis(connection) == {first, second}


def test_every_replica_imports_the_same_file_and_none_complains(
    connection: Connection, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(a_license())
    for _ in range(3):
        LicenseFiles([file]).import_into(a_service(), connection)
    assert len(jtis(connection)) == 1
    assert caplog.messages == []


def test_a_file_that_appears_later_is_imported(
    connection: Connection, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = LicenseFiles([file])
    for _ in range(3):
        files.import_into(a_service(), connection)
    assert caplog.messages == ["license file acme.jwt: cannot be read"]
    file.write_text(a_license())
    files.import_into(a_service(), connection)
    assert len(jtis(connection)) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"x" * 70_000,
        b"x" * 5_000_000,
        sign(claims(), key=OTHER_KEY).encode(),
        a_license(nbf=0, license_expires=1, exp=1).encode(),
    ],
    ids=["empty", "garbage", "no UTF-8", "over 64 KiB", "5 MB", "forged", "ended"],
)
def test_a_bad_file_is_logged_once_and_spares_the_others(
    connection: Connection, file: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(content)
    good = file.with_name("good.jwt")
    good.write_text(a_license())
    files = LicenseFiles([file, good])
    for _ in range(3):
        files.import_into(a_service(), connection)
    assert len(jtis(connection)) == 1
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("license file acme.jwt: ")
    assert str(file.parent) not in caplog.text
    file.write_text(a_license())
    files.import_into(a_service(), connection)
    assert len(jtis(connection)) == 2


def test_a_file_that_is_deleted_takes_no_license_away(
    connection: Connection, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = LicenseFiles([file])
    file.write_text(a_license())
    files.import_into(a_service(), connection)
    file.unlink()
    for _ in range(3):
        files.import_into(a_service(), connection)
    assert len(jtis(connection)) == 1
    assert caplog.messages == ["license file acme.jwt: cannot be read"]


def test_a_file_that_was_signed_with_a_key_that_comes_later_is_imported_then(
    connection: Connection, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sets = [key_set(json.dumps({"keys": [signing.jwk(OTHER_KEY.public_key())]}))]
    files, entitlements = LicenseFiles([file]), a_service(keys=lambda: sets[-1])
    file.write_text(a_license())
    for _ in range(2):
        files.import_into(entitlements, connection)
    assert jtis(connection) == set()
    assert len(caplog.messages) == 1
    sets.append(KEYS)
    files.import_into(entitlements, connection)
    assert len(jtis(connection)) == 1


def test_a_failing_database_is_the_callers_to_tell_and_the_file_is_imported_later(
    connection: Connection, file: Path
) -> None:
    files = LicenseFiles([file])
    file.write_text(a_license())
    connection.exec_driver_sql("ALTER TABLE readygate_licenses RENAME TO away")
    with pytest.raises((DBAPIError, OSError)):
        files.import_into(a_service(), connection)
    connection.exec_driver_sql("ALTER TABLE away RENAME TO readygate_licenses")
    files.import_into(a_service(), connection)
    assert len(jtis(connection)) == 1
