"""A real Chromium from Debian's packages, headless, driven by Playwright."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from playwright.sync_api import Page, sync_playwright

DESK, TELEPHONE = (1000, 800), (390, 844)
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_ARGUMENTS += ["--disable-component-update", "--disable-sync"]
#: A name that is no `localhost`: over plain http a browser tells such a server less of where a request comes from.
PLAIN = "ops.example"


@dataclass
class Tab:
    """A page, and what went wrong in it."""

    page: Page
    #: What the console calls an error or a warning, violations of the policy among it.
    complaints: list[str] = field(default_factory=list)
    #: Every address that it asked for.
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def tab(
    program: str,
    token: str | None,
    *,
    size: tuple[int, int] = DESK,
    scripts: bool = True,
    dark: bool = False,
) -> Iterator[Tab]:
    """A tab of a new browser with a new profile. `token`: what the person types as the password; None: nothing."""
    with tempfile.TemporaryDirectory(prefix="readygate-chromium-") as profile, sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            profile,
            executable_path=program,
            headless=True,
            args=[*_ARGUMENTS, f"--host-resolver-rules=MAP {PLAIN} 127.0.0.1"],
            viewport={"width": size[0], "height": size[1]},
            java_script_enabled=scripts,
            color_scheme="dark" if dark else "light",
            has_touch=size == TELEPHONE,
            http_credentials={"username": "me", "password": token} if token else None,
        )
        try:
            found = Tab(context.pages[0])
            found.page.on(
                "console",
                lambda message: found.complaints.append(message.text) if message.type in ("error", "warning") else None,
            )
            found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
            found.page.on("request", lambda request: found.asked.append(request.url))
            yield found
        finally:
            context.close()
