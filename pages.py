"""The status page: what this worker knows of itself, what it reads of the fleet, and what an admin may do there."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from flask import Flask
from sqlalchemy.engine import Connection
from werkzeug.exceptions import HTTPException

import auth
import entitlements
import health
import overview
import replicas
import status
from api import Access
from entitlements import (
    EntitlementsService,
    License,
    LicenseError,
    LicenseExists,
    LicenseNotFound,
    StoredLicense,
)
from entitlements.license import HIGH_AVAILABILITY, REPLICA_LIMIT
from overview import Overview
from replicas import DrainEnded, Lease, Registry, ReplicaNotFound, elapsed, state
from settings import Settings
from version import VERSION

_CHALLENGE = 'Basic realm="Readygate", charset="UTF-8"'
#: How many replicas the page shows; where more may serve, one more than those.
_MOST_REPLICAS = 200
#: A reading of the page counts for as long as it is not this much older than the thread's last sync.
_LATE_SECONDS = 60.0


class Wiring(Protocol):
    """What the page needs of the application."""

    settings: Settings
    entitlements: EntitlementsService
    registry: Registry
    lease: Lease

    @property
    def checks(self) -> Mapping[str, health.Check]:
        """What /readyz asks."""

    def refresh(self) -> bool:
        """Have a sync done and wait for it, not for long; whether it was."""


def register(app: Flask, wiring: Wiring, access: Access) -> None:
    """Add /status. Browsers are asked for the same tokens, as the password of HTTP Basic."""
    registry, service = wiring.registry, wiring.entitlements

    def act(work: Callable[[Connection], Any]) -> None:
        if why := access.refusal():
            raise status.Refused(f"{why}; nothing was changed", status=503)
        try:
            with access.connect() as connection:
                work(connection)
        except (ReplicaNotFound, LicenseNotFound):
            raise status.Refused("there is none of this id any more", status=404) from None
        except (DrainEnded, LicenseExists) as error:
            raise status.Refused(str(error), status=409) from None
        except LicenseError as error:
            raise status.Refused(str(error)) from None
        except HTTPException as error:
            raise status.Refused(f"{error.description}; try again", status=error.code or 503) from None
        wiring.refresh()

    def is_admin() -> bool:
        caller = auth.caller()
        return caller is not None and caller.role == "admin"

    blueprint = status.blueprint(
        see=Watch(wiring, access),
        guard=auth.guard(access.verify, challenge=_CHALLENGE),
        actions=status.Actions(
            add_license=lambda text: act(lambda connection: service.add(connection, text)),
            remove_license=lambda number: act(lambda connection: service.remove(connection, number)),
            drain=lambda known, now: act(lambda connection: registry.drain(connection, known, now=now)),
            undrain=lambda known: act(lambda connection: registry.undrain(connection, known)),
        ),
        admin=is_admin,
    )
    access.turnstile.guard(blueprint)
    app.register_blueprint(blueprint)


@dataclass(frozen=True)
class _Reading:
    """What was read of the fleet, and the local monotonic instant before it was."""

    found: Overview
    local: float


class Watch:
    """Reads the fleet for the page, and remembers the last reading for when the database does not answer."""

    def __init__(self, wiring: Wiring, access: Access, *, clock: Callable[[], float] = elapsed) -> None:
        self._wiring, self._access, self._clock = wiring, access, clock
        self._last: _Reading | None = None

    def __call__(self) -> status.View:
        """All that the page shows; the checks and the verdict as they are, the fleet as it could be read."""
        unread = self._read()
        view = self._of_this_replica(unread)
        facts, last = self._wiring.lease.facts, self._last
        if last is not None and (facts is None or facts.read_local - last.local < _LATE_SECONDS):
            return self._with_fleet(view, last)
        return view if facts is None else self._with_facts(view, facts)

    def _read(self) -> str | None:
        """Read the fleet; why that cannot be done now, or None."""
        if why := self._access.refusal():
            return "it does not answer" if why == "database unreachable" else why
        before = self._clock()
        try:
            with self._access.connect() as connection:
                found = overview.read(connection, self._wiring.entitlements, self._wiring.registry, most=_MOST_REPLICAS)
        except HTTPException as error:
            return error.description or "it does not answer"
        self._last = _Reading(found, before)
        return None

    def _of_this_replica(self, unread: str | None) -> status.View:
        settings, service = self._wiring.settings, self._wiring.entitlements
        found = service.entitlements
        names = sorted({HIGH_AVAILABILITY, REPLICA_LIMIT, *(found.features if found else ())})
        return status.View(
            replica_id=self._wiring.registry.id,
            hostname=platform.node(),
            version=VERSION,
            policy=settings.exclude,
            heartbeat_seconds=settings.heartbeat_seconds,
            checks=tuple(_check(name, check()) for name, check in self._wiring.checks.items()),
            notices=tuple(
                status.Notice(severity=notice.severity, message=notice.message, detail=notice.detail)
                for notice in (found.notices if found else ())
            ),
            features=tuple(_feature(name, service) for name in names),
            replicas=(),
            licenses=None,
            allowed=1,
            high_availability=False,
            read_at=None,
            unread=unread,
        )

    def _with_fleet(self, view: status.View, last: _Reading) -> status.View:
        found = last.found
        return replace(
            view,
            replicas=tuple(_replica(row, standing) for row, standing in (*found.replicas, *self._beyond(found))),
            licenses=tuple(map(_license, found.stored.rows)),
            allowed=found.allowed,
            high_availability=found.high_availability,
            read_at=found.now,
            age_seconds=self._clock() - last.local if view.unread else 0.0,
            complete=found.complete,
            deployment_id=found.deployment_id,
        )

    def _beyond(self, found: Overview) -> tuple[tuple[replicas.Replica, replicas.State], ...]:
        """This replica, where it stands too far back in the line to be among those that were read."""
        facts = self._wiring.lease.facts
        if facts is None or found.complete or any(row.id == facts.me.id for row, _ in found.replicas):
            return ()
        return ((facts.me, state(facts.me, found.now, found.last, found.high_availability)),)

    def _with_facts(self, view: status.View, facts: replicas.Facts) -> status.View:
        """What the thread's last sync read: of the others, only those that decide over this replica."""
        valid = self._wiring.entitlements.entitlements
        allowance = entitlements.allowed(valid.licenses if valid else (), facts.now / 1_000_000)
        number = allowance.number
        rows = sorted({row.id: row for row in (*facts.members, facts.me)}.values(), key=lambda r: (r.created_at, r.id))
        line = [row for row in rows if row.aged_at <= facts.now and row.drained_at is None]
        violation = number is not None and len(line) > number
        last = (line[number - 1].created_at, line[number - 1].id) if violation and number is not None else None
        return replace(
            view,
            replicas=tuple(_replica(row, state(row, facts.now, last, allowance.high_availability)) for row in rows),
            allowed=number,
            high_availability=allowance.high_availability,
            read_at=facts.now,
            age_seconds=self._clock() - facts.read_local,
            complete=False,
        )


def _check(name: str, reason: str | None) -> status.Check:
    if reason is None:
        return status.Check(name=name, standing="ok")
    return status.Check(
        name=name, standing="warning" if isinstance(reason, health.Remark) else "failed", reason=str(reason)
    )


def _replica(row: replicas.Replica, standing: Any) -> status.Replica:
    return status.Replica(
        id=row.id,
        hostname=row.hostname,
        version=row.version,
        state=standing,
        started_at=row.started_at,
        updated_at=row.updated_at,
        aged_at=row.aged_at,
        draining_at=row.draining_at,
        policy=row.exclude,
        latency=row.database_latency,
    )


def _license(row: StoredLicense) -> status.License:
    found: License | None = row.license
    if found is None:
        return status.License(id=row.id, uuid=row.uuid, refusal=row.refusal)
    return status.License(
        id=row.id,
        uuid=row.uuid,
        account=found.account_id,
        features=dict(found.features),
        begins=found.not_before,
        expires=found.license_expires,
        ends=found.expires,
        trial=found.trial,
    )


def _feature(name: str, service: EntitlementsService) -> status.Feature:
    """Judged anew, so that nothing outlives its license while the database is down."""
    found = service.entitlements
    known = found.features.get(name) if found is not None and service.enabled(name) else None
    if known is None:
        return status.Feature(name=name, entitlement="not_entitled", limit=None, ends=None)
    return status.Feature(name=name, entitlement=known.entitlement, limit=known.limit, ends=known.ends)
