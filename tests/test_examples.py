"""The example apps, each copied out of the checkout, started with gunicorn's four workers and asked, over the wheel."""

from __future__ import annotations

import http.cookiejar
import json
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from cryptography.hazmat.primitives import serialization
from servers import ROOT, Gunicorn, answers, gunicorn, ready, until
from wheels import run

from entitlements import signing

pytestmark = pytest.mark.server
STANDING = "SELECT count(*) FROM readygate_replicas WHERE stopped_at IS NULL"


@pytest.fixture
def example(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the example that the test is about: nothing of ours is beside it."""
    name: str = request.param
    return shutil.copytree(ROOT / "examples" / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))


@contextmanager
def started(folder: Path, programs: Path, *arguments: str, url: str = "", **variables: str) -> Iterator[Gunicorn]:
    """The example, as its readers start it; only the port is ours."""
    # gunicorn takes PORT for its port where nothing binds another; the number of workers is the example's own.
    own: dict[str, Any] = {"WEB_CONCURRENCY": "", **variables}
    with gunicorn(url, *arguments, program=str(programs / "gunicorn"), folder=folder, **own) as server:
        try:
            yield server
        except AssertionError:
            print(server.lines)
            raise


def driven(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://")


def standing(url: str) -> int:
    """How many replicas have not stopped."""
    return int(str(pg.execute(url, STANDING)[0][0]))


@pytest.mark.parametrize("example", ["health_only"], indirect=True)
def test_health_only(example: Path, with_health: Path) -> None:
    uploads = example / "uploads"
    uploads.mkdir()
    with started(example, with_health, "--workers", "4", "app:app", UPLOADS=str(uploads)) as server:
        until(lambda: ready(server))
        uploads.rmdir()
        until(lambda: answers(server, "uploads failed"))
        assert server.get("/healthz") == (200, "OK")
        # Of four workers one may have given none of a dozen answers, and looks once a second like the others.
        until(lambda: server.get("/readyz/uploads") == (503, "uploads failed"))
        uploads.mkdir()
        until(lambda: ready(server))
        assert server.get("/") == (200, "welcome")


@pytest.mark.parametrize("example", ["own_database"], indirect=True)
def test_own_database(example: Path, with_all: Path, postgres_url: str) -> None:
    url = driven(postgres_url, "psycopg")

    def alembic(*arguments: str) -> str:
        return run(str(with_all / "alembic"), *arguments, cwd=example, DATABASE_URL=url)

    with started(example, with_all, url=url) as server:
        until(lambda: answers(server, "schema outdated"))
        alembic("upgrade", "head")
        until(lambda: ready(server))
        assert len(server.workers()) == 4
        assert standing(postgres_url) == 1
        assert json.loads(server.get("/books")[1]) == []
        server.send(signal.SIGHUP)
        until(lambda: len(server.workers()) != 4)
        until(lambda: len(server.workers()) == 4 and ready(server))
        assert standing(postgres_url) == 1
        server.stop()
        assert standing(postgres_url) == 0
    # The table that Alembic made is the one that the package describes.
    assert "No new upgrade operations" in alembic("check")
    tables = {row[0] for row in pg.execute(postgres_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert tables == {"alembic_version", "book", "readygate_replicas"}


@pytest.mark.parametrize("example", ["own_database"], indirect=True)
def test_preloaded_and_replaced_by_sigusr2_it_is_one_replica_a_master(
    example: Path, with_all: Path, postgres_url: str
) -> None:
    url = driven(postgres_url, "psycopg")
    run(str(with_all / "alembic"), "upgrade", "head", cwd=example, DATABASE_URL=url)
    with started(example, with_all, "--preload", url=url) as server:
        until(lambda: ready(server))
        assert standing(postgres_url) == 1
        server.send(signal.SIGUSR2)
        until(lambda: standing(postgres_url) == 2)
        server.stop()
        until(lambda: standing(postgres_url) == 1)


class Browser:
    """Somebody with a browser: cookies, and redirects that are followed."""

    def __init__(self, server: Gunicorn, user: str) -> None:
        self.base = f"http://127.0.0.1:{server.port}"
        jar = http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(jar)
        )
        self.ask("/login", f"user={user}".encode(), content="application/x-www-form-urlencoded")

    def ask(self, path: str, body: bytes | None = None, *, content: str = "application/json") -> tuple[int, Any]:
        """Status and body, as JSON where it is that; a POST where there is a body to send."""
        request = urllib.request.Request(self.base + path, body, {"Content-Type": content} if body else {})
        try:
            with self.opener.open(request, timeout=10) as response:
                return response.status, _parsed(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _parsed(error)


def _parsed(response: Any) -> Any:
    text = response.read().decode()
    return json.loads(text) if response.headers["Content-Type"] == "application/json" else text


@pytest.mark.parametrize("example", ["own_login"], indirect=True)
def test_own_login(example: Path, with_all: Path, postgres_server: pg.Server) -> None:
    private, public = example / "key.pem", example / "keys.json"
    signing.generate(private, public)
    variables = {"SECRET_KEY": "only for this test", "LICENSE_KEYS": str(public)}
    with pg.new_database(postgres_server.url()) as postgres_url:
        url = driven(postgres_url, "pg8000")

        def flask(*arguments: str) -> str:
            command = (str(with_all / "flask"), "--app", "app:create_app", *arguments)
            return run(*command, cwd=example, DATABASE_URL=url, **variables)

        flask("create-tables")
        with started(example, with_all, url=url, **variables) as server:
            until(lambda: ready(server))
            assert server.get("/readyz?verbose")[1].splitlines()[-1] == "readyz check passed"
            assert standing(postgres_url) == 1
            # The app's own login comes first, and probes need none.
            assert server.get("/api/v2/replicas")[0] == 302
            assert server.get("/healthz") == (200, "OK")
            guest, root = Browser(server, "guest"), Browser(server, "root")
            [row] = guest.ask("/api/v2/replicas")[1]
            assert row["state"] == "grace"
            assert guest.ask("/audit")[0] == 403
            body = json.dumps({"license": _license(private)}).encode()
            assert guest.ask("/api/v2/licenses", body) == (403, {"message": "only root keeps licenses here"})
            assert root.ask("/api/v2/licenses", body)[0] == 201
            # The others hear of it with their next heartbeat.
            until(lambda: all(guest.ask("/audit") == (200, "nothing happened yet") for _ in range(12)))
            _drained_and_taken_back(root, flask, row["id"])
            _asked_while_the_database_hangs(server, guest, postgres_server)
            flask("replicas", "drain", "--now")
            until(lambda: answers(server, "draining"))
            assert [one["state"] for one in guest.ask("/api/v2/replicas")[1]] == ["draining"]
            server.stop()
            assert standing(postgres_url) == 0


def _drained_and_taken_back(root: Browser, flask: Callable[..., str], replica: str) -> None:
    """By the API and by the commands, which are the packages' own and say the same."""
    assert "audit_log=1" in flask("license", "list")
    assert [one["id"] for one in json.loads(flask("replicas", "list", "--json"))] == [replica]
    status, drained = root.ask(f"/api/v2/replicas/{replica}/drain", b'{"now": false}')
    assert (status, drained["id"]) == (202, replica)
    assert json.loads(flask("replicas", "list", "--json"))[0]["draining_at"] == drained["draining_at"] is not None
    assert replica in flask("replicas", "undrain", replica)
    assert json.loads(flask("replicas", "list", "--json"))[0]["draining_at"] is None
    # What a host app may have of its own, no package brings.
    shown = {line.split()[0] for line in flask("--help").split("Commands:")[1].splitlines() if line.strip()}
    assert {"license", "replicas", "create-tables"} <= shown
    assert not {"db", "status"} & shown


def _asked_while_the_database_hangs(server: Gunicorn, guest: Browser, database: pg.Server) -> None:
    database.hang()
    try:
        until(lambda: answers(server, "database unreachable"))
        assert server.get("/healthz", timeout=1) == (200, "OK")
        assert guest.ask("/api/v2/replicas")[0] == 503
        assert guest.ask("/api/v2/entitlements")[0] == 503
    finally:
        database.resume()
    until(lambda: ready(server))


def _license(private: Path) -> str:
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    now = int(time.time())
    return signing.issue(
        key,  # type: ignore[arg-type]  # it is the one just made
        now=now,
        not_before=now - 60,
        license_expires=now + 86400,
        expires=now + 86400,
        account_type="company",
        account_id="acme",
        features={"audit_log": 1},
    )
