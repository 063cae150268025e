"""/openapi.json against a real server: schemathesis makes up requests, good and bad, and compares every answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Gunicorn, answers, gunicorn, ready, until
from test_servers import add_license, flask, keys, public

import openapi

pytestmark = pytest.mark.server
__all__ = ["keys"]  # A fixture, known by its name.

ADMIN = "an-admin-token-of-the-secret-store"
#: What a license is, no schema can say: one that the schema allows is refused all the same.
_EXCLUDED = "positive_data_acceptance"
_COMMAND = ["run", "--seed=1", "--max-examples=40", "--checks=all", "--no-color"]
_COMMAND += [f"--exclude-checks={_EXCLUDED}", "--generation-database=none", "--request-timeout=10"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('openapi')}/test.db"


@pytest.fixture(scope="module")
def server(url: str, keys: Path) -> Iterator[Gunicorn]:
    """A server that has something to show: a license, and another replica, which the license does not allow."""
    variables: dict[str, Any] = {"READYGATE_LICENSE_KEYS": public(keys), "READYGATE_ADMIN_TOKEN": ADMIN}
    with gunicorn(url, **variables) as server:
        until(lambda: ready(server))
        add_license(url, keys, "high_availability", "replica_limit=1")
        with gunicorn(url, workers=1, **variables) as other:
            until(lambda: answers(other, "entitlement error"))
            yield server


@pytest.mark.parametrize("role", ["anonymous", "viewer", "admin"])
def test_no_answer_is_other_than_described(server: Gunicorn, url: str, role: str, tmp_path: Path) -> None:
    token = {"anonymous": "", "admin": ADMIN}.get(role)
    if token is None:
        token = flask(url, "token", "create", "looker", "--role", role).stdout.strip()
    operations = sum(len(methods) for methods in openapi.DOCUMENT["paths"].values())
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *_COMMAND,
            *(["--header", f"Authorization: Bearer {token}"] if token else []),
            f"http://127.0.0.1:{server.port}/openapi.json",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{operations} selected / {operations} total" in done.stdout
    assert "Traceback" not in server.lines
    assert f"Tested: {operations}" in done.stdout
