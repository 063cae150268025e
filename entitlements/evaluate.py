"""From licenses and the facts of the fleet to entitlements: pure, no I/O, no clock of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .features import NOT_ENTITLED, Feature, all_granted, changes, granted
from .license import License
from .notices import Notice, of_expiry, of_grace_period, of_refused, of_violation
from .verdict import MICRO, Exclude, Fleet, judge, next_changes, replaceable


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
        return granted(name, self.licenses, at)

    @property
    def errors(self) -> tuple[Notice, ...]:
        """The notices that are errors."""
        return tuple(notice for notice in self.notices if notice.severity == "error")

    @property
    def warnings(self) -> tuple[Notice, ...]:
        """The notices that are warnings."""
        return tuple(notice for notice in self.notices if notice.severity == "warning")


def evaluate(
    licenses: Sequence[License],
    fleet: Fleet,
    *,
    exclude: Exclude = "all",
    invalid: Sequence[str] = (),
) -> Entitlements:
    """The entitlements at `fleet.now`; `invalid`: why stored licenses do not verify."""
    seconds = fleet.now / MICRO
    active = [license_ for license_ in licenses if license_.active(seconds)]
    judged = judge(licenses, fleet, fleet.now, exclude)
    notices = [*of_violation(licenses, judged, fleet.now, exclude), *map(of_refused, invalid)]
    notices += of_grace_period(licenses, fleet, seconds)
    notices += of_expiry(licenses, seconds)
    blocked_at, changes_at, replaceable_at = next_changes(licenses, fleet, judged, exclude)
    return Entitlements(
        now=fleet.now,
        features=all_granted(licenses, seconds),
        features_until=min((one for one in changes(licenses) if one > seconds), default=None),
        notices=tuple(notices),
        blocked=judged.blocked,
        blocked_at=blocked_at,
        changes_at=changes_at,
        replaceable=replaceable(judged.allowance, exclude),
        replaceable_at=replaceable_at,
        has_license=bool(active),
        trial=bool(active) and all(license_.trial for license_ in active),
        licenses=tuple(licenses),
    )
