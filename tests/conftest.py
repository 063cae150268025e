"""What several test files share: databases, and the project on the import path."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import faults  # noqa: E402  # the import path is set first
import postgres as pg  # noqa: E402  # the import path is set first
import wheels  # noqa: E402  # the same


def pytest_addoption(parser: pytest.Parser) -> None:
    """What runs longer, or again, on demand."""
    parser.addoption("--simulate-steps", type=int, default=200_000, help="steps of the simulation of a fleet")
    parser.addoption("--simulate-seed", type=int, help="the one seed of the simulation to run again")
    parser.addoption("--screenshots", type=Path, help="a folder that gets pictures of the status page")
    parser.addoption("--all-workers", action="store_true", help="each fault with every combination of workers")
    parser.addoption("--write-faults", action="store_true", help="the times of each fault to docs/figures/faults.json")
    parser.addoption("--faults-anew", action="store_true", help="with --write-faults: nothing of before stays there")
    parser.addoption("--recycles", type=int, default=8, help="how often the workers of a server are recycled")
    parser.addoption("--soak-seconds", type=int, default=60, help="how long faults come at random")
    parser.addoption("--soak-seed", type=int, default=1, help="which faults, and when")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a fault runs with one combination of workers, or with all."""
    if "case" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("workers")
        assert marker is not None, "which combination of workers runs without --all-workers?"
        chosen = faults.cases(marker.args, all_of_them=metafunc.config.getoption("--all-workers"), **marker.kwargs)
        metafunc.parametrize("case", chosen, ids=str)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """What a noisy machine spoilt is measured once more."""
    if "case" not in pyfuncitem.fixturenames:
        return None
    values = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    try:
        pyfuncitem.obj(**values)
    except faults.NoisyMachineError as error:
        print(f"measured once more: {error}")
        pyfuncitem.obj(**values)
    return True


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Iterator[faults.Figures]:
    """The times of this run; kept with --write-faults."""
    found = faults.Figures()
    yield found
    if request.config.getoption("--write-faults"):
        found.write(
            ROOT / "docs" / "figures" / "faults.json",
            command=" ".join(["pytest", *map(str, request.config.invocation_params.args)]),
            anew=request.config.getoption("--faults-anew"),
        )


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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for other apps."""
    return wheels.build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def with_health(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment after `pip install readygate gunicorn`."""
    return wheels.environment(tmp_path_factory.mktemp("health") / "venv", str(wheel), "gunicorn")


@pytest.fixture(scope="session")
def with_all(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment after `pip install readygate[all]`, with what host apps bring."""
    hosts = ("gunicorn", "alembic", "Flask-SQLAlchemy", "psycopg", "psycopg-binary")
    return wheels.environment(tmp_path_factory.mktemp("all") / "venv", f"{wheel}[all]", *hosts)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter: pytest keeps its own for itself, and shuts them again at each start."""
    with tempfile.TemporaryDirectory(prefix="readygate-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The messages that `readygate` logs during the test."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, collector = logging.getLogger("readygate"), Collector()
    before, level = logger.handlers[:], logger.level
    logger.handlers[:] = [collector]
    logger.setLevel(logging.INFO)
    yield found
    logger.handlers[:] = before
    logger.setLevel(level)


@pytest.fixture
def need() -> Callable[[str], str]:
    """Asks for a program of Debian's packages: its path. Without it CI fails, and everybody else skips aloud."""

    def find(program: str) -> str:
        return shutil.which(program) or faults.missing(
            f"{program} is not installed; `apt-get install {program}` to run this"
        )

    return find


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the outside reaches a test."""
    for name in list(os.environ):
        if name.startswith("READYGATE_") or name in ("DATABASE_URL", "DATABASE_URL_FILE", "PORT", "WEB_CONCURRENCY"):
            monkeypatch.delenv(name)
