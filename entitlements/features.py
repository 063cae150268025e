"""What the licenses grant by name: pure, at an instant that the caller gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .license import HIGH_AVAILABILITY, REPLICA_LIMIT, License

Standing = Literal["entitled", "grace_period", "not_entitled"]


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


def changes(licenses: Iterable[License]) -> set[int]:
    """Every instant (seconds) at which what a license grants changes by itself."""
    return {at for one in licenses for at in (one.not_before, one.license_expires, one.expires)}


def all_granted(licenses: Sequence[License], seconds: float) -> dict[str, Feature]:
    """Every feature that a license names, and the two that this service asks for, as they stand at `seconds`."""
    names = {HIGH_AVAILABILITY, REPLICA_LIMIT}.union(*(license_.features for license_ in licenses))
    return {name: granted(name, licenses, seconds) for name in sorted(names)}


def granted(name: str, licenses: Iterable[License], seconds: float) -> Feature:
    """The feature `name` at the instant `seconds`: the largest number that any license grants."""
    granting = [one for one in licenses if one.features.get(name) and one.active(seconds)]
    if not granting:
        return NOT_ENTITLED
    entitled = [one for one in granting if seconds < one.license_expires]
    return Feature(
        "entitled" if entitled else "grace_period",
        max(one.features[name] for one in granting),
        max(one.expires for one in granting),
    )
