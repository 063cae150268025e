"""What is wrong, and what soon will be, in words for people and codes for programs: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from .features import granted
from .license import HIGH_AVAILABILITY, REPLICA_LIMIT, License
from .verdict import INSTANTS, MICRO, Exclude, Fleet, Judgement, allowed, counts, surplus_goes

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


@dataclass(frozen=True, kw_only=True)
class Notice:
    """An error or a warning."""

    code: str
    message: str
    detail: str
    severity: Literal["error", "warning"]
    #: Whether it takes any replica out of service.
    blocking: bool = False


def of_violation(licenses: Sequence[License], judged: Judgement, now: int, exclude: Exclude) -> list[Notice]:
    """That more run than may serve: at most one."""
    number = judged.allowance.number
    if number is None or not judged.violation:
        return []
    surplus = surplus_goes(judged.allowance, exclude)
    stay = ", ".join(member.id for member in judged.aged[:number][:10]) if surplus else "none"
    since = datetime.fromtimestamp(_since(licenses, judged, now) // MICRO, UTC).isoformat().replace("+00:00", "Z")
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
    if any(license_.active(now / MICRO) for license_ in licenses):
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


def _since(licenses: Sequence[License], judged: Judgement, now: int) -> int:
    """When the violation that stands at `now` began, as far as those that were read can tell, in microseconds."""
    instants = {member.aged_at for member in judged.aged}
    instants |= {instant * MICRO for one in licenses for instant in (one.not_before, one.expires)}
    since = now
    for instant in sorted((past for past in instants if past <= now), reverse=True)[:INSTANTS]:
        number = allowed(licenses, instant / MICRO).number
        if number is None or sum(member.aged_at <= instant for member in judged.aged) <= number:
            break
        since = instant
    return since


def of_refused(why: str) -> Notice:
    """That a stored license does not verify."""
    return Notice(
        code="invalid_license",
        message="A stored license does not verify and grants nothing.",
        detail=f"{why[:1].upper()}{why[1:]}. Remove it with `flask --app app license remove ID` and add a valid one.",
        severity="error",
    )


def of_grace_period(licenses: Sequence[License], fleet: Fleet, seconds: float) -> list[Notice]:
    """That several serve by the grace period of a license alone."""
    feature = granted(HIGH_AVAILABILITY, licenses, seconds)
    if feature.entitlement != "grace_period" or sum(counts(m, fleet.now) for m in fleet.members) < 2:
        return []
    return [
        Notice(
            code="high_availability_in_grace_period",
            message="You have multiple replicas but your license for high availability has expired.",
            detail=f"Its grace period ends on {_date(feature.ends or 0)}; then they are in violation. Renew it.",
            severity="warning",
        )
    ]


def of_expiry(licenses: Sequence[License], seconds: float) -> list[Notice]:
    """That a license ends soon, and no other takes over: one each."""
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


def _date(seconds: int) -> str:
    # A signed number may lie beyond the calendar, which ends with the year 9999.
    return datetime.fromtimestamp(min(seconds, 253_402_300_799), UTC).date().isoformat()
