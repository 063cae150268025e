"""One line in the log for every change of what this worker says of itself."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping

_log = logging.getLogger("readygate.watch")
#: Memory only, so that it may be often; what lasts for less is no line.
_INTERVAL_SECONDS = 0.25


class Watch:
    """A thread that looks at statements in memory, and logs each one once when it becomes another.

    Not the thread that asks the database: that one may wait, while what it found grows too old. And no request: those
    come as often as they please, or never.
    """

    def __init__(
        self,
        statements: Mapping[str, Callable[[], tuple[int, str]]],
        *,
        subject: Callable[[], str],
        running: Callable[[], bool],
        usual: Mapping[str, str] | None = None,
    ) -> None:
        """`statements`: what is said now, with its level; by name. `usual`: what goes without saying at first.

        `subject`: whom it is said of, before each line. `running`: once this is False it looks a last time and ends.
        """
        self._statements = statements
        self._subject = subject
        self._running = running
        self._said = dict(usual or {})
        self._starting = threading.Lock()
        self._process: int | None = None

    def start(self) -> None:
        """Start the thread, unless one was started in this process (after a fork there is none yet)."""
        if self._process == os.getpid():
            return
        # Never held while a thread starts (see replicas/heartbeat.py).
        with self._starting:
            if self._process == os.getpid():
                return
            self._process = os.getpid()
        threading.Thread(target=self._run, name="readygate-watch", daemon=True).start()

    def look(self) -> None:
        """Log what has changed since the last time."""
        for name, statement in self._statements.items():
            level, text = statement()
            if text != self._said.get(name):
                self._said[name] = text
                _log.log(level, "%s: %s", self._subject(), text)

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            running = self._running()
            self.look()
            if not running:
                return
            pause.wait(_INTERVAL_SECONDS)
