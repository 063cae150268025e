"""GET /status, its live part, and what an admin may do there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, abort, redirect, render_template, request, url_for
from werkzeug.exceptions import HTTPException

from . import words
from .errors import Refused
from .view import View

#: Called with the role that a route needs, `viewer` or `admin`, before anything else happens. Returns None to let the
#: request pass, or the response that refuses it; may also abort.
Guard = Callable[[str], Any]
_ASSETS = Path(__file__).parent / "assets"
_KINDS = {"style.css": "text/css", "script.js": "text/javascript", "icon.svg": "image/svg+xml"}
#: A license has 64 KiB at most; a form spells some of its characters in three.
_MOST_LICENSE, _MOST_BYTES = 64 * 1024, 256 * 1024
_HEADERS = {
    "Cache-Control": "no-store",
    # Nothing from elsewhere, nothing inline, no frame around it, no form to elsewhere.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    # With no-referrer a browser would send `Origin: null` with our own forms, and the guard refuse them.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Actions:
    """What an admin may do. Each raises Refused where it cannot be done, and HTTPException where nothing can."""

    add_license: Callable[[str], None]
    remove_license: Callable[[int], None]
    #: The replica's id, and whether at once.
    drain: Callable[[str, bool], None]
    undrain: Callable[[str], None]


def blueprint(
    *,
    see: Callable[[], View],
    guard: Guard,
    actions: Actions | None = None,
    admin: Callable[[], bool] = lambda: False,
) -> Blueprint:
    """The page at /status.

    `see`: what to show. `guard`: who may call. `actions`: what an admin may do there; None: nothing. `admin`: whether
    the caller, whom the guard let pass, is one, and sees the buttons.
    """
    routes = Blueprint("readygate_status", __name__, url_prefix="/status", template_folder="templates")
    assets = {name: (_ASSETS / name).read_bytes() for name in _KINDS}
    # A new release has new addresses, so that no browser goes by an old script.
    version = sha256(b"".join(assets.values())).hexdigest()[:12]

    def needs(role: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(view: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(view)
            def guarded(**values: Any) -> Any:
                refusal = guard(role)
                return view(**values) if refusal is None else _for_people(refusal)

            return guarded

        return wrap

    def _for_people(refusal: Any) -> Any:
        """A refusal in JSON, as a page; a guard's own page or redirect as it is."""
        if not isinstance(refusal, Response) or not refusal.is_json:
            return refusal
        told = refusal.get_json(silent=True)
        found = told if isinstance(told, dict) else {}
        refusal.data = _refused(refusal.status_code, str(found.get("message", "")), str(found.get("detail", "")))
        refusal.content_type = "text/html; charset=utf-8"
        return refusal

    def _refused(status: int, message: str, detail: str = "") -> str:
        return render_template(
            "readygate_status/refused.html", status=status, message=message, detail=detail, version=version
        )

    def page(status: int = 200, *, done: str | None = None, error: str | None = None) -> tuple[str, int]:
        shown = render_template("readygate_status/page.html", **_context(), done=done, error=error, version=version)
        return shown, status

    def _context() -> dict[str, Any]:
        return {"view": see(), "words": words, "acts": actions is not None and admin()}

    def do(action: Callable[[], None], said: str) -> Any:
        """Do it, and send the browser back to the page: so a reload repeats nothing."""
        try:
            action()
        except Refused as error:
            return page(error.status, error=str(error))
        return redirect(url_for(".status", done=said), 303)

    @routes.after_request
    def harden(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @routes.errorhandler(HTTPException)
    def failed(error: HTTPException) -> Any:
        response = error.get_response()
        if (error.code or 0) < 400:
            return response
        response.data = _refused(error.code or 500, error.description or error.name)
        response.content_type = "text/html; charset=utf-8"
        return response

    @routes.get("", provide_automatic_options=False)
    @needs("viewer")
    def status() -> tuple[str, int]:
        return page(done=words.DONE.get(request.args.get("done", "")))

    # Somebody who types a slash, or Enter in the address that a refused form left behind, wants the page.
    @routes.get("/", provide_automatic_options=False)
    @routes.get("/licenses", provide_automatic_options=False)
    @routes.get("/licenses/<license_id>/remove", provide_automatic_options=False)
    @routes.get("/replicas/<replica_id>/drain", provide_automatic_options=False)
    @routes.get("/replicas/<replica_id>/undrain", provide_automatic_options=False)
    def back(**_: str) -> Any:
        return redirect(url_for(".status"))

    @routes.get("/live", provide_automatic_options=False)
    @needs("viewer")
    def live() -> str:
        return render_template("readygate_status/live.html", **_context())

    @routes.get("/<any('style.css', 'script.js', 'icon.svg'):name>", provide_automatic_options=False)
    def asset(name: str) -> Response:
        # Open to anybody: they are the same everywhere and say nothing.
        response = Response(assets[name], content_type=f"{_KINDS[name]}; charset=utf-8")
        response.headers["Cache-Control"] = "public, max-age=86400"
        return response

    if actions is None:
        return routes
    acts = actions

    @routes.post("/licenses", provide_automatic_options=False)
    @needs("admin")
    def add_license() -> Any:
        text = _license_in_form()
        return do(lambda: acts.add_license(text), "added")

    @routes.post("/licenses/<string(maxlength=10):license_id>/remove", provide_automatic_options=False)
    @needs("admin")
    def remove_license(license_id: str) -> Any:
        _form()
        number = int(license_id) if re.fullmatch("[0-9]+", license_id, re.ASCII) else 0
        return do(lambda: acts.remove_license(number), "removed")

    @routes.post("/replicas/<replica_id>/drain", provide_automatic_options=False)
    @needs("admin")
    def drain(replica_id: str) -> Any:
        at_once = _form().get("when") == "now"
        return do(lambda: acts.drain(replica_id, at_once), "drained" if at_once else "draining")

    @routes.post("/replicas/<replica_id>/undrain", provide_automatic_options=False)
    @needs("admin")
    def undrain(replica_id: str) -> Any:
        _form()
        return do(lambda: acts.undrain(replica_id), "undrained")

    return routes


def _form() -> Any:
    """The form, read to its end; 413 where that is too far, also where it comes in chunks."""
    # One more than is taken: a body that comes in chunks ends at the limit, and Werkzeug says nothing of the rest.
    request.max_content_length = _MOST_BYTES + 1
    try:
        if len(request.get_data()) > _MOST_BYTES:
            abort(413)
        return request.form
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001  # servers raise what they like for a body that breaks off
        abort(400, "the body broke off")


def _license_in_form() -> str:
    """The text that was pasted, or else the file's; one character more than is allowed, at most."""
    pasted = str(_form().get("license", ""))
    file = request.files.get("file")
    if pasted.strip() or file is None:
        return pasted
    return file.stream.read(_MOST_LICENSE + 1).decode("utf-8", "replace")
