"""What the page shows: values. Instants are microseconds since 1970 in UTC, by one clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_MICRO = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of this replica."""

    name: str
    standing: Literal["ok", "warning", "failed"]
    #: What is wrong; None: nothing is.
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One replica of the fleet."""

    id: str
    hostname: str
    version: str
    state: Literal["grace", "serving", "excluded", "draining"]
    started_at: int
    #: Its last heartbeat.
    updated_at: int
    #: The end of its grace: from then on it counts.
    aged_at: int
    #: When it hands its place over; None: it does not.
    draining_at: int | None
    #: Which replicas it would take out in a violation: `all`, or the `surplus`.
    policy: str
    #: Microseconds that its last ping of the database took; None: there was none.
    latency: int | None


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What the licenses say of one feature."""

    name: str
    entitlement: Literal["entitled", "grace_period", "not_entitled"]
    limit: int | None
    #: Seconds since 1970 at which the last license that grants it ends; None: none does.
    ends: int | None


@dataclass(frozen=True, kw_only=True)
class License:
    """A stored license, without its signed text. Instants are seconds since 1970; None: it does not verify."""

    id: int
    uuid: str
    account: str | None = None
    features: Mapping[str, int] | None = None
    begins: int | None = None
    #: The end of its term.
    expires: int | None = None
    #: The end of its own grace period.
    ends: int | None = None
    trial: bool = False
    #: Why it does not verify; None: it does.
    refusal: str | None = None


@dataclass(frozen=True, kw_only=True)
class Notice:
    """An error or a warning, and what to do about it."""

    severity: Literal["error", "warning"]
    message: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class View:
    """All that the page shows, as the replica that answers knows it."""

    replica_id: str
    hostname: str
    version: str
    #: Which replicas a violation takes out: `all`, or the `surplus`.
    policy: str
    heartbeat_seconds: float
    checks: tuple[Check, ...]
    notices: tuple[Notice, ...]
    features: tuple[Feature, ...]
    replicas: tuple[Replica, ...]
    #: None: this worker never read them.
    licenses: tuple[License, ...] | None
    #: How many replicas may serve; None: any number.
    allowed: int | None
    #: Whether the entitlement to several replicas stands behind the allowed number.
    high_availability: bool
    #: The database's instant at which the replicas and licenses were read; None: they never were.
    read_at: int | None
    #: How long ago that was.
    age_seconds: float = 0.0
    #: Why they could not be read just now; None: they were.
    unread: str | None = None
    #: Whether `replicas` are all there are.
    complete: bool = True
    deployment_id: str | None = None

    @property
    def now(self) -> int:
        """The database's instant, as far as it can be told."""
        return (self.read_at or 0) + round(self.age_seconds * _MICRO)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that keep this replica out of service, in the order in which /readyz names them."""
        return tuple(check for check in self.checks if check.standing == "failed")

    @property
    def policies(self) -> list[str]:
        """The policies that the replicas run."""
        return sorted({replica.policy for replica in self.replicas})
