"""Database URLs, as libpq and SQLAlchemy users write them."""

from __future__ import annotations

import string
from pathlib import Path
from random import Random

import pytest

from database_url import SSL_MODES, Postgres, Sqlite, UrlError, parse


def postgres(url: str) -> Postgres:
    found = parse(url)
    assert isinstance(found, Postgres)
    return found


def refusal(url: str) -> str:
    with pytest.raises(UrlError) as caught:
        parse(url)
    message = str(caught.value)
    assert "sesame" not in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+pg8000"])
def test_every_spelling_of_the_scheme_means_the_same(scheme: str) -> None:
    assert parse(f"{scheme}://app:sesame@db.example:6543/shop") == Postgres(
        host="db.example", port=6543, user="app", password="sesame", database="shop"
    )


def test_what_a_url_leaves_out_is_as_in_libpq() -> None:
    assert parse("postgresql://app@") == Postgres(
        host="localhost", port=5432, user="app", password=None, database="app", sslmode="prefer", connect_timeout=None
    )
    assert postgres("postgresql://app@db:/shop").port == 5432


def test_every_part_may_be_percent_encoded() -> None:
    found = postgres("postgresql://a%40b:p%2F%3A%23%3F%40%25%20x@db/my%2Fshop")
    assert (found.user, found.password, found.database) == ("a@b", "p/:#?@% x", "my/shop")


def test_addresses_of_version_6_stand_in_brackets() -> None:
    found = postgres("postgresql://app@[::1]:5433/shop")
    assert (found.host, found.port) == ("::1", 5433)


def test_a_folder_of_a_socket_is_a_host() -> None:
    assert postgres("postgresql://app@/shop?host=/run/postgresql").host == "/run/postgresql"
    assert postgres("postgresql://app@db/shop?host=/run/postgresql").host == "/run/postgresql"


def test_the_parameters_of_libpq_are_taken() -> None:
    found = postgres(
        "postgresql://app@db/shop?sslmode=verify-full&sslrootcert=/c%2B%2B/ca.pem&sslcert=/c.pem&sslkey=/k+y.pem"
        "&connect_timeout=3&application_name=gate"
    )
    assert (found.sslmode, found.sslrootcert) == ("verify-full", "/c++/ca.pem")
    assert (found.sslcert, found.sslkey) == ("/c.pem", "/k+y.pem")
    assert (found.connect_timeout, found.application_name) == (3, "gate")


def test_a_connect_timeout_of_zero_is_none_of_its_own() -> None:
    assert postgres("postgresql://app@db/shop?connect_timeout=0").connect_timeout is None


@pytest.mark.parametrize("name", ["options", "target_session_attrs", "SSLMODE", "channel_binding", "service"])
def test_an_unknown_parameter_is_refused_by_name(name: str) -> None:
    message = refusal(f"postgresql://app:sesame@db/shop?sslmode=require&{name}=sesame")
    assert f"the parameter {name} is not supported; it takes sslmode, sslrootcert," in message


def test_a_parameter_that_looks_like_no_name_is_not_repeated() -> None:
    assert "the parameter ? is not supported" in refusal("postgresql://app@db/shop?sesa-me%20sesame=1")
    assert "the parameter ? is not supported" in refusal(f"postgresql://app@db/shop?{'x' * 41}=1")


@pytest.mark.parametrize("mode", SSL_MODES)
def test_every_sslmode_of_libpq_is_known(mode: str) -> None:
    assert postgres(f"postgresql://app@db/shop?sslmode={mode}&sslrootcert=/ca.pem").sslmode == mode


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("sslmode=sesame", "sslmode takes disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=", "sslmode takes"),
        ("sslmode=verify-full", "sslmode=verify-full needs sslrootcert"),
        ("sslmode=verify-ca", "sslmode=verify-ca needs sslrootcert"),
        ("sslcert=/sesame.pem", "sslcert and sslkey belong together"),
        ("sslkey=/sesame.pem", "sslcert and sslkey belong together"),
        ("connect_timeout=soon", "connect_timeout takes whole seconds"),
        ("connect_timeout=-1", "connect_timeout takes whole seconds"),
        ("connect_timeout=1.5", "connect_timeout takes whole seconds"),
        ("host=one,sesame", "takes one host"),
    ],
)
def test_a_wrong_parameter_is_told_what_it_takes(query: str, says: str) -> None:
    assert says in refusal(f"postgresql://app@db/shop?{query}")


def test_the_systems_authorities_verify_the_name_too() -> None:
    """libpq: a weaker mode than verify-full would accept any certificate of any public authority."""
    assert postgres("postgresql://app@db/shop?sslrootcert=system").sslmode == "verify-full"
    assert postgres("postgresql://app@db/shop?sslrootcert=system&sslmode=verify-full").sslrootcert == "system"
    for weak in ("disable", "allow", "prefer", "require", "verify-ca"):
        message = refusal(f"postgresql://app@db/shop?sslrootcert=system&sslmode={weak}")
        assert "sslrootcert=system takes sslmode=verify-full" in message


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "takes postgresql://"),
        ("sesame", "takes postgresql://"),
        ("mysql://app:sesame@db/shop", "takes postgresql://"),
        ("postgresql+psycopg://app:sesame@db/shop", "takes postgresql://"),
        ("postgresql://app:sesame@db:port/shop", "is no URL"),
        ("postgresql://app:sesame@db:99999/shop", "is no URL"),
        ("postgresql://app:sesame@[db/shop", "is no URL"),
        ("postgresql://app:sesame@db:0/shop", "port"),
        ("postgresql://db/sesame", "lacks the user"),
        ("postgresql:///sesame", "lacks the user"),
        ("postgresql://:sesame@db/shop", "lacks the user"),
        ("postgresql://app:sesame@one,two/shop", "takes one host"),
    ],
)
def test_a_wrong_url_is_told_what_it_takes(url: str, says: str) -> None:
    assert says in refusal(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:p@half/sesame@db/shop",
        "postgresql://app:p@half?sesame@db/shop",
        "postgresql://app:p@half#sesame@db/shop",
        "postgresql://app:p@db/shop#sesame",
        "postgresql://app:1/sesame@db/shop",
    ],
)
def test_a_password_that_must_be_encoded_never_becomes_a_name_for_the_log(url: str) -> None:
    assert "sesame" not in refusal(url)


def test_sqlite_takes_a_file() -> None:
    assert parse("sqlite:////data/ready%20gate.db") == Sqlite(path=Path("/data/ready gate.db"))
    assert parse("sqlite:///data/gate.db") == Sqlite(path=Path("data/gate.db"))


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:sesame", "sqlite:///x.db?mode=ro"]
)
def test_sqlite_takes_nothing_but_a_file(url: str) -> None:
    assert "SQLite takes a file that all workers share" in refusal(url)


def test_a_label_holds_neither_user_nor_password_nor_folder() -> None:
    assert parse("postgresql://app:sesame@db:5433/shop?sslmode=require").label == "db:5433/shop"
    assert parse("sqlite:////data/secret/gate.db").label == "sqlite:gate.db"


def test_no_password_shows_in_what_was_parsed() -> None:
    assert "sesame" not in repr(parse("postgresql://app:sesame@db/shop"))


def test_whatever_the_text_it_is_parsed_or_refused() -> None:
    random = Random(1)
    pieces = [
        "postgresql://",
        "sqlite:///",
        "@",
        ":",
        "/",
        "?",
        "#",
        "[",
        "]",
        "%",
        "%00",
        "%ff",
        "&",
        "=",
        "sslmode=",
        "é",
        "\n",
    ]
    for _ in range(5000):
        text = "".join(random.choice([*pieces, *string.ascii_letters[:8]]) for _ in range(random.randint(0, 14)))
        try:
            found = parse(random.choice(["", "postgresql://"]) + text)
        except UrlError:
            continue
        assert isinstance(found, Postgres | Sqlite)


@pytest.mark.parametrize("url", ["postgresql://app:p@5?hunter2=x@db/shop", "postgresql://app:123?word=1@db/shop"])
def test_half_a_password_is_no_parameter_that_is_repeated(url: str) -> None:
    with pytest.raises(UrlError, match="percent-encoded") as caught:
        parse(url)
    assert "hunter2" not in str(caught.value)
    assert "word=1" not in str(caught.value)


def test_a_parameter_that_stands_twice_is_refused() -> None:
    with pytest.raises(UrlError, match="takes sslmode once"):
        parse("postgresql://app@db/shop?sslmode=require&sslmode=disable")


def test_no_label_ends_a_line_of_the_log() -> None:
    assert parse("postgresql://app@db/a%0Ab%1B").label == "db:5432/a?b?"
