"""Who a token stands for, remembered for as long as that is safe."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from .errors import UnverifiableError
from .tokens import Role, Tokens, digest, well_formed

_log = logging.getLogger("readygate.auth")
#: How long a token is remembered while nobody can be asked: an outage locks no operator out of looking.
_OUTAGE_SECONDS = 3600.0


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    name: str
    role: Role


@dataclass(frozen=True)
class _Known:
    caller: Caller
    #: Local monotonic instant before the table was asked.
    asked: float
    #: Local monotonic instant at which the token expires; None: never.
    ends: float | None

    def holds(self, now: float, seconds: float) -> bool:
        """Whether it may still be believed at `now`, `seconds` after it was asked for at the latest."""
        return now - self.asked < seconds and (self.ends is None or now < self.ends)


class Verifier:
    """Says who a token stands for. Any thread may ask."""

    def __init__(
        self,
        tokens: Tokens,
        *,
        connect: Callable[[], AbstractContextManager[Any]],
        remember_seconds: float,
        admin_token: Callable[[], str | None] = lambda: None,
        stalled: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`remember_seconds`: for how long a revoked token may still work.

        `admin_token`: one that needs no table, or None; may raise ValueError, whose message goes to the log.
        `stalled`: whether the database is unreachable: then it is not asked, and what is remembered counts for longer.
        """
        self._tokens, self._connect = tokens, connect
        self._remember_seconds = remember_seconds
        self._admin_token = admin_token
        self._stalled, self._clock = stalled, clock
        #: By digest, and only tokens that were good: so there are never more of them than rows.
        self._known: dict[str, _Known] = {}
        self._trouble: str | None = None

    def __call__(self, text: str) -> Caller | None:
        """Who `text` stands for; None: nobody. Raises UnverifiableError, or what `connect` raises."""
        if self._is_admin_token(text):
            return Caller("READYGATE_ADMIN_TOKEN", "admin")
        if not well_formed(text):
            return None
        key, now, stalled = digest(text), self._clock(), self._stalled()
        known = self._known.get(key)
        if known is not None and known.holds(now, _OUTAGE_SECONDS if stalled else self._remember_seconds):
            return known.caller
        if stalled:
            raise UnverifiableError("database unreachable")
        return self._ask(key, now)

    def _ask(self, key: str, now: float) -> Caller | None:
        with self._connect() as connection:
            found = self._tokens.find(connection, key)
        if found is None:
            self._known.pop(key, None)
            return None
        token, instant = found
        ends = None if token.expires_at is None else now + (token.expires_at - instant) / 1_000_000
        caller = Caller(token.name, token.role)
        kept = {one: known for one, known in list(self._known.items()) if now - known.asked < _OUTAGE_SECONDS}
        self._known = {**kept, key: _Known(caller, now, ends)}
        return caller

    def _is_admin_token(self, text: str) -> bool:
        try:
            own, trouble = self._admin_token(), None
        except ValueError as error:
            # A file that turned bad lets nobody in, and stops no worker.
            own, trouble = None, str(error)
        if trouble is not None and trouble != self._trouble:
            _log.error("%s; until then no admin token is taken", trouble)
        self._trouble = trouble
        # Digests, because only bytes of one length are compared in constant time.
        return own is not None and hmac.compare_digest(_bytes(own), _bytes(text))


def _bytes(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
