"""What answers readiness probes in other projects, each set up as its manual says: factories for gunicorn.

Each runs in an environment of its own (see readyz.py), where only its own imports are found. All have one connection
per thread to the PostgreSQL that DATABASE_URL names, kept open, and ask it `SELECT 1`, unless they say otherwise.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

THREADS = 4


def bare() -> Any:
    """A Flask view that returns OK: what the framework and the server cost."""
    from flask import Flask

    app = Flask("bare")

    @app.get("/readyz")
    def readyz() -> str:
        return "OK"

    return app


def sketch() -> Any:
    """The proposal's handler: a ping of 5 seconds at most, then the entitlements, from memory."""
    from flask import Flask
    from sqlalchemy import text

    app, engine, entitlements = Flask("sketch"), _engine(timeout=5), SimpleNamespace(has_blocking_errors=lambda: False)

    @app.get("/readyz")
    def readyz() -> Any:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except Exception:  # noqa: BLE001  # whatever it is, the sketch calls it so
            return "database unreachable", 503
        if entitlements.has_blocking_errors():
            return "entitlement error", 503
        return "OK"

    return app


def flask_healthz() -> Any:
    """flask-healthz, with one check."""
    from flask import Flask
    from flask_healthz import HealthError, Healthz
    from sqlalchemy import text

    app, engine = Flask("peer"), _engine()

    def ready() -> None:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except Exception as error:
            raise HealthError("database unreachable") from error

    app.config["HEALTHZ"] = {"ready": ready}
    Healthz(app)
    return app


def py_healthcheck(*, cached: bool = True) -> Any:
    """py-healthcheck, with one check; `cached`: for 27 s, as it comes."""
    from flask import Flask
    from healthcheck import HealthCheck
    from sqlalchemy import text

    app, engine = Flask("peer"), _engine()
    health = HealthCheck() if cached else HealthCheck(success_ttl=0, failed_ttl=0)

    def database() -> tuple[bool, str]:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        return True, "reachable"

    health.add_check(database)
    app.add_url_rule("/readyz", "readyz", view_func=health.run)
    return app


def dockerflow() -> Any:
    """Dockerflow's /__heartbeat__, with its own check of the database."""
    from dockerflow.flask import Dockerflow
    from flask import Flask

    app = Flask("peer")
    Dockerflow(app, db=SimpleNamespace(engine=_engine()))
    return app


def django_health_check() -> Any:
    """django-health-check, with its own check of the database, through psycopg: Django knows no pg8000."""
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    where = urlsplit(os.environ["DATABASE_URL"])
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": where.hostname,
        "PORT": where.port,
        "USER": where.username,
        "NAME": where.path[1:],
        "CONN_MAX_AGE": None,
    }
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": database},
        INSTALLED_APPS=["health_check"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    )
    django.setup()
    from health_check.views import HealthCheckView

    view = HealthCheckView.as_view(checks=["health_check.checks.Database"])
    settings.ROOT_URLCONF = (path("readyz", view),)
    return get_wsgi_application()


def _engine(**options: Any) -> Any:
    from sqlalchemy import create_engine

    url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+pg8000://")
    return create_engine(url, pool_size=THREADS, max_overflow=0, connect_args=options)
