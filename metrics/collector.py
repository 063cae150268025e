"""From what a worker knows to metric families: pure, as of the moment it was read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric


@dataclass(frozen=True)
class License:
    """When a stored license ends, in seconds since 1970."""

    id: str
    #: The end of its term, from which on it is in its own grace period.
    term_ends: float
    #: The end of what it grants.
    ends: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the last sync that succeeded found in the database."""

    #: How many replicas may serve; None: any number.
    allowed: int | None
    violation: bool
    #: How many replicas there are by state, counted no further than the sync had to; None: it counted nobody.
    replicas: Mapping[str, int] | None
    #: How many there are by code; 0 for those that could stand, and do not.
    errors: Mapping[str, int]
    warnings: Mapping[str, int]
    licenses: tuple[License, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one worker knows, at one moment."""

    #: The id of its replica, and which replicas a violation takes out by that one's policy.
    replica: str = ""
    exclude: str = ""
    #: Why each check fails, in words of a small vocabulary; None: it passes. In the order in which they are decided.
    checks: Mapping[str, str | None] = field(default_factory=dict)
    #: Since this worker's last sync that succeeded; None: there was none yet.
    heartbeat_age_seconds: float | None = None
    heartbeat_lost: bool = False
    #: How long the last ping that was answered took; None: there was none yet.
    ping_seconds: float | None = None
    #: By this worker, since it started.
    syncs_failed: int = 0
    #: None: no sync has succeeded yet.
    found: Found | None = None


class Collector:
    """What prometheus-client asks for metrics at each scrape."""

    def __init__(self, read: Callable[[], Reading], *, build: Mapping[str, str]) -> None:
        """`build`: labels of the release."""
        self._read = read
        self._build = dict(build)

    def collect(self) -> Iterator[Metric]:
        """All families with their samples; one reading, so that they agree with each other."""
        now = self._read()
        yield InfoMetricFamily("readygate_build", "The release that runs.", self._build)
        yield InfoMetricFamily(
            "readygate_replica",
            "The replica that answers, as the log and /api/v2/replicas call it, and its policy (READYGATE_EXCLUDE).",
            {"replica": now.replica, "exclude": now.exclude},
        )
        yield from _of_worker(now)
        yield from _of_fleet(now.found)
        yield from _of_entitlements(now.found)

    def describe(self) -> Iterator[Metric]:
        """The families without their samples: what `name[]` may ask for. Reads nothing."""
        yield InfoMetricFamily("readygate_build", "", {})
        yield InfoMetricFamily("readygate_replica", "", {})
        for part in (_of_worker(Reading()), _of_fleet(None), _of_entitlements(None)):
            yield from part


def _of_worker(now: Reading) -> Iterator[Metric]:
    failing = next((reason for reason in now.checks.values() if reason is not None), None)
    yield _gauge(
        "readygate_ready", "Whether /readyz of the worker that answers is 200 (1) or 503 (0).", failing is None
    )
    checks = GaugeMetricFamily(
        "readygate_check_ok", "Whether a check of /readyz passes (1) or fails (0).", labels=["check"]
    )
    unready = GaugeMetricFamily(
        "readygate_unready",
        "1, with the body of /readyz as its reason; no sample while the replica is ready.",
        labels=["reason"],
    )
    for name, reason in now.checks.items():
        checks.add_metric([name], reason is None)
    if failing is not None:
        unready.add_metric([failing], 1)
    yield checks
    yield unready
    yield _gauge(
        "readygate_heartbeat_age_seconds",
        "Time since the last sync that succeeded, of the worker that answers; each worker syncs for itself, once a "
        "heartbeat. No sample before its first.",
        now.heartbeat_age_seconds,
    )
    yield _gauge(
        "readygate_heartbeat_lost",
        "Whether that is longer than a lease, two thirds of READYGATE_STALE_AFTER_SECONDS (1). The replica is unready "
        "for it only where another could take its place.",
        now.heartbeat_lost,
    )
    yield _gauge(
        "readygate_database_ping_seconds",
        "How long the database's last answer to a ping took, of the worker that answers; it pings once a second. "
        "No sample before the first answer; an old value while the check database fails.",
        now.ping_seconds,
    )
    failed = CounterMetricFamily(
        "readygate_syncs_failed",
        "Syncs that failed since this worker started. Each worker counts its own: add them up after increase().",
        labels=["worker"],
    )
    failed.add_metric([str(os.getpid())], now.syncs_failed)
    yield failed


def _of_fleet(found: Found | None) -> Iterator[Metric]:
    allowed = None if found is None else float("inf") if found.allowed is None else found.allowed
    yield _gauge(
        "readygate_replicas_allowed",
        "How many replicas past their grace may serve, as of the last sync; +Inf: any number. No sample before it.",
        allowed,
    )
    replicas = GaugeMetricFamily(
        "readygate_replicas",
        "Active replicas by state, as the last sync saw them. It reads no more than it must: where more than "
        "readygate_replicas_allowed are in one state, it shows one more than that; draining is the answering replica "
        "alone. No samples where any number is allowed, because then nobody is counted: "
        "count(readygate_replica_info) over all targets is the number of replicas.",
        labels=["state"],
    )
    for state, number in ((found and found.replicas) or {}).items():
        replicas.add_metric([state], number)
    yield replicas
    yield _gauge(
        "readygate_violation",
        "Whether more replicas past their grace run than are allowed (1), as of the last sync. No sample before it.",
        None if found is None else found.violation,
    )


def _of_entitlements(found: Found | None) -> Iterator[Metric]:
    errors = GaugeMetricFamily(
        "readygate_entitlement_errors", "Entitlement errors by code, as of the last sync.", labels=["code"]
    )
    warnings = GaugeMetricFamily(
        "readygate_entitlement_warnings", "Entitlement warnings by code, as of the last sync.", labels=["code"]
    )
    terms = GaugeMetricFamily(
        "readygate_license_term_end_timestamp_seconds",
        "When the term of a stored license ends, by its jti; from then on it is in its own grace period.",
        labels=["license"],
    )
    ends = GaugeMetricFamily(
        "readygate_license_end_timestamp_seconds",
        "When a stored license ends, by its jti: it grants nothing from then on.",
        labels=["license"],
    )
    if found is not None:
        for code, number in found.errors.items():
            errors.add_metric([code], number)
        for code, number in found.warnings.items():
            warnings.add_metric([code], number)
        for license_ in found.licenses:
            terms.add_metric([license_.id], license_.term_ends)
            ends.add_metric([license_.id], license_.ends)
    yield from (errors, warnings, terms, ends)


def _gauge(name: str, documentation: str, value: float | None) -> Metric:
    """A gauge without labels, and without a sample where there is nothing to tell."""
    return GaugeMetricFamily(name, documentation, value=value)
