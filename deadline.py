"""Bounds by our own clock: an instant by which an operation must be over, and one for several of them together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pg8000.dbapi import InterfaceError


class ConnectError(InterfaceError):  # type: ignore[misc]  # pg8000 is untyped
    """The server could not be asked; `word` says why, in the words of the log."""

    def __init__(self, word: str) -> None:
        # "network error" is what SQLAlchemy's dialect takes for a lost connection.
        super().__init__(f"network error: {word}")
        self.word = word


class Deadline:
    """An instant on the local clock by which an operation must be over."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds to go; raises ConnectError when there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise ConnectError("timeout")
        return left


class Budget:
    """What several operations of one thread, or greenlet, may take together: each alone has a bound of its own."""

    def __init__(self) -> None:
        # Not a threading.local: where gevent patches after an app was preloaded, greenlets would share that.
        self._ends: ContextVar[float | None] = ContextVar("readygate_budget", default=None)

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """All that is done inside is over after `seconds`, or fails."""
        before, ends = self._ends.get(), time.monotonic() + seconds
        token = self._ends.set(ends if before is None else min(before, ends))
        try:
            yield
        finally:
            self._ends.reset(token)

    def deadline(self, seconds: float) -> Deadline:
        """The bound of one operation that may take `seconds` at most."""
        ends = self._ends.get()
        return Deadline(seconds if ends is None else min(seconds, ends - time.monotonic()))
