"""What several test files share: databases, and the project on the import path."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import postgres as pg  # noqa: E402  # the import path is set first


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[pg.Server]:
    """A server that the tests may hang and restart, hence always their own."""
    server = pg.Server()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def postgres_base(request: pytest.FixtureRequest) -> str:
    """The URL of a PostgreSQL in which tests may make databases: TEST_DATABASE_URL, or one that they start."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        return given
    server: pg.Server = request.getfixturevalue("postgres_server")
    return server.url()


@pytest.fixture
def postgres_url(postgres_base: str) -> Iterator[str]:
    """A new, empty PostgreSQL database."""
    with pg.new_database(postgres_base) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A new, empty SQLite database."""
    return f"sqlite:///{tmp_path}/test.db"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new, empty database: the test runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def need() -> Callable[[str], str]:
    """Asks for a program of Debian's packages: its path. Without it CI fails, and everybody else skips aloud."""

    def find(program: str) -> str:
        path = shutil.which(program)
        if path is None and os.environ.get("CI"):
            pytest.fail(f"{program} is missing, and this is CI: .ci/run must install it")
        return path or pytest.skip(f"{program} is not installed; `apt-get install {program}` to run this")

    return find


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the outside reaches a test."""
    for name in list(os.environ):
        if name.startswith("READYGATE_") or name in ("DATABASE_URL", "DATABASE_URL_FILE", "PORT", "WEB_CONCURRENCY"):
            monkeypatch.delenv(name)
