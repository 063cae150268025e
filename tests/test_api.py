"""/api/v2 in the test's own process, on both databases: who may do what, and what each answer looks like."""

from __future__ import annotations

import io
import json
import re
import threading
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from clock import Clock
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.engine import Connection
from werkzeug.test import TestResponse

import database
import openapi
import schema
import settings
from api import Fortune
from app import create_app
from database import Failure
from entitlements import signing
from entitlements.blueprint import header_text
from entitlements.notices import NO_LICENSE_MESSAGE
from replicas import Heartbeat, Registry

_KEY = Ed25519PrivateKey.generate()
_KEYS = json.dumps({"keys": [signing.jwk(_KEY.public_key())]})
_DAY = 86400
LICENSES, ENTITLEMENTS, REPLICAS = "/api/v2/licenses", "/api/v2/entitlements", "/api/v2/replicas"
REFRESH = "/api/v2/licenses/refresh-entitlements"
DRAIN = f"{REPLICAS}/7/drain"


class Api:
    """The service on one database, with tokens of both roles and its thread running."""

    def __init__(self, url: str, **environment: str) -> None:
        self._engine = database.background_engine(lambda: url, timeout_seconds=5)
        schema.upgrade(self._engine)
        self.connection: Connection = self._engine.connect()
        variables = {"READYGATE_HEARTBEAT_SECONDS": "5", "READYGATE_REPLICA_GRACE_SECONDS": "0", **environment}
        read = settings.read({"DATABASE_URL": url, **variables})
        self.app: Flask = create_app(read)
        self.replica = self.app.extensions["readygate"]
        self.client: FlaskClient = self.app.test_client()
        self.tokens = {
            role: self.replica.tokens.create(self.connection, role, role=role)[0] for role in ("viewer", "admin")
        }

    def ask(self, path: str, role: str | None = "admin", method: str = "GET", **options: Any) -> TestResponse:
        """An answer to `role`, or to nobody in particular."""
        headers = {**({"Authorization": f"Bearer {self.tokens[role]}"} if role else {}), **options.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **options)

    def json(self, path: str = ENTITLEMENTS, **options: Any) -> Any:
        """The JSON of a 200."""
        answer = self.ask(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json

    def post(self, text: object, role: str | None = "admin") -> TestResponse:
        """The answer to a license."""
        return self.ask(LICENSES, role, "POST", json={"license": text})

    def add_replica(self, **options: Any) -> Registry:
        """A peer that beats now, and not again."""
        defaults: dict[str, Any] = {"hostname": "peer", "version": "1", "grace_seconds": 0, "stale_after_seconds": 600}
        registry = Registry(**{"replica_id": str(uuid.uuid4()), **defaults, **options})
        registry.sync(self.connection, limit=None)
        return registry

    def close(self) -> None:
        """Leave no thread and no connection behind."""
        self.replica.heartbeat.stop()
        self.replica.link.close()
        self.replica.requests.dispose()
        self.connection.close()


@pytest.fixture
def make(tmp_path: Any) -> Iterator[Callable[..., Api]]:
    made: list[Api] = []
    file = tmp_path / "keys.json"
    file.write_text(_KEYS)

    def make(url: str, **environment: str) -> Api:
        made.append(Api(url, READYGATE_LICENSE_KEYS=str(file), **environment))
        return made[-1]

    yield make
    for api in made:
        api.close()


@pytest.fixture
def api(make: Callable[..., Api], database_url: str) -> Api:
    return make(database_url)


@pytest.fixture
def small(make: Callable[..., Api], sqlite_url: str) -> Api:
    """For what has nothing to do with the database."""
    return make(sqlite_url)


def a_license(
    *, ends_in: int = 365 * _DAY, grace: int = 14 * _DAY, key: Ed25519PrivateKey = _KEY, more: str = "", **features: int
) -> str:
    now = int(time.time())
    return signing.issue(
        key,
        now=now,
        not_before=min(now, now + ends_in) - 60,
        license_expires=now + ends_in,
        expires=now + ends_in + grace,
        account_type="company",
        account_id="acme",
        features={**features, **({more: 1} if more else {})},
    )


# Who may do what

#: The role that a route needs, by path and method. What is not here is 404 or 405, for everybody.
ROLES = {
    (ENTITLEMENTS, "GET"): "viewer",
    (ENTITLEMENTS, "HEAD"): "viewer",
    (REPLICAS, "GET"): "viewer",
    (REPLICAS, "HEAD"): "viewer",
    (LICENSES, "GET"): "viewer",
    (LICENSES, "HEAD"): "viewer",
    (LICENSES, "POST"): "admin",
    (f"{LICENSES}/7", "DELETE"): "admin",
    (REFRESH, "POST"): "admin",
    (DRAIN, "POST"): "admin",
    (DRAIN, "DELETE"): "admin",
    ("/openapi.json", "GET"): None,
    ("/openapi.json", "HEAD"): None,
}
#: What a caller who may is answered here.
GRANTED = {"GET": 200, "HEAD": 200, "DELETE": 404, LICENSES: 415, REFRESH: 200, DRAIN: 404}
UNKNOWN = ["/api/v2", "/api/v2/", "/api/v2/nothing", f"{ENTITLEMENTS}/", f"{LICENSES}/7/x", "/api//v2/licenses"]
UNKNOWN += [
    f"{LICENSES}/refresh-entitlement",
    f"{LICENSES}/12345678901",
    "/api/v2/../healthz",
    f"{REPLICAS}/7",
    f"{REPLICAS}//drain",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "BREW"]
ROUTES = sorted({path for path, _ in ROLES} | {f"{LICENSES}/x"})


def expected(path: str, method: str, role: str | None) -> int:
    known = path if path != f"{LICENSES}/x" else f"{LICENSES}/7"
    if (known, method) not in ROLES:
        return 405
    needed = ROLES[known, method]
    if needed is None:
        return 200
    if role is None:
        return 401
    if needed == "admin" and role == "viewer":
        return 403
    return GRANTED[known] if method == "POST" else GRANTED[method]


def test_every_route_method_and_role_answers_what_the_table_says(api: Api) -> None:
    known = api.tokens["admin"]
    api.tokens |= {"forged": known[:-1] + ("A" if known[-1] != "A" else "E"), "unknown": "rg_" + "x" * 43}
    found = {}
    for path in ROUTES:
        for method in METHODS:
            for role in (None, "viewer", "admin", "forged", "unknown"):
                answer = api.ask(path, role, method)
                wanted = expected(path, method, None if role in ("forged", "unknown") else role)
                if answer.status_code != wanted:
                    found[path, method, role] = (answer.status_code, wanted)
                assert answer.headers["Cache-Control"] == "no-store"
                assert ("WWW-Authenticate" in answer.headers) == (answer.status_code == 401)
                if answer.status_code >= 400 and method != "HEAD":
                    assert answer.mimetype == "application/json"
                    assert answer.json is not None
                    assert isinstance(answer.json["message"], str)
    assert found == {}


def served(app: Flask) -> set[tuple[str, str]]:
    """The API's routes, as its description spells them."""
    rules = [rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/api/")]
    return {(re.sub("<.*>", "{id}", rule.rule), method) for rule in rules for method in rule.methods or ()}


def test_the_table_knows_every_route_of_the_app(small: Api) -> None:
    known = {(path.replace("/7", "/{id}"), method) for path, method in ROLES if path != "/openapi.json"}
    assert served(small.app) == known


@pytest.mark.parametrize("path", UNKNOWN)
def test_a_path_that_is_none_is_a_json_404_for_everybody(small: Api, path: str) -> None:
    for role in (None, "viewer", "admin"):
        for method in METHODS:
            answer = small.ask(path, role, method)
            assert answer.status_code == 404, (path, method)
            if path.startswith("/api/v2") and method != "HEAD":
                assert answer.json is not None
                assert answer.json["message"]
                assert answer.headers["Cache-Control"] == "no-store"


def test_a_405_says_what_is_allowed(small: Api) -> None:
    assert set(small.ask(LICENSES, method="PUT").headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}


def test_a_401_asks_for_a_bearer_token(small: Api) -> None:
    answer = small.ask(ENTITLEMENTS, None)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


def basic(token: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"anyone:{token}".encode()).decode()}


def test_basic_takes_the_token_as_password(small: Api) -> None:
    assert small.ask(ENTITLEMENTS, None, headers=basic(small.tokens["viewer"])).status_code == 200
    assert small.ask(ENTITLEMENTS, None, headers=basic("rg_")).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Origin": "http://localhost@evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[", "Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "file://localhost"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "https://localhost"}, 200),
        # Werkzeug's own idea of this host is no name at all.
        ({"Origin": "http://my_service:8000", "Host": "my_service:8000"}, 200),
        ({"Origin": "http://", "Host": "my_service:8000"}, 403),
    ],
)
def test_basic_with_an_unsafe_method_needs_a_page_of_our_own(small: Api, headers: dict[str, str], status: int) -> None:
    answer = small.ask(REFRESH, None, "POST", headers={**basic(small.tokens["admin"]), **headers})
    assert answer.status_code == status
    # A browser adds no Bearer by itself, so nothing can be forged.
    assert small.ask(REFRESH, "admin", "POST", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic",
        "Basic !",
        "Basic =",
        "Basic /w==",
        "Digest x",
        "rg_",
        "Bearer\t x",
        "Bearer a b",
    ],
)
def test_a_header_that_names_no_token_is_401(small: Api, header: str) -> None:
    assert small.ask(ENTITLEMENTS, None, headers={"Authorization": header}).status_code == 401


def test_the_admin_token_of_the_environment_works_without_the_table(make: Callable[..., Api], sqlite_url: str) -> None:
    given = "an-admin-token-of-the-secret-store"
    api = make(sqlite_url, READYGATE_ADMIN_TOKEN=given)
    api.tokens["given"] = given
    assert api.ask(REFRESH, "given", "POST").status_code == 200


# Licenses


def test_a_license_counts_at_once_and_its_removal_too(api: Api) -> None:
    assert api.json()["features"]["high_availability"] == {"entitlement": "not_entitled", "enabled": False}
    answer = api.post(a_license(high_availability=1, replica_limit=3, audit_log=1))
    assert answer.status_code == 201
    assert answer.json is not None
    assert sorted(answer.json) == ["claims", "id", "uploaded_at", "uuid"]
    assert answer.json["claims"]["features"] == {"high_availability": 1, "replica_limit": 3, "audit_log": 1}
    found = api.json()
    assert found["features"]["high_availability"] == {"entitlement": "entitled", "enabled": True, "limit": 1}
    assert found["features"]["replica_limit"] == {"entitlement": "entitled", "enabled": True, "limit": 3, "actual": 1}
    assert found["features"]["audit_log"]["enabled"] is True
    assert found["has_license"] is True
    assert api.json(LICENSES) == [answer.json]
    removed = api.ask(f"{LICENSES}/{answer.json['id']}", method="DELETE")
    assert (removed.status_code, removed.data, removed.headers.get("Content-Type")) == (204, b"", None)
    assert api.json()["has_license"] is False
    assert api.json(LICENSES) == []


def test_the_signed_text_is_never_shown(small: Api) -> None:
    text = a_license(high_availability=1)
    shown = [small.post(text), small.post(text), small.ask(LICENSES), small.ask(ENTITLEMENTS), small.ask(REPLICAS)]
    for answer in shown:
        for part in text.split("."):
            assert part not in answer.text


def test_the_same_license_twice_is_409_whatever_its_spelling(api: Api) -> None:
    text = a_license(high_availability=1)
    assert api.post(text).status_code == 201
    for again in (text, f"\n  {text[:40]}\n{text[40:]}\n"):
        answer = api.post(again)
        assert (answer.status_code, answer.json) == (409, {"message": "this license is stored already"})


def test_a_bad_license_is_400_with_a_reason(small: Api) -> None:
    good = a_license(high_availability=1)
    reasons = {
        "x": "no license",
        "": "empty",
        good[:-3]: "cut",
        "x" * 60_000: "no license",
        "eyJ\ud800": "no license",
        a_license(ends_in=-30 * _DAY): "ended",
        a_license(key=Ed25519PrivateKey.generate()): "not in READYGATE_LICENSE_KEYS",
    }
    for text, reason in reasons.items():
        answer = small.post(text)
        assert answer.status_code == 400, text[:20]
        assert answer.json is not None
        assert reason in answer.json["message"]
    assert small.json(LICENSES) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"license": 1}',
        b'{"license": null}',
        b'{"license": ["x"]}',
        b"\xff",
        b'{"license": "x", "other": 1}',
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"1" * 5_000,
        b"NaN",
        b"\x00",
        b'{"license": "\xff"}',
    ],
)
def test_a_bad_body_is_400(small: Api, body: bytes) -> None:
    answer = small.ask(LICENSES, method="POST", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.json is not None


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jwt"]
)
def test_a_body_that_is_not_called_json_is_415(small: Api, kind: str) -> None:
    answer = small.ask(LICENSES, method="POST", data=b'{"license": "x"}', content_type=kind)
    assert answer.status_code == 415


def test_a_body_over_64_kib_is_413_on_every_unsafe_route(small: Api) -> None:
    unsafe = [(path, method) for path, method in ROLES if method in ("POST", "DELETE")]
    for path, method in unsafe:
        answer = small.ask(path, method=method, data=b" " * (64 * 1024 + 1), content_type="application/json")
        assert answer.status_code == 413
        # Who may not is told that first.
        assert small.ask(path, "viewer", method, data=b" " * 70_000).status_code == 403


def test_a_body_over_64_kib_is_413_in_chunks_too(small: Api) -> None:
    # No length, but an end: what gunicorn makes of chunks.
    chunked: dict[str, Any] = {"content_type": "application/json", "environ_base": {"wsgi.input_terminated": True}}
    me = small.add_replica()
    paths = [(path, method) for path, method in ROLES if method in ("POST", "DELETE")]
    for path, method in [*paths, (f"{REPLICAS}/{me.id}/drain", "POST")]:
        for size, refused in ((64 * 1024, False), (64 * 1024 + 1, True), (200_000, True)):
            body = b'{"now": false}'.ljust(size)
            headers = {"Transfer-Encoding": "chunked"}
            answer = small.ask(path, method=method, input_stream=io.BytesIO(body), headers=headers, **chunked)
            assert (answer.status_code == 413) == refused, (path, method, size, answer.status_code)


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "99999999999", "2147483648", "1 OR 1=1", "'", "%00", "٣"])
def test_an_id_that_is_none_is_404(api: Api, number: str) -> None:
    api.post(a_license(high_availability=1))
    assert api.ask(f"{LICENSES}/{number}", method="DELETE").status_code == 404
    assert len(api.json(LICENSES)) == 1


def test_a_stored_license_that_does_not_verify_is_listed_without_claims(api: Api) -> None:
    api.connection.exec_driver_sql(
        f"INSERT INTO readygate_licenses (uuid, jwt, uploaded_at) VALUES ('{uuid.uuid4()}', 'not.a.license', 1)"
    )
    assert [row["claims"] for row in api.json(LICENSES)] == [None]
    assert api.ask(REFRESH, method="POST").status_code == 200
    assert [notice["code"] for notice in api.json()["notices"]] == ["invalid_license"]


# Entitlements and their headers


def test_a_violation_is_told_in_json_and_headers(api: Api) -> None:
    api.json()
    api.add_replica()
    found = api.ask(REFRESH, method="POST").json
    assert found is not None
    assert found["errors"] == [NO_LICENSE_MESSAGE]
    assert found["warnings"] == []
    assert found["features"]["replica_limit"]["actual"] == 2
    assert sorted(found["notices"][0]) == ["blocking", "code", "detail", "message", "severity"]
    assert (found["notices"][0]["code"], found["notices"][0]["blocking"]) == ("multi_replica_without_ha", True)
    assert found["refreshed_at"].endswith("Z")
    for role, status in (("viewer", 403), ("admin", 404)):
        answer = api.ask(f"{LICENSES}/7", role, "DELETE")
        assert answer.status_code == status
        assert answer.headers.getlist("X-Entitlements-Error") == [NO_LICENSE_MESSAGE]
    for path in (ENTITLEMENTS, REPLICAS, LICENSES):
        assert api.ask(path, "viewer").headers.getlist("X-Entitlements-Error") == [NO_LICENSE_MESSAGE]
    for path in (ENTITLEMENTS, "/healthz", "/readyz", "/openapi.json", "/api/v2/nothing"):
        assert "X-Entitlements-Error" not in api.ask(path, None).headers


def test_a_warning_has_a_header_of_its_own(small: Api) -> None:
    for days in range(1, 13):
        assert small.post(a_license(ends_in=days * _DAY, more=f"feature_{days}")).status_code == 201
    answer = small.ask(ENTITLEMENTS)
    assert answer.json is not None
    assert len(answer.json["warnings"]) == 12
    assert answer.headers.getlist("X-Entitlements-Warning") == answer.json["warnings"][:10]
    assert answer.headers.getlist("X-Entitlements-Error") == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Plain text.", "Plain text."),
        ("a\r\nSet-Cookie: x", "a%0D%0ASet-Cookie: x"),
        ("100 % é", "100 %25 %C3%A9"),
        ("\x00\x1b[31m\x7f", "%00%1B[31m%7F"),
        ("x" * 400, "x" * 300),
        ("é" * 400, "%C3%A9" * 50),
        ("x" + "é" * 400, "x" + "%C3%A9" * 49 + "%C3"),
        ("\ud800", "?"),
    ],
)
def test_nothing_in_a_text_can_break_its_header(text: str, value: str) -> None:
    assert header_text(text) == value
    assert len(value) <= 300


# Replicas


def test_replicas_are_shown_longest_serving_first_with_their_standing(
    make: Callable[..., Api], database_url: str
) -> None:
    api = make(database_url, READYGATE_EXCLUDE="surplus")
    own = api.json(REPLICAS)
    peers = [api.add_replica(exclude="surplus") for _ in range(2)]
    young = api.add_replica(exclude="surplus", grace_seconds=600)
    strict = api.add_replica(exclude="all", grace_seconds=600)
    draining = api.add_replica(exclude="surplus")
    api.connection.exec_driver_sql(
        f"UPDATE readygate_replicas SET draining_at = created_at - 1000000 WHERE id = '{draining.id}'"
    )
    rows = api.json(REPLICAS)
    assert [row["id"] for row in rows] == [own[0]["id"], *(one.id for one in [*peers, young, strict, draining])]
    assert [row["state"] for row in rows] == ["serving", "excluded", "excluded", "grace", "excluded", "draining"]
    assert [row["self"] for row in rows] == [True, False, False, False, False, False]
    fields = "created_at database_latency draining_at hostname id self started_at state updated_at version"
    assert sorted(rows[0]) == fields.split()
    assert rows[5]["draining_at"] < rows[5]["created_at"]
    assert rows[0]["draining_at"] is None
    assert api.post(a_license(high_availability=1, replica_limit=2)).status_code == 201
    states = [row["state"] for row in api.json(REPLICAS)]
    assert states == ["serving", "serving", "excluded", "grace", "grace", "draining"]
    assert api.post(a_license(high_availability=1)).status_code == 201
    states = [row["state"] for row in api.json(REPLICAS)]
    assert states == ["serving", "serving", "serving", "grace", "grace", "draining"]


def test_under_the_policy_all_a_violation_excludes_everybody(api: Api) -> None:
    api.json(REPLICAS)
    api.add_replica(grace_seconds=600)
    assert [row["state"] for row in api.json(REPLICAS)] == ["serving", "grace"]
    api.add_replica()
    assert [row["state"] for row in api.json(REPLICAS)] == ["excluded", "excluded", "excluded"]


def test_stale_and_stopped_replicas_are_not_shown(api: Api) -> None:
    api.json(REPLICAS)
    stopped, stale = api.add_replica(), api.add_replica()
    stopped.leave(api.connection)
    api.connection.exec_driver_sql(
        f"UPDATE readygate_replicas SET updated_at = updated_at - 601000000 WHERE id = '{stale.id}'"
    )
    assert [row["self"] for row in api.json(REPLICAS)] == [True]
    assert api.json()["features"]["replica_limit"]["actual"] == 1


def test_the_pages_of_the_fleet_are_linked_and_complete(api: Api) -> None:
    api.json(REPLICAS)
    for _ in range(6):
        api.add_replica()
    whole = [row["id"] for row in api.json(REPLICAS)]
    seen, path = [], f"{REPLICAS}?limit=3"
    for page in (3, 3, 1):
        answer = api.ask(path, headers={"Host": "evil.example"})
        assert answer.json is not None
        assert len(answer.json) == page
        seen += [row["id"] for row in answer.json]
        link = answer.headers.get("Link")
        assert (link is not None) == (page == 3)
        if link:
            assert link.endswith('>; rel="next"')
            assert "evil" not in link
            path = link[1 : link.index(">")]
    assert seen == whole
    assert len(seen) == 7


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1001",
        "limit=1e1",
        "limit=%D9%A3",
        "limit=99999999999999999999",
        "after=",
        "after=x",
        "after=1_x",
        "after=1_' OR 1=1",
        "after=9999999999999999999_8e0f4b1c-2222-4333-8444-555566667777",
    ],
)
def test_a_page_that_is_none_is_400(small: Api, query: str) -> None:
    answer = small.ask(f"{REPLICAS}?{query}")
    assert answer.status_code == 400
    assert answer.json is not None
    assert ("limit" in answer.json["message"]) == query.startswith("limit")


# Drains


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_drain_is_an_appointment_that_a_second_one_never_postpones(api: Api) -> None:
    api.json()
    peer = api.add_replica(stale_after_seconds=600)
    path = f"{REPLICAS}/{peer.id}/drain"
    first = api.ask(path, method="POST", json={"now": False})
    assert first.status_code == 202
    assert first.json is not None
    shown = {row["id"]: row for row in api.json(REPLICAS)}
    assert first.json == shown[peer.id]
    assert 595 < seconds(first.json["draining_at"]) - time.time() < 605
    bodies: list[dict[str, Any]] = [{"json": {"now": False}}, {"json": {}}, {}]
    for body in bodies:
        again = api.ask(path, method="POST", **body)
        assert (again.status_code, again.json) == (202, first.json)
    back = api.ask(path, method="DELETE")
    assert back.status_code == 200
    assert back.json == {**first.json, "draining_at": None}
    assert api.ask(path, method="DELETE").json == back.json


def test_a_drain_now_gives_the_place_up_at_once_and_for_good(api: Api) -> None:
    api.json()
    peer = api.add_replica()
    path = f"{REPLICAS}/{peer.id}/drain"
    assert {row["state"] for row in api.json(REPLICAS)} == {"excluded"}
    answer = api.ask(path, method="POST", json={"now": True})
    assert answer.status_code == 202
    assert answer.json is not None
    assert answer.json["state"] == "draining"
    assert [row["state"] for row in api.json(REPLICAS)] == ["serving", "draining"]
    late = api.ask(path, method="DELETE")
    assert late.status_code == 409
    assert late.json is not None
    assert "restart it" in late.json["message"]


def test_the_replica_that_answers_knows_of_its_drain_at_once(small: Api) -> None:
    assert small.ask("/readyz", None).text == "OK"
    own = small.json(REPLICAS)[0]["id"]
    assert small.ask(f"{REPLICAS}/{own}/drain", method="POST", json={"now": True}).status_code == 202
    assert small.ask("/readyz", None).text == "draining"


def test_a_replica_that_is_none_cannot_be_drained(api: Api) -> None:
    api.json()
    stopped = api.add_replica()
    stopped.leave(api.connection)
    for known in (stopped.id, str(uuid.uuid4()), "7", "' OR 1=1", "%00"):
        for method in ("POST", "DELETE"):
            answer = api.ask(f"{REPLICAS}/{known}/drain", method=method)
            assert answer.status_code == 404
            assert answer.json is not None
            assert "no running replica" in answer.json["message"]


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"null", b"[]", b"true", b'{"now": 1}', b'{"now": null}', b'{"now": "true"}', b'{"now": true, "x": 1}'),
        *(b"\xff", b"[" * 60_000, b"\x00", b" "),
    ],
)
def test_a_bad_body_drains_nothing(small: Api, body: bytes) -> None:
    own = small.json(REPLICAS)[0]["id"]
    answer = small.ask(f"{REPLICAS}/{own}/drain", method="POST", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert small.json(REPLICAS)[0]["draining_at"] is None


def test_a_body_of_a_drain_that_is_not_called_json_is_415(small: Api) -> None:
    own = small.json(REPLICAS)[0]["id"]
    for kind in ("", "text/plain", "application/x-www-form-urlencoded"):
        answer = small.ask(f"{REPLICAS}/{own}/drain", method="POST", data=b'{"now": true}', content_type=kind)
        assert answer.status_code == 415
    assert small.json(REPLICAS)[0]["draining_at"] is None


# The database


def test_a_database_that_does_not_answer_is_a_json_503_on_every_route(small: Api) -> None:
    small.json()
    small.replica.link.stalled = lambda: True
    started = time.monotonic()
    for path, method in ROLES:
        if path == "/openapi.json":
            continue
        for role in (None, "viewer", "admin"):
            answer = small.ask(path, role, method)
            assert answer.status_code == 503
            if method != "HEAD":
                assert answer.json == {"message": "database unreachable"}
    assert time.monotonic() - started < 1
    assert small.replica.requests.pool.checkedout() == 0


def test_a_table_that_is_missing_is_a_json_503(api: Api) -> None:
    api.json()
    api.connection.exec_driver_sql("DROP TABLE readygate_replicas")
    assert api.ask(ENTITLEMENTS).json == {"message": "schema outdated"}
    assert api.ask(ENTITLEMENTS).status_code == 503


def test_requests_hold_at_most_two_connections_and_wait_a_bounded_time_for_one(small: Api) -> None:
    small.json()
    held = [small.replica.requests.connect() for _ in range(2)]
    started = time.monotonic()
    answer = small.ask(ENTITLEMENTS)
    assert (answer.status_code, answer.json) == (503, {"message": "database unreachable"})
    assert time.monotonic() - started < 1.5
    for connection in held:
        connection.close()
    assert small.ask(ENTITLEMENTS).status_code == 200


# A sync on demand


def test_a_refresh_waits_for_a_sync_that_began_after_it() -> None:
    began, release, done = threading.Event(), threading.Event(), []

    def sync() -> None:
        began.set()
        release.wait(5)
        time.sleep(0.05)
        done.append("sync")

    heartbeat = Heartbeat(ping=lambda: True, sync=sync, heartbeat_seconds=60)
    heartbeat.start(wait_seconds=0)
    assert began.wait(5)
    results: list[tuple[bool, int]] = []
    asking = threading.Thread(target=lambda: results.append((heartbeat.refresh(wait_seconds=5), len(done))))
    asking.start()
    time.sleep(0.05)
    release.set()
    asking.join(5)
    heartbeat.stop()
    assert results == [(True, 2)]


def test_a_refresh_ends_with_a_sync_that_fails_and_after_its_time() -> None:
    def fail() -> None:
        raise ValueError("no")

    heartbeat = Heartbeat(ping=lambda: True, sync=fail, heartbeat_seconds=60)
    heartbeat.start()
    started = time.monotonic()
    assert heartbeat.refresh(wait_seconds=5) is False
    assert time.monotonic() - started < 1
    heartbeat.stop()
    assert heartbeat.refresh(wait_seconds=0.05) is False


def test_many_refreshes_at_once_share_a_sync() -> None:
    syncs: list[float] = []

    def sync() -> None:
        syncs.append(time.monotonic())
        time.sleep(0.05)

    heartbeat = Heartbeat(ping=lambda: True, sync=sync, heartbeat_seconds=60)
    heartbeat.start()
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(heartbeat.refresh())) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    heartbeat.stop()
    assert results == [True] * 20
    assert len(syncs) < 6


# The description


def test_the_description_names_every_route_and_no_other(small: Api) -> None:
    paths = openapi.DOCUMENT["paths"]
    assert {(path, method.upper()) for path in paths for method in paths[path]} == served(small.app)
    assert small.ask("/openapi.json", None).json == json.loads(json.dumps(openapi.DOCUMENT))


def test_failing_requests_are_logged_once_and_so_is_their_end(logged: list[str]) -> None:
    clock = Clock()
    fortune = Fortune(clock=clock)
    fortune.succeeded()
    for word in ("timeout", "read only", "timeout", "read only"):
        clock.now += 1
        fortune.failed(Failure(word))
        fortune.succeeded()
    assert logged == ["requests fail: database: timeout", "requests fail: database: read only"]
    clock.now += 5
    fortune.succeeded()
    fortune.succeeded()
    assert logged[2:] == ["requests succeed again"]
    fortune.failed(Failure("timeout"))
    assert logged[3:] == ["requests fail: database: timeout"]


def test_a_request_never_reads_an_sqlite_file_that_was_replaced(sqlite_url: str, tmp_path: Path) -> None:
    engine = database.request_engine(lambda: sqlite_url, timeout_seconds=1)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE old (x)")
    for file in tmp_path.iterdir():
        file.unlink()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar() == 0


def test_a_request_that_got_no_answer_keeps_the_next_from_trying_until_a_ping_has_one(api: Api) -> None:
    api.json()
    api.replica.patience.silent()
    assert api.ask(ENTITLEMENTS).status_code == 503
    assert api.replica.link.ping()
    api.json()


def test_one_thread_is_left_for_probes(small: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    small.json()
    small.replica.patience.threads = 3
    inside, free = threading.Semaphore(0), threading.Event()
    read = small.replica.entitlements.read

    def slow(connection: Connection) -> Any:
        inside.release()
        free.wait(10)
        return read(connection)

    monkeypatch.setattr(small.replica.entitlements, "read", slow)
    threads = [threading.Thread(target=small.ask, args=(LICENSES,)) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert inside.acquire(timeout=10)
    refused = small.ask(LICENSES)
    assert (refused.status_code, refused.json) == (503, {"message": "too many requests at once; try again in a second"})
    assert small.ask("/status").status_code == 503
    assert small.client.get("/healthz").status_code == 200
    free.set()
    for thread in threads:
        thread.join(10)
    small.json(LICENSES)


def test_a_worker_that_does_one_thing_at_a_time_lets_no_slow_database_keep_its_probes_waiting(small: Api) -> None:
    small.json()
    measured = small.replica.link.measurement
    small.replica.heartbeat.stop()
    small.replica.link.measurement = replace(measured, latency_seconds=0.2)
    small.json()
    small.replica.patience.threads = 1
    assert small.ask(ENTITLEMENTS).json == {
        "message": "database too slow for a worker that does one thing at a time; use gthread"
    }
    assert small.ask("/status").status_code == 200
    small.replica.link.measurement = replace(measured, latency_seconds=0.01)
    small.json()
    # A lock is nothing that a ping meets: a sync does.
    small.replica.patience.took(0.3)
    assert small.replica.link.ping()
    assert small.ask(ENTITLEMENTS).status_code == 503
    small.replica.sync()
    small.json()


def test_who_is_past_its_appointment_is_not_counted_even_where_nobody_counts(api: Api) -> None:
    assert api.post(a_license(high_availability=1)).status_code == 201
    peer = api.add_replica()
    assert api.json()["features"]["replica_limit"]["actual"] == 2
    api.ask(f"{REPLICAS}/{peer.id}/drain", method="POST", json={"now": True})
    assert api.json()["features"]["replica_limit"]["actual"] == 1


def test_rows_that_hold_what_no_license_is_are_shown_and_take_nobody_out(api: Api) -> None:
    if api.connection.dialect.name == "sqlite":
        rows = ["(x'ff00', x'c3280f', 'yesterday')", f"('{uuid.uuid4()}', CAST(x'ff' AS TEXT), {2**62})"]
    else:
        rows = [f"('', '', {2**62})", f"('{uuid.uuid4()}', 'x', {-(2**62)})"]
    for row in rows:
        api.connection.exec_driver_sql(f"INSERT INTO readygate_licenses (uuid, jwt, uploaded_at) VALUES {row}")
    assert [row["claims"] for row in api.json(LICENSES)] == [None, None]
    assert api.ask(REFRESH, method="POST").status_code == 200
    assert api.client.get("/readyz").status_code == 200
    assert api.ask("/status").status_code == 200


def test_a_license_that_begins_beyond_the_calendar_is_refused_or_shown(small: Api) -> None:
    now = int(time.time())
    values: dict[str, Any] = {"account_type": "company", "account_id": "acme", "features": {}}
    never = signing.issue(_KEY, now=now, not_before=2**40 - 1, license_expires=now + _DAY, expires=now + _DAY, **values)
    assert small.post(never).status_code == 400
    assert "never grant" in small.post(never).text
    late = signing.issue(_KEY, now=now, not_before=now, license_expires=2**40 - 2, expires=2**40 - 1, **values)
    known = json.loads(b64decode(late.split(".")[1] + "=="))["jti"]
    small.connection.exec_driver_sql(
        f"INSERT INTO readygate_licenses (uuid, jwt, uploaded_at) VALUES ('{known}', '{late}', 1)"
    )
    assert small.json(LICENSES)[0]["claims"]["exp"] == 2**40 - 1
    assert "9999-12-31" in small.ask("/status").text


def test_before_the_first_sync_entitlements_are_empty_and_whole(small: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small.replica, "start", lambda: None)
    assert small.json() == {
        "features": {
            "high_availability": {"entitlement": "not_entitled", "enabled": False},
            "replica_limit": {"entitlement": "not_entitled", "enabled": False, "actual": 0},
        },
        "warnings": [],
        "errors": [],
        "notices": [],
        "has_license": False,
        "trial": False,
        "refreshed_at": None,
    }
