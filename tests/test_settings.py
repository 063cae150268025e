"""The environment: what each variable takes, and what a wrong one is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

import settings
from database_url import UrlError, parse, without_login
from settings import CHECKED, PINNED_DATABASE, PINNED_KEYS, Settings, SettingsError, read

URL = "postgresql://app:sesame@db.example/app"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A JWK set with one Ed25519 key."""
    jwk = json.loads(OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate().public_key())) | {"kid": "one"}
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [jwk]}))
    return file


def refusal(**environ: str) -> str:
    """The one line that a wrong environment is told."""
    with pytest.raises(SettingsError) as caught:
        read({"DATABASE_URL": URL, **environ})
    message = str(caught.value)
    assert "\n" not in message
    assert "sesame" not in message
    return message


def test_an_empty_environment_means_the_documented_defaults() -> None:
    found = read({})
    assert found.database_url.startswith("sqlite:///")
    assert found.database_url.endswith("/instance/readygate.db")
    assert found == Settings(database_url=found.database_url)
    assert (found.heartbeat_seconds, found.stale_after_seconds, found.replica_grace_seconds) == (5, 15, 60)
    assert (found.database_timeout_seconds, found.exclude, found.auto_migrate, found.log) == (5, "all", True, "text")
    assert (found.port, found.workers) == (8000, 2)
    assert (found.license_keys_file, found.license_keys, found.license_files) == (None, None, ())


def test_an_empty_variable_is_an_unset_one() -> None:
    names = (
        "DATABASE_URL",
        "DATABASE_URL_FILE",
        "READYGATE_HEARTBEAT_SECONDS",
        "READYGATE_STALE_AFTER_SECONDS",
        "READYGATE_REPLICA_GRACE_SECONDS",
        "READYGATE_DATABASE_TIMEOUT_SECONDS",
        "READYGATE_EXCLUDE",
        "READYGATE_LICENSE_KEYS",
        "READYGATE_LICENSE_FILE",
        "READYGATE_AUTO_MIGRATE",
        "READYGATE_LOG",
        "PORT",
        "WEB_CONCURRENCY",
    )
    assert read(dict.fromkeys(names, "")) == read({})


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("READYGATE_HEARTBEAT_SECONDS", "0.5", "heartbeat_seconds", 0.5),
        ("READYGATE_STALE_AFTER_SECONDS", "20", "stale_after_seconds", 20),
        ("READYGATE_REPLICA_GRACE_SECONDS", "0", "replica_grace_seconds", 0),
        ("READYGATE_DATABASE_TIMEOUT_SECONDS", "2.5", "database_timeout_seconds", 2.5),
        ("READYGATE_EXCLUDE", "surplus", "exclude", "surplus"),
        ("READYGATE_AUTO_MIGRATE", "0", "auto_migrate", False),
        ("READYGATE_AUTO_MIGRATE", "1", "auto_migrate", True),
        ("READYGATE_LOG", "json", "log", "json"),
        ("READYGATE_LICENSE_FILE", "/a.jwt:/b.jwt", "license_files", (Path("/a.jwt"), Path("/b.jwt"))),
        ("PORT", "9090", "port", 9090),
        ("WEB_CONCURRENCY", "4", "workers", 4),
        ("DATABASE_URL", URL, "database_url", URL),
    ],
)
def test_a_good_value_is_taken(name: str, text: str, field: str, value: object) -> None:
    assert getattr(read({name: text}), field) == value


_NO_SECONDS = ["soon", "-1", "nan", "inf", "1e3", " 5", "5 ", "5s", "0x5", "١", "+5", "5,0", "1_0"]


@pytest.mark.parametrize(
    ("name", "text", "takes"),
    [
        *(("READYGATE_HEARTBEAT_SECONDS", text, "seconds from 0.05 to 3600") for text in [*_NO_SECONDS, "0", "3601"]),
        *(("READYGATE_STALE_AFTER_SECONDS", text, "seconds") for text in [*_NO_SECONDS, "0", "86401"]),
        *(("READYGATE_REPLICA_GRACE_SECONDS", text, "seconds from 0") for text in [*_NO_SECONDS, "86401"]),
        *(("READYGATE_DATABASE_TIMEOUT_SECONDS", text, "seconds from 0.1") for text in [*_NO_SECONDS, "0", "301"]),
        *(("READYGATE_EXCLUDE", text, "all or surplus") for text in ["none", "ALL", "all,surplus"]),
        *(("READYGATE_AUTO_MIGRATE", text, "0 or 1") for text in ["yes", "true", "2"]),
        *(("READYGATE_LOG", text, "text or json") for text in ["JSON", "xml"]),
        *(("PORT", text, "a whole number from 1 to 65535") for text in ["0", "65536", "http", "80.5", "-1", "٨٠"]),
        *(("WEB_CONCURRENCY", text, "a whole number from 1 to 512") for text in ["0", "513", "auto", "1.5"]),
    ],
)
def test_a_wrong_value_is_refused_by_name_with_what_it_takes(name: str, text: str, takes: str) -> None:
    message = refusal(**{name: text})
    assert message.startswith(f"{name}: takes ")
    assert takes in message


def test_stale_after_follows_the_heartbeat() -> None:
    assert read({"READYGATE_HEARTBEAT_SECONDS": "2"}).stale_after_seconds == 6


def test_stale_after_takes_at_least_three_heartbeats() -> None:
    exact = {"READYGATE_HEARTBEAT_SECONDS": "2", "READYGATE_STALE_AFTER_SECONDS": "6"}
    assert read(exact).stale_after_seconds == 6
    message = refusal(READYGATE_HEARTBEAT_SECONDS="2", READYGATE_STALE_AFTER_SECONDS="5.9")
    assert message.startswith("READYGATE_STALE_AFTER_SECONDS: takes at least 3 heartbeats, which is 6;")


@pytest.mark.parametrize("url", ["mysql://app:sesame@db/app", "sesame", "postgresql://db/sesame", "sqlite:///:memory:"])
def test_a_wrong_database_url_is_refused_without_repeating_it(url: str) -> None:
    assert refusal(DATABASE_URL=url).startswith("DATABASE_URL: ")


def test_an_unknown_parameter_of_the_database_url_is_refused_by_name() -> None:
    message = refusal(DATABASE_URL=f"{URL}?sslmode=require&target_session_attrs=sesame")
    assert "the parameter target_session_attrs is not supported" in message
    assert "sslmode" in message


def test_the_database_url_may_stand_in_a_file_that_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{URL}\n")
    found = read({"DATABASE_URL_FILE": str(file)})
    assert found.current_database_url() == found.database_url == URL
    file.write_text(URL.replace("sesame", "rotated"))
    assert "rotated" in found.current_database_url()


def test_a_wrong_url_in_a_file_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("mysql://app:sesame@db/app")
    assert refusal(DATABASE_URL="", DATABASE_URL_FILE=str(file)).startswith("DATABASE_URL_FILE: takes ")
    file.write_bytes(b"\xff\xfe")
    assert refusal(DATABASE_URL="", DATABASE_URL_FILE=str(file)).startswith("DATABASE_URL_FILE: takes a readable")
    assert refusal(DATABASE_URL="", DATABASE_URL_FILE=str(tmp_path)).startswith("DATABASE_URL_FILE: takes a readable")


def test_the_url_and_its_file_exclude_each_other() -> None:
    assert (
        refusal(DATABASE_URL_FILE="/run/secrets/url") == "DATABASE_URL and DATABASE_URL_FILE: set one of them, not both"
    )


def test_in_kubernetes_a_database_must_be_named(tmp_path: Path) -> None:
    message = refusal(DATABASE_URL="", KUBERNETES_SERVICE_HOST="10.0.0.1")
    assert message.startswith("DATABASE_URL: needed in Kubernetes")
    assert "DATABASE_URL_FILE" in message
    assert read({"DATABASE_URL": URL, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}).database_url == URL
    file = tmp_path / "url"
    file.write_text(URL)
    assert read({"DATABASE_URL_FILE": str(file), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}).database_url == URL


def test_no_secret_shows_in_the_settings_themselves() -> None:
    assert "sesame" not in repr(read({"DATABASE_URL": URL}))
    assert "sesame" not in str(read({"DATABASE_URL": URL}))


def test_a_key_set_is_read_once(keys: Path) -> None:
    found = read({"READYGATE_LICENSE_KEYS": str(keys)})
    assert (found.license_keys_file, found.license_keys) == (keys, keys.read_text())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"keys": []}', '{"keys": [{"kid": "rsa", "kty": "RSA"}]}', "x" * 70_000]
)
def test_an_unreadable_key_set_is_refused(keys: Path, text: str) -> None:
    keys.write_text(text)
    assert refusal(READYGATE_LICENSE_KEYS=str(keys)).startswith("READYGATE_LICENSE_KEYS: ")


def test_a_key_file_that_is_no_text_or_not_there_is_refused(keys: Path) -> None:
    keys.write_bytes(b"\xff\xfe")
    assert refusal(READYGATE_LICENSE_KEYS=str(keys)).startswith("READYGATE_LICENSE_KEYS: takes the path of a readable")
    keys.unlink()
    message = refusal(READYGATE_LICENSE_KEYS=str(keys))
    assert message.startswith("READYGATE_LICENSE_KEYS: takes the path of a readable")
    assert str(keys) not in message


def test_keys_that_the_master_checked_stand_while_the_file_is_bad(keys: Path) -> None:
    checked = keys.read_text()
    keys.write_text("{")
    found = read({"READYGATE_LICENSE_KEYS": str(keys), PINNED_KEYS: checked})
    assert found.license_keys == checked
    assert read({PINNED_KEYS: checked}).license_keys is None


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"mysql://app:sesame@db/app"])
def test_a_database_file_that_turns_bad_stops_no_worker(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "url"
    checked = {"DATABASE_URL_FILE": str(file), CHECKED: "1", PINNED_DATABASE: without_login(parse(URL))}
    if content is not None:
        file.write_bytes(content)
    found = read(checked)
    assert parse(found.database_url).label == parse(URL).label
    with pytest.raises(UrlError, match=r"^DATABASE_URL_FILE: takes ") as refused:
        found.current_database_url()
    assert "sesame" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)
    file.write_text(URL)
    assert found.current_database_url() == URL


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:sesame@db.example:5433/prod",
        "postgresql://app:sesame@[::1]/prod",
        "postgresql://app:sesame@/prod?host=/run/pg&sslmode=disable",
        "postgresql://app:sesame@db/a%20b%3Fc",
        "sqlite:////var/lib/a%20b.db",
    ],
)
def test_what_is_pinned_of_a_database_names_it_and_lets_nobody_in(url: str) -> None:
    pinned = without_login(parse(url))
    assert parse(pinned).label == parse(url).label
    assert type(parse(pinned)) is type(parse(url))
    assert "sesame" not in pinned
    assert "app" not in pinned


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("READYGATE_HEARBEAT_SECONDS", "READYGATE_HEARTBEAT_SECONDS"),
        ("READYGATE_EXCLUDES", "READYGATE_EXCLUDE"),
        ("READYGATE_GRACE_SECONDS", "READYGATE_REPLICA_GRACE_SECONDS"),
        ("READYGATE_ADMINTOKEN", "READYGATE_ADMIN_TOKEN"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_one_that_was_meant(name: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name}: there is no such variable; did you mean {meant}\?$"):
        read({name: "1"})


@pytest.mark.parametrize("name", ["READYGATE_SERVICE_HOST", "READYGATE_SERVICE_PORT", "READYGATE_PORT_8000_TCP_ADDR"])
def test_the_variables_of_a_kubernetes_service_called_readygate_are_none_of_ours(name: str) -> None:
    assert read({name: "10.0.0.1"}).exclude == "all"


def test_every_variable_that_is_read_is_known() -> None:
    source = Path(settings.__file__).read_text()
    asked = set(re.findall(r'"(READYGATE_[A-Z_]+)"', source[source.index("def read(") :]))
    assert asked
    assert asked <= set(settings.VARIABLES)


@pytest.mark.parametrize(("heartbeat", "stale"), [("0.1", "0.3"), ("1.1", "3.3"), ("2.2", "6.6"), ("0.05", "0.15")])
def test_three_heartbeats_are_enough_whatever_floats_make_of_them(heartbeat: str, stale: str) -> None:
    given = {"READYGATE_HEARTBEAT_SECONDS": heartbeat, "READYGATE_STALE_AFTER_SECONDS": stale}
    assert settings.read(given).stale_after_seconds == float(stale)
    with pytest.raises(settings.SettingsError, match="READYGATE_STALE_AFTER_SECONDS"):
        settings.read({**given, "READYGATE_STALE_AFTER_SECONDS": f"{float(stale) - 0.00001:.5f}"})


@pytest.mark.parametrize(
    "name",
    [
        "READYGATE_METRICS_PORT",
        "READYGATE_METRICS_SERVICE_HOST",
        "READYGATE_METRICS_SERVICE_PORT_HTTP",
        "READYGATE_REPLICA_PORT",
        "READYGATE_LOG_PORT_8000_TCP_ADDR",
        "READYGATE_IMAGE",
    ],
)
def test_what_kubernetes_sets_for_a_service_of_such_a_name_is_none_of_ours(name: str) -> None:
    assert settings.read({name: "tcp://10.0.0.1:8000"}).metrics == "token"


@pytest.mark.parametrize(
    "name", ["READYGATE_HEARTBEAT", "READYGATE_STALE_AFTER", "READYGATE_TIMEOUT_SECONDS", "READYGATE_METRIC"]
)
def test_half_a_name_is_no_variable(name: str) -> None:
    with pytest.raises(settings.SettingsError, match=f"{name}: there is no such variable; did you mean READYGATE_"):
        settings.read({name: "5"})
