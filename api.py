"""/api/v2 and its description: who may call, over which connection, and what every error there looks like."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from flask import Flask, Response, g, jsonify, request
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException, ServiceUnavailable

import auth
import entitlements
import openapi
import replicas
from auth import Tokens, Verifier
from database import Failure, Shared, failure
from database_url import UrlError
from deadline import ConnectError
from entitlements import EntitlementsService
from patience import Patience, Turnstile
from replicas import Registry
from settings import Settings

PREFIX, DESCRIPTION = "/api/v2", "/openapi.json"
#: For how long no request may fail before the log says that they succeed again: some routes only read.
_QUIET_SECONDS = 5.0
_log = logging.getLogger("readygate.api")


class Wiring(Protocol):
    """What the API needs of the application."""

    settings: Settings
    requests: Engine
    entitlements: EntitlementsService
    registry: Registry
    tokens: Tokens
    shared: Shared
    patience: Patience

    def start(self) -> None:
        """Start the thread, where none runs in this process yet."""

    def refresh(self) -> bool:
        """Have a sync done and wait for it, not for long; whether it was."""


@dataclass(frozen=True)
class Access:
    """What every route with a token shares: who a token stands for, and a connection."""

    verify: Verifier
    connect: Callable[[], AbstractContextManager[Connection]]
    #: Why requests that need the database are refused; None: they are not.
    refusal: Callable[[], str | None]
    turnstile: Turnstile


def access(wiring: Wiring) -> Access:
    """Access by the tokens of the table and READYGATE_ADMIN_TOKEN, over connections that give up soon."""
    fortune, patience = Fortune(), wiring.patience

    @contextmanager
    def connect() -> Iterator[Connection]:
        if "readygate_ends" not in g:
            g.readygate_ends = time.monotonic() + patience.request_seconds
        began = time.monotonic()
        left = g.readygate_ends - began
        try:
            with wiring.shared.budget.limit(left), wiring.requests.connect() as connection:
                try:
                    yield connection
                except SQLAlchemyError as error:
                    if failure(error).word == "read only":
                        # The next one may lead to a database that can be written.
                        connection.invalidate()
                    raise
        except (SQLAlchemyError, OSError, UrlError) as error:
            # Not a word of the error itself: its text may hold the statement, and with it a license.
            why = failure(error)
            fortune.failed(why)
            if isinstance(getattr(error, "orig", None) or error, ConnectError):
                # Not a word from the server. A wait for the pool, or for a lock, says nothing of it.
                patience.silent()
            raise _unavailable(why) from None
        finally:
            patience.took(time.monotonic() - began)
        fortune.succeeded()

    def stalled() -> bool:
        wiring.start()
        return patience.stalled()

    def refusal() -> str | None:
        wiring.start()
        return patience.refusal()

    verifier = Verifier(
        wiring.tokens,
        connect=connect,
        remember_seconds=wiring.settings.heartbeat_seconds,
        admin_token=wiring.settings.current_admin_token,
        stalled=stalled,
    )
    return Access(verifier, connect, refusal, Turnstile(lambda: patience.threads))


def register(app: Flask, wiring: Wiring, access: Access) -> None:
    """Add the operators' API."""
    connect, guard = access.connect, auth.guard(access.verify)
    blueprints = (
        entitlements.blueprint(
            wiring.entitlements,
            connect=connect,
            guard=guard,
            refresh=wiring.refresh,
            count=wiring.registry.count_aged,
            stalled=access.refusal,
        ),
        replicas.blueprint(
            wiring.registry,
            connect=connect,
            guard=guard,
            allowed=wiring.entitlements.allowed,
            stalled=access.refusal,
            refresh=wiring.refresh,
        ),
    )
    for blueprint in blueprints:
        access.turnstile.guard(blueprint)
        app.register_blueprint(blueprint)
    app.after_request(entitlements.warning_headers(wiring.entitlements, when=lambda: auth.caller() is not None))
    app.register_error_handler(HTTPException, _failed)
    # A redirect would repeat the client's Host header, in HTML.
    app.url_map.merge_slashes = False

    @app.get(DESCRIPTION, provide_automatic_options=False)
    def description() -> Response:
        response = jsonify(openapi.DOCUMENT)
        response.headers["Cache-Control"] = "no-store"
        return response


class Fortune:
    """Whether requests succeed: one line when they begin to fail of a cause, and one when they succeed again."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._causes: frozenset[str] = frozenset()
        self._failed_at = clock()

    def failed(self, why: Failure) -> None:
        """A request met the failure `why`."""
        self._failed_at = self._clock()
        if str(why) not in self._causes:
            self._causes |= {str(why)}
            _log.warning("requests fail: database: %s", why)

    def succeeded(self) -> None:
        """A request got what it asked of the database."""
        if self._causes and self._clock() - self._failed_at >= _QUIET_SECONDS:
            self._causes = frozenset()
            _log.info("requests succeed again")


def _unavailable(why: Failure) -> ServiceUnavailable:
    if why.of_schema:
        return ServiceUnavailable("schema outdated")
    return ServiceUnavailable("database read only" if why.word == "read only" else "database unreachable")


def _failed(error: HTTPException) -> Any:
    """JSON for paths of the API that no blueprint knows; others keep their answers. Nobody stores either."""
    response = error.get_response()
    response.headers["Cache-Control"] = "no-store"
    if request.path in (PREFIX, DESCRIPTION) or request.path.startswith(f"{PREFIX}/"):
        response.data = jsonify(message=error.description).data
        response.content_type = "application/json"
    return response
