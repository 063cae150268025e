"""The schema's state, and its upgrade by Alembic: one replica at a time, the others wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from database import failure

_log = logging.getLogger("readygate.schema")
#: Major version and number. A release runs on any schema of its major version that is not older than its own:
#: within a major version migrations only add.
REVISION = "1_0002"
VERSION_TABLE = "readygate_alembic_version"
#: Transaction-level advisory lock of migrations: "rdyg" and a number.
_MIGRATION_LOCK = 0x72647967_00000002
#: How soon after a failed upgrade the next one may begin.
_AGAIN_SECONDS = 5.0
_FOLDER = Path(__file__).parent / "migrations"


class SchemaOutdatedError(Exception):
    """The schema is not there, or is one that this code cannot use; the message says what to do."""


def revision(connection: Connection) -> str | None:
    """The schema's revision; None: there is no schema yet."""
    try:
        found: str | None = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
    except Exception as error:
        if failure(error).of_schema:
            return None
        raise
    return found


def usable(found: str | None) -> bool:
    """Whether this code runs on a schema of revision `found`."""
    if found is None:
        return False
    major, _, number = found.partition("_")
    own_major, _, own_number = REVISION.partition("_")
    return major == own_major and number.isdecimal() and int(number) >= int(own_number)


def require(connection: Connection) -> None:
    """Raises SchemaOutdatedError where the schema is not usable."""
    found = revision(connection)
    if not usable(found):
        shown = "missing" if found is None else "not one that this release can use"
        raise SchemaOutdatedError(f"the schema is {shown}; run `flask --app app db upgrade`")


def upgrade(engine: Engine) -> None:
    """Bring the schema to this release's revision; does nothing where it is usable already.

    All of it is one transaction, under a lock: who comes second waits, for as long as the engine's statements may take,
    and finds it done. Raises SchemaOutdatedError where no migration leads from the schema to this release.
    """
    # Alembic takes a fifth of a second to import, and only those who migrate need it.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(attributes={})
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    with engine.connect() as connection:
        postgres = connection.dialect.name == "postgresql"
        connection.exec_driver_sql("BEGIN" if postgres else "BEGIN IMMEDIATE")
        try:
            if postgres:
                connection.exec_driver_sql(f"DO $$ BEGIN PERFORM pg_advisory_xact_lock({_MIGRATION_LOCK}); END $$")
            if not _settled(connection):
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
            connection.exec_driver_sql("COMMIT")
        except BaseException as error:
            # What went wrong is to be told, and not that the connection it went wrong on is gone.
            with suppress(SQLAlchemyError):
                connection.exec_driver_sql("ROLLBACK")
            if isinstance(error, CommandError):
                why = "the schema is of another major version; run a release that knows it"
                raise SchemaOutdatedError(why) from None
            raise


def _settled(connection: Connection) -> bool:
    # Inside a transaction PostgreSQL forgives no failed query, so the catalogue is asked first.
    if connection.dialect.has_table(connection, VERSION_TABLE):
        return usable(revision(connection))
    return False


class Migrator:
    """Upgrades the schema in a thread of its own, so that the pings go on meanwhile."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._not_before = float("-inf")
        self._trouble: str | None = None

    def start(self) -> None:
        """Begin an upgrade, unless one is under way or failed a moment ago."""
        if self._clock() >= self._not_before and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="readygate-migrate", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            upgrade(self._engine)
            self._trouble = None
            _log.info("schema: at revision %s", REVISION)
        except Exception as error:  # noqa: BLE001  # a later heartbeat tries again, and readiness tells of it
            self._not_before = self._clock() + _AGAIN_SECONDS
            trouble = str(error if isinstance(error, SchemaOutdatedError) else failure(error))
            if trouble != self._trouble:
                _log.warning("schema: upgrade failed: %s", trouble)
            self._trouble = trouble
        finally:
            self._engine.dispose()
