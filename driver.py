"""PostgreSQL connections that are bounded by our own clock: names, connect, TLS, every message, every statement."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pg8000.dbapi
from pg8000.core import Context

from database_url import Postgres
from deadline import Budget, ConnectError, Deadline
from resolver import Resolver

#: What a server answers when TLS or the lack of it is what it refuses (invalid_authorization_specification).
_REFUSED_BY_POLICY = "28000"
#: The server's bound as a share of ours: a lock wait then ends with the server's word, and the connection lives on;
#: only a server that does not answer at all loses it.
_SERVER_SHARE = 0.8
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class Stream:
    """A socket as pg8000 wants it (`makefile`, `read`, `write`, `flush`), under one deadline for all its calls.

    pg8000's own timeout is per socket read: a server that drips one byte at a time would never meet it.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.deadline = deadline
        self._sock = sock
        self._received = bytearray()
        self._outgoing = bytearray()

    def makefile(self, mode: str) -> Stream:
        """The stream itself: it already buffers."""
        return self

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, or raises ConnectError."""
        while len(self._received) < size:
            self._sock.settimeout(self.deadline.left())
            try:
                block = self._sock.recv(65536)
            except TimeoutError:
                raise ConnectError("timeout") from None
            except OSError as error:
                # With TLS 1.3 a server refuses a client's certificate only after the handshake.
                refused = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
                raise ConnectError("tls" if refused else "connection lost") from None
            if not block:
                raise ConnectError("connection lost")
            self._received += block
        result = bytes(self._received[:size])
        del self._received[:size]
        return result

    def write(self, data: bytes) -> None:
        """Keep `data` until flush."""
        self._outgoing += data

    def flush(self) -> None:
        """Send what was written."""
        data, self._outgoing = bytes(self._outgoing), bytearray()
        self._sock.settimeout(self.deadline.left())
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise ConnectError("timeout") from None
        except OSError:
            raise ConnectError("connection lost") from None

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class BoundedConnection(pg8000.dbapi.Connection):  # type: ignore[misc]  # pg8000 is untyped
    """A DB-API connection whose every operation ends within `timeout_seconds`, on both sides.

    Ours: the stream's deadline. The server's: `SET LOCAL statement_timeout` in front of each statement, in the same
    message, so that a statement we gave up on does not hold its backend for ever. A message of several statements is
    one transaction to PostgreSQL (protocol, "Multiple Statements in a Simple Query") and to PgBouncer, and it leaves
    nothing behind in the session.
    """

    def __init__(self, stream: Stream, timeout_seconds: float, budget: Budget, **options: Any) -> None:
        """`budget`: what bounds several operations together, where somebody set it."""
        self._stream = stream
        self._timeout_seconds, self._budget = timeout_seconds, budget
        # host is only a word here: the socket is already there, its TLS too.
        super().__init__(host="localhost", sock=stream, ssl_context=False, **options)

    def execute_simple(self, statement: str) -> Context:
        """One message: a statement without parameters, or the beginning of a transaction."""
        self._begin()
        limit = f"SET LOCAL statement_timeout = {max(1, round(self._stream.deadline.left() * _SERVER_SHARE * 1000))}"
        if not self._in_transaction:
            statement = f"{statement}; {limit}" if statement == "begin transaction" else f"{limit}; {statement}"
        return super().execute_simple(statement)

    def execute_unnamed(self, *args: Any, **kwargs: Any) -> Context:
        """A statement with parameters: three messages, so it belongs inside a transaction."""
        self._begin()
        return super().execute_unnamed(*args, **kwargs)

    def close(self) -> None:
        """Say goodbye and close, whether or not the server listens."""
        self._stream.deadline = Deadline(1.0)
        with suppress(ConnectError):  # It was lost already; the socket is closed all the same.
            super().close()

    def _begin(self) -> None:
        self._stream.deadline = self._budget.deadline(self._timeout_seconds)


class Connector:
    """Makes bounded connections to wherever `source()` points at that moment."""

    def __init__(
        self,
        source: Callable[[], Postgres],
        *,
        timeout_seconds: float,
        connect_seconds: float | None = None,
        budget: Budget | None = None,
        resolve: Resolver | None = None,
    ) -> None:
        """`connect_seconds`: how long a connect may take, where that is less than a statement may.

        `budget`: what bounds several operations together. `resolve`: the worker's resolver; None: one of its own.
        """
        self._source = source
        self._timeout_seconds = timeout_seconds
        self._connect_seconds = timeout_seconds if connect_seconds is None else connect_seconds
        self._budget, self._resolve = budget or Budget(), resolve or Resolver()

    def __call__(self) -> BoundedConnection:
        """A connection; raises ConnectError, or pg8000's error for what the server said."""
        target = self._source()
        seconds = min(self._connect_seconds, target.connect_timeout or self._connect_seconds)
        deadline = self._budget.deadline(seconds)
        ways = _WAYS[target.sslmode]
        for last, tls in ((way is ways[-1], way) for way in ways):
            try:
                return self._open(target, deadline, tls=tls)
            except ConnectError as error:
                if last or error.word != "tls":
                    raise
            except pg8000.dbapi.DatabaseError as error:
                if last or sqlstate(error) != _REFUSED_BY_POLICY:
                    raise
        raise AssertionError("every sslmode has a way")

    def _open(self, target: Postgres, deadline: Deadline, *, tls: bool) -> BoundedConnection:
        sock = self._connect(target, deadline)
        try:
            if tls and not target.host.startswith("/"):
                sock = _wrap(sock, target, deadline)
            return BoundedConnection(
                Stream(sock, deadline),
                self._timeout_seconds,
                self._budget,
                user=target.user,
                # Where one is asked for and there is none, the server refuses an empty one in its own words.
                password=target.password or "",
                database=target.database,
                application_name=target.application_name,
            )
        except BaseException as error:
            sock.close()
            if isinstance(error, Exception) and not isinstance(error, pg8000.dbapi.Error):
                raise ConnectError("other") from None  # What answered there does not speak PostgreSQL.
            raise

    def _connect(self, target: Postgres, deadline: Deadline) -> socket.socket:
        error = ConnectError("name not resolved")
        addresses = self._addresses(target, deadline)
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            # Each has its share of the time: one that never answers must not keep the next from being tried.
            share = deadline.left() / (len(addresses) - number)
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:
                # A kernel without IPv6, say.
                error = ConnectError("refused")
                continue
            try:
                sock.settimeout(share)
                sock.connect(address)
                if family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except TimeoutError:
                error = ConnectError("timeout")
            except OSError:
                error = ConnectError("refused")
            sock.close()
        raise error

    def _addresses(self, target: Postgres, deadline: Deadline) -> list[tuple[Any, ...]]:
        if target.host.startswith("/"):
            path = f"{target.host}/.s.PGSQL.{target.port}"
            return [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", path)]
        return self._resolve(target.host, target.port, deadline)


#: Which ways a mode tries, in turn: True with TLS, False without (libpq, table 34.1).
_WAYS: dict[str, tuple[bool, ...]] = {
    "disable": (False,),
    "allow": (False, True),
    "prefer": (True, False),
    "require": (True,),
    "verify-ca": (True,),
    "verify-full": (True,),
}


def sqlstate(error: BaseException) -> str | None:
    """The server's SQLSTATE in an error of pg8000, or None."""
    if error.args and isinstance(error.args[0], dict):
        code = error.args[0].get("C")
        return code if isinstance(code, str) else None
    return None


def _wrap(sock: socket.socket, target: Postgres, deadline: Deadline) -> ssl.SSLSocket:
    try:
        context = _context(target)
        sock.settimeout(deadline.left())
        sock.sendall(_SSL_REQUEST)
        answer = sock.recv(1)
        if answer != b"S":
            raise ConnectError("tls" if answer else "connection lost")
        sock.settimeout(deadline.left())
        return context.wrap_socket(sock, server_hostname=target.host)
    except TimeoutError:
        raise ConnectError("timeout") from None
    except (ConnectionError, ssl.SSLError) as error:
        raise ConnectError("tls" if isinstance(error, ssl.SSLError) else "connection lost") from None
    except OSError:  # An unreadable certificate file.
        raise ConnectError("tls") from None


def _context(target: Postgres) -> ssl.SSLContext:
    context = (
        ssl.create_default_context() if target.sslrootcert == "system" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )
    if target.sslcert and target.sslkey:
        # An encrypted key would have OpenSSL ask for its password at the terminal, and wait there.
        context.load_cert_chain(Path(target.sslcert), Path(target.sslkey), password=lambda: b"")
    # libpq: "require" verifies as verify-ca does once it is given a root certificate.
    verify = target.sslmode.startswith("verify") or (target.sslmode == "require" and target.sslrootcert is not None)
    context.check_hostname = target.sslmode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if verify and target.sslrootcert and target.sslrootcert != "system":
        context.load_verify_locations(target.sslrootcert)
    return context
