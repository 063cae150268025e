"""From licenses and the facts of the fleet to entitlements: pure, no I/O, no clock of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Protocol

from .license import HIGH_AVAILABILITY, REPLICA_LIMIT, License

#: The user's words; the proposal has them.
NO_LICENSE_MESSAGE = (
    "You have multiple replicas but high availability is an Enterprise feature. "
    "You will be unable to connect to workspaces."
)
#: What the code of an error, and of a warning, may be.
ERROR_CODES = ("multi_replica_without_ha", "replica_limit_exceeded", "invalid_license")
WARNING_CODES = ("high_availability_in_grace_period", "license_expires")
_DAY = 86400
_NOTICE_DAYS, _TRIAL_NOTICE_DAYS = 30, 7
_MICRO = 1_000_000
#: From how long before the end of a license without bound the replicas are counted.
_AHEAD_SECONDS = 600
#: How many instants ahead are judged.
_INSTANTS = 100
Standing = Literal["entitled", "grace_period", "not_entitled"]
#: Which replicas a violation without the entitlement takes out.
Exclude = Literal["all", "surplus"]


class Member(Protocol):
    """A replica, as far as the judgement goes. Instants are microseconds."""

    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> int: ...
    @property
    def aged_at(self) -> int: ...
    @property
    def draining_at(self) -> int | None: ...
    @property
    def drained_at(self) -> int | None: ...


class Fleet(Protocol):
    """What was read of the replicas at the instant `now`, in microseconds."""

    @property
    def now(self) -> int: ...
    @property
    def me(self) -> Member: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def members(self) -> Sequence[Member]: ...


@dataclass(frozen=True)
class Allowance:
    """How many aged replicas may serve."""

    #: None: any number.
    number: int | None
    #: Whether the high_availability entitlement stands behind it.
    high_availability: bool


@dataclass(frozen=True)
class Feature:
    """A feature, as the licenses grant it."""

    entitlement: Standing
    limit: int | None
    #: Seconds since 1970 at which the last license that grants it ends; None: none does.
    ends: int | None

    @property
    def enabled(self) -> bool:
        """Whether it may be used."""
        return self.entitlement != "not_entitled"


NOT_ENTITLED = Feature("not_entitled", None, None)


@dataclass(frozen=True, kw_only=True)
class Notice:
    """An error or a warning."""

    code: str
    message: str
    detail: str
    severity: Literal["error", "warning"]
    #: Whether it takes any replica out of service.
    blocking: bool = False


@dataclass(frozen=True, kw_only=True)
class Entitlements:
    """What stands at the instant `now` (microseconds), for the replica that asked."""

    now: int
    features: Mapping[str, Feature] = field(default_factory=dict)
    #: Seconds since 1970 until which time alone changes none of the features; None: it never does.
    features_until: int | None = None
    notices: tuple[Notice, ...] = ()
    #: Whether an error takes this replica out.
    blocked: bool = False
    #: The first instant at which the passing of time alone will take it out; None: none does.
    blocked_at: int | None = None
    #: The first instant at which time alone changes anything here; None: it changes nothing.
    changes_at: int | None = None
    #: Whether another replica could take this one's place once it is taken for dead.
    replaceable: bool = False
    #: The first instant at which time alone makes it so, where a license without bound ends; None: none does.
    replaceable_at: int | None = None
    has_license: bool = False
    trial: bool = False
    #: Those that verify.
    licenses: tuple[License, ...] = ()

    def feature(self, name: str, at: float) -> Feature:
        """The feature as the same licenses grant it at another instant (seconds), from `now` on.

        Looked up and not judged, until time changes any: host apps ask at every request, and licenses may be many.
        """
        if self.features_until is None or at < self.features_until:
            return self.features.get(name, NOT_ENTITLED)
        return _feature(name, self.licenses, at)

    @property
    def errors(self) -> tuple[Notice, ...]:
        """The notices that are errors."""
        return tuple(notice for notice in self.notices if notice.severity == "error")

    @property
    def warnings(self) -> tuple[Notice, ...]:
        """The notices that are warnings."""
        return tuple(notice for notice in self.notices if notice.severity == "warning")


def allowed(licenses: Iterable[License], now: float) -> Allowance:
    """How many may serve at `now` (seconds): computed per license, and the largest wins."""
    best = Allowance(1, False)
    for license_ in licenses:
        if not license_.active(now) or not license_.features.get(HIGH_AVAILABILITY):
            continue
        number = license_.features.get(REPLICA_LIMIT)
        if number is None:
            return Allowance(None, True)
        best = Allowance(max(number, best.number or 1), True)
    return best


def to_read(licenses: Sequence[License], now: float) -> int | None:
    """How many replicas a sync must be able to count beyond, to judge at `now` (seconds); None: it need not count."""
    number = allowed(licenses, now).number
    if number is not None:
        return number
    # Before a license without bound ends, the replicas are counted already: else no verdict could outlive its end.
    ends = sorted(one.expires for one in licenses if now < one.expires <= now + _AHEAD_SECONDS)
    after = next((bound for end in ends if (bound := allowed(licenses, end).number) is not None), None)
    in_grace = _feature(HIGH_AVAILABILITY, licenses, now).entitlement == "grace_period"
    return 1 if after is None and in_grace else after


def evaluate(
    licenses: Sequence[License],
    fleet: Fleet,
    *,
    exclude: Exclude = "all",
    invalid: Sequence[str] = (),
) -> Entitlements:
    """The entitlements at `fleet.now`; `invalid`: why stored licenses do not verify."""
    seconds = fleet.now / _MICRO
    active = [license_ for license_ in licenses if license_.active(seconds)]
    judged = _judge(licenses, fleet, fleet.now, exclude)
    notices = [*_violation(licenses, judged, fleet.now, exclude), *map(_invalid, invalid)]
    notices += _several_in_grace(licenses, fleet, seconds)
    notices += _expiring(licenses, seconds)
    blocked_at, changes_at, replaceable_at = _next_changes(licenses, fleet, judged, exclude)
    return Entitlements(
        now=fleet.now,
        features=_features(licenses, seconds),
        features_until=min((one for one in _changes(licenses) if one > seconds), default=None),
        notices=tuple(notices),
        blocked=judged.blocked,
        blocked_at=blocked_at,
        changes_at=changes_at,
        replaceable=_replaceable(judged.allowance, exclude),
        replaceable_at=replaceable_at,
        has_license=bool(active),
        trial=bool(active) and all(license_.trial for license_ in active),
        licenses=tuple(licenses),
    )


@dataclass(frozen=True)
class _Judgement:
    allowance: Allowance
    #: Those that count, in line.
    aged: tuple[Member, ...]
    #: Whether this replica is out.
    blocked: bool

    @property
    def violation(self) -> bool:
        return self.allowance.number is not None and len(self.aged) > self.allowance.number


def _judge(licenses: Sequence[License], fleet: Fleet, at: int, exclude: Exclude) -> _Judgement:
    """The verdict at the instant `at`, as far as it can be told from what was read at `fleet.now`."""
    allowance = allowed(licenses, at / _MICRO)
    number = allowance.number
    if number is None:
        return _Judgement(allowance, (), False)
    if fleet.limit is None:
        # Nobody was counted, as there was no bound; nor can anybody be told apart once there is one.
        return _Judgement(allowance, (), True)
    if fleet.limit < number:
        # A license began after the replicas were counted: no more were counted, so no more can be allowed yet.
        number = fleet.limit
        allowance = Allowance(number, allowance.high_availability)
    known = {member.id: member for member in (*fleet.members, fleet.me)}
    aged = tuple(sorted((m for m in known.values() if _counts(m, at)), key=lambda m: (m.created_at, m.id)))
    if len(aged) <= number:
        return _Judgement(allowance, aged, False)
    if not _surplus_goes(allowance, exclude):
        return _Judgement(allowance, aged, True)
    return _Judgement(allowance, aged, fleet.me.id in {member.id for member in aged[number:]})


def _counts(member: Member, at: int) -> bool:
    # An appointment that has not been kept may still be taken back: until it is written that the place is free, it
    # is not.
    return member.aged_at <= at and member.drained_at is None


def _surplus_goes(allowance: Allowance, exclude: Exclude) -> bool:
    """Whether a violation takes out the surplus alone; otherwise it takes out everybody."""
    return allowance.high_availability or exclude == "surplus"


def _replaceable(allowance: Allowance, exclude: Exclude) -> bool:
    return allowance.number is not None and _surplus_goes(allowance, exclude)


def _next_changes(
    licenses: Sequence[License], fleet: Fleet, judged: _Judgement, exclude: Exclude
) -> tuple[int | None, int | None, int | None]:
    """When time alone will take this replica out, when it will change anything at all, when it makes it replaceable.

    Every instant at which something happens by itself: the end of a grace, a drain's appointment, the beginning, the
    term and the end of a license.
    """
    instants = {member.aged_at for member in (*fleet.members, fleet.me)}
    drains = {member.draining_at for member in (*fleet.members, fleet.me) if member.draining_at is not None}
    of_licenses = {instant * _MICRO for instant in _changes(licenses)}
    ahead = sorted(instant for instant in instants | drains | of_licenses if instant > fleet.now)
    changes_at = blocked_at = replaceable_at = None
    if len(ahead) > _INSTANTS and not judged.blocked:
        # A large fleet starting at once: what is beyond these is not judged, hence not to be relied on.
        blocked_at = ahead[_INSTANTS]
    del ahead[_INSTANTS:]
    for instant in ahead:
        then = _judge(licenses, fleet, instant, exclude)
        if then.blocked and not judged.blocked:
            blocked_at = min(instant, blocked_at or instant)
        changed = (then.blocked, then.violation) != (judged.blocked, judged.violation)
        if changes_at is None and (changed or instant == fleet.me.aged_at or instant in drains | of_licenses):
            changes_at = instant
        if replaceable_at is None and _replaceable(then.allowance, exclude):
            replaceable_at = instant
    # A sync comes before what it may take this replica out for.
    return blocked_at, changes_at if changes_at is not None else blocked_at, replaceable_at


def _violation(licenses: Sequence[License], judged: _Judgement, now: int, exclude: Exclude) -> list[Notice]:
    number = judged.allowance.number
    if number is None or not judged.violation:
        return []
    surplus = _surplus_goes(judged.allowance, exclude)
    stay = ", ".join(member.id for member in judged.aged[:number][:10]) if surplus else "none"
    since = datetime.fromtimestamp(_since(licenses, judged, now) // _MICRO, UTC).isoformat().replace("+00:00", "Z")
    detail = f"Since {since}; allowed: {number}; staying in service: {stay}. "
    if judged.allowance.high_availability:
        return [
            Notice(
                code="replica_limit_exceeded",
                message=f"You have more replicas than your license allows ({number}).",
                detail=detail + f"Stop replicas until {number} run, or add a license with a larger replica_limit.",
                severity="error",
                blocking=True,
            )
        ]
    message = NO_LICENSE_MESSAGE
    if any(license_.active(now / _MICRO) for license_ in licenses):
        message = "You have multiple replicas but your license does not include high availability."
    return [
        Notice(
            code="multi_replica_without_ha",
            message=message,
            detail=detail + "Stop replicas until 1 runs, or add a license with high_availability.",
            severity="error",
            blocking=True,
        )
    ]


def _since(licenses: Sequence[License], judged: _Judgement, now: int) -> int:
    """When the violation that stands at `now` began, as far as those that were read can tell, in microseconds."""
    instants = {member.aged_at for member in judged.aged}
    instants |= {instant * _MICRO for one in licenses for instant in (one.not_before, one.expires)}
    since = now
    for instant in sorted((past for past in instants if past <= now), reverse=True)[:_INSTANTS]:
        number = allowed(licenses, instant / _MICRO).number
        if number is None or sum(member.aged_at <= instant for member in judged.aged) <= number:
            break
        since = instant
    return since


def _invalid(why: str) -> Notice:
    return Notice(
        code="invalid_license",
        message="A stored license does not verify and grants nothing.",
        detail=f"{why[:1].upper()}{why[1:]}. Remove it with `flask --app app license remove ID` and add a valid one.",
        severity="error",
    )


def _several_in_grace(licenses: Sequence[License], fleet: Fleet, seconds: float) -> list[Notice]:
    feature = _feature(HIGH_AVAILABILITY, licenses, seconds)
    if feature.entitlement != "grace_period" or sum(_counts(m, fleet.now) for m in fleet.members) < 2:
        return []
    return [
        Notice(
            code="high_availability_in_grace_period",
            message="You have multiple replicas but your license for high availability has expired.",
            detail=f"Its grace period ends on {_date(feature.ends or 0)}; then they are in violation. Renew it.",
            severity="warning",
        )
    ]


def _expiring(licenses: Sequence[License], seconds: float) -> list[Notice]:
    notices = []
    for license_ in licenses:
        days = _TRIAL_NOTICE_DAYS if license_.trial else _NOTICE_DAYS
        if not license_.active(seconds) or license_.license_expires - seconds > days * _DAY:
            continue
        if any(_takes_over(other, license_, seconds) for other in licenses):
            continue
        past = license_.license_expires <= seconds
        notices.append(
            Notice(
                code="license_expires",
                message=f"A license {'expired' if past else 'expires'} on {_date(license_.license_expires)}.",
                detail=f"License {license_.uuid}; what it grants ends on {_date(license_.expires)}. Renew it.",
                severity="warning",
            )
        )
    return notices


def _takes_over(other: License, license_: License, seconds: float) -> bool:
    """Whether `other` grants all that `license_` does, from before its term ends until later."""
    end = max(license_.license_expires, seconds)
    if other.not_before > end or other.license_expires <= end:
        return False
    unlimited = REPLICA_LIMIT not in other.features or not license_.features.get(HIGH_AVAILABILITY)
    return all(
        other.features.get(name, 0) >= number or (name == REPLICA_LIMIT and unlimited)
        for name, number in license_.features.items()
    ) and (unlimited or REPLICA_LIMIT in license_.features)


def _changes(licenses: Iterable[License]) -> set[int]:
    """Every instant (seconds) at which what a license grants changes by itself."""
    return {at for one in licenses for at in (one.not_before, one.license_expires, one.expires)}


def _features(licenses: Sequence[License], seconds: float) -> dict[str, Feature]:
    names = {HIGH_AVAILABILITY, REPLICA_LIMIT}.union(*(license_.features for license_ in licenses))
    return {name: _feature(name, licenses, seconds) for name in sorted(names)}


def _feature(name: str, licenses: Iterable[License], seconds: float) -> Feature:
    granting = [one for one in licenses if one.features.get(name) and one.active(seconds)]
    if not granting:
        return NOT_ENTITLED
    entitled = [one for one in granting if seconds < one.license_expires]
    return Feature(
        "entitled" if entitled else "grace_period",
        max(one.features[name] for one in granting),
        max(one.expires for one in granting),
    )


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
