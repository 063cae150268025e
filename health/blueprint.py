"""/healthz and /readyz."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flask import Blueprint, Response, request

from .checks import Check, Measured, Public, Remark, Told, first_failure, public

_TEXT = "text/plain; charset=utf-8"


def blueprint(
    *,
    ready: Mapping[str, Check] | None = None,
    measured: Mapping[str, Check] | None = None,
    start: Callable[[], None] = lambda: None,
    interval_seconds: float = 1.0,
    timeout_seconds: float = 5.0,
) -> Blueprint:
    """Liveness and readiness routes of one app.

    `ready`: checks that may take their time; each is called in a thread of its own every `interval_seconds`, and has
    failed after `timeout_seconds`. `measured`: checks that only read memory, asked at each request, before the others.
    `start`: called by each readiness request first, for an app whose server has no hook to start its own threads.
    """
    names = [*(measured or {}), *(ready or {})]
    for name in names:
        if names.count(name) > 1 or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"check {name!r}: takes a name of its own, of letters, digits, - and _")
    slow = {
        name: Measured(name, check, interval_seconds=interval_seconds, timeout_seconds=timeout_seconds)
        for name, check in (ready or {}).items()
    }
    # A reason that anybody may read is told by whoever measured it.
    fast = {name: Told(name, check, untold=(Public, Remark)) for name, check in (measured or {}).items()}
    checks: dict[str, Check] = {**fast, **slow}
    routes = Blueprint("readygate_health", __name__)

    def begin() -> None:
        # All of them before any is read, so that the first probe waits for one first result, not for each in turn.
        start()
        for check in slow.values():
            check.start()

    @routes.get("/healthz", provide_automatic_options=False)
    def healthz() -> Response:
        # If this answers at all, the process is alive. It must touch nothing that could block or fail: an
        # orchestrator restarts what fails here, and a restart cures no database and no license.
        return _text("OK", 200)

    @routes.get("/readyz", provide_automatic_options=False)
    def readyz() -> Response:
        begin()
        asked = checks
        if request.query_string:
            excluded = request.args.getlist("exclude")
            if any(name not in checks for name in excluded):
                return _text(f"unknown check; there are: {', '.join(checks)}", 400)
            asked = {name: check for name, check in checks.items() if name not in excluded}
            if "verbose" in request.args:
                return _verbose(asked)
        reason = first_failure(asked)
        return _text("OK", 200) if reason is None else _text(reason, 503)

    @routes.get("/readyz/<name>", provide_automatic_options=False)
    def readyz_check(name: str) -> Response:
        begin()
        if name not in checks:
            return _text(f"unknown check; there are: {', '.join(checks)}", 404)
        reason = first_failure({name: checks[name]})
        return _text("OK", 200) if reason is None else _text(reason, 503)

    return routes


def _verbose(checks: Mapping[str, Check]) -> Response:
    """One line a check, in the form of Kubernetes' own API server."""
    lines, passed = [], True
    for name, check in checks.items():
        reason = check()
        if reason is None:
            lines.append(f"[+]{name} ok")
        elif isinstance(reason, Remark):
            lines += [f"[+]{name} ok", f"[!]{name} warning: {reason}"]
        else:
            passed = False
            shown = public(name, reason)
            lines.append(f"[-]{name} failed: " + ("reason withheld" if shown is not reason else shown))
    lines.append("readyz check passed" if passed else "readyz check failed")
    return _text("\n".join(lines) + "\n", 200 if passed else 503)


def _text(body: str, status: int) -> Response:
    # Both at once: setting a header later searches the others first, and this is all that most requests do.
    return Response(body, status, [("Content-Type", _TEXT), ("Cache-Control", "no-store")])
