"""The guard of the service's own routes: a token as Bearer, or as the password of Basic."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from flask import Response, g, jsonify, request

from .errors import UnverifiableError
from .verifier import Caller

_log = logging.getLogger("readygate.auth")
_SAFE = ("GET", "HEAD", "OPTIONS")


def guard(verify: Callable[[str], Caller | None], *, challenge: str = "Bearer") -> Callable[[str], Response | None]:
    """A guard for blueprints: given the role that a route needs, None to let the request pass, or its refusal.

    `verify`: who a token stands for. `challenge`: how a 401 asks for one; a page for people says `Basic realm="..."`,
    and then browsers ask for the token as a password.
    """

    def refusal(role: str) -> Response | None:
        scheme, text = _credentials(request.headers.get("Authorization", ""))
        try:
            found = verify(text) if text else None
        except UnverifiableError:
            return _refused(503, "database unreachable")
        if found is None:
            message = "the token is not known, or no longer" if text else "this needs a token"
            response = _refused(401, message, "Make one with `flask --app app token create NAME --role viewer`.")
            response.headers["WWW-Authenticate"] = challenge
            return response
        g.readygate_caller = found
        # A browser sends Basic by itself, also when another site makes it send a request.
        if scheme == "basic" and request.method not in _SAFE and not _of_our_own():
            return _refused(403, "with Basic this needs a page of our own; send the token as Bearer")
        if role == "admin" and found.role != "admin":
            return _refused(403, "this needs a token with the role admin")
        if request.method not in _SAFE:
            _log.info("%s %s by %s", request.method, request.url_rule, found.name)
        return None

    return refusal


def caller() -> Caller | None:
    """Who makes this request, as a guard found out; None where none did, or nobody is known."""
    found: Caller | None = g.get("readygate_caller")
    return found


def _credentials(header: str) -> tuple[str, str]:
    """Scheme and token; an empty token where there is none."""
    scheme, _, rest = header.strip().partition(" ")
    scheme, rest = scheme.lower(), rest.strip()
    if scheme == "bearer":
        return scheme, rest
    if scheme != "basic":
        return scheme, ""
    try:
        return scheme, base64.b64decode(rest, validate=True).decode().partition(":")[2]
    except ValueError:
        return scheme, ""


def _of_our_own() -> bool:
    """Whether a page of this origin made the browser send the request."""
    if request.headers.get("Sec-Fetch-Site") == "same-origin":
        return True
    try:
        origin = urlsplit(request.headers.get("Origin", ""))
    except ValueError:
        return False
    # The scheme is not compared: behind a proxy that ends TLS we see another one than the browser.
    # The header itself: Werkzeug's host is empty where a name is unusual, and so might be the origin's.
    return origin.scheme in ("http", "https") and origin.netloc == (request.headers.get("Host") or None)


def _refused(status: int, message: str, detail: str | None = None) -> Response:
    response = jsonify({"message": message, "detail": detail} if detail else {"message": message})
    response.status_code = status
    return response
