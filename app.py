"""create_app(): the one place that knows every package and wires them."""

from __future__ import annotations

import logging
import platform
import time

from flask import Flask
from sqlalchemy.engine import Connection

import commands
import database
import health
import logs
import schema
import settings as environment
from database_url import Sqlite, parse
from entitlements import EntitlementsService, KeyFile, LicenseFiles
from link import Link
from replicas import Heartbeat, Lease, Registry, RegistryError, gunicorn
from settings import Settings
from version import VERSION

#: How long a migration may take, each statement of it and each wait for another replica's.
_MIGRATION_SECONDS = 600.0
_SWEEP_SECONDS = 3600.0
#: How soon to look again for a schema that is being made, by this replica or another.
_SCHEMA_SECONDS = 0.2
_log = logging.getLogger("readygate")


def create_app(settings: Settings | None = None) -> Flask:
    """The service. `settings`: None reads the environment. Touches no database.

    Raises SettingsError for a wrong variable; gunicorn.conf.py has asked for them before, so that no worker meets one.
    """
    settings = settings or environment.read()
    logs.set_up(settings.log)
    replica = Replica(settings)
    app = Flask(__name__)
    app.extensions["readygate"] = replica
    app.register_blueprint(
        health.blueprint(
            measured={
                "database": replica.database_reason,
                "replica": replica.replica_reason,
                "entitlements": replica.entitlements_reason,
            },
            start=replica.start,
        )
    )
    commands.register(app, replica)
    return app


class Replica:
    """One worker's share of this replica: its link to the database, its thread, and what they know."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        url, timeout = settings.current_database_url, settings.database_timeout_seconds
        target = parse(settings.database_url)
        self.engine = database.request_engine(url, timeout_seconds=timeout)
        self.link = Link(
            database.background_engine(url, timeout_seconds=timeout),
            label=lambda: target.label,
            timeout_seconds=timeout,
            file=target.path if isinstance(target, Sqlite) else None,
        )
        self.entitlements = EntitlementsService(
            keys=KeyFile(settings.license_keys_file, settings.license_keys),
            exclude="surplus" if settings.exclude == "surplus" else "all",
        )
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
            describe=_describe,
            orphaned=self.lease.orphaned,
        )
        self._migrator = schema.Migrator(database.background_engine(url, timeout_seconds=_MIGRATION_SECONDS))
        self._files = LicenseFiles(settings.license_files)
        #: None: not looked at yet.
        self._schema_usable: bool | None = None
        self._next_sweep = float("-inf")

    def start(self) -> None:
        """Start the thread, where none runs in this process yet."""
        self.heartbeat.start()

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
            return health.Remark("heartbeat lost; it serves on, as no other replica could take its place")
        return None if reason is None else health.Public(reason)

    def entitlements_reason(self) -> str | None:
        """Why the entitlements keep this replica out of service, or None."""
        reason = self.entitlements.reason()
        return None if reason is None else health.Public(reason)

    def _sync(self, connection: Connection) -> float | None:
        if not self._schema_usable and not self._has_schema(connection):
            return _SCHEMA_SECONDS
        try:
            self._judge(connection)
            self._sweep(connection)
        except Exception as error:
            if database.failure(error).of_schema:
                self._schema_usable = False
            raise
        return self.entitlements.seconds_to_change()

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
        self._schema_usable = True
        return True

    def _sweep(self, connection: Connection) -> None:
        """Once an hour, a batch of the rows that ended over a day ago."""
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + _SWEEP_SECONDS
            self.registry.sweep(connection)


def _describe(error: Exception) -> str:
    """An error of a sync in words fit for the log."""
    if isinstance(error, RegistryError):
        return str(error)
    return str(database.failure(error))
