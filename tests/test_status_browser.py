"""/status in a real Chromium, in front of real servers.

.venv/bin/pytest tests/test_status_browser.py --screenshots docs/screenshots     (makes the pictures anew)
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from browser import PLAIN, TELEPHONE, Tab, tab
from playwright.sync_api import Error, Locator, Route, expect
from servers import Gunicorn, gunicorn, ready, until
from test_api import _DAY, _KEYS, a_license
from test_servers import flask

pytestmark = [pytest.mark.server, pytest.mark.system]

ADMIN = "an-admin-token-of-the-secret-store"
#: What a browser says of any answer that is no success; it is not a fault of the page.
_EXPECTED = re.compile(r"Failed to load resource: (the server responded with a status of 4|net::ERR_)")
#: Long enough for a machine that does something else as well.
_PATIENCE = 15_000


@pytest.fixture
def chromium(need: Callable[[str], str]) -> str:
    return need("chromium")


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Tab, str], None]:
    """Keeps a picture where pictures are wanted."""
    folder: Path | None = request.config.getoption("--screenshots")

    def keep(shown: Tab, name: str) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            shown.page.screenshot(path=folder / f"{name}.png", full_page=True)

    return keep


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    """Starts servers that take licenses, under host names of their own where that can be had."""
    keys = tmp_path / "keys.json"
    keys.write_text(_KEYS)

    def start(url: str, name: str = "web-1", **variables: str) -> Any:
        given: dict[str, Any] = {"READYGATE_LICENSE_KEYS": str(keys), "READYGATE_ADMIN_TOKEN": ADMIN, **variables}
        return gunicorn(url, workers=1, prefix=_named(name), **given)

    return start


def _named(name: str) -> tuple[str, ...]:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return ()
    return ("unshare", "--uts", "sh", "-c", 'hostname "$1"; shift; exec "$@"', "sh", name)


def visit(shown: Tab, server: Gunicorn, host: str = "127.0.0.1") -> None:
    answer = shown.page.goto(f"http://{host}:{server.port}/status")
    assert answer is not None
    assert answer.status == 200


def shows(shown: Tab, text: str | re.Pattern[str], *, where: str = "#live") -> None:
    """Whether it shows `text`, now or soon, without a reload."""
    expect(shown.page.locator(where)).to_contain_text(text, timeout=_PATIENCE)


def states(shown: Tab) -> Locator:
    """The states of the replicas, in line."""
    return shown.page.locator("section[aria-labelledby=replicas] tbody .state")


def reads(shown: Tab, *expected: str) -> None:
    """Whether the replicas' states are these, now or soon."""
    patterns = [re.compile(word) for word in expected]
    expect(states(shown)).to_have_text(patterns, timeout=_PATIENCE)


def blameless(shown: Tab, server: Gunicorn, host: str = "127.0.0.1") -> None:
    """Nothing was complained of, and nothing asked for but the server's own."""
    assert [text for text in shown.complaints if not _EXPECTED.match(text)] == []
    assert {address.split("/status")[0] for address in shown.asked} == {f"http://{host}:{server.port}"}


def add(shown: Tab, text: str) -> None:
    """Paste a license and press the button."""
    shown.page.fill("#license", text)
    shown.page.click("button.main")


def elsewhere(shown: Tab, address: str, body: str) -> None:
    """Make somebody else's page."""

    def answer(route: Route) -> None:
        route.fulfill(body=body, content_type="text/html")

    shown.page.route(address, answer)


@pytest.mark.parametrize("policy", ["all", "surplus"])
def test_the_page_goes_from_grace_to_violation_to_cure_without_a_reload(
    chromium: str, sqlite_url: str, serve: Callable[..., Any], picture: Callable[[Tab, str], None], policy: str
) -> None:
    slow = {"READYGATE_REPLICA_GRACE_SECONDS": "5", "READYGATE_EXCLUDE": policy}
    with serve(sqlite_url, READYGATE_EXCLUDE=policy) as one, tab(chromium, ADMIN) as shown:
        until(lambda: ready(one))
        visit(shown, one)
        reads(shown, "serving|grace")
        with serve(sqlite_url, "web-2", **slow) as two:
            reads(shown, "serving", "grace")
            shows(shown, "Serves in its grace; counts in")
            if policy == "all":
                picture(shown, "grace")
            shows(shown, "You have multiple replicas but high availability is an Enterprise feature.")
            reads(shown, "serving" if policy == "surplus" else "excluded", "excluded")
            headline = "Ready" if policy == "surplus" else "Not ready: entitlement error"
            expect(shown.page.locator("h1")).to_contain_text(headline, timeout=_PATIENCE)
            expect(shown.page).to_have_title(re.compile(f"^{headline}"))
            shows(shown, "Stays:" if policy == "surplus" else "under the policy all")
            picture(shown, f"violation-{policy}")
            # A refusal is told in words, and the page goes on.
            add(shown, "nonsense")
            shows(shown, "Not done. This is no license", where="#answer")
            if policy == "all":
                picture(shown, "license-refused")
            add(shown, a_license(high_availability=1, replica_limit=3, audit_log=1))
            shows(shown, "Done. The license is stored.", where="#answer")
            reads(shown, "serving", "serving")
            expect(shown.page.locator("h1")).to_contain_text("Ready", timeout=_PATIENCE)
            shows(shown, "2 active, 3 may serve")
            if policy == "all":
                picture(shown, "license-accepted")
            assert shown.page.url.endswith("/status")
            until(lambda: ready(one) and ready(two))
        blameless(shown, one)


def test_a_license_that_ends_soon_is_a_warning_and_can_be_removed(
    chromium: str, sqlite_url: str, serve: Callable[..., Any], picture: Callable[[Tab, str], None], tmp_path: Path
) -> None:
    file = tmp_path / "acme.jwt"
    file.write_text(a_license(ends_in=20 * _DAY + 3600, high_availability=1))
    with serve(sqlite_url) as server, tab(chromium, ADMIN) as shown:
        until(lambda: ready(server))
        visit(shown, server)
        shown.page.set_input_files("#file", file)
        shown.page.click("button.main")
        shows(shown, "Warning: A license expires on")
        shows(shown, "in 20 d")
        picture(shown, "license-expiring")
        shown.page.click("#ask-license-1")
        # What a person has opened, and where the keyboard is, outlast a renewal.
        shown.page.focus("#remove-1")
        with shown.page.expect_response("**/status/live"):
            pass
        shown.page.wait_for_timeout(200)
        assert shown.page.evaluate("document.activeElement.id") == "remove-1"
        shown.page.keyboard.press("Enter")
        shows(shown, "Done. The license is removed.", where="#answer")
        shows(shown, "None is stored")
        blameless(shown, server)


def test_a_replica_is_drained_taken_back_and_given_up(
    chromium: str, sqlite_url: str, serve: Callable[..., Any], picture: Callable[[Tab, str], None]
) -> None:
    patient = {"READYGATE_EXCLUDE": "surplus", "READYGATE_STALE_AFTER_SECONDS": "20"}
    with serve(sqlite_url, **patient) as one, tab(chromium, ADMIN) as shown:
        until(lambda: ready(one))
        with serve(sqlite_url, "web-2", **patient):
            visit(shown, one)
            reads(shown, "serving", "excluded")
            shown.page.click("summary >> nth=0")
            shown.page.click("text=Drain by appointment >> nth=0")
            shows(shown, "Done. The drain is on the record.", where="#answer")
            shows(shown, "Hands its place over in")
            picture(shown, "draining")
            shown.page.click("text=Take the drain back")
            shows(shown, "Done. The drain is taken back.", where="#answer")
            shown.page.click("summary >> nth=0")
            shown.page.click("text=Give up at once >> nth=0")
            shows(shown, "Done. The replica gives its place up now.", where="#answer")
            expect(shown.page.locator("h1")).to_contain_text("Not ready: draining", timeout=_PATIENCE)
            reads(shown, "draining", "serving")
            shows(shown, "Goes: it has handed its place over.")
            picture(shown, "drained")
        blameless(shown, one)


@pytest.fixture
def own_postgres() -> Iterator[pg.Server]:
    server = pg.Server()
    yield server
    server.remove()


def test_the_page_stays_while_the_database_is_down_and_says_how_old_it_is(
    chromium: str,
    own_postgres: pg.Server,
    serve: Callable[..., Any],
    picture: Callable[[Tab, str], None],
) -> None:
    with pg.new_database(own_postgres.url()) as url, serve(url) as one, tab(chromium, ADMIN) as shown:
        until(lambda: ready(one))
        visit(shown, one)
        with serve(url, "web-2", READYGATE_REPLICA_GRACE_SECONDS="600"):
            reads(shown, "serving", "grace")
            own_postgres.stop("immediate")
            expect(shown.page.locator("h1")).to_contain_text("Not ready: database unreachable", timeout=_PATIENCE)
            shows(shown, re.compile(r"what this worker last knew, [2-9] s ago"))
            shows(shown, "Connected", where="#link")
            picture(shown, "database-down")
            # A page opened now is answered too.
            visit(shown, one)
            shows(shown, "what this worker last knew")
            add(shown, a_license(high_availability=1))
            shows(shown, "Database unreachable; nothing was changed.", where="#answer")
            own_postgres.start()
            expect(shown.page.locator("h1")).to_contain_text("Ready", timeout=_PATIENCE)
            expect(shown.page.locator("#live .answer.old")).to_have_count(0, timeout=_PATIENCE)
        assert [text for text in shown.complaints if "503" not in text and not _EXPECTED.match(text)] == []


def test_a_replica_that_is_gone_leaves_a_page_that_says_it_is_old(
    chromium: str, sqlite_url: str, serve: Callable[..., Any], picture: Callable[[Tab, str], None]
) -> None:
    with serve(sqlite_url) as server, tab(chromium, ADMIN) as shown:
        until(lambda: ready(server))
        visit(shown, server)
        shows(shown, "✓ Connected", where="#link")
        server.send(signal.SIGSTOP)
        for worker in server.workers():
            worker.suspend()
        shows(shown, re.compile(r"! Disconnected: .* What you see is \d+ s old"), where="#link")
        expect(shown.page.locator("body")).to_have_class("stale")
        picture(shown, "disconnected")
        for worker in server.workers():
            worker.resume()
        server.send(signal.SIGCONT)
        shows(shown, "✓ Connected", where="#link")
        expect(shown.page.locator("body")).not_to_have_class("stale")
        blameless(shown, server)


def test_a_token_that_is_revoked_ends_the_page_without_asking_again_and_again(
    chromium: str, sqlite_url: str, serve: Callable[..., Any]
) -> None:
    with serve(sqlite_url) as server:
        until(lambda: ready(server))
        token = flask(sqlite_url, "token", "create", "looker", "--role", "viewer").stdout.strip()
        with tab(chromium, token) as shown:
            visit(shown, server)
            assert shown.page.locator("form").count() == 0
            assert flask(sqlite_url, "token", "revoke", "looker").exit_code == 0
            shows(shown, "your token is not taken any more", where="#link")
            asked = len(shown.asked)
            shown.page.wait_for_timeout(3000)
            assert len(shown.asked) == asked


def test_without_a_token_a_browser_is_asked_for_one(chromium: str, sqlite_url: str, serve: Callable[..., Any]) -> None:
    with serve(sqlite_url) as server, tab(chromium, None) as shown:
        until(lambda: ready(server))
        # Headless, nobody is there to be asked, and this is how Chromium says that it would have.
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            shown.page.goto(f"http://127.0.0.1:{server.port}/status")


def test_on_a_telephone_nothing_is_wider_than_the_screen(
    chromium: str, sqlite_url: str, serve: Callable[..., Any], picture: Callable[[Tab, str], None]
) -> None:
    surplus = {"READYGATE_EXCLUDE": "surplus"}
    with serve(sqlite_url, **surplus) as one, serve(sqlite_url, "web-2", **surplus):
        until(lambda: ready(one))
        for dark in (False, True):
            with tab(chromium, ADMIN, size=TELEPHONE, dark=dark) as shown:
                visit(shown, one)
                shows(shown, "You have multiple replicas")
                reads(shown, "serving|excluded", "serving|excluded")
                shown.page.click("summary >> nth=0")
                assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                for button in shown.page.locator("button:visible").all():
                    box = button.bounding_box()
                    assert box is not None
                    assert box["height"] >= 44
                picture(shown, "telephone-dark" if dark else "telephone")
                blameless(shown, one)


def test_without_scripts_every_form_works(chromium: str, sqlite_url: str, serve: Callable[..., Any]) -> None:
    with serve(sqlite_url) as server, tab(chromium, ADMIN, scripts=False) as shown:
        until(lambda: ready(server))
        visit(shown, server)
        shows(shown, "Without scripts, reload to renew.", where="#link")
        add(shown, "nonsense")
        shows(shown, "Not done.", where="#answer")
        add(shown, a_license(high_availability=1))
        shows(shown, "Done. The license is stored.", where="#answer")
        shown.page.click("#ask-license-1")
        shown.page.click("#remove-1")
        shows(shown, "Done. The license is removed.", where="#answer")
        shown.page.click("summary >> nth=0")
        shown.page.click("text=Drain by appointment")
        shows(shown, "Done. The drain is on the record.", where="#answer")
        blameless(shown, server)


def test_the_forms_work_over_plain_http_too_where_browsers_tell_less(
    chromium: str, sqlite_url: str, serve: Callable[..., Any]
) -> None:
    with serve(sqlite_url) as server, tab(chromium, ADMIN) as shown:
        until(lambda: ready(server))
        visit(shown, server, PLAIN)
        assert shown.page.evaluate("isSecureContext") is False
        add(shown, a_license(high_availability=1))
        shows(shown, "Done. The license is stored.", where="#answer")
        # A header for which plain http gives no warrant would be a complaint in the console.
        assert [text for text in shown.complaints if "Cross-Origin-Opener-Policy" not in text] == []


def test_a_page_of_somebody_else_can_press_no_button(chromium: str, sqlite_url: str, serve: Callable[..., Any]) -> None:
    with serve(sqlite_url) as server, tab(chromium, ADMIN) as shown:
        until(lambda: ready(server))
        visit(shown, server)
        trap = f"http://127.0.0.1:{server.port}/status/licenses"
        for origin in ("http://evil.example", f"http://localhost:{server.port}"):
            text = a_license(high_availability=1)
            elsewhere(
                shown,
                f"{origin}/trap",
                f'<form method=post action="{trap}"><textarea name=license>{text}</textarea><button>Win</button>',
            )
            shown.page.goto(f"{origin}/trap")
            with shown.page.expect_response(trap) as caught:
                shown.page.click("button")
            assert caught.value.status == 403
        # Nor can it put the page into a frame, to have it clicked.
        elsewhere(shown, "http://evil.example/frame", f'<iframe src="http://127.0.0.1:{server.port}/status"></iframe>')
        shown.page.goto("http://evil.example/frame")
        shown.page.wait_for_timeout(500)
        assert "Ready" not in shown.page.frames[-1].content()
        visit(shown, server)
        shows(shown, "0 stored")


def test_a_script_that_got_into_the_page_would_not_run(
    chromium: str, sqlite_url: str, serve: Callable[..., Any]
) -> None:
    with serve(sqlite_url) as server, tab(chromium, ADMIN) as shown:
        until(lambda: ready(server))
        visit(shown, server)
        shown.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=/x onerror=\"window.hit=1\">')")
        shown.page.wait_for_timeout(500)
        assert shown.page.evaluate("window.hit") is None
        # And it would be seen here: so where the other tests saw nothing, there was nothing.
        assert any("Content Security Policy" in text for text in shown.complaints)
