"""How long this worker may go on believing what its last sync read of its own place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from .replica import Facts

#: A verdict counts for two thirds of stale_after: it ends before any peer may write this replica off, also where the
#: local clock is 10 % slow and the database's 10 % fast (spec, section 4).
LEASE_SHARE = 2 / 3
#: Local time that has passed is taken for a quarter more, so that a slow local clock never outlives an instant.
HASTE = 1.25
#: What is given up this long before its instant is not taken back for the rest: it would only flicker.
FINAL_SECONDS = 1.0
_COUNTS_SUSPENSION = hasattr(time, "CLOCK_BOOTTIME")


def elapsed() -> float:
    """Seconds on a local clock that never steps, and on Linux goes on while the system is suspended, as peers do.

    A lease that stood still meanwhile would be believed after somebody else has taken the place.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _COUNTS_SUSPENSION else time.monotonic()


class Lease:
    """The last facts of one worker, and what follows from their age. Written by its thread, read by any."""

    def __init__(
        self,
        *,
        stale_after_seconds: float,
        replaceable: Callable[[], bool] = lambda: False,
        parent: Callable[[], int] = os.getppid,
        clock: Callable[[], float] = elapsed,
    ) -> None:
        """`replaceable`: whether another replica could take this one's place once it is taken for dead.

        Only then does a lost heartbeat take it out; otherwise an outage would empty the load balancer for nothing.
        """
        self._seconds = stale_after_seconds * LEASE_SHARE
        self._replaceable = replaceable
        self._getppid = parent
        self._parent: int | None = None
        self._clock = clock
        self.facts: Facts | None = None
        #: The appointment that this worker has kept already; None: none.
        self._kept: int | None = None

    def follow_parent(self, process: int) -> None:
        """From now on, count as an orphan once the parent process is another than `process`."""
        self._parent = process

    def orphaned(self) -> bool:
        """Whether the server's master is gone: then nothing says any more that this worker should serve."""
        return self._parent is not None and self._getppid() != self._parent

    def renew(self, facts: Facts) -> None:
        """Believe `facts` until they are too old."""
        at, before = facts.me.draining_at, self.facts
        if at is not None and at - facts.now < FINAL_SECONDS * 1_000_000 and before is not None:
            # It was given up a moment early, by a clock that hurries: this reading does not give it back.
            self._kept = at if before.me.draining_at == at and self._draining(before) else None
        else:
            self._kept = None
        self.facts = facts

    def lost(self) -> bool:
        """Whether the last facts are older than they may be."""
        return self.facts is not None and self._clock() - self.facts.touched_local >= self._seconds

    def reason(self) -> str | None:
        """Why this replica may not serve, as /readyz says it, or None."""
        if self.orphaned():
            # Also before the first sync: none will follow.
            return "heartbeat lost"
        if self.facts is None:
            return "starting"
        if self._replaceable() and self.lost():
            return "heartbeat lost"
        return "draining" if self._draining(self.facts) else None

    def _draining(self, facts: Facts) -> bool:
        if facts.me.draining_at is None:
            return False
        if facts.me.draining_at == self._kept:
            return True
        passed = (self._clock() - facts.read_local) * HASTE
        return facts.now + round(passed * 1_000_000) >= facts.me.draining_at
