"""The application of the proposal: a workspace's agent holds a connection to one server, which alone can reach it.

The service and this share the server, its workers and its port, as in a host app; one worker, since the connection is
in memory.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

from flask import Flask, Response, request

import app as readygate

ANSWER = "workspace"
#: How often an agent is sent a sign of life.
_SIGN_SECONDS = 0.2


def create_app() -> Flask:
    """The service with two routes more. REFUSE=1: it refuses requests while it is excluded, as behind nginx it must."""
    app = readygate.create_app()
    replica: readygate.Replica = app.extensions["readygate"]
    agents = _Agents()

    @app.get("/agent")
    def agent() -> Response:
        # nginx would hold the signs of life back until there are 4 KiB of them.
        return Response(agents.hold(), content_type="text/plain", headers={"X-Accel-Buffering": "no"})

    @app.route("/workspace", methods=["GET", "POST"])
    def workspace() -> Response:
        return Response(ANSWER, 200) if agents.connected() else Response("the agent is not connected here", 502)

    if os.environ.get("REFUSE") == "1":

        @app.before_request
        def refuse() -> Response | None:
            reason = replica.lease.reason() or replica.entitlements.reason()
            if reason is None or request.path.startswith(("/healthz", "/readyz", "/agent")):
                return None
            return Response(reason, 503)

    return app


class _Agents:
    """The connections held by this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    def connected(self) -> bool:
        return self._count > 0

    def hold(self) -> Iterator[str]:
        with self._lock:
            self._count += 1
        try:
            while True:
                yield ".\n"
                time.sleep(_SIGN_SECONDS)
        finally:
            with self._lock:
                self._count -= 1
