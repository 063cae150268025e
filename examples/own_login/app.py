"""Everything, behind the app's own login. Needs the wheel with its extra `all`."""

import os
from pathlib import Path

from flask import Flask, abort, redirect, request, session
from flask.typing import ResponseReturnValue
from sqlalchemy import create_engine

from readygate import entitlements, health, replicas
from readygate.entitlements import EntitlementsService, KeyFile
from readygate.entitlements.commands import commands as license_commands
from readygate.replicas import gunicorn
from readygate.replicas.commands import commands as replicas_commands


def create_app() -> Flask:
    app = Flask(__name__)
    app.secret_key = os.environ["SECRET_KEY"]
    # Seconds, as pg8000 and SQLite take it: without it they wait for ever, or not at all.
    engine = create_engine(os.environ["DATABASE_URL"], connect_args={"timeout": 5})
    # `license keygen` makes it; until it is there no license verifies.
    keys = Path(os.environ["LICENSE_KEYS"])
    service = EntitlementsService(keys=KeyFile(keys, keys.read_text() if keys.is_file() else None), exclude="surplus")
    membership = replicas.Membership(engine, replica_id=gunicorn.replica_id, version="1.0", judge=service)
    app.extensions["readygate"] = membership

    def guard(role: str) -> None:
        if role == "admin" and session["user"] != "root":
            abort(403, "only root keeps licenses here")

    app.register_blueprint(
        health.blueprint(
            measured=health.disclosed(
                database=membership.database_reason, replica=membership.reason, entitlements=service.reason
            ),
            start=membership.start,
        )
    )
    app.register_blueprint(
        replicas.blueprint(
            membership.registry,
            connect=membership.connect,
            guard=guard,
            allowed=service.allowed,
            refresh=membership.refresh,
            stalled=membership.stalled,
        )
    )
    app.register_blueprint(
        entitlements.blueprint(
            service,
            connect=membership.connect,
            guard=guard,
            refresh=membership.refresh,
            count=membership.registry.count_aged,
            stalled=membership.stalled,
        )
    )
    app.after_request(entitlements.warning_headers(service, when=lambda: "user" in session))
    requires = entitlements.gate(service)

    @app.before_request
    def login_first() -> ResponseReturnValue | None:
        # Probes have no session: a redirect to the login would look like success to most load balancers.
        if "user" in session or request.endpoint == "login" or request.blueprint == "readygate_health":
            return None
        return redirect("/login")

    # It stands for the app's own: this one believes everybody.
    @app.route("/login", methods=["GET", "POST"])
    def login() -> str:
        if request.method == "POST":
            session["user"] = request.form["user"]
        return '<form method="post"><input name="user"><button>Log in</button></form>'

    @app.get("/audit")
    @requires("audit_log")
    def audit() -> str:
        return "nothing happened yet"

    app.cli.add_command(license_commands(service, membership.connect))
    app.cli.add_command(replicas_commands(membership.registry, membership.connect, allowed=service.allowed))

    @app.cli.command("create-tables")
    def create_tables() -> None:
        for metadata in (replicas.metadata, entitlements.metadata):
            metadata.create_all(engine)

    return app
