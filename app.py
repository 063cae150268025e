"""create_app(): the one place that knows every package and wires them."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import click
from flask import Flask, Request
from sqlalchemy.engine import Connection
from werkzeug.exceptions import BadHost
from werkzeug.routing import MapAdapter

import api
import auth
import commands
import database
import health
import logs
import monitoring
import pages
import schema
import settings as environment
from auth import Tokens
from database_url import Sqlite, parse
from entitlements import EntitlementsService, KeyFile, LicenseFiles
from link import Link
from patience import Patience
from replicas import Heartbeat, Lease, Policies, Registry, RegistryError, gunicorn
from settings import Settings
from version import VERSION
from watch import Watch

#: How long a migration may take, each statement of it and each wait for another replica's.
_MIGRATION_SECONDS = 600.0
_SWEEP_SECONDS = 3600.0
#: What a request gives each operation of the database, at most.
_REQUEST_SECONDS = 1.0
#: How soon to look again for a schema that is being made, by this replica or another; and where nobody makes it.
_SCHEMA_SECONDS, _NO_SCHEMA_SECONDS = 0.2, 1.0
#: What the log need not say at first.
_HELD, _NO_DRAIN = "heartbeat is back", "draining: taken back"
_log = logging.getLogger("readygate")


def create_app(settings: Settings | None = None) -> Flask:
    """The service. `settings`: None reads the environment. Touches no database.

    Raises click.ClickException for a wrong variable, which `flask` shows as one line; gunicorn.conf.py has asked for
    them before, so that no worker meets one.
    """
    try:
        settings = settings or environment.read()
    except environment.SettingsError as error:
        raise click.ClickException(str(error)) from None
    logs.set_up(settings.log)
    replica = Replica(settings)
    app = Service(__name__)
    app.extensions["readygate"] = replica
    app.register_blueprint(
        health.blueprint(
            measured=replica.checks,
            start=replica.start,
        )
    )
    access = api.access(replica)
    api.register(app, replica, access)
    pages.register(app, replica, access)
    monitoring.register(app, replica, auth.guard(access.verify))
    commands.register(app, replica)
    return app


class Service(Flask):
    """Answers by whatever name it is asked: no route depends on one, and liveness must not fail of it."""

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Flask's; a Host that could be nobody's name, which Werkzeug refuses, is left out."""
        try:
            return super().create_url_adapter(request)
        except BadHost:
            assert request is not None
            return self.url_map.bind_to_environ({**request.environ, "HTTP_HOST": "localhost"})


class Replica:
    """One worker's share of this replica: its link to the database, its thread, and what they know."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        url, timeout = settings.current_database_url, settings.database_timeout_seconds
        known, target = settings.database_url, parse(settings.database_url)
        #: One resolver for all, so that a worker leaves one thread behind in it at most.
        self.shared = database.Shared()
        common: database.Common = {"known": known, "shared": self.shared}
        self.engine = database.request_engine(url, timeout_seconds=timeout, **common)
        self.requests = database.request_engine(url, timeout_seconds=min(timeout, _REQUEST_SECONDS), **common)
        self.link = Link(
            database.background_engine(url, timeout_seconds=timeout, **common),
            label=lambda: target.label,
            timeout_seconds=timeout,
            budget=self.shared.budget,
            file=target.path if isinstance(target, Sqlite) else None,
        )
        self.patience = Patience(self.link)
        self.entitlements = EntitlementsService(
            keys=KeyFile(settings.license_keys_file, settings.license_keys),
            exclude="surplus" if settings.exclude == "surplus" else "all",
        )
        self.tokens = Tokens()
        self.registry = Registry(
            replica_id=gunicorn.replica_id,
            hostname=platform.node(),
            version=VERSION,
            heartbeat_seconds=settings.heartbeat_seconds,
            stale_after_seconds=settings.stale_after_seconds,
            grace_seconds=settings.replica_grace_seconds,
            exclude=settings.exclude,
        )
        self.lease = Lease(stale_after_seconds=settings.stale_after_seconds, replaceable=self.entitlements.replaceable)
        self.heartbeat = Heartbeat(
            ping=self.link.ping,
            sync=self.sync,
            heartbeat_seconds=settings.heartbeat_seconds,
            describe=self._describe,
            orphaned=self.lease.orphaned,
        )
        #: Those of /readyz, in the order in which they are decided.
        self.checks: Mapping[str, Callable[[], str | None]] = {
            "database": self.database_reason,
            "replica": self.replica_reason,
            "entitlements": self.entitlements_reason,
        }
        self.watch = Watch(
            {"drain": self._drain, "heartbeat": self._held, "readiness": self._readiness},
            subject=lambda: f"replica {self.registry.id}",
            running=self.heartbeat.running,
            usual={"heartbeat": _HELD, "drain": _NO_DRAIN},
        )
        self._migrator = schema.Migrator(
            database.background_engine(url, timeout_seconds=_MIGRATION_SECONDS, connect_seconds=timeout, **common)
        )
        self._files = LicenseFiles(settings.license_files)
        #: None: not looked at yet.
        self._schema_usable: bool | None = None
        self._next_sweep = float("-inf")
        self._policies = Policies()

    def start(self) -> None:
        """Start the thread, where none runs in this process yet."""
        self.heartbeat.start()
        self.watch.start()

    def refresh(self) -> bool:
        """Have the thread sync now, and wait for that, two seconds at most; whether it did."""
        self.start()
        return self.heartbeat.refresh()

    def sync(self) -> float | None:
        """What the thread does once a heartbeat; seconds until time alone changes its outcome, or None."""
        return self.link.use(self._sync)

    def database_reason(self) -> str | None:
        """Why the database keeps this replica out of service, or None."""
        if self.link.unreachable():
            return health.Public("database unreachable")
        return health.Public("schema outdated") if self._schema_usable is False else None

    def replica_reason(self) -> str | None:
        """Why this replica's own standing keeps it out of service, or None."""
        reason = self.lease.reason()
        if reason is None and self.lease.lost():
            return health.Remark("heartbeat lost; that takes nobody out, as no other could take its place")
        return None if reason is None else health.Public(reason)

    def entitlements_reason(self) -> str | None:
        """Why the entitlements keep this replica out of service, or None."""
        reason = self.entitlements.reason()
        return None if reason is None else health.Public(reason)

    def _readiness(self) -> tuple[int, str]:
        """What /readyz says; which entitlement error it is, the entitlements log themselves."""
        reason = health.first_failure(self.checks)
        return (logging.INFO, "ready") if reason is None else (logging.WARNING, f"not ready: {reason}")

    def _held(self) -> tuple[int, str]:
        """Whether the heartbeat is lost; where that takes this replica out, readiness says so too."""
        return (logging.WARNING, "heartbeat lost") if self.lease.lost() else (logging.INFO, _HELD)

    def _drain(self) -> tuple[int, str]:
        """The appointment, if there is one."""
        at = self.lease.facts.me.draining_at if self.lease.facts else None
        if at is None:
            return logging.INFO, _NO_DRAIN
        when = datetime.fromtimestamp(at / 1_000_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return logging.INFO, f"draining: gives up its place at {when}"

    def _sync(self, connection: Connection) -> float | None:
        if not self._schema_usable and not self._has_schema(connection):
            return _SCHEMA_SECONDS if self.settings.auto_migrate else _NO_SCHEMA_SECONDS
        try:
            self._judge(connection)
            # Only now: tables may be missing, whatever the revision says.
            self._schema_usable = True
            self.patience.synced()
            self._sweep(connection)
        except Exception as error:
            if database.failure(error).of_schema:
                self._schema_usable = False
            raise
        return self.entitlements.seconds_to_change()

    def _describe(self, error: Exception) -> str | None:
        """An error of a sync in words fit for the log; None where the link has said all of it."""
        if isinstance(error, RegistryError):
            return str(error)
        return None if self.link.measurement.failure else str(database.failure(error))

    def _judge(self, connection: Connection) -> None:
        """Three reads, one after the other, and then one verdict."""
        self._files.import_into(self.entitlements, connection)
        stored = self.entitlements.read(connection)
        facts = self.registry.sync(
            connection,
            limit=self.entitlements.to_read(stored),
            latency_seconds=self.link.measurement.latency_seconds,
        )
        self.entitlements.update(stored, facts, read_local=facts.read_local)
        self.lease.renew(facts)
        self._policies.compare(facts)

    def _has_schema(self, connection: Connection) -> bool:
        """Whether the schema is usable; where it is not, begin to upgrade it, or say once who must."""
        try:
            schema.require(connection)
        except schema.SchemaOutdatedError as error:
            if self.settings.auto_migrate:
                self._migrator.start()
            elif self._schema_usable is not False:
                _log.error("%s", error)
            self._schema_usable = False
            return False
        return True

    def _sweep(self, connection: Connection) -> None:
        """Once an hour, a batch of the rows that ended over a day ago."""
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + _SWEEP_SECONDS
            self.registry.sweep(connection)
