"""The blueprints in an app of somebody else's, with a login of its own, gates on its views, and no token anywhere."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask, abort, redirect, session
from flask.testing import FlaskClient
from sqlalchemy.engine import Connection
from werkzeug.wrappers import Response

import database
import entitlements
import replicas
import schema
from entitlements import EntitlementsService, signing
from replicas import Registry

_KEY = Ed25519PrivateKey.generate()
_KEYS = entitlements.key_set(json.dumps({"keys": [signing.jwk(_KEY.public_key())]}))


class Host:
    """A host app: sessions for people, its own ideas of who may do what, its own engine and sync."""

    def __init__(self, url: str) -> None:
        engine = database.background_engine(lambda: url, timeout_seconds=5)
        schema.upgrade(engine)
        self.connection: Connection = engine.connect()
        self.service = EntitlementsService(keys=lambda: _KEYS)
        self.registry = Registry(replica_id=str(uuid.uuid4()), hostname="host", version="9", grace_seconds=0)
        self.app = Flask("host")
        self.app.secret_key = "only for this test"
        self.asked: list[str] = []
        self._add_routes()
        self.client: FlaskClient = self.app.test_client()

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        yield self.connection

    def guard(self, role: str) -> Response | None:
        """The host's own login."""
        self.asked.append(role)
        if "user" not in session:
            return redirect("/login")
        if role == "admin" and session["user"] != "root":
            abort(403, "only root keeps licenses here")
        return None

    def sync(self) -> bool:
        stored = self.service.read(self.connection)
        facts = self.registry.sync(self.connection, limit=self.service.to_read(stored))
        self.service.update(stored, facts, read_local=facts.read_local)
        return True

    def _add_routes(self) -> None:
        app, requires = self.app, entitlements.gate(self.service)
        app.register_blueprint(
            entitlements.blueprint(
                self.service,
                connect=self.connect,
                guard=self.guard,
                refresh=self.sync,
                count=self.registry.count_aged,
            )
        )
        app.register_blueprint(replicas.blueprint(self.registry, connect=self.connect, guard=self.guard))
        app.after_request(entitlements.warning_headers(self.service, when=lambda: "user" in session))

        @app.post("/login/<name>")
        def login(name: str) -> str:
            session["user"] = name
            return "welcome"

        @app.get("/audit/<int:number>")
        @requires("audit_log")
        def audit(number: int) -> str:
            return f"entry {number}"

    def issue(self, *, seconds: int = 10 * 86400, **features: int) -> str:
        now = int(time.time())
        return signing.issue(
            _KEY,
            now=now,
            not_before=now - 60,
            license_expires=now + seconds,
            expires=now + seconds,
            account_type="company",
            account_id="acme",
            features=features,
        )

    def add(self, text: str) -> Any:
        return self.client.post("/api/v2/licenses", json={"license": text})


@pytest.fixture
def host(sqlite_url: str) -> Iterator[Host]:
    host = Host(sqlite_url)
    yield host
    host.connection.close()


def test_a_guard_is_required() -> None:
    connect: dict[str, Any] = {"connect": lambda: None}
    options: dict[str, Any] = {**connect, "refresh": lambda: True, "count": lambda connection: 0}
    with pytest.raises(TypeError, match="guard"):
        entitlements.blueprint(EntitlementsService(keys=dict), **options)
    registry = Registry(replica_id=str(uuid.uuid4()), hostname="host", version="9")
    with pytest.raises(TypeError, match="guard"):
        replicas.blueprint(registry, **connect)


def test_the_hosts_own_login_decides(host: Host) -> None:
    for path in ("/api/v2/entitlements", "/api/v2/replicas", "/api/v2/licenses"):
        answer = host.client.get(path)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/login")
    assert host.add("x").status_code == 302
    host.client.post("/login/somebody")
    for path in ("/api/v2/entitlements", "/api/v2/replicas", "/api/v2/licenses"):
        assert host.client.get(path).status_code == 200
    answer = host.add(host.issue(audit_log=1))
    assert (answer.status_code, answer.json) == (403, {"message": "only root keeps licenses here"})
    assert host.client.delete("/api/v2/licenses/1").status_code == 403
    assert host.client.post("/api/v2/licenses/refresh-entitlements").status_code == 403
    host.client.post("/login/root")
    assert host.add(host.issue(audit_log=1)).status_code == 201
    assert host.client.delete("/api/v2/licenses/1").status_code == 204


def test_every_route_asks_the_guard_for_its_role_before_anything_else(host: Host) -> None:
    for path, method, role in (
        ("entitlements", "GET", "viewer"),
        ("entitlements", "HEAD", "viewer"),
        ("replicas", "GET", "viewer"),
        ("licenses", "GET", "viewer"),
        ("licenses", "POST", "admin"),
        ("licenses/1", "DELETE", "admin"),
        ("licenses/refresh-entitlements", "POST", "admin"),
    ):
        host.client.open(f"/api/v2/{path}", method=method)
        assert host.asked.pop() == role
        assert host.asked == []


def test_a_gate_opens_with_the_license_and_closes_with_it(host: Host) -> None:
    answer = host.client.get("/audit/3")
    assert answer.status_code == 403
    assert answer.json is not None
    assert "audit_log" in answer.json["message"]
    assert (host.service.enabled("audit_log"), host.service.limit("audit_log")) == (False, None)
    host.client.post("/login/root")
    assert host.add(host.issue(audit_log=25)).status_code == 201
    assert host.client.get("/audit/3").text == "entry 3"
    assert (host.service.enabled("audit_log"), host.service.limit("audit_log")) == (True, 25)
    assert host.client.delete("/api/v2/licenses/1").status_code == 204
    assert host.client.get("/audit/3").status_code == 403


def test_a_gate_calls_a_view_as_the_app_would_so_it_may_be_async(host: Host) -> None:
    class Awaiting(Flask):
        """Without asgiref, which Flask's own needs."""

        def ensure_sync(self, view: Callable[..., Any]) -> Callable[..., Any]:
            return (lambda **values: asyncio.run(view(**values))) if asyncio.iscoroutinefunction(view) else view

    app = Awaiting("host")

    @app.get("/audit")
    @entitlements.gate(host.service)("audit_log")
    async def audit() -> str:
        return "entries"

    assert app.test_client().get("/audit").status_code == 403
    host.client.post("/login/root")
    host.add(host.issue(audit_log=1))
    assert app.test_client().get("/audit").text == "entries"


def test_a_gate_reads_memory_only(host: Host) -> None:
    host.client.post("/login/root")
    host.add(host.issue(audit_log=1))
    host.connection.exec_driver_sql("DROP TABLE readygate_licenses")
    assert host.client.get("/audit/1").status_code == 200
    assert (host.service.enabled("audit_log"), host.service.limit("audit_log")) == (True, 1)


def test_a_host_adds_the_warnings_to_its_own_answers(host: Host) -> None:
    host.client.post("/login/root")
    host.add(host.issue(audit_log=1))
    answer = host.client.get("/audit/3")
    assert len(answer.headers.getlist("X-Entitlements-Warning")) == 1
    assert answer.headers["X-Entitlements-Warning"].startswith("A license expires on ")
    with host.app.test_client() as nobody:
        assert "X-Entitlements-Warning" not in nobody.get("/audit/3").headers


def test_errors_are_json_in_a_host_too(host: Host) -> None:
    host.client.post("/login/root")
    assert host.add("x").json == {"message": "this is no license: it is no signed text (JWT), or a cut one"}
    assert host.client.get("/api/v2/replicas?limit=x").status_code == 400
    # What is no route of ours is the host's own.
    assert "text/html" in host.client.get("/api/v2/nothing").headers["Content-Type"]
