"""/metrics of the service: who may look, and what of this worker's memory it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flask import Flask

import entitlements
import metrics
from entitlements import Entitlements, EntitlementsService
from health import Remark
from link import Link
from replicas import Facts, Heartbeat, Lease, Registry, State, elapsed, state
from settings import Settings
from version import VERSION

_STATES: tuple[State, ...] = ("grace", "serving", "excluded", "draining")


class Wiring(Protocol):
    """What the metrics need of the application."""

    settings: Settings
    link: Link
    lease: Lease
    heartbeat: Heartbeat
    entitlements: EntitlementsService
    registry: Registry

    @property
    def checks(self) -> Mapping[str, Callable[[], str | None]]:
        """Those of /readyz, in their order."""

    def start(self) -> None:
        """Start the thread, where none runs in this process yet."""


def register(app: Flask, wiring: Wiring, guard: Callable[[str], Any]) -> None:
    """Add /metrics, as READYGATE_METRICS has it. `guard`: the one that takes tokens."""
    if wiring.settings.metrics == "off":
        return

    def read() -> metrics.Reading:
        wiring.start()
        return reading(wiring)

    app.register_blueprint(
        metrics.blueprint(
            read,
            guard=guard if wiring.settings.metrics == "token" else lambda role: None,
            version=VERSION,
        )
    )


def reading(wiring: Wiring, *, clock: Callable[[], float] = elapsed) -> metrics.Reading:
    """What this worker knows. Memory only."""
    facts, found = wiring.lease.facts, wiring.entitlements.entitlements
    return metrics.Reading(
        replica=wiring.registry.id,
        exclude=wiring.settings.exclude,
        checks={name: _failing(check()) for name, check in wiring.checks.items()},
        heartbeat_age_seconds=None if facts is None else clock() - facts.touched_local,
        heartbeat_lost=wiring.lease.lost(),
        ping_seconds=wiring.link.measurement.latency_seconds,
        syncs_failed=wiring.heartbeat.failures,
        found=None if facts is None or found is None else _found(facts, found),
    )


def _failing(reason: str | None) -> str | None:
    return None if isinstance(reason, Remark) else reason


def _found(facts: Facts, found: Entitlements) -> metrics.Found:
    allowance = entitlements.allowed(found.licenses, found.now / 1_000_000)
    number = allowance.number
    # A license that began after the replicas were counted allows no more than were counted, until the next sync.
    if number is not None and facts.limit is not None:
        number = min(number, facts.limit)
    return metrics.Found(
        allowed=number,
        violation=any(notice.blocking for notice in found.errors),
        replicas=None if number is None or facts.limit is None else _states(facts, number, allowance.high_availability),
        errors=_by_code(entitlements.ERROR_CODES, found.errors),
        warnings=_by_code(entitlements.WARNING_CODES, found.warnings),
        licenses=tuple(metrics.License(one.uuid, one.license_expires, one.expires) for one in found.licenses),
    )


def _states(facts: Facts, allowed: int, high_availability: bool) -> Mapping[str, int]:
    """How many replicas are in which state, as /api/v2/replicas calls them, of those that the sync read."""
    members = {member.id: member for member in (*facts.members, facts.me)}.values()
    line = sorted((one.created_at, one.id) for one in members if one.aged_at <= facts.now and one.drained_at is None)
    last = line[allowed - 1] if len(line) > allowed else None
    seen = Counter(state(member, facts.now, last, high_availability) for member in members)
    # More than one beyond the allowed number of a state were read by chance: who counts them has counted nothing.
    return {name: min(seen[name], allowed + 1) for name in _STATES}


def _by_code(codes: tuple[str, ...], notices: tuple[entitlements.Notice, ...]) -> Mapping[str, int]:
    return dict.fromkeys(codes, 0) | dict(Counter(notice.code for notice in notices))
