"""Checks: functions that say what is wrong, and threads that call the slow ones in the background."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

_log = logging.getLogger("readygate.health")
#: How long a request may wait for a first result, all checks together.
_FIRST_SECONDS = 0.5

#: Returns None when all is well, else what is wrong: for the log, never for the anonymous caller.
Check: TypeAlias = Callable[[], str | None]


class Public(str):
    """A reason that anybody may read: /readyz answers with it as it stands."""

    __slots__ = ()


class Remark(str):
    """No failure, but worth a line for those who ask with ?verbose."""

    __slots__ = ()


class Told:
    """A check that has failed where it raises, and whose result goes to the log when it changes."""

    def __init__(self, name: str, check: Check, *, untold: tuple[type, ...] = ()) -> None:
        """`untold`: kinds of reasons that somebody else logs."""
        self._name, self._check, self._untold = name, check, untold
        self._logged: str | None = None

    def __call__(self) -> str | None:
        """What the check says."""
        try:
            result = self._check()
        except Exception as error:  # noqa: BLE001  # a check that raises has failed, whatever it raised
            result = f"raised {type(error).__name__}"
        self.tell(result)
        return result

    def tell(self, result: str | None) -> None:
        """One line where `result` is another than the last."""
        if result == self._logged or isinstance(result, self._untold):
            return
        self._logged = result
        if isinstance(result, Remark):
            _log.info("check %s: %s", self._name, result)
        elif result is None:
            _log.info("check %s: ok again", self._name)
        else:
            _log.warning("check %s failed: %s", self._name, result)


class Measured:
    """A check that runs in a thread of its own, once every `interval_seconds`; reading its last result costs nothing.

    A check that hangs past `timeout_seconds` has failed, and goes on hanging alone: it is not called again meanwhile.
    """

    def __init__(
        self,
        name: str,
        check: Check,
        *,
        interval_seconds: float = 1.0,
        timeout_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._check = name, Told(name, check)
        self._interval_seconds, self._timeout_seconds = interval_seconds, timeout_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._process: int | None = None
        self._first = threading.Event()
        self._wait_until = clock()
        self._stop = threading.Event()
        self._called_at = clock()
        self._calling = False
        self._result: str | None = None

    def __call__(self) -> str | None:
        """What the last call found, None where all was well; waits for nothing once there was a first result."""
        self.start()
        if not self._first.is_set():
            self._first.wait(max(0.0, self._wait_until - self._clock()))
        if self._calling and self._clock() - self._called_at > self._timeout_seconds:
            self._check.tell("exceeded its timeout")
            return f"exceeded its timeout of {self._timeout_seconds:g} s"
        return self._result if self._first.is_set() else "has no result yet"

    def start(self) -> None:
        """Start the thread, unless one runs in this process (after a fork there is none yet)."""
        if self._process == os.getpid():
            return
        # Never held while a thread starts: where gevent patched after an app was preloaded, this lock is the system's,
        # and a greenlet that met it would stop all others.
        with self._lock:
            if self._process == os.getpid():
                return
            self._first.clear()
            self._called_at = self._clock()
            self._wait_until = self._called_at + _FIRST_SECONDS
            self._process = os.getpid()
        threading.Thread(target=self._run, name=f"readygate-check-{self._name}", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end after the call that is under way."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._called_at, self._calling = self._clock(), True
            self._result, self._calling = self._check(), False
            self._first.set()
            self._stop.wait(self._interval_seconds)


def disclosed(**checks: Check) -> dict[str, Check]:
    """The same checks by their names, with reasons that anybody may read."""

    def wrap(check: Check) -> Check:
        def asked() -> str | None:
            reason = check()
            return reason if reason is None or isinstance(reason, Remark) else Public(reason)

        return asked

    return {name: wrap(check) for name, check in checks.items()}


def first_failure(checks: Mapping[str, Check]) -> str | None:
    """What /readyz answers for the first check that fails, in their order; None where none does."""
    for name, check in checks.items():
        reason = check()
        if reason is not None and not isinstance(reason, Remark):
            return public(name, reason)
    return None


def public(name: str, reason: str) -> str:
    """What of `reason` anybody may read."""
    return reason if isinstance(reason, Public) else f"{name} failed"
