"""The page's words: pure functions from values to what a person reads."""

from __future__ import annotations

from datetime import UTC, datetime

from .view import Feature, License, Replica, View

_MICRO = 1_000_000
_CALENDAR_ENDS = 253_402_300_799
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
#: A sign beside each word, so that nothing is told by color alone.
SIGNS = {
    "ok": "✓",
    "warning": "!",
    "failed": "✕",
    "serving": "✓",
    "excluded": "✕",
    "grace": "◔",
    "draining": "↓",
    "error": "✕",
    "entitled": "✓",
    "grace_period": "!",
    "not_entitled": "–",
    "counts": "✓",
    "in its grace period": "!",
    "not yet": "◔",
    "ended": "✕",
    "refused": "✕",
}
#: What readiness says, and what a person does about it.
ADVICE = {
    "database unreachable": "Bring the database back; the log names the failure in one word. Nothing needs a restart.",
    "schema outdated": "The tables are not there yet, or older than this release. They are upgraded by themselves,"
    " unless READYGATE_AUTO_MIGRATE=0: then run `flask --app app db upgrade`.",
    "starting": "This worker has not heard from the database yet. Wait a second.",
    "heartbeat lost": "This replica could not register itself for too long, and another may take its place. Look for"
    " what keeps it from writing: a read-only database, or a lock.",
    "draining": "This replica has handed its place over. Stop it, or restart it: it then stands at the end of the"
    " line.",
    "entitlement error": "More replicas run than the licenses allow: stop the surplus, or add a license.",
}
#: What was done, by the word that the address carries after it.
DONE = {
    "added": "The license is stored. Every worker goes by it within one heartbeat.",
    "removed": "The license is removed. Every worker goes by that within one heartbeat.",
    "draining": "The drain is on the record. The replica hands its place over at the instant shown below.",
    "drained": "The replica gives its place up now.",
    "undrained": "The drain is taken back. The replica keeps its place.",
}
POLICIES = {
    "all": "a violation takes every replica out of service",
    "surplus": "a violation takes only the surplus out of service",
}


def duration(seconds: float) -> str:
    """`seconds` in at most two units: 7 s, 3 min 5 s, 2 h 10 min, 29 d 4 h."""
    left = max(0, round(seconds))
    for number, (size, unit) in enumerate(_UNITS):
        if left >= size:
            smaller, name = _UNITS[number + 1] if number + 1 < len(_UNITS) else (1, "s")
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {name}" if rest else "")
    return f"{left} s"


def ago(view: View, instant: int) -> str:
    """How long ago `instant` was."""
    return f"{duration((view.now - instant) / _MICRO)} ago"


def iso(instant: int) -> str:
    """`instant` for programs, to the second."""
    return _utc(instant // _MICRO).isoformat().replace("+00:00", "Z")


def clock(instant: int) -> str:
    """`instant` for people."""
    return _utc(instant // _MICRO).strftime("%Y-%m-%d %H:%M:%S UTC")


def day(seconds: int) -> str:
    """The date of an instant in seconds."""
    return _utc(seconds).date().isoformat()


def _utc(seconds: int) -> datetime:
    # A signed number may lie beyond the calendar, which ends with the year 9999.
    return datetime.fromtimestamp(min(max(seconds, 0), _CALENDAR_ENDS), UTC)


def until(view: View, seconds: int) -> str:
    """How far ahead, or back, the instant `seconds` is."""
    left = seconds - view.now / _MICRO
    return f"in {duration(left)}" if left >= 0 else f"{duration(-left)} ago"


def verdict(view: View) -> str:
    """The headline: what /readyz says."""
    return f"Not ready: {view.failed[0].reason}" if view.failed else "Ready"


def why(view: View, replica: Replica) -> str:
    """Who stays, who goes, and why."""
    reason = _why(view, replica)
    if replica.draining_at is not None and replica.draining_at > view.now:
        left = duration((replica.draining_at - view.now) / _MICRO)
        reason += f" Hands its place over in {left}, at {clock(replica.draining_at)}."
    return reason


def _why(view: View, replica: Replica) -> str:
    may = "one" if view.allowed == 1 else str(view.allowed)
    if replica.state == "draining":
        return "Goes: it has handed its place over."
    if replica.state == "grace":
        left = (replica.aged_at - view.now) / _MICRO
        ahead = f"counts in {duration(left)}" if left > 0 else "counts by now"
        return f"Serves in its grace; {ahead}."
    if replica.state == "excluded":
        if view.high_availability or replica.policy == "surplus":
            return f"Goes: it stands behind the {may} that may serve."
        return "Goes: under the policy all, a violation takes every replica out."
    if view.allowed is None:
        return "Stays: any number may serve."
    return (
        f"Stays: it is the longest-serving, and {may} may serve."
        if view.allowed == 1
        else (f"Stays: it is among the first {may} in line, which may serve.")
    )


def capacity(view: View) -> str:
    """How many there are, and how many may serve."""
    number = f"{len(view.replicas)}{'' if view.complete else ' or more'}"
    may = "any number" if view.allowed is None else str(view.allowed)
    return f"{number} active, {may} may serve"


def standing(view: View, license_: License) -> str:
    """What a stored license counts for now."""
    if license_.refusal is not None or license_.begins is None:
        return "refused"
    assert license_.expires is not None
    assert license_.ends is not None
    now = view.now / _MICRO
    if now < license_.begins:
        return "not yet"
    if now < license_.expires:
        return "counts"
    return "in its grace period" if now < license_.ends else "ended"


def number(feature: Feature) -> str:
    """The number that comes with a feature; of one that is only granted or not, none."""
    return "–" if feature.limit is None or feature.name == "high_availability" else str(feature.limit)


def plain(entitlement: str) -> str:
    """An entitlement in words."""
    return entitlement.replace("_", " ")
