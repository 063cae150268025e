"""GET /metrics."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, jsonify, request
from prometheus_client import CollectorRegistry, make_wsgi_app
from werkzeug.exceptions import HTTPException

from .collector import Collector, Reading

#: Called with the role that a route needs, here always `viewer`, before anything else happens. Returns None to let the
#: request pass, or the response that refuses it; may also abort.
Guard = Callable[[str], Any]


def blueprint(read: Callable[[], Reading], *, guard: Guard, version: str) -> Blueprint:
    """The route for Prometheus.

    `read`: what this worker knows, from memory; called once a scrape. `guard`: who may look; `lambda role: None` lets
    everybody. `version`: the release that runs.
    """
    routes = Blueprint("readygate_metrics", __name__)
    # Of this app alone: prometheus-client's own registry would be every app's of the process.
    registry = CollectorRegistry()
    registry.register(Collector(read, build={"version": version, "python": platform.python_version()}))
    # Content negotiation, compression and name[] are the client library's, as every Prometheus expects them.
    exposition = make_wsgi_app(registry)

    @routes.after_request
    def keep_out_of_caches(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        return response

    routes.register_error_handler(HTTPException, _failed)

    @routes.get("/metrics", provide_automatic_options=False)
    def metrics() -> Any:
        refusal = guard("viewer")
        if refusal is not None:
            return refusal
        # The library knows no HEAD: Flask cuts the body of its answer to a GET.
        asked = {**request.environ, "REQUEST_METHOD": "GET"}
        if not _versions_are_numbers(request.headers.get("Accept", "")):
            del asked["HTTP_ACCEPT"]
        response = Response.from_app(exposition, asked)
        response.make_sequence()  # Its length is known, so that HEAD tells it too.
        return response

    return routes


def _versions_are_numbers(accept: str) -> bool:
    """Whether the client library, which compares the versions in `accept` as numbers, can read it."""
    versions = (part.strip().partition("=") for part in re.split("[,;]", accept))
    return all(
        re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,2}", what, re.ASCII) for key, _, what in versions if key == "version"
    )


def _failed(error: HTTPException) -> Any:
    response = error.get_response()
    response.data = jsonify(message=error.description).data
    response.content_type = "application/json"
    return response
