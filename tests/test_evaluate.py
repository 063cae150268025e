"""From licenses and the facts of the fleet to entitlements: no database, no clock."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from entitlements import Entitlements, Feature, License, Notice, allowed, evaluate
from entitlements.verdict import Allowance, Exclude, to_read

DAY, YEAR = 86400, 365 * 86400
MICRO = 1_000_000
#: 2027-01-15T08:00:00Z, the instant at which all is judged, in seconds.
NOW = 1_800_000_000
NO_LICENSE = (
    "You have multiple replicas but high availability is an Enterprise feature. "
    "You will be unable to connect to workspaces."
)
POLICIES: list[Exclude] = ["all", "surplus"]


@dataclass(frozen=True)
class Member:
    id: str
    created_at: int
    aged_at: int
    draining_at: int | None = None
    drained_at: int | None = None


@dataclass(frozen=True)
class Fleet:
    me: Member
    members: Sequence[Member]
    limit: int | None
    now: int = NOW * MICRO


def a_member(place: int, *, aged: float = -1000, drains: float | None = None, drained: bool = False) -> Member:
    """The replica at this place of the line; its grace ends `aged` seconds from now, `drains` is its appointment."""
    draining_at = None if drains is None else round((NOW + drains) * MICRO)
    aged_at = round((NOW + aged) * MICRO)
    return Member(f"replica-{place}", place, aged_at, draining_at, draining_at if drained else None)


def a_fleet(*members: Member, me: int = 0, limit: int | None = 1) -> Fleet:
    """What the replica `members[me]` reads with this limit; one aged replica where none is given."""
    members = members or (a_member(0),)
    return Fleet(me=members[me], members=() if limit is None else members, limit=limit)


def replicas(count: int, *, me: int = 0, limit: int | None = 1) -> Fleet:
    return a_fleet(*(a_member(place) for place in range(count)), me=me, limit=limit)


def a_license(*, starts: float = -YEAR, ends: float = YEAR, grace: float = 14 * DAY, **options: Any) -> License:
    """A license with high_availability, unless it is given other features; instants in seconds from now."""
    return License(
        **{
            "uuid": str(uuid.uuid4()),
            "key_id": "k",
            "issued_at": NOW,
            "not_before": round(NOW + starts),
            "license_expires": round(NOW + ends),
            "expires": round(NOW + ends + grace),
            "account_type": "company",
            "account_id": "acme",
            "features": {"high_availability": 1},
            **options,
        }
    )


def bounded(limit: int, **options: Any) -> License:
    return a_license(features={"high_availability": 1, "replica_limit": limit}, **options)


def without(**options: Any) -> License:
    """A license that lacks high availability."""
    return a_license(features={"audit_log": 1}, **options)


def found(fleet: Fleet, *licenses: License, exclude: Exclude = "all") -> Entitlements:
    return evaluate(licenses, fleet, exclude=exclude)


def codes(entitlements: Entitlements) -> list[str]:
    return [notice.code for notice in entitlements.notices]


def the_error(entitlements: Entitlements) -> Notice:
    (error,) = entitlements.errors
    return error


def seconds(instant: int | None) -> float | None:
    """Seconds from now."""
    return None if instant is None else instant / MICRO - NOW


# How many may serve


def test_without_a_license_one_may_serve() -> None:
    assert allowed([], NOW) == Allowance(1, False)


ALLOWED: dict[str, tuple[int | None, list[License]]] = {
    "high availability": (None, [a_license()]),
    "with a limit": (3, [bounded(3)]),
    "a limit of one": (1, [bounded(1)]),
    "the larger limit": (5, [bounded(3), bounded(5), bounded(2)]),
    "no limit beats any": (None, [bounded(3), a_license(), bounded(9)]),
    "limits are not added up, nor taken from another license": (3, [bounded(3), without()]),
    "a limit without high availability": (1, [a_license(features={"replica_limit": 9})]),
    "its grace period": (3, [bounded(3, ends=-DAY)]),
}


@pytest.mark.parametrize(("number", "licenses"), ALLOWED.values(), ids=ALLOWED)
def test_per_license_and_the_largest_wins(number: int | None, licenses: list[License]) -> None:
    assert allowed(licenses, NOW).number == number
    assert allowed(licenses[::-1], NOW).number == number


@pytest.mark.parametrize(
    "license_",
    {
        "another feature": without(),
        "high availability 0": a_license(features={"high_availability": 0}),
        "not begun": a_license(starts=1),
        "ended": a_license(ends=-15 * DAY),
        "ending now": a_license(ends=0, grace=0),
    }.values(),
    ids=["another feature", "high availability 0", "not begun", "ended", "ending now"],
)
def test_a_license_that_grants_no_high_availability_now_leaves_it_at_one(license_: License) -> None:
    assert allowed([license_], NOW) == Allowance(1, False)


def test_a_sync_counts_beyond_what_is_allowed_and_in_a_grace_period_beyond_one() -> None:
    assert to_read([], NOW) == 1
    assert to_read([bounded(3)], NOW) == 3
    assert to_read([bounded(3, ends=-DAY)], NOW) == 3
    assert to_read([a_license()], NOW) is None
    assert to_read([a_license(ends=-DAY)], NOW) == 1


# Violations


def test_one_replica_needs_no_license() -> None:
    alone = found(replicas(1))
    assert (alone.notices, alone.blocked, alone.blocked_at, alone.changes_at) == ((), False, None, None)
    assert (alone.has_license, alone.trial) == (False, False)


@pytest.mark.parametrize("exclude", POLICIES)
def test_several_replicas_without_a_license_are_told_in_the_users_words(exclude: Exclude) -> None:
    error = the_error(found(replicas(2), exclude=exclude))
    assert (error.code, error.message, error.blocking) == ("multi_replica_without_ha", NO_LICENSE, True)


@pytest.mark.parametrize("license_", [a_license(ends=-DAY, grace=0), a_license(starts=DAY)], ids=["ended", "not begun"])
def test_a_license_that_does_not_stand_is_none(license_: License) -> None:
    judged = found(replicas(2), license_)
    assert the_error(judged).message == NO_LICENSE
    assert not judged.has_license


def test_with_a_license_that_lacks_it_the_message_says_so() -> None:
    error = the_error(found(replicas(2), without()))
    assert error.code == "multi_replica_without_ha"
    assert error.message == "You have multiple replicas but your license does not include high availability."


@pytest.mark.parametrize("me", [0, 1, 2])
def test_with_the_policy_all_the_error_takes_every_replica_out_those_in_their_grace_too(me: int) -> None:
    fleet = a_fleet(a_member(0), a_member(1), a_member(2, aged=30), me=me)
    judged = found(fleet, exclude="all")
    assert judged.blocked
    assert "allowed: 1; staying in service: none." in the_error(judged).detail


@pytest.mark.parametrize(("me", "blocked"), [(0, False), (1, True), (2, False)])
def test_with_the_policy_surplus_it_takes_out_the_surplus_alone(me: int, blocked: bool) -> None:
    fleet = a_fleet(a_member(0), a_member(1), a_member(2, aged=30), me=me)
    judged = found(fleet, exclude="surplus")
    assert judged.blocked is blocked
    assert the_error(judged).blocking
    assert "allowed: 1; staying in service: replica-0." in the_error(judged).detail


@pytest.mark.parametrize("exclude", POLICIES)
@pytest.mark.parametrize(("me", "blocked"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_limit_only_ever_takes_out_the_surplus(exclude: Exclude, me: int, blocked: bool) -> None:
    judged = found(replicas(4, me=me, limit=2), bounded(2), exclude=exclude)
    error = the_error(judged)
    assert judged.blocked is blocked
    assert (error.code, error.blocking) == ("replica_limit_exceeded", True)
    assert error.message == "You have more replicas than your license allows (2)."
    assert "allowed: 2; staying in service: replica-0, replica-1." in error.detail


def test_as_many_as_are_allowed_are_no_violation() -> None:
    assert found(replicas(2, limit=2), bounded(2)).notices == ()
    assert found(replicas(9, limit=None), a_license()).notices == ()


@pytest.mark.parametrize("exclude", POLICIES)
def test_replicas_in_their_grace_raise_no_alarm(exclude: Exclude) -> None:
    judged = found(a_fleet(a_member(0), a_member(1, aged=30), a_member(2, aged=30)), exclude=exclude)
    assert (judged.notices, judged.blocked) == ((), False)


def test_a_replica_in_its_grace_holds_no_place() -> None:
    judged = found(a_fleet(a_member(0, aged=30), a_member(1), me=1), exclude="surplus")
    assert (judged.notices, judged.blocked) == ((), False)


def test_the_line_is_by_age_and_then_by_id() -> None:
    line = [Member(name, 5, 0) for name in ("b", "a", "c")]
    assert [found(a_fleet(*line, me=me), exclude="surplus").blocked for me in range(3)] == [True, False, True]


def test_a_replica_that_gave_up_its_place_is_counted_no_more() -> None:
    assert codes(found(a_fleet(a_member(0, drains=-1, drained=True), a_member(1), me=1))) == []


def test_an_appointment_that_is_not_kept_yet_holds_the_place() -> None:
    judged = found(a_fleet(a_member(0, drains=-1), a_member(1), me=1), exclude="surplus")
    assert judged.blocked


def test_the_detail_names_ten_that_stay_at_most() -> None:
    detail = the_error(found(replicas(13, limit=12), bounded(12))).detail
    assert detail.count("replica-") == 10


@pytest.mark.parametrize("exclude", POLICIES)
def test_the_detail_says_what_to_do(exclude: Exclude) -> None:
    assert the_error(found(replicas(2), exclude=exclude)).detail.endswith(
        "Stop replicas until 1 runs, or add a license with high_availability."
    )
    assert the_error(found(replicas(3, limit=2), bounded(2), exclude=exclude)).detail.endswith(
        "Stop replicas until 2 run, or add a license with a larger replica_limit."
    )


def since(entitlements: Entitlements) -> str:
    return the_error(entitlements).detail.split(";")[0]


def test_a_violation_began_when_one_too_many_came_of_age() -> None:
    fleet = a_fleet(a_member(0, aged=-3600), a_member(1, aged=-60), a_member(2, aged=-30))
    assert since(found(fleet)) == "Since 2027-01-15T07:59:00Z"


def test_a_violation_of_a_limit_began_in_the_past_however_long_the_license_lasts() -> None:
    fleet = a_fleet(a_member(0, aged=-3600), a_member(1, aged=-120), a_member(2, aged=-60), limit=2)
    assert since(found(fleet, bounded(2))) == "Since 2027-01-15T07:59:00Z"


def test_a_violation_began_with_the_end_of_the_license() -> None:
    assert since(found(replicas(2), a_license(ends=-60, grace=30))) == "Since 2027-01-15T07:59:30Z"


def test_a_license_that_is_yet_to_begin_began_no_violation() -> None:
    fleet = a_fleet(a_member(0, aged=-3600), a_member(1, aged=-60))
    assert since(found(fleet, a_license(starts=DAY))) == "Since 2027-01-15T07:59:00Z"


def test_a_license_that_ended_before_the_second_replica_came_began_no_violation() -> None:
    fleet = a_fleet(a_member(0, aged=-3600), a_member(1, aged=-60))
    assert since(found(fleet, a_license(ends=-YEAR, grace=0, starts=-2 * YEAR))) == "Since 2027-01-15T07:59:00Z"


def test_a_violation_began_with_the_end_of_the_larger_license() -> None:
    fleet = replicas(3, limit=2)
    assert since(found(fleet, bounded(2), bounded(5, ends=-60, grace=0))) == "Since 2027-01-15T07:59:00Z"


def test_a_license_that_began_since_the_count_allows_no_more_than_were_counted() -> None:
    # Three were allowed when the replicas were read, hence four were read; more than that nobody can judge.
    judged = found(replicas(4, me=3, limit=3), bounded(3), bounded(9, starts=-1), exclude="surplus")
    assert judged.blocked


# Licenses that do not verify


def test_an_invalid_license_is_an_error_that_takes_nobody_out() -> None:
    judged = evaluate([], replicas(1), invalid=["license 7: its signature does not verify"])
    error = the_error(judged)
    assert (error.code, error.blocking, judged.blocked) == ("invalid_license", False, False)
    assert error.detail.startswith("License 7: its signature does not verify. Remove it with ")
    assert not judged.has_license


def test_an_invalid_license_spares_the_others() -> None:
    judged = evaluate([a_license()], replicas(2, limit=None), invalid=["license 7: x", "license 8: y"])
    assert codes(judged) == ["invalid_license", "invalid_license"]
    assert judged.features["high_availability"].entitlement == "entitled"


def test_capacity_that_it_alone_granted_is_gone() -> None:
    judged = evaluate([], replicas(2), invalid=["license 7: x"])
    assert codes(judged) == ["multi_replica_without_ha", "invalid_license"]
    assert judged.blocked
    assert judged.errors[0].message == NO_LICENSE


# Warnings


def test_several_replicas_are_warned_while_high_availability_is_in_its_grace_period() -> None:
    judged = found(replicas(2), a_license(ends=-DAY))
    assert codes(judged) == ["high_availability_in_grace_period", "license_expires"]
    assert "ends on 2027-01-28" in judged.warnings[0].detail
    assert (judged.errors, judged.blocked) == ((), False)


def test_one_replica_is_not_warned_of_high_availabilitys_grace_period() -> None:
    assert codes(found(replicas(1), a_license(ends=-DAY))) == ["license_expires"]
    assert codes(found(a_fleet(a_member(0), a_member(1, aged=9)), a_license(ends=-DAY))) == ["license_expires"]


@pytest.mark.parametrize(
    ("days", "trial", "warned"),
    [(31, False, False), (30, False, True), (1, False, True), (8, True, False), (7, True, True)],
)
def test_a_license_that_expires_within_thirty_days_is_warned_of_a_trial_within_seven(
    days: int, trial: bool, warned: bool
) -> None:
    judged = found(replicas(1), a_license(ends=days * DAY, trial=trial))
    assert codes(judged) == ["license_expires"] * warned
    assert judged.trial is trial


def test_the_warning_says_which_license_and_when() -> None:
    license_ = a_license(ends=DAY)
    (warning,) = found(replicas(1), license_).warnings
    assert warning.message == "A license expires on 2027-01-16."
    assert license_.uuid in warning.detail
    assert "ends on 2027-01-30" in warning.detail
    assert not warning.blocking


def test_a_license_in_its_grace_period_is_said_to_have_expired() -> None:
    (warning,) = found(replicas(1), a_license(ends=-DAY)).warnings
    assert warning.message == "A license expired on 2027-01-14."


def test_a_license_that_ended_or_has_not_begun_is_not_warned_of() -> None:
    assert found(replicas(1), a_license(ends=-DAY, grace=0), a_license(starts=DAY, ends=2 * DAY)).notices == ()


TAKES_OVER: dict[str, tuple[bool, License, License]] = {
    "a renewal that began": (True, a_license(ends=DAY), a_license()),
    "a renewal that begins that instant": (True, a_license(ends=DAY), a_license(starts=DAY)),
    "a renewal that begins too late": (False, a_license(ends=DAY), a_license(starts=DAY + 1)),
    "a license that ends with it": (False, a_license(ends=DAY), a_license(ends=DAY)),
    "more features": (True, without(ends=DAY), a_license(features={"audit_log": 1, "seats": 5})),
    "fewer features": (False, a_license(ends=DAY, features={"high_availability": 1, "seats": 5}), a_license()),
    "fewer seats": (
        False,
        a_license(ends=DAY, features={"high_availability": 1, "seats": 5}),
        a_license(features={"high_availability": 1, "seats": 4}),
    ),
    "a smaller limit": (False, bounded(5, ends=DAY), bounded(3)),
    "a larger limit": (True, bounded(3, ends=DAY), bounded(5)),
    "no limit after one": (True, bounded(3, ends=DAY), a_license()),
    "a limit after none": (False, a_license(ends=DAY), bounded(100)),
    "high availability with a limit, where there was none at all": (
        True,
        without(ends=DAY),
        a_license(features={"audit_log": 1, "high_availability": 1, "replica_limit": 3}),
    ),
}


@pytest.mark.parametrize(("silent", "ending", "other"), TAKES_OVER.values(), ids=TAKES_OVER)
def test_it_is_not_warned_of_where_another_takes_over_without_a_gap(
    silent: bool, ending: License, other: License
) -> None:
    warned = any(ending.uuid in warning.detail for warning in found(replicas(1), other, ending).warnings)
    assert warned is not silent


# Features


def test_ours_are_always_there_and_not_entitled_without_a_license() -> None:
    nothing = Feature("not_entitled", None, None)
    assert found(replicas(1)).features == {"high_availability": nothing, "replica_limit": nothing}


def test_the_hosts_own_are_carried_through() -> None:
    license_ = a_license(features={"Audit-Log.v2": 1, "seats": 250, "none": 0})
    features = found(replicas(1), license_).features
    assert features["Audit-Log.v2"] == Feature("entitled", 1, license_.expires)
    assert features["seats"] == Feature("entitled", 250, license_.expires)
    assert features["none"] == Feature("not_entitled", None, None)


@pytest.mark.parametrize(
    ("standing", "license_"),
    [
        ("not_entitled", a_license(starts=1)),
        ("entitled", a_license(starts=0)),
        ("entitled", a_license(ends=1)),
        ("grace_period", a_license(ends=0)),
        ("grace_period", a_license(ends=-1, grace=2)),
        ("not_entitled", a_license(ends=-1, grace=1)),
    ],
)
def test_entitled_until_license_expires_then_in_grace_until_exp(standing: str, license_: License) -> None:
    feature = found(replicas(1), license_).features["high_availability"]
    assert feature.entitlement == standing
    assert feature.enabled is (standing != "not_entitled")


def test_two_licenses_grant_the_better_standing_and_the_larger_number() -> None:
    expired, small = a_license(ends=-DAY, features={"seats": 9}), a_license(features={"seats": 5})
    assert found(replicas(1), expired, small).features["seats"] == Feature("entitled", 9, small.expires)


def test_has_license_and_trial_tell_of_those_that_stand_now() -> None:
    trial, full = a_license(trial=True), a_license()
    judged = [found(replicas(1), *some) for some in ([trial], [trial, full], [a_license(starts=1, trial=True)])]
    assert [(one.has_license, one.trial) for one in judged] == [(True, True), (True, False), (False, False)]


def test_the_same_licenses_tell_of_another_instant() -> None:
    judged = found(replicas(1), a_license(ends=DAY, grace=DAY, features={"seats": 9}), a_license(features={"seats": 5}))
    assert [judged.feature("seats", NOW + at).limit for at in (0, DAY, 2 * DAY, 2 * YEAR)] == [9, 9, 5, None]


# What time alone will change


@pytest.mark.parametrize("exclude", POLICIES)
def test_the_end_of_a_peers_grace_takes_this_replica_out_where_it_would(exclude: Exclude) -> None:
    fleets = [a_fleet(a_member(0), a_member(1, aged=40), me=me) for me in (0, 1)]
    judged = [found(fleet, exclude=exclude) for fleet in fleets]
    assert [seconds(one.blocked_at) for one in judged] == [40 if exclude == "all" else None, 40]
    assert [seconds(one.changes_at) for one in judged] == [40, 40]


def test_the_first_of_several_instants_counts() -> None:
    fleet = a_fleet(a_member(0), a_member(1, aged=50), a_member(2, aged=40), a_member(3, aged=60))
    judged = found(fleet)
    assert (seconds(judged.blocked_at), seconds(judged.changes_at)) == (40, 40)


def test_the_end_of_a_grace_that_makes_no_violation_changes_nothing() -> None:
    judged = found(a_fleet(a_member(0), a_member(1, aged=40), limit=2), bounded(2), exclude="surplus")
    assert judged.blocked_at is None
    assert seconds(judged.changes_at) == YEAR


def test_its_own_coming_of_age_is_a_change() -> None:
    assert seconds(found(a_fleet(a_member(0, aged=40))).changes_at) == 40


@pytest.mark.parametrize("me", [0, 1])
def test_a_drain_is_a_change_for_who_goes_and_for_who_waits(me: int) -> None:
    judged = found(a_fleet(a_member(0, drains=15), a_member(1), me=me), exclude="surplus")
    assert seconds(judged.changes_at) == 15
    assert judged.blocked is (me == 1)


@pytest.mark.parametrize(
    ("license_", "changes"),
    [(a_license(starts=100), 100), (a_license(ends=100), 100), (a_license(ends=-100, grace=200), 100)],
    ids=["start", "term", "end"],
)
def test_a_licenses_start_term_and_end_are_changes(license_: License, changes: float) -> None:
    assert seconds(found(replicas(1), license_).changes_at) == changes


@pytest.mark.parametrize("me", [0, 1])
@pytest.mark.parametrize("exclude", POLICIES)
def test_the_end_of_a_grace_period_takes_out_whom_the_policy_says(exclude: Exclude, me: int) -> None:
    judged = found(replicas(2, me=me), a_license(ends=-DAY, grace=DAY + 100), exclude=exclude)
    assert not judged.blocked
    assert seconds(judged.blocked_at) == (None if (exclude, me) == ("surplus", 0) else 100)


def test_a_smaller_license_that_is_left_takes_out_the_surplus() -> None:
    licenses = bounded(3, ends=100, grace=0), bounded(2, grace=0)
    judged = [found(replicas(3, me=me, limit=3), *licenses, exclude="surplus") for me in range(3)]
    assert [seconds(one.blocked_at) for one in judged] == [None, YEAR, 100]


def test_who_is_out_is_not_taken_out_again() -> None:
    judged = found(a_fleet(a_member(0), a_member(1), a_member(2, aged=30)))
    assert (judged.blocked, judged.blocked_at) == (True, None)


def test_a_license_that_begins_lets_nobody_in_by_time_alone_but_a_sync_looks() -> None:
    judged = found(replicas(2), a_license(starts=100))
    assert (judged.blocked, seconds(judged.changes_at)) == (True, 100)


def test_beyond_a_hundred_instants_nothing_is_relied_on_and_a_sync_comes_before() -> None:
    fleet = a_fleet(a_member(0), *(a_member(place, aged=place) for place in range(1, 150)), limit=200)
    judged = found(fleet, bounded(200))
    assert not judged.blocked
    assert (seconds(judged.blocked_at), seconds(judged.changes_at)) == (101, 101)


# Who could take this one's place


@pytest.mark.parametrize(
    ("exclude", "licenses", "replaceable"),
    [
        ("all", [], False),
        ("surplus", [], True),
        ("all", [bounded(2)], True),
        ("surplus", [bounded(2)], True),
        ("all", [a_license()], False),
        ("surplus", [a_license()], False),
    ],
)
def test_it_is_replaceable_where_a_bound_takes_out_the_surplus(
    exclude: Exclude, licenses: list[License], replaceable: bool
) -> None:
    limit = to_read(licenses, NOW)
    assert found(replicas(1, limit=limit), *licenses, exclude=exclude).replaceable is replaceable


def test_the_end_of_a_license_without_bound_makes_it_replaceable() -> None:
    license_ = a_license(ends=-DAY, grace=DAY + 100)
    assert seconds(found(replicas(2), license_, exclude="surplus").replaceable_at) == 100
    assert found(replicas(2), license_, exclude="all").replaceable_at is None
    assert seconds(found(replicas(2), license_, bounded(2), exclude="all").replaceable_at) == 100
    # Another one without bound goes on.
    later = a_license(ends=DAY, grace=DAY)
    assert seconds(found(replicas(2), license_, later, exclude="surplus").replaceable_at) != 100


# What it is not


def test_it_is_pure() -> None:
    licenses, fleet = [bounded(2), a_license(starts=DAY)], replicas(3, limit=2)
    assert evaluate(licenses, fleet) == evaluate(licenses, fleet)


def test_a_thousand_licenses_are_judged_in_a_blink() -> None:
    licenses = [bounded(2, starts=-YEAR + place, ends=YEAR + place) for place in range(1000)]
    judged = found(replicas(3, me=2, limit=2), *licenses)
    assert judged.blocked
