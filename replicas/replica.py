"""A replica as its row has it, and what one sync read of all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

#: Where a replica stands, in the words of the API.
State = Literal["grace", "serving", "excluded", "draining"]
#: The calendar ends with the year 9999.
_LAST = 253_402_300_799_000_000


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A row. Instants and durations are microseconds."""

    id: str
    hostname: str
    version: str
    created_at: int
    started_at: int
    updated_at: int
    stopped_at: int | None
    #: The instant at which it gives up its place; None: it keeps it.
    draining_at: int | None
    #: When somebody wrote down that it gave up its place; until then it counts.
    drained_at: int | None
    stale_after: int
    grace: int
    exclude: str
    database_latency: int | None
    #: Whether no heartbeat came for its own stale_after, or it is dated further ahead than a heartbeat.
    stale: bool

    @property
    def aged_at(self) -> int:
        """The end of its grace: from then on it counts."""
        return self.started_at + self.grace


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What one sync read, at the database's instant `now`; `*_local` are instants of the local monotonic clock."""

    now: int
    #: Before the touch was sent: what peers hold against this replica is counted from no earlier.
    touched_local: float
    #: Before the read was sent, hence no later than `now`.
    read_local: float
    me: Replica
    #: How many rows it asked for, less one; None: it asked for none but its own.
    limit: int | None
    #: Others and itself: the first of the line that count already, and the next whose grace ends.
    members: tuple[Replica, ...]


def state(replica: Replica, now: int, last: tuple[int, str] | None, high_availability: bool) -> State:
    """Where `replica` stands at `now`; `last`: the place behind which the surplus stands, None without a violation."""
    if replica.draining_at is not None and replica.draining_at <= now:
        return "draining"
    # Without the entitlement its own policy may take it out for the violation of others, its grace notwithstanding.
    if last is not None and not high_availability and replica.exclude == "all":
        return "excluded"
    if replica.aged_at > now:
        return "grace"
    return "excluded" if last is not None and (replica.created_at, replica.id) > last else "serving"


def shown(replica: Replica, own_id: str | None, standing: State) -> dict[str, Any]:
    """The replica as the API shows it; `own_id`: of the replica that answers, None where none does."""
    return {
        "id": replica.id,
        "hostname": replica.hostname,
        "version": replica.version,
        "created_at": rfc3339(replica.created_at),
        "started_at": rfc3339(replica.started_at),
        "updated_at": rfc3339(replica.updated_at),
        "draining_at": None if replica.draining_at is None else rfc3339(replica.draining_at),
        "database_latency": replica.database_latency,
        "state": standing,
        "self": replica.id == own_id,
    }


def rfc3339(instant: int) -> str:
    """Microseconds since 1970 as RFC 3339 has them, in UTC; what lies beyond the calendar is its end."""
    known = datetime.fromtimestamp(min(max(instant, 0), _LAST) / 1_000_000, UTC)
    return known.isoformat(timespec="microseconds").replace("+00:00", "Z")
