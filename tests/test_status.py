"""/status in the test's own process: what it shows, to whom, and what may be done there."""

from __future__ import annotations

import io
import re
import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from flask import Flask, Response, abort
from test_api import _DAY, Api, a_license, make, small
from werkzeug.test import TestResponse

import status
from entitlements.notices import NO_LICENSE_MESSAGE
from status import words

__all__ = ["make", "small"]  # Fixtures, known by their names.

PAGE, LIVE = "/status", "/status/live"
OWN = {"Sec-Fetch-Site": "same-origin"}


def basic(token: str) -> dict[str, str]:
    return {"Authorization": "Basic " + b64encode(f"anyone:{token}".encode()).decode()}


def see(api: Api, path: str = PAGE, role: str = "admin") -> str:
    """The page, as a browser gets it."""
    answer = api.ask(path, None, headers=basic(api.tokens[role]))
    assert answer.status_code == 200, answer.text
    return answer.text


def post(api: Api, path: str, role: str = "admin", headers: dict[str, str] = OWN, **form: Any) -> TestResponse:
    """The answer to a form of the page."""
    return api.ask(PAGE + path, None, "POST", headers={**basic(api.tokens[role]), **headers}, data=form)


def plain(page: str) -> str:
    """The page's text, as a person reads it."""
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))


@pytest.fixture
def surplus(make: Callable[..., Api], sqlite_url: str) -> Api:
    """The service under the other policy."""
    return make(sqlite_url, READYGATE_EXCLUDE="surplus")


# Who may


def test_a_browser_is_asked_for_a_password_and_the_api_still_for_a_bearer_token(small: Api) -> None:
    for path in (PAGE, LIVE):
        answer = small.ask(path, None)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="Readygate", charset="UTF-8"'
        assert answer.mimetype == "text/html"
        assert "this needs a token" in answer.text.lower()
    assert small.ask("/api/v2/replicas", None).headers["WWW-Authenticate"] == "Bearer"


def test_both_kinds_of_header_open_the_page(small: Api) -> None:
    for headers in (basic(small.tokens["viewer"]), {"Authorization": f"Bearer {small.tokens['viewer']}"}):
        assert small.ask(PAGE, None, headers=headers).status_code == 200


def test_a_viewer_sees_no_button_and_may_press_none(small: Api) -> None:
    small.post(a_license(high_availability=1))
    assert "<form" not in see(small, role="viewer")
    assert "<form" not in see(small, LIVE, role="viewer")
    own = small.json("/api/v2/replicas")[0]["id"]
    for path in ("/licenses", "/licenses/1/remove", f"/replicas/{own}/drain", f"/replicas/{own}/undrain"):
        assert post(small, path, role="viewer").status_code == 403
    assert len(small.json("/api/v2/licenses")) == 1
    assert small.json("/api/v2/replicas")[0]["draining_at"] is None


@pytest.mark.parametrize(
    "headers",
    [
        *({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"}),
        *({"Origin": "null"}, {"Referer": "http://localhost/status"}),
    ],
)
def test_a_forged_form_changes_nothing(small: Api, headers: dict[str, str]) -> None:
    small.post(a_license(high_availability=1))
    own = small.json("/api/v2/replicas")[0]["id"]
    for path in ("/licenses/1/remove", f"/replicas/{own}/drain", "/licenses"):
        answer = post(small, path, headers=headers, license=a_license(audit_log=1), when="now")
        assert answer.status_code == 403
        assert answer.mimetype == "text/html"
    assert len(small.json("/api/v2/licenses")) == 1
    assert small.json("/api/v2/replicas")[0]["draining_at"] is None


def test_unsafe_routes_answer_nothing_but_post(small: Api) -> None:
    for path in ("/licenses", "/licenses/1/remove", "/replicas/7/drain", "/replicas/7/undrain"):
        # Whoever types Enter in the address that a refused form left behind wants the page.
        answer = small.ask(PAGE + path)
        assert (answer.status_code, answer.headers["Location"]) == (302, PAGE)
        assert small.ask(PAGE + path, method="PUT").status_code == 405
    for path in (PAGE, LIVE):
        assert small.ask(path, method="POST").status_code == 405
        assert small.ask(path, method="HEAD").status_code == 200
        assert small.ask(path, method="OPTIONS").status_code == 405


# What every answer carries


def test_every_answer_has_the_strict_policy_and_nothing_inline(small: Api) -> None:
    small.add_replica()
    small.post("x")
    answers = [small.ask(PAGE), small.ask(LIVE), small.ask(PAGE, None), post(small, "/licenses", license="x")]
    answers += [post(small, "/licenses", headers={}), small.ask(f"{PAGE}/style.css", None)]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.search(r"<style|<script(?! src=\"/status/script.js\?v=[0-9a-f]+\" defer></script>)", answer.text)
        assert not re.search(r"\s(style|on[a-z]+)=", re.sub(r"</?code>", "", answer.text))
        assert not re.search(r"(href|src|action)=\"(?!/status)", answer.text)
        if answer.mimetype == "text/html":
            assert answer.headers["Cache-Control"] == "no-store"


def test_the_pages_own_files_need_no_token_and_no_database(small: Api) -> None:
    small.replica.link.stalled = lambda: True
    kinds = {"style.css": "text/css", "script.js": "text/javascript", "icon.svg": "image/svg+xml"}
    for name, kind in kinds.items():
        answer = small.ask(f"{PAGE}/{name}", None)
        assert (answer.status_code, answer.mimetype) == (200, kind)
    for name in ("page.html", "../app.py", "%2e%2e/view.py", "style.css.map"):
        assert small.ask(f"{PAGE}/{name}", None).status_code == 404


# What it shows


def test_a_sound_replica_is_ready(small: Api) -> None:
    page = plain(see(small))
    assert "✓ Ready" in page
    assert "This replica takes traffic." in page
    assert "1 active, 1 may serve" in page
    assert "What is wrong" not in page
    for check in ("database", "replica", "entitlements"):
        assert f"✓ {check} ok" in page


def test_under_the_policy_all_everybody_goes(small: Api) -> None:
    see(small)
    small.add_replica(hostname="peer-1")
    small.ask("/api/v2/licenses/refresh-entitlements", method="POST")
    page = plain(see(small))
    assert "✕ Not ready: entitlement error" in page
    assert NO_LICENSE_MESSAGE in page
    assert "Stop replicas until 1 runs, or add a license with high_availability." in page
    assert page.count("Goes: under the policy all, a violation takes every replica out.") == 2
    assert "peer-1" in page


def test_under_the_policy_surplus_the_longest_serving_stays(surplus: Api) -> None:
    see(surplus)
    surplus.add_replica(exclude="surplus")
    surplus.ask("/api/v2/licenses/refresh-entitlements", method="POST")
    page = plain(see(surplus))
    assert "✓ Ready" in page
    assert "Stays: it is the longest-serving, and one may serve." in page
    assert "Goes: it stands behind the one that may serve." in page
    assert "✕ Error:" in page
    assert surplus.post(a_license(high_availability=1, replica_limit=2)).status_code == 201
    assert "Stays: it is among the first 2 in line, which may serve." in plain(see(surplus))
    assert surplus.post(a_license(high_availability=1)).status_code == 201
    assert "Stays: any number may serve." in plain(see(surplus))


def test_a_grace_and_a_drain_say_when_they_end(small: Api) -> None:
    see(small)
    young = small.add_replica(grace_seconds=600)
    assert re.search(r"◔ grace .*Serves in its grace; counts in (10 min|9 min 5\d s)\.", plain(see(small)))
    small.ask(f"/api/v2/replicas/{young.id}/drain", method="POST")
    assert "Hands its place over in" in plain(see(small))
    small.ask(f"/api/v2/replicas/{young.id}/drain", method="POST", json={"now": True})
    assert "Goes: it has handed its place over." in plain(see(small))


def test_replicas_that_disagree_on_the_policy_are_a_warning(small: Api) -> None:
    see(small)
    small.add_replica(exclude="surplus")
    assert "replicas run different policies: all, surplus" in plain(see(small))


def test_licenses_are_shown_with_their_ends_and_never_with_their_text(small: Api) -> None:
    texts = [a_license(ends_in=20 * _DAY, high_availability=1), a_license(ends_in=-2 * _DAY, audit_log=3)]
    for text in texts:
        assert small.post(text).status_code == 201
    small.connection.exec_driver_sql(
        f"INSERT INTO readygate_licenses (uuid, jwt, uploaded_at) VALUES ('{uuid.uuid4()}', 'not.a.license', 1)"
    )
    small.ask("/api/v2/licenses/refresh-entitlements", method="POST")
    page = see(small)
    for text in texts:
        assert all(part not in page for part in text.split("."))
    shown = plain(page)
    assert "3 stored" in shown
    assert "License 1 for acme: ✓ counts" in shown
    assert "License 2 for acme: ! in its grace period" in shown
    assert re.search("License 3 ?: ✕ refused", shown)
    assert "It does not verify" in shown
    assert re.search(r"high_availability ✓ entitled – 20\d\d-\d\d-\d\d in 3[34] d", shown)
    assert re.search(r"! Warning: A license expires on 20\d\d-\d\d-\d\d", shown)


def test_what_replicas_call_themselves_is_text(small: Api) -> None:
    see(small)
    small.add_replica(hostname="<script>alert(1)</script>", version="\"'><b>")
    page = see(small)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "&#34;&#39;&gt;&lt;b&gt;" in page


def test_a_large_fleet_is_cut_and_says_so(small: Api) -> None:
    see(small)
    beat = "(SELECT updated_at FROM readygate_replicas LIMIT 1)"
    values = ", ".join(
        f"('{uuid.uuid4()}', 'n', '1', {number}, 1, {beat}, 3600000000, 1, 'all')" for number in range(300)
    )
    small.connection.exec_driver_sql(
        "INSERT INTO readygate_replicas (id, hostname, version, created_at, started_at, updated_at, stale_after, grace,"
        f" exclude) VALUES {values}"
    )
    page = see(small)
    # And this one, which stands behind them.
    assert "201 or more active" in plain(page)
    assert "this one" in page
    assert "These are not all of them" in page
    assert page.count("<tr ") < 210


# What an admin does


def test_a_license_is_added_and_removed_and_a_reload_repeats_nothing(small: Api) -> None:
    text = a_license(high_availability=1)
    answer = post(small, "/licenses", license=f"\n {text} \n")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/status?done=added")
    page = see(small, "/status?done=added")
    assert "✓ Done. The license is stored." in plain(page)
    assert "License 1 for acme: ✓ counts" in plain(page)
    assert "any number may serve" in plain(page)
    answer = post(small, "/licenses/1/remove")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/status?done=removed")
    assert "None is stored: one replica may serve." in plain(see(small))


def test_a_license_may_come_as_a_file(small: Api) -> None:
    text = a_license(high_availability=1).encode()
    assert post(small, "/licenses", license="", file=(BytesIO(text), "acme.jwt")).status_code == 303
    assert post(small, "/licenses", license=" ", file=(BytesIO(b"\xff" * 70_000), "x")).status_code == 400


def test_a_refused_license_is_told_in_words_and_not_repeated(small: Api) -> None:
    text = a_license(high_availability=1)
    for given, status_code, reason in (
        ("", 400, "empty"),
        ("<b>nonsense-secret</b>", 400, "no license"),
        (text[:-3], 400, "cut"),
        (a_license(ends_in=-30 * _DAY), 400, "ended"),
    ):
        answer = post(small, "/licenses", license=given)
        assert answer.status_code == status_code
        assert "✕ Not done." in plain(answer.text)
        assert reason in answer.text
        assert not given or given not in answer.text
        assert "nonsense-secret" not in answer.text
    assert post(small, "/licenses", license=text).status_code == 303
    again = post(small, "/licenses", license=text)
    assert again.status_code == 409
    assert "This license is stored already" in again.text
    assert text not in again.text


def test_a_form_that_is_too_large_is_413(small: Api) -> None:
    answer = post(small, "/licenses", license="x" * 300_000)
    assert answer.status_code == 413
    assert answer.mimetype == "text/html"


def test_a_form_that_is_too_large_is_413_in_chunks_too(small: Api) -> None:
    body = b"license=" + b"x" * (256 * 1024)
    answer = small.ask(
        PAGE + "/licenses",
        method="POST",
        input_stream=io.BytesIO(body),
        content_type="application/x-www-form-urlencoded",
        headers={"Transfer-Encoding": "chunked"},
        environ_base={"wsgi.input_terminated": True},
    )
    assert answer.status_code == 413


def test_a_slash_too_many_leads_to_the_page(small: Api) -> None:
    answer = small.ask(PAGE + "/", None)
    assert (answer.status_code, answer.headers["Location"]) == (302, PAGE)
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_drain_is_made_and_taken_back(small: Api) -> None:
    see(small)
    peer = small.add_replica()
    assert f"/status/replicas/{peer.id}/drain" in see(small)
    answer = post(small, f"/replicas/{peer.id}/drain")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/status?done=draining")
    assert f"/status/replicas/{peer.id}/undrain" in see(small)
    assert post(small, f"/replicas/{peer.id}/undrain").headers["Location"] == "/status?done=undrained"
    assert post(small, f"/replicas/{peer.id}/drain", when="now").headers["Location"] == "/status?done=drained"
    late = post(small, f"/replicas/{peer.id}/undrain")
    assert late.status_code == 409
    assert "It has given up its place already" in late.text


def test_what_is_gone_is_404_in_words(small: Api) -> None:
    paths = ["/licenses/7/remove", "/licenses/x/remove", "/licenses/٣/remove", "/replicas/7/drain"]
    for path in [*paths, f"/replicas/{uuid.uuid4()}/undrain"]:
        answer = post(small, path)
        assert answer.status_code == 404
        assert "There is none of this id any more" in answer.text


# The database down


def stall(api: Api) -> None:
    api.replica.link.stalled = lambda: True


def test_without_the_database_the_page_shows_what_was_known_and_how_old_it_is(small: Api) -> None:
    small.post(a_license(high_availability=1))
    see(small)
    peer = small.add_replica(hostname="peer-1")
    see(small)
    stall(small)
    started = time.monotonic()
    page = see(small)
    assert time.monotonic() - started < 0.5
    assert re.search(r"The database was not read: it does not answer\. .*last knew, \d s ago", plain(page))
    assert peer.id in page
    assert "License 1 for acme: ✓ counts" in plain(page)
    assert small.replica.requests.pool.checkedout() == 0


def test_a_worker_that_never_showed_the_page_knows_what_its_last_sync_read(small: Api) -> None:
    small.add_replica(hostname="peer-1")
    assert small.ask("/api/v2/licenses/refresh-entitlements", method="POST").status_code == 200
    small.json("/api/v2/replicas", role="viewer")
    stall(small)
    page = plain(see(small, role="viewer"))
    assert "peer-1" in page
    assert "2 or more active, 1 may serve" in page
    assert page.count("✕ excluded") == 2
    assert "This worker has not read them yet." in page


def test_a_database_that_fails_under_the_request_is_no_error_either(small: Api) -> None:
    see(small)
    small.connection.exec_driver_sql("ALTER TABLE readygate_replicas RENAME TO gone")
    assert "The database was not read: schema outdated." in plain(see(small))


def test_without_the_database_nothing_is_changed_and_that_is_said(small: Api) -> None:
    see(small)
    stall(small)
    for path in ("/licenses", "/licenses/1/remove", "/replicas/7/drain", "/replicas/7/undrain"):
        answer = post(small, path, license=a_license(high_availability=1))
        assert answer.status_code == 503
        assert "Database unreachable; nothing was changed" in answer.text


def test_a_token_that_nobody_can_look_up_is_a_page_that_tries_again(small: Api) -> None:
    stall(small)
    answer = small.ask(PAGE, "viewer")
    assert answer.status_code == 503
    assert 'http-equiv="refresh"' in answer.text
    assert "Database unreachable" in answer.text


# In another app


def a_view(**more: Any) -> status.View:
    values: dict[str, Any] = {
        **{"replica_id": "r", "hostname": "web-1", "version": "1", "policy": "all", "heartbeat_seconds": 5.0},
        **{"checks": (), "notices": (), "features": (), "replicas": (), "licenses": None, "allowed": 1},
        **{"high_availability": False, "read_at": 10**15},
    }
    return status.View(**{**values, **more})


def test_another_app_brings_its_own_guard_and_may_offer_no_actions() -> None:
    app = Flask(__name__)
    asked: list[str] = []

    def guard(role: str) -> Response | None:
        asked.append(role)
        return None if len(asked) < 3 else abort(403, "not you")

    app.register_blueprint(status.blueprint(see=a_view, guard=guard, admin=lambda: True), url_prefix="/ops")
    client = app.test_client()
    page = client.get("/ops")
    assert page.status_code == 200
    assert "<form" not in page.text
    assert 'src="/ops/script.js' in page.text
    assert client.post("/ops/licenses").status_code == 405
    assert client.get("/ops/live").status_code == 200
    assert asked == ["viewer", "viewer"]
    refused = client.get("/ops")
    assert refused.status_code == 403
    assert "Not you" in refused.text


def test_the_guard_is_required() -> None:
    with pytest.raises(TypeError, match="guard"):
        status.blueprint(see=a_view)  # type: ignore[call-arg]


def test_a_guard_that_redirects_to_a_login_is_left_alone() -> None:
    app = Flask(__name__)
    login = Response(status=302, headers={"Location": "/login"})
    app.register_blueprint(status.blueprint(see=a_view, guard=lambda role: login))
    answer = app.test_client().get("/status")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login")


# Words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (-3, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (185, "3 min 5 s")),
        *((7800, "2 h 10 min"), (86400, "1 d"), (29.2 * 86400, "29 d 4 h")),
    ],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_there_is_advice_for_every_reason_that_readiness_gives() -> None:
    assert set(words.ADVICE) == {
        *("database unreachable", "schema outdated", "starting", "heartbeat lost", "draining", "entitlement error"),
    }
