"""One reading of the fleet from the shared database, for people: the status page and `flask --app app status`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

import entitlements
from entitlements import Entitlements, EntitlementsService, Stored
from entitlements.verdict import Exclude
from replicas import Registry, Replica, State, state

_NEVER = 2**62


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What the database said at its instant `now` (microseconds)."""

    now: int
    stored: Stored
    deployment_id: str
    #: How many replicas may serve; None: any number.
    allowed: int | None
    high_availability: bool
    #: The place behind which the surplus stands; None: there is no violation.
    last: tuple[int, str] | None
    #: The first of the line, and what each of them does.
    replicas: tuple[tuple[Replica, State], ...]
    #: How many were asked for, at least one more than may serve.
    limit: int

    @property
    def policies(self) -> list[str]:
        """What the replicas would do in a violation; more than one where their settings disagree."""
        return sorted({replica.exclude for replica, _ in self.replicas})

    @property
    def complete(self) -> bool:
        """Whether there are no more replicas than these."""
        return len(self.replicas) < self.limit


def read(connection: Connection, service: EntitlementsService, registry: Registry, *, most: int) -> Overview:
    """Read the first `most` replicas of the line, or one more than may serve where that is more, and the licenses."""
    stored = service.read(connection)
    allowance = entitlements.allowed(stored.valid, stored.now / 1_000_000)
    limit = max(most, (allowance.number or 0) + 1)
    last = registry.last_allowed(connection, allowed=allowance.number)
    now, rows = registry.now(connection), registry.active(connection, count=limit)
    return Overview(
        now=now,
        stored=stored,
        deployment_id=service.deployment_id(connection),
        allowed=allowance.number,
        high_availability=allowance.high_availability,
        last=last,
        replicas=tuple((row, state(row, now, last, allowance.high_availability)) for row in rows),
        limit=limit,
    )


def judge(found: Overview, *, exclude: str) -> Entitlements:
    """The entitlements of the fleet, as its replicas evaluate them, for somebody who is none of them.

    `exclude`: the policy to judge by where the replicas do not agree on one of their own.
    """
    policy = found.policies[0] if len(found.policies) == 1 else exclude
    fleet = _Fleet(
        now=found.now,
        limit=found.limit - 1,
        members=tuple(replica for replica, _ in found.replicas),
        me=_Observer(created_at=found.now, aged_at=_NEVER),
    )
    known: Exclude = "surplus" if policy == "surplus" else "all"
    return entitlements.evaluate(found.stored.valid, fleet, exclude=known, invalid=found.stored.refusals)


@dataclass(frozen=True, kw_only=True)
class _Observer:
    """Who looks on from outside is no replica, and never counts."""

    created_at: int
    aged_at: int
    id: str = ""
    draining_at: int | None = None
    drained_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Fleet:
    now: int
    limit: int | None
    members: Sequence[Replica]
    me: _Observer
