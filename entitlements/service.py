"""The stored licenses, and the entitlements that the last sync found."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from .errors import LicenseError, LicenseExists, LicenseNotFound
from .evaluate import Entitlements, Exclude, Fleet, evaluate, to_read
from .keys import KeySet
from .license import License, admit, read

_log = logging.getLogger("readygate.entitlements")
_CLOCKS = {
    "postgresql": "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    "sqlite": "CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000",
}
#: Local time that has passed is taken for a quarter more before a 200 is believed (spec, section 4, "next change").
_HASTE = 1.25
#: Licenses that count: more are stored, but never read.
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
        return tuple(f"license {row.uuid}: {row.refusal}" for row in self.rows if row.refusal is not None)


class EntitlementsService:
    """What this worker knows of the licenses. `update` is its thread's; the questions are anybody's, and read memory.

    Methods that take a connection send statements without bind parameters, each of which commits by itself.
    """

    def __init__(
        self,
        *,
        keys: Callable[[], KeySet],
        exclude: Exclude = "all",
        clock: Callable[[], float] = time.monotonic,
        clocks: Mapping[str, str] | None = None,
    ) -> None:
        """`keys`: the public keys, asked at each sync. `clocks`: the SQL of the database's clock, for tests."""
        self._keys = keys
        self._exclude = exclude
        self._clock = clock
        self._clocks = clocks or _CLOCKS
        self._verified: dict[tuple[bytes, int], License | LicenseError] = {}
        self._keys_seen: KeySet | None = None
        self._current: tuple[Entitlements, float] | None = None

    # What the last sync found

    def update(self, stored: Stored, fleet: Fleet, *, read_local: float) -> Entitlements:
        """Judge anew. `read_local`: the local monotonic instant before `fleet` was asked for."""
        entitlements = evaluate(stored.valid, fleet, exclude=self._exclude, invalid=stored.refusals)
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
        if found.blocked or found.blocked_at is None:
            return found.blocked
        passed = (self._clock() - read_local) * _HASTE
        return found.now + round(passed * 1_000_000) >= found.blocked_at

    #: The name that the proposal gave it.
    HasBlockingErrors = has_blocking_errors

    def reason(self) -> str | None:
        """Why this replica may not serve, as /readyz says it, or None."""
        if self._current is None:
            return "starting"
        return "entitlement error" if self.has_blocking_errors() else None

    def enabled(self, name: str) -> bool:
        """Whether the feature may be used now; False before the first sync. Memory only."""
        if self._current is None:
            return False
        found, read_local = self._current
        feature = found.features.get(name)
        if feature is None or feature.ends is None:
            return False
        # An outage switches nothing off before the license's own end.
        return found.now / 1_000_000 + self._clock() - read_local < feature.ends

    def limit(self, name: str) -> int | None:
        """The number that the licenses give the feature; None where it is not enabled. Memory only."""
        return self._current[0].features[name].limit if self._current and self.enabled(name) else None

    def replaceable(self) -> bool:
        """Whether another replica could take this one's place once it is taken for dead."""
        return self._current is not None and self._current[0].replaceable

    def seconds_to_change(self) -> float | None:
        """Seconds until a sync would find something else because of the time alone, less the haste; None: never."""
        if self._current is None or self._current[0].changes_at is None:
            return None
        found, read_local = self._current
        assert found.changes_at is not None
        return (found.changes_at - found.now) / 1_000_000 / _HASTE - (self._clock() - read_local)

    # The table

    def read(self, connection: Connection) -> Stored:
        """The stored licenses, each verified (what did not change is remembered by its digest)."""
        now = f"SELECT {self._now(connection)} AS now"
        rows = connection.exec_driver_sql(
            f"SELECT c.now, l.id, l.uuid, l.jwt, l.uploaded_at FROM ({now}) AS c LEFT JOIN (SELECT * FROM"
            f" readygate_licenses ORDER BY id LIMIT {MOST_LICENSES}) AS l ON true ORDER BY l.id"
        ).all()
        keys = self._keys()
        if keys is not self._keys_seen:
            self._keys_seen, self._verified = keys, {}
        verified = {}
        found = []
        for row in rows:
            if row.id is None:
                continue
            digest = (hashlib.sha256(row.jwt.encode()).digest(), row.id)
            outcome = self._verified[digest] if digest in self._verified else _outcome(row.jwt, row.uuid, keys)
            verified[digest] = outcome
            refused = isinstance(outcome, LicenseError)
            found.append(
                StoredLicense(
                    id=row.id,
                    uuid=row.uuid,
                    uploaded_at=row.uploaded_at,
                    license=None if isinstance(outcome, LicenseError) else outcome,
                    refusal=str(outcome) if refused else None,
                )
            )
        self._verified = verified
        return Stored(now=rows[0].now, rows=tuple(found))

    def to_read(self, stored: Stored) -> int | None:
        """How many replicas the sync must be able to count beyond; None: it need not count."""
        return to_read(stored.valid, stored.now / 1_000_000)

    def add(self, connection: Connection, text: str) -> StoredLicense:
        """Store a license. Raises LicenseError where it is refused, LicenseExists where it is there already."""
        license_ = read(text, self._keys())
        now = connection.exec_driver_sql(f"SELECT {self._now(connection)}").scalar_one()
        admit(license_, now=now // 1_000_000, deployment_id=self.deployment_id(connection))
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

    def deployment_id(self, connection: Connection) -> str:
        """The UUID made with the schema."""
        value: str = connection.exec_driver_sql("SELECT id FROM readygate_deployment ORDER BY id LIMIT 1").scalar_one()
        return value

    def _now(self, connection: Connection) -> str:
        return self._clocks[connection.dialect.name]


class LicenseFiles:
    """License files that are imported when they appear or change."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._seen: dict[Path, tuple[int, int]] = {}

    def import_into(self, service: EntitlementsService, connection: Connection) -> None:
        """Store what is new in the files. A bad file is logged once; a failure of the database is raised."""
        for path in self._paths:
            try:
                status = path.stat()
                stamp = (status.st_mtime_ns, status.st_size)
                if self._seen.get(path) == stamp:
                    continue
                text = path.read_text(encoding="utf-8") if status.st_size <= 4 * 65536 else "x" * 65537
            except (OSError, UnicodeDecodeError):
                if self._seen.get(path) != (0, 0):
                    _log.error("license file %s: cannot be read", path.name)
                self._seen[path] = (0, 0)
                continue
            try:
                stored = service.add(connection, text)
                _log.info("license file %s: stored as license %d", path.name, stored.id)
            except LicenseExists:
                pass  # Every worker of every replica imports; one of them is first.
            except LicenseError as error:
                _log.error("license file %s: %s", path.name, error)
            self._seen[path] = stamp


def _outcome(text: str, uuid: str, keys: KeySet) -> License | LicenseError:
    try:
        license_ = read(text, keys)
    except LicenseError as error:
        return error
    # The database is not trusted: one license under two names would be two.
    return license_ if license_.uuid == uuid else LicenseError("jti", "the row has another jti than its license")


def _log_changes(before: Entitlements | None, after: Entitlements) -> None:
    """One line for every error or warning that begins, and one when it ends."""
    old = {notice.code: notice for notice in before.notices} if before else {}
    new = {notice.code: notice for notice in after.notices}
    for code in new.keys() - old.keys():
        level = logging.ERROR if new[code].severity == "error" else logging.WARNING
        _log.log(level, "%s begins: %s %s", code, new[code].message, new[code].detail)
    for code in old.keys() - new.keys():
        _log.info("%s ends", code)


def summary(stored: StoredLicense) -> dict[str, Any]:
    """A stored license as the API and the commands show it: never its signed text."""
    return {
        "id": stored.id,
        "uuid": stored.uuid,
        "uploaded_at": stored.uploaded_at,
        "claims": stored.license.claims() if stored.license else None,
        "refusal": stored.refusal,
    }
