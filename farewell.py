"""The last thing a master does: tell the others that this replica has stopped."""

from __future__ import annotations

import logging
import platform

import database
import settings
from replicas import Registry, gunicorn
from version import VERSION

_log = logging.getLogger("readygate.replicas")


def leave() -> None:
    """Leave, within the database's timeout. A failure loses nothing: the row goes stale by itself. Raises nothing."""
    try:
        current = settings.read()
        shared, seconds = database.Shared(), current.database_timeout_seconds
        engine = database.background_engine(
            current.current_database_url, timeout_seconds=seconds, known=current.database_url, shared=shared
        )
        registry = Registry(replica_id=gunicorn.replica_id, hostname=platform.node(), version=VERSION)
        with shared.budget.limit(seconds), engine.connect() as connection:
            registry.leave(connection)
        _log.info("replica %s: stopped; its place is free", registry.id)
    except Exception as error:  # noqa: BLE001  # the exit goes on, whatever the database does
        _log.warning("leaving failed: %s; the replica counts until it is stale", database.failure(error))
