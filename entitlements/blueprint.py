"""The routes of entitlements and licenses, the warning headers, and gates for an app's own views."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import wraps
from typing import Any, TypeVar
from urllib.parse import quote

from flask import Blueprint, Response, abort, current_app, jsonify, request
from werkzeug.exceptions import HTTPException

from .errors import LicenseError, LicenseExists, LicenseNotFound
from .evaluate import Entitlements
from .license import HIGH_AVAILABILITY, REPLICA_LIMIT
from .service import EntitlementsService, StoredLicense

#: Called with the role that a route needs, `viewer` or `admin`, before anything else happens. Returns None to let the
#: request pass, or the response that refuses it; may also abort.
Guard = Callable[[str], Any]
View = TypeVar("View", bound=Callable[..., Any])
_MOST_BYTES = 64 * 1024
_MOST_TEXTS, _MOST_CHARACTERS = 10, 300
#: Printable ASCII but the percent sign, so that what is percent-encoded can be told from what is not.
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


def blueprint(
    service: EntitlementsService,
    *,
    connect: Callable[[], AbstractContextManager[Any]],
    guard: Guard,
    refresh: Callable[[], bool],
    count: Callable[[Any], int],
    stalled: Callable[[], bool | str | None] = lambda: False,
) -> Blueprint:
    """The routes that show entitlements and keep licenses.

    `connect`: a connection in autocommit mode; where it can have none it raises an HTTPException. `guard`: who may
    call. `refresh`: has a sync done and waits for it, not for long; whether it was. `count`: given a connection, the
    number of aged replicas. `stalled`: whether, or why, to answer 503 at once rather than to try the database.
    """
    routes = Blueprint("readygate_entitlements", __name__, url_prefix="/api/v2")

    def needs(role: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(view: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(view)
            def guarded(**values: Any) -> Any:
                refusal = guard(role)
                return view(**values) if refusal is None else refusal

            return guarded

        return wrap

    @routes.before_request
    def refuse_while_stalled() -> None:
        if why := stalled():
            abort(503, why if isinstance(why, str) else "database unreachable")

    @routes.after_request
    def keep_out_of_caches(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        return response

    routes.register_error_handler(HTTPException, _failed)

    @routes.get("/entitlements", provide_automatic_options=False)
    @needs("viewer")
    def entitlements() -> Response:
        with connect() as connection:
            aged = count(connection)
        return jsonify(_entitlements(service, aged))

    @routes.get("/licenses", provide_automatic_options=False)
    @needs("viewer")
    def licenses() -> Response:
        with connect() as connection:
            stored = service.read(connection)
        return jsonify([_license(row) for row in stored.rows])

    @routes.post("/licenses", provide_automatic_options=False)
    @needs("admin")
    def add_license() -> tuple[Response, int]:
        text = _license_in_body()
        with connect() as connection:
            try:
                stored = service.add(connection, text)
            except LicenseExists as error:
                abort(409, str(error))
            except LicenseError as error:
                abort(400, str(error))
        # Whether or not this worker has judged anew by now, it is stored, and counts with the next sync.
        refresh()
        return jsonify(_license(stored)), 201

    # The length keeps the routes apart: no DELETE is offered for refresh-entitlements.
    @routes.delete("/licenses/<string(maxlength=10):license_id>", provide_automatic_options=False)
    @needs("admin")
    def remove_license(license_id: str) -> Response:
        _body()
        with connect() as connection:
            try:
                service.remove(connection, int(license_id) if re.fullmatch("[0-9]+", license_id) else 0)
            except LicenseNotFound:
                abort(404, "no license has this id")
        refresh()
        response = Response(status=204)
        del response.headers["Content-Type"]
        return response

    @routes.post("/licenses/refresh-entitlements", provide_automatic_options=False)
    @needs("admin")
    def refresh_entitlements() -> Response:
        _body()
        if not refresh():
            abort(503, "no sync could be completed in time; the last verdict stands")
        with connect() as connection:
            aged = count(connection)
        return jsonify(_entitlements(service, aged))

    return routes


def warning_headers(
    service: EntitlementsService, *, when: Callable[[], bool] = lambda: True
) -> Callable[[Response], Response]:
    """A hook for `app.after_request`: one header per warning and per error. `when`: whether this answer gets them."""

    def add(response: Response) -> Response:
        found = service.entitlements
        if found is not None and when():
            for name, notices in (("Warning", found.warnings), ("Error", found.errors)):
                for notice in notices[:_MOST_TEXTS]:
                    response.headers.add(f"X-Entitlements-{name}", header_text(notice.message))
        return response

    return add


def gate(service: EntitlementsService) -> Callable[[str], Callable[[View], View]]:
    """Makes decorators for views that need a feature, such as `@requires("audit_log")`.

    Without that feature the view is not called, and the answer is 403. Memory only.
    """

    def requires(name: str) -> Callable[[View], View]:
        def wrap(view: View) -> View:
            @wraps(view)
            def gated(*arguments: Any, **values: Any) -> Any:
                if service.enabled(name):
                    # As Flask itself would call it, so that a view may be async.
                    return current_app.ensure_sync(view)(*arguments, **values)
                response = jsonify(message=f"the feature {name} is not enabled", detail="No license here grants it.")
                response.status_code = 403
                return response

            return gated  # type: ignore[return-value]  # it takes and returns what the view does, or a refusal

        return wrap

    return requires


def header_text(text: str) -> str:
    """`text` as the value of a header: nothing in it can end the line, and it has at most 300 characters."""
    cut = quote(text[:_MOST_CHARACTERS], safe=_PLAIN, errors="replace")[:_MOST_CHARACTERS]
    return re.sub("%[0-9A-F]?$", "", cut).strip()


def _entitlements(service: EntitlementsService, aged: int) -> dict[str, Any]:
    found = service.entitlements
    notices = found.notices if found else ()
    return {
        "features": _features(service, found, aged),
        "warnings": [notice.message for notice in notices if notice.severity == "warning"],
        "errors": [notice.message for notice in notices if notice.severity == "error"],
        "notices": [
            {
                "code": notice.code,
                "message": notice.message,
                "detail": notice.detail,
                "severity": notice.severity,
                "blocking": notice.blocking,
            }
            for notice in notices
        ],
        "has_license": bool(found and found.has_license),
        "trial": bool(found and found.trial),
        "refreshed_at": _time(found.now) if found else None,
    }


def _features(service: EntitlementsService, found: Entitlements | None, aged: int) -> dict[str, dict[str, Any]]:
    names = {HIGH_AVAILABILITY, REPLICA_LIMIT, *(found.features if found else ())}
    features: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        enabled, limit = service.enabled(name), service.limit(name)
        standing = found.features[name].entitlement if found and enabled else "not_entitled"
        features[name] = {"entitlement": standing, "enabled": enabled}
        if limit is not None:
            features[name]["limit"] = limit
    features[REPLICA_LIMIT]["actual"] = aged
    return features


def _license(stored: StoredLicense) -> dict[str, Any]:
    """Never its signed text."""
    return {
        "id": stored.id,
        "uuid": stored.uuid,
        "uploaded_at": _time(stored.uploaded_at),
        "claims": stored.license.claims() if stored.license else None,
    }


def _license_in_body() -> str:
    if request.mimetype != "application/json":
        abort(415, "the body takes application/json")
    try:
        found = json.loads(_body())
    except (ValueError, RecursionError):
        abort(400, 'the body is no JSON; it takes {"license": "..."}')
    if not isinstance(found, dict) or list(found) != ["license"] or not isinstance(found["license"], str):
        abort(400, 'the body takes {"license": "..."}, the text that `license issue` printed, and nothing else')
    return str(found["license"])


def _body() -> bytes:
    """The request's body, read to its end; 413 where that is too far, also where it comes in chunks."""
    # One more than is taken: a body that comes in chunks ends at the limit, and Werkzeug says nothing of the rest.
    request.max_content_length = _MOST_BYTES + 1
    try:
        body = request.get_data()
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001  # servers raise what they like for a body that breaks off
        abort(400, "the body broke off")
    if len(body) > _MOST_BYTES:
        abort(413)
    return body


def _failed(error: HTTPException) -> Any:
    response = error.get_response()
    response.data = jsonify(message=error.description).data
    response.content_type = "application/json"
    return response


def _time(instant: int) -> str:
    # The calendar ends with the year 9999, and the database is not trusted to know.
    known = datetime.fromtimestamp(min(max(instant, 0), 253_402_300_799_000_000) / 1_000_000, UTC)
    return known.isoformat(timespec="microseconds").replace("+00:00", "Z")
