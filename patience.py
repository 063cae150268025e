"""How long requests may try the database, and when they had better not: probes wait for whatever they wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flask import Blueprint, g
from werkzeug.exceptions import ServiceUnavailable

from link import Link

#: In a worker that does one thing at a time probes wait for a request: a database slower than this gets none.
_SLOW_SECONDS = 0.05
#: And where a request itself was held up for longer than this, by a lock say, none follows before a ping and a sync.
_HELD_UP_SECONDS = 0.25
#: What all operations of one request may take together; and where probes have to wait for it.
_REQUEST_SECONDS, _ALONE_SECONDS = 2.0, 1.0


class Patience:
    """What the requests of one worker learnt of the database, beside what its thread measures."""

    def __init__(self, link: Link) -> None:
        self._link = link
        #: How many requests this worker serves at once; None: any number, as under gevent.
        self.threads: int | None = None
        #: When a request last got no answer at all.
        self._silent_at = float("-inf")
        #: When the database last held a request up, and when a sync last succeeded.
        self._held_up_at = self._synced_at = float("-inf")

    @property
    def request_seconds(self) -> float:
        """What all operations of one request may take together."""
        return _ALONE_SECONDS if self.threads == 1 else _REQUEST_SECONDS

    def stalled(self) -> bool:
        """Whether the database does not answer, as far as is known.

        Where a request got no answer, it does not until the next ping has one.
        """
        answered = self._link.measurement.answered_at
        return self._link.stalled() or (answered is not None and answered <= self._silent_at)

    def refusal(self) -> str | None:
        """Why requests that need the database are refused: it is silent, or would keep probes waiting; or None."""
        if self.stalled():
            return "database unreachable"
        if self.threads != 1:
            return None
        seen = self._link.measurement
        # A ping meets no lock, and a sync may have been done just before it became slow: both have to be new.
        held_up = self._held_up_at > min(self._synced_at, seen.pinged_at)
        slow = held_up or (seen.latency_seconds is not None and seen.latency_seconds > _SLOW_SECONDS)
        return "database too slow for a worker that does one thing at a time; use gthread" if slow else None

    def silent(self) -> None:
        """A request got no answer."""
        self._silent_at = time.monotonic()

    def took(self, seconds: float) -> None:
        """A request had to do with the database for so long."""
        if seconds > _HELD_UP_SECONDS:
            self._held_up_at = time.monotonic()

    def synced(self) -> None:
        """The thread's sync succeeded."""
        self._synced_at = time.monotonic()


class Turnstile:
    """Lets fewer requests in at once than the worker has threads: one is left to answer probes, whatever they wait for.

    A worker with one thread has none to leave; there a slow database is refused instead (Patience.refusal).
    """

    def __init__(self, threads: Callable[[], int | None]) -> None:
        """`threads`: how many the worker has; None: no bound."""
        self._threads = threads
        self._inside = 0
        self._lock = threading.Lock()

    def guard(self, blueprint: Blueprint) -> None:
        """Let no request of the blueprint's in but through here."""
        blueprint.before_request(self._enter)
        blueprint.teardown_request(self._leave)

    def _enter(self) -> None:
        threads = self._threads()
        with self._lock:
            if threads is not None and self._inside >= max(1, threads - 1):
                raise ServiceUnavailable("too many requests at once; try again in a second", retry_after=1)
            self._inside += 1
        g.readygate_inside = True

    def _leave(self, error: BaseException | None) -> None:
        if g.pop("readygate_inside", False):
            with self._lock:
                self._inside -= 1
