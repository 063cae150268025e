"""The background thread of a worker: a ping every second, a sync every heartbeat."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable

_log = logging.getLogger("readygate.replicas")
_PING_SECONDS = 1.0
#: How soon after a failed sync, or at an instant of change, the next one comes at the earliest.
_SOON_SECONDS = 0.05
_JOIN_SECONDS = 2.0


class Heartbeat:
    """Calls `ping` and `sync` at their times. Nothing that they raise ends it."""

    def __init__(
        self,
        *,
        ping: Callable[[], bool],
        sync: Callable[[], float | None],
        heartbeat_seconds: float,
        describe: Callable[[Exception], str | None] = repr,
        orphaned: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        early: Callable[[], float] = random.random,
    ) -> None:
        """`ping`: whether the database answers. `sync`: seconds until its outcome may change by itself, or None.

        `describe`: an error of `sync` in words fit for the log; None: others say it. `early`: from 0 to 1, how much of
        the tenth of a heartbeat to come early, so that a fleet does not beat in step.
        """
        self._ping, self._sync, self._describe = ping, sync, describe
        self._heartbeat_seconds = heartbeat_seconds
        self._orphaned = orphaned
        self._clock, self._early = clock, early
        self._next_ping = self._next_sync = float("-inf")
        self._answers = False
        self._trouble: str | None = None
        self._wake = threading.Event()
        #: Guards the four below; notified at the end of each sync.
        self._outcome = threading.Condition()
        #: Whether somebody wants a sync that has not begun yet.
        self._asked = False
        self._begun = self._ended = self._succeeded = 0
        self._first = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._process: int | None = None
        self._starting = threading.Lock()
        self.failures = 0

    def start(self, *, wait_seconds: float = 0.5) -> None:
        """Start the thread, unless one runs in this process (after a fork there is none yet).

        Who starts it waits for its first outcome, good or bad, for at most `wait_seconds`: a worker that is recycled
        while all is well then never answers that it is starting.
        """
        if self._process == os.getpid():
            return
        # Never held while a thread starts: where gevent patched after an app was preloaded, this lock is the system's,
        # and a greenlet that met it would stop all others.
        with self._starting:
            if self._process == os.getpid():
                return
            self._process = os.getpid()
            self._stopping = False
            self._next_ping = self._next_sync = float("-inf")
            self._first.clear()
            self._thread = threading.Thread(target=self._run, name="readygate-heartbeat", daemon=True)
        self._thread.start()
        self._first.wait(wait_seconds)

    def running(self) -> bool:
        """Whether the thread runs, or is about to."""
        return self._thread is not None and (self._thread.ident is None or self._thread.is_alive())

    def stop(self) -> None:
        """Ask the thread to end, and wait for that for at most two seconds: it may be waiting for the database."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None and self._process == os.getpid():
            self._thread.join(_JOIN_SECONDS)

    def soon(self) -> None:
        """Sync now rather than at the next heartbeat, and once more where a sync under way may have read too soon."""
        self._asked = True
        self._wake.set()

    def refresh(self, *, wait_seconds: float = 2.0) -> bool:
        """Have a sync done now; whether one that began after this call succeeded, within `wait_seconds`.

        The caller waits and the thread works: the connection and the verdict stay one thread's.
        """
        with self._outcome:
            begun = self._begun
            self.soon()
            self._outcome.wait_for(lambda: self._ended > begun, wait_seconds)
            return self._succeeded > begun

    def step(self) -> float:
        """Do what is due; seconds until something is due again."""
        now = self._clock()
        if now >= self._next_ping:
            self._next_ping = now + _PING_SECONDS
            self._ping_once()
        # An orphan beats no more; it pings on, so that readiness does not blame the database for it.
        syncs = self._answers and not self._orphaned()
        if syncs and (self._asked or now >= self._next_sync):
            self._sync_once(now)
        due = min(self._next_ping, self._next_sync) if syncs else self._next_ping
        left = due - self._clock()
        return left if left > 0 else _SOON_SECONDS

    def _ping_once(self) -> None:
        try:
            self._answers = self._ping()
        except Exception as error:  # noqa: BLE001  # nothing ends the loop
            self._answers = False
            if (trouble := self._describe(error)) is not None:
                self._tell(trouble)

    def _sync_once(self, started: float) -> None:
        with self._outcome:
            # Who asks from here on wants the next one.
            self._asked = False
            self._begun += 1
        try:
            change = self._sync()
        except Exception as error:  # noqa: BLE001  # no failed sync ends the loop: readiness tells of it meanwhile
            self.failures += 1
            self._end(succeeded=False)
            if (trouble := self._describe(error)) is not None:
                self._tell(trouble)
            self._next_sync = started + min(_PING_SECONDS, self._heartbeat_seconds)
            return
        self._end(succeeded=True)
        self._tell(None)
        pause = self._heartbeat_seconds * (1 - 0.1 * self._early())
        if change is not None:
            pause = min(pause, max(_SOON_SECONDS, change))
        self._next_sync = started + pause

    def _end(self, *, succeeded: bool) -> None:
        with self._outcome:
            self._ended = self._begun
            if succeeded:
                self._succeeded = self._begun
            self._outcome.notify_all()

    def _tell(self, trouble: str | None) -> None:
        """One line when syncs begin to fail, or fail otherwise, and one when they succeed again."""
        if trouble == self._trouble:
            return
        if trouble is not None:
            _log.warning("heartbeat failed: %s", trouble)
        else:
            _log.info("heartbeat succeeds again")
        self._trouble = trouble

    def _run(self) -> None:
        while not self._stopping:
            pause = self.step()
            self._first.set()
            self._wake.wait(pause)
            self._wake.clear()
