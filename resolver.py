"""Names of hosts to addresses, in time."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any

from deadline import ConnectError, Deadline


class Resolver:
    """Asks the system for the addresses of a host, for all that connect in one worker.

    A name that does not resolve in time leaves one thread behind, in the system's resolver, which nothing can
    interrupt; until it is back the next attempts fail at once, so that there is never more than one.
    """

    def __init__(self) -> None:
        # Held for moments only, and never while waiting for anything: a lock that was made before gevent patched
        # would stop all greenlets.
        self._turn = threading.Condition()
        self._taken = False
        self._thread: threading.Thread | None = None

    def __call__(self, host: str, port: int, deadline: Deadline) -> list[tuple[Any, ...]]:
        """What `getaddrinfo` found; nothing where it found nothing in time. Raises ConnectError where none may ask."""
        self._take(deadline)
        found: list[tuple[Any, ...]] = []

        def resolve() -> None:
            # Nothing found is what the caller needs to know; a name that cannot be one is a UnicodeError.
            with suppress(OSError, UnicodeError):
                found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

        thread = threading.Thread(target=resolve, name="readygate-resolve", daemon=True)
        try:
            thread.start()
            self._thread = thread
            thread.join(deadline.left())
        finally:
            with self._turn:
                self._taken = False
                self._turn.notify_all()
        return [] if thread.is_alive() else found

    def _take(self, deadline: Deadline) -> None:
        """Wait for whoever asks just now; raises ConnectError where one was left behind, or it takes too long."""
        with self._turn:
            free = self._turn.wait_for(lambda: not self._taken, deadline.left())
            if not free or (self._thread is not None and self._thread.is_alive()):
                raise ConnectError("name not resolved")
            self._taken = True
