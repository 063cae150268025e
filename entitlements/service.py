"""The stored licenses, and the entitlements that the last sync found."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy.engine import Connection

from .errors import LicenseError, LicenseExists, LicenseNotFound
from .evaluate import Entitlements, evaluate
from .features import NOT_ENTITLED, Feature
from .keys import KeySet
from .license import MAX_BYTES, License, admit, read
from .notices import Notice
from .verdict import Exclude, Fleet, allowed, to_read

_log = logging.getLogger("readygate.entitlements")
_CLOCKS = {
    "postgresql": "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000",
}
#: Local time that has passed is taken for a quarter more before a 200 is believed (spec, section 4, "next change").
_HASTE = 1.25
#: And for two fifths more before a sync is due: the next verdict is there before the last one has to be given up.
_SYNC_HASTE = 1.4
#: What is given up this long before its instant is not taken back for the rest: it would only flicker.
_FINAL_SECONDS = 1.0
_COUNTS_SUSPENSION = hasattr(time, "CLOCK_BOOTTIME")
#: Transaction-level advisory lock of whoever makes the deployment's identity: "rdyg" and a number.
_DEPLOYMENT_LOCK = 0x72647967_00000003
#: Licenses that count: more are not stored, or, where somebody else wrote them, never read.
MOST_LICENSES = 1000


@dataclass(frozen=True, kw_only=True)
class StoredLicense:
    """A row of the table, and what it says."""

    id: int
    uuid: str
    #: Microseconds since 1970.
    uploaded_at: int
    #: None: it does not verify, and `refusal` says why.
    license: License | None
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Stored:
    """All stored licenses, and the database's instant (microseconds) at which they were read."""

    now: int
    rows: tuple[StoredLicense, ...]

    @property
    def valid(self) -> tuple[License, ...]:
        """Those that verify."""
        return tuple(row.license for row in self.rows if row.license is not None)

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why the others do not."""
        return tuple(f"license {row.id}: {row.refusal}" for row in self.rows if row.refusal is not None)


class EntitlementsService:
    """What this worker knows of the licenses. `update` is its thread's; the questions are anybody's, and read memory.

    Methods that take a connection send statements without bind parameters, each of which commits by itself.
    """

    def __init__(
        self,
        *,
        keys: Callable[[], KeySet],
        exclude: Exclude = "all",
        clock: Callable[[], float] | None = None,
        clocks: Mapping[str, str] | None = None,
    ) -> None:
        """`keys`: the public keys, asked at each sync. `clocks`: the SQL of the database's clock, for tests.

        `clock`: the one that `read_local` is of; None: the one of replicas, which counts a suspension too.
        """
        self._keys = keys
        #: Which replicas a violation takes out.
        self.exclude: Exclude = exclude
        self._clock = clock or _elapsed
        self._clocks = clocks or _CLOCKS
        # One value, because requests read licenses beside the thread: outcomes never outlive the keys they came of.
        self._remembered: tuple[KeySet | None, Mapping[tuple[bytes, str], License | LicenseError]] = (None, {})
        self._current: tuple[Entitlements, float] | None = None
        #: The instant that this worker was taken out for a moment early, by a clock that hurries; None: none.
        self._given_up: int | None = None

    # What the last sync found

    def update(self, stored: Stored, fleet: Fleet, *, read_local: float) -> Entitlements:
        """Judge anew. `read_local`: the local monotonic instant before `fleet` was asked for."""
        entitlements = evaluate(stored.valid, fleet, exclude=self.exclude, invalid=stored.refusals)
        self._given_up = entitlements.blocked_at if self._gave_up(entitlements) else None
        before, self._current = self._current, (entitlements, read_local)
        _log_changes(before[0] if before else None, entitlements)
        return entitlements

    @property
    def entitlements(self) -> Entitlements | None:
        """What the last sync found; None before the first."""
        return self._current[0] if self._current else None

    def has_blocking_errors(self) -> bool:
        """Whether an error takes this replica out of service; False before the first sync.

        Memory only. While syncs fail the last verdict stands, but not past the instant at which time alone ends it;
        only a sync turns True to False.
        """
        if self._current is None:
            return False
        found, read_local = self._current
        if found.blocked or (found.blocked_at is not None and found.blocked_at == self._given_up):
            return True
        return self._may_be_past(found.blocked_at, found.now, read_local)

    #: The name that the proposal gave it.
    HasBlockingErrors = has_blocking_errors

    def reason(self) -> str | None:
        """Why this replica may not serve, as /readyz says it, or None."""
        if self._current is None:
            return "starting"
        return "entitlement error" if self.has_blocking_errors() else None

    def enabled(self, name: str) -> bool:
        """Whether the feature may be used now; False before the first sync. Memory only."""
        return self._feature(name).enabled

    def limit(self, name: str) -> int | None:
        """The number that the licenses give the feature; None where it is not enabled. Memory only."""
        return self._feature(name).limit

    def replaceable(self) -> bool:
        """Whether another replica could take this one's place once it is taken for dead."""
        if self._current is None:
            return False
        found, read_local = self._current
        return found.replaceable or self._may_be_past(found.replaceable_at, found.now, read_local)

    def seconds_to_change(self) -> float | None:
        """Seconds until a sync would find something else because of the time alone, less the haste; None: never."""
        if self._current is None or self._current[0].changes_at is None:
            return None
        found, read_local = self._current
        assert found.changes_at is not None
        return (found.changes_at - found.now) / 1_000_000 / _SYNC_HASTE - (self._clock() - read_local)

    def _feature(self, name: str) -> Feature:
        if self._current is None:
            return NOT_ENTITLED
        found, read_local = self._current
        # Judged anew: an outage switches nothing off before the license's own end, and nothing outlives it.
        return found.feature(name, found.now / 1_000_000 + self._clock() - read_local)

    def _gave_up(self, found: Entitlements) -> bool:
        """Whether this worker is out already for the instant that lies just ahead of `found`."""
        if self._current is None or found.blocked or found.blocked_at is None:
            return False
        soon = found.blocked_at - found.now < _FINAL_SECONDS * 1_000_000
        return soon and self._current[0].blocked_at == found.blocked_at and self.has_blocking_errors()

    def _may_be_past(self, instant: int | None, now: int, read_local: float) -> bool:
        """Whether the instant may have come, as far as clocks can be trusted; it was `now` at `read_local`."""
        passed = (self._clock() - read_local) * _HASTE
        return instant is not None and now + round(passed * 1_000_000) >= instant

    # The table

    def read(self, connection: Connection) -> Stored:
        """The stored licenses, each verified (what did not change is remembered by its digest)."""
        now = f"SELECT {self._now(connection)} AS now"
        columns = "l.uuid, l.jwt, l.uploaded_at"
        if connection.dialect.name == "sqlite":
            # A column there holds what it is given, and what is no text of UTF-8 would be the driver's error.
            columns = "CAST(l.uuid AS BLOB) AS uuid, CAST(l.jwt AS BLOB) AS jwt, CAST(l.uploaded_at AS INTEGER)"
            columns += " AS uploaded_at"
        rows = connection.exec_driver_sql(
            f"SELECT c.now, l.id, {columns} FROM ({now}) AS c LEFT JOIN (SELECT * FROM"
            f" readygate_licenses ORDER BY id LIMIT {MOST_LICENSES}) AS l ON true ORDER BY l.id"
        ).all()
        keys = self._keys()
        seen, known = self._remembered
        if keys != seen:
            known = {}
        verified = {}
        found = []
        for row in rows:
            if row.id is None:
                continue
            text, uuid = _text(row.jwt), _text(row.uuid)
            digest = (hashlib.sha256(text.encode()).digest(), uuid)
            outcome = known[digest] if digest in known else _outcome(text, uuid, keys)
            verified[digest] = outcome
            refused = isinstance(outcome, LicenseError)
            found.append(
                StoredLicense(
                    id=row.id,
                    uuid=uuid,
                    uploaded_at=row.uploaded_at,
                    license=None if isinstance(outcome, LicenseError) else outcome,
                    refusal=str(outcome) if refused else None,
                )
            )
        self._remembered = (keys, verified)
        return Stored(now=rows[0].now, rows=tuple(found))

    def to_read(self, stored: Stored) -> int | None:
        """How many replicas the sync must be able to count beyond; None: it need not count."""
        return to_read(stored.valid, stored.now / 1_000_000)

    def allowed(self, connection: Connection) -> tuple[int | None, bool]:
        """How many replicas may serve (None: any number), and whether the entitlement to several stands behind it."""
        stored = self.read(connection)
        allowance = allowed(stored.valid, stored.now / 1_000_000)
        return allowance.number, allowance.high_availability

    def add(self, connection: Connection, text: str) -> StoredLicense:
        """Store a license. Raises LicenseError where it is refused, LicenseExists where it is there already."""
        license_ = read(text, self._keys())
        now = connection.exec_driver_sql(f"SELECT {self._now(connection)}").scalar_one()
        admit(license_, now=now // 1_000_000, deployment_id=self.deployment_id(connection))
        others = f"SELECT count(*) FROM readygate_licenses WHERE uuid <> '{license_.uuid}'"
        if connection.exec_driver_sql(others).scalar_one() >= MOST_LICENSES:
            raise LicenseError("too_many", f"{MOST_LICENSES} licenses are stored, and no more are read; remove some")
        quoted = text.replace("'", "''")
        row = connection.exec_driver_sql(
            f"INSERT INTO readygate_licenses (uuid, jwt, uploaded_at) VALUES ('{license_.uuid}', '{quoted}', {now})"
            " ON CONFLICT (uuid) DO NOTHING RETURNING id, uploaded_at"
        ).one_or_none()
        if row is None:
            raise LicenseExists("this license is stored already")
        return StoredLicense(id=row.id, uuid=license_.uuid, uploaded_at=row.uploaded_at, license=license_)

    def remove(self, connection: Connection, license_id: int) -> None:
        """Delete a license; raises LicenseNotFound."""
        # Beyond what the column holds there is none, and PostgreSQL would call the number an error.
        known = 0 < license_id < 2**31
        statement = f"DELETE FROM readygate_licenses WHERE id = {int(license_id)}"
        if not known or connection.exec_driver_sql(statement).rowcount == 0:
            raise LicenseNotFound("no license has this id; `license list` shows them")

    def keys(self) -> KeySet:
        """The public keys, as they are now."""
        return self._keys()

    def deployment_id(self, connection: Connection) -> str:
        """The UUID of this deployment: made with the schema, or where a host's migrations made the table, now."""
        query = "SELECT id FROM readygate_deployment ORDER BY id LIMIT 1"
        found: str | None = connection.exec_driver_sql(query).scalar()
        if found is None:
            insert = f"INSERT INTO readygate_deployment (id) SELECT '{uuid4()}' WHERE NOT EXISTS ({query})"
            if connection.dialect.name == "postgresql":
                # One message, hence one transaction: who comes second sees what the first one made.
                lock = f"DO $$ BEGIN PERFORM pg_advisory_xact_lock({_DEPLOYMENT_LOCK}); END $$"
                insert = f"{lock}; {insert}"
            connection.exec_driver_sql(insert)
            found = connection.exec_driver_sql(query).scalar_one()
        return found

    def _now(self, connection: Connection) -> str:
        return self._clocks[connection.dialect.name]


def _elapsed() -> float:
    """As replicas.elapsed; packages do not import each other."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _COUNTS_SUSPENSION else time.monotonic()


class LicenseFiles:
    """License files that are imported when they appear or change."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._seen: dict[Path, tuple[int, ...]] = {}
        #: The keys that did not verify what is in a file: others may.
        self._refused: dict[Path, KeySet] = {}

    def import_into(self, service: EntitlementsService, connection: Connection) -> None:
        """Store what is new in the files. A bad file is logged once; a failure of the database is raised."""
        for path in self._paths:
            try:
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                refused = self._refused.get(path)
                if self._seen.get(path) == stamp and (refused is None or refused == service.keys()):
                    continue
                text = _license_in(path, status)
            except (OSError, UnicodeDecodeError):
                if self._seen.get(path) != (0, 0):
                    _log.error("license file %s: cannot be read", path.name)
                self._seen[path] = (0, 0)
                continue
            self._refused.pop(path, None)
            try:
                stored = service.add(connection, text)
                _log.info("license file %s: stored as license %d", path.name, stored.id)
            except LicenseExists:
                pass  # Every worker of every replica imports; one of them is first.
            except LicenseError as error:
                _log.error("license file %s: %s", path.name, error)
                self._refused[path] = service.keys()
            self._seen[path] = stamp


def _license_in(path: Path, status: os.stat_result) -> str:
    """The text in the file, as much of it as can be judged. Raises OSError for what is no file: a pipe would block."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError("no regular file")
    with path.open(encoding="utf-8") as file:
        return file.read(MAX_BYTES + 1)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _outcome(text: str, uuid: str, keys: KeySet) -> License | LicenseError:
    try:
        license_ = read(text, keys)
    except LicenseError as error:
        return error
    # The database is not trusted: one license under two names would be two.
    return license_ if license_.uuid == uuid else LicenseError("jti", "the row has another jti than its license")


def _log_changes(before: Entitlements | None, after: Entitlements) -> None:
    """One line for every error or warning that begins, and one when it ends."""
    old = {_identity(notice): notice.code for notice in before.notices} if before else {}
    new = {_identity(notice): notice for notice in after.notices}
    for known in new.keys() - old.keys():
        notice = new[known]
        level = logging.ERROR if notice.severity == "error" else logging.WARNING
        _log.log(level, "%s begins: %s %s", notice.code, notice.message, notice.detail)
    for known in old.keys() - new.keys():
        _log.info("%s ends", old[known])


def _identity(notice: Notice) -> tuple[str, str]:
    """What makes it the same one a sync later: there are several of a kind, but one violation, whoever it takes out."""
    return notice.code, "" if notice.blocking else notice.detail


def summary(stored: StoredLicense) -> dict[str, Any]:
    """A stored license as the API and the commands show it: never its signed text."""
    return {
        "id": stored.id,
        "uuid": stored.uuid,
        "uploaded_at": stored.uploaded_at,
        "claims": stored.license.claims() if stored.license else None,
        "refusal": stored.refusal,
    }
