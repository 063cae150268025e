"""GET /api/v2/replicas, and the drain of each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from flask import Blueprint, Response, abort, jsonify, request, url_for
from werkzeug.exceptions import HTTPException

from .errors import DrainEnded, ReplicaNotFound
from .registry import Registry
from .replica import Replica, shown, state

#: Called with the role that a route needs, `viewer` or `admin`, before anything else happens. Returns None to let the
#: request pass, or the response that refuses it; may also abort.
Guard = Callable[[str], Any]
_DEFAULT_LIMIT, _MOST = 100, 1000
_MOST_BYTES = 64 * 1024
_PLACE = re.compile(r"([0-9]{1,18})_([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.ASCII)


def blueprint(
    registry: Registry,
    *,
    connect: Callable[[], AbstractContextManager[Any]],
    guard: Guard,
    allowed: Callable[[Any], tuple[int | None, bool]] = lambda connection: (None, True),
    stalled: Callable[[], bool | str | None] = lambda: False,
    refresh: Callable[[], bool] = lambda: False,
) -> Blueprint:
    """The routes that show the fleet, and drain a replica of it.

    `connect`: a connection in autocommit mode; where it can have none it raises an HTTPException. `guard`: who may
    call. `allowed`: given a connection, how many replicas may serve (None: any number), and whether the entitlement to
    several stands behind it. `stalled`: whether, or why, to answer 503 at once rather than to try the database.
    `refresh`: has a sync done, so that a drain counts at once on this worker; whether it was.
    """
    routes = Blueprint("readygate_replicas", __name__, url_prefix="/api/v2")

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

    @routes.get("/replicas", provide_automatic_options=False)
    @needs("viewer")
    def replicas() -> Response:
        limit, after = _limit(), _after()
        with connect() as connection:
            number, high_availability = allowed(connection)
            last = registry.last_allowed(connection, allowed=number)
            now, rows = registry.now(connection), registry.active(connection, count=limit + 1, after=after)
        response = jsonify([shown(row, registry.id, state(row, now, last, high_availability)) for row in rows[:limit]])
        if len(rows) > limit:
            place = f"{rows[limit - 1].created_at}_{rows[limit - 1].id}"
            # A relative reference (RFC 8288, section 3.1): a Host header of the client's goes nowhere.
            response.headers["Link"] = f'<{url_for(".replicas", limit=limit, after=place)}>; rel="next"'
        return response

    @routes.post("/replicas/<replica_id>/drain", provide_automatic_options=False)
    @needs("admin")
    def drain(replica_id: str) -> tuple[Response, int]:
        at_once = _now_in_body()
        with connect() as connection:
            try:
                row = registry.drain(connection, replica_id, now=at_once)
            except ReplicaNotFound as error:
                abort(404, str(error))
            answer = standing(connection, row)
        refresh()
        return jsonify(answer), 202

    @routes.delete("/replicas/<replica_id>/drain", provide_automatic_options=False)
    @needs("admin")
    def undrain(replica_id: str) -> Response:
        _body()
        with connect() as connection:
            try:
                row = registry.undrain(connection, replica_id)
            except ReplicaNotFound as error:
                abort(404, str(error))
            except DrainEnded as error:
                abort(409, str(error))
            answer = standing(connection, row)
        refresh()
        return jsonify(answer)

    def standing(connection: Any, row: Replica) -> dict[str, Any]:
        number, high_availability = allowed(connection)
        last = registry.last_allowed(connection, allowed=number)
        return shown(row, registry.id, state(row, registry.now(connection), last, high_availability))

    return routes


def _limit() -> int:
    text = request.args.get("limit", str(_DEFAULT_LIMIT))
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= _MOST:
        abort(400, f"limit takes a whole number from 1 to {_MOST}")
    return int(text)


def _after() -> tuple[int, str] | None:
    if "after" not in request.args:
        return None
    found = _PLACE.fullmatch(request.args["after"])
    if found is None:
        abort(400, "after takes what the Link header of the page before gave it")
    return int(found[1]), found[2]


def _now_in_body() -> bool:
    """Whether the body asks for a drain at once; without a body it does not."""
    body = _body()
    if not body:
        return False
    if request.mimetype != "application/json":
        abort(415, "the body takes application/json")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        abort(400, 'the body is no JSON; it takes {"now": false} or {"now": true}')
    if not isinstance(found, dict) or not found.keys() <= {"now"} or not isinstance(found.get("now", False), bool):
        abort(400, 'the body takes {"now": false} or {"now": true}, and nothing else')
    return bool(found.get("now", False))


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
