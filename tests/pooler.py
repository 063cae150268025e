"""A real PgBouncer in transaction mode."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import time
from pathlib import Path

from postgres import free_port

_CONFIGURATION = """\
[databases]
; The client's own name is forgotten by `auth_type = any`.
* = host=127.0.0.1 port={target} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 5

"""


class Pooler:
    """One process in front of a PostgreSQL on this host."""

    def __init__(self, program: str, target_port: int, folder: Path) -> None:
        """`folder`: one that any user may enter."""
        self._program = program
        self.port = free_port()
        self._file = folder / "pgbouncer.ini"
        self._file.write_text(_CONFIGURATION.format(target=target_port, port=self.port))
        # It refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            os.chown(self._file, pwd.getpwnam(self._user).pw_uid, -1)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = subprocess.Popen(
            [self._program, "-q", str(self._file)],
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        ends = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < ends, "PgBouncer does not listen"
                time.sleep(0.02)

    def stop(self) -> None:
        """End it, and every connection through it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    close = stop
