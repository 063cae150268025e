"""A replica as its row has it, and what one sync read of all."""

from __future__ import annotations

from dataclasses import dataclass


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
