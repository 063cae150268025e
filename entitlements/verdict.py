"""Who may serve, by the licenses and by what was read of the fleet: pure, now and at the instants ahead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .features import changes, granted
from .license import HIGH_AVAILABILITY, REPLICA_LIMIT, License

#: Microseconds in a second.
MICRO = 1_000_000
#: From how long before the end of a license without bound the replicas are counted.
_AHEAD_SECONDS = 600
#: How many instants are judged, ahead and back.
INSTANTS = 100
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
    in_grace = granted(HIGH_AVAILABILITY, licenses, now).entitlement == "grace_period"
    return 1 if after is None and in_grace else after


@dataclass(frozen=True)
class Judgement:
    """How many may serve at an instant, who counts, and whether that takes this replica out."""

    allowance: Allowance
    #: Those that count, in line.
    aged: tuple[Member, ...]
    #: Whether this replica is out.
    blocked: bool

    @property
    def violation(self) -> bool:
        """Whether more count than may serve."""
        return self.allowance.number is not None and len(self.aged) > self.allowance.number


def judge(licenses: Sequence[License], fleet: Fleet, at: int, exclude: Exclude) -> Judgement:
    """The verdict at the instant `at`, as far as it can be told from what was read at `fleet.now`."""
    allowance = allowed(licenses, at / MICRO)
    number = allowance.number
    if number is None:
        return Judgement(allowance, (), False)
    if fleet.limit is None:
        # Nobody was counted, as there was no bound; nor can anybody be told apart once there is one.
        return Judgement(allowance, (), True)
    if fleet.limit < number:
        # A license began after the replicas were counted: no more were counted, so no more can be allowed yet.
        number = fleet.limit
        allowance = Allowance(number, allowance.high_availability)
    known = {member.id: member for member in (*fleet.members, fleet.me)}
    aged = tuple(sorted((m for m in known.values() if counts(m, at)), key=lambda m: (m.created_at, m.id)))
    if len(aged) <= number:
        return Judgement(allowance, aged, False)
    if not surplus_goes(allowance, exclude):
        return Judgement(allowance, aged, True)
    return Judgement(allowance, aged, fleet.me.id in {member.id for member in aged[number:]})


def counts(member: Member, at: int) -> bool:
    """Whether it has aged at `at` (microseconds), and nobody has written down that it gave up its place."""
    # An appointment that has not been kept may still be taken back: until it is written that the place is free, it
    # is not.
    return member.aged_at <= at and member.drained_at is None


def surplus_goes(allowance: Allowance, exclude: Exclude) -> bool:
    """Whether a violation takes out the surplus alone; otherwise it takes out everybody."""
    return allowance.high_availability or exclude == "surplus"


def replaceable(allowance: Allowance, exclude: Exclude) -> bool:
    """Whether another replica could take the place of one that is taken for dead."""
    return allowance.number is not None and surplus_goes(allowance, exclude)


def next_changes(
    licenses: Sequence[License], fleet: Fleet, judged: Judgement, exclude: Exclude
) -> tuple[int | None, int | None, int | None]:
    """When time alone will take this replica out, when it will change anything at all, when it makes it replaceable.

    Every instant at which something happens by itself: the end of a grace, a drain's appointment, the beginning, the
    term and the end of a license.
    """
    instants = {member.aged_at for member in (*fleet.members, fleet.me)}
    drains = {member.draining_at for member in (*fleet.members, fleet.me) if member.draining_at is not None}
    of_licenses = {instant * MICRO for instant in changes(licenses)}
    ahead = sorted(instant for instant in instants | drains | of_licenses if instant > fleet.now)
    changes_at = blocked_at = replaceable_at = None
    if len(ahead) > INSTANTS and not judged.blocked:
        # A large fleet starting at once: what is beyond these is not judged, hence not to be relied on.
        blocked_at = ahead[INSTANTS]
    del ahead[INSTANTS:]
    for instant in ahead:
        then = judge(licenses, fleet, instant, exclude)
        if then.blocked and not judged.blocked:
            blocked_at = min(instant, blocked_at or instant)
        changed = (then.blocked, then.violation) != (judged.blocked, judged.violation)
        if changes_at is None and (changed or instant == fleet.me.aged_at or instant in drains | of_licenses):
            changes_at = instant
        if replaceable_at is None and replaceable(then.allowance, exclude):
            replaceable_at = instant
    # A sync comes before what it may take this replica out for.
    return blocked_at, changes_at if changes_at is not None else blocked_at, replaceable_at
