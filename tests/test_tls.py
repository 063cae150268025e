"""TLS to the database, as libpq's sslmode has it: on Debian's PostgreSQL, and on a front of our own everywhere."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import postgres as pg
import pytest
from certificates import Authority, Pair
from servers import until

from database_url import parse
from deadline import ConnectError
from driver import BoundedConnection, Connector, sqlstate

pytestmark = pytest.mark.server

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
#: What a refused certificate of the client's is called: TLS 1.3 refuses it after the handshake, and what it says may be
#: overtaken by the end of the connection.
UNWANTED = {"tls", "connection lost"}
#: The modes that end in TLS where the server offers it.
ENCRYPTING = ["prefer", "require", "verify-ca", "verify-full"]


class Front:
    """Speaks TLS in front of the wheel's PostgreSQL, which cannot; remembers what each connection was."""

    def __init__(self, target_port: int, pair: Pair, clients: Path | None = None) -> None:
        self._target_port = target_port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.certificate, pair.key)
        if clients is not None:
            self._context.load_verify_locations(clients)
            self._context.verify_mode = ssl.CERT_REQUIRED
        #: The ciphers of the connections that were made, in turn; None: none.
        self.ciphers: list[str | None] = []
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def encrypted(self, connection: BoundedConnection) -> bool:
        """Whether the connection that was made last is."""
        return self.ciphers[-1] is not None

    def close(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(5)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(client.close)
            cipher = None
            if client.recv(8, socket.MSG_PEEK) == _SSL_REQUEST:
                client.recv(8)
                client.sendall(b"S")
                client = stack.enter_context(self._context.wrap_socket(client, server_side=True))
                assert isinstance(client, ssl.SSLSocket)
                cipher = (client.cipher() or ("?",))[0]
            self.ciphers.append(cipher)
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self._target_port), 5))
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join(5)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


class Real:
    """Debian's PostgreSQL with ssl on."""

    def __init__(self, programs: Path, make: Callable[[Path], tuple[Pair, Path]]) -> None:
        self._server = pg.Server(programs=programs)
        self.port = self._server.port
        owner = self._server.folder.stat().st_uid
        pair, clients = make(self._server.folder)
        os.chown(pair.key, owner, -1)
        rules = self._server.data / "pg_hba.conf"
        lines = [
            "hostssl all t_certificate 127.0.0.1/32 cert",
            "hostssl all t_scram 127.0.0.1/32 scram-sha-256",
            "hostssl all t_secure 127.0.0.1/32 trust",
            "host all t_secure 127.0.0.1/32 reject",
            "hostnossl all t_plain 127.0.0.1/32 trust",
            "host all t_plain 127.0.0.1/32 reject",
        ]
        rules.write_text("\n".join(lines) + "\n" + rules.read_text())
        files = {"ssl_cert_file": pair.certificate, "ssl_key_file": pair.key, "ssl_ca_file": clients}
        for name, value in [*files.items(), ("ssl", "on")]:
            pg.execute(self._server.url(), f"ALTER SYSTEM SET {name} = '{value}'")
        for role in ("t_certificate", "t_secure", "t_plain"):
            pg.execute(self._server.url(), f"CREATE ROLE {role} LOGIN")
        pg.execute(self._server.url(), "CREATE ROLE t_scram LOGIN PASSWORD 'sesame'")
        pg.execute(self._server.url(), "SELECT pg_reload_conf()")
        until(lambda: pg.execute(self._server.url(), "SHOW ssl") == [("on",)])

    def encrypted(self, connection: BoundedConnection) -> bool:
        """What the server itself says of the connection."""
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        return bool(cursor.fetchone()[0])

    def close(self) -> None:
        """End it."""
        self._server.remove()


class Endpoint(Protocol):
    """What both have in common."""

    port: int

    def encrypted(self, connection: BoundedConnection) -> bool:
        """Whether what the connection carries is."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "ours")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    return Authority(folder, "strangers")


@pytest.fixture(scope="module")
def real(authority: Authority) -> Iterator[Real]:
    """Debian's PostgreSQL, whose certificate is for `localhost` and not for 127.0.0.1."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found and os.environ.get("CI"):
        pytest.fail("postgresql is missing, and this is CI: .ci/run must install it")
    if not found:
        pytest.skip("PostgreSQL with TLS is not installed; `apt-get install postgresql` to run this")

    def make(folder: Path) -> tuple[Pair, Path]:
        issued = authority.issue("server", "localhost")
        pair = Pair(folder / "server.crt", folder / "server.key")
        for old, new in ((issued.certificate, pair.certificate), (issued.key, pair.key)):
            new.write_bytes(old.read_bytes())
        pair.key.chmod(0o600)
        clients = folder / "clients.pem"
        clients.write_bytes(authority.certificate.read_bytes())
        return pair, clients

    with contextlib.closing(Real(found[-1], make)) as server:
        yield server


@pytest.fixture(scope="module")
def front(postgres_server: pg.Server, authority: Authority) -> Iterator[Front]:
    """The front, with the same kind of certificate."""
    with contextlib.closing(Front(postgres_server.port, authority.issue("front", "localhost"))) as front:
        yield front


@pytest.fixture(params=["front", pytest.param("real", marks=pytest.mark.system)])
def endpoint(request: pytest.FixtureRequest) -> Endpoint:
    """Each test runs on both."""
    found: Endpoint = request.getfixturevalue(request.param)
    return found


@contextlib.contextmanager
def connected(port: int, host: str = "localhost", user: str = "postgres", **query: object) -> Iterator[Any]:
    """A connection by a URL with these parameters."""
    tail = "&".join(f"{name}={value}" for name, value in query.items())
    target: Any = parse(f"postgresql://{user}@{host}:{port}/postgres?{tail}")
    with contextlib.closing(Connector(lambda: target, timeout_seconds=5)()) as connection:
        yield connection


def refusal(port: int, **options: Any) -> str:
    """The word for why there is no connection; it holds no path and no text of OpenSSL's."""
    with pytest.raises(ConnectError) as caught, connected(port, **options):
        pass
    assert str(caught.value) == f"network error: {caught.value.word}"
    return caught.value.word


@pytest.mark.parametrize("mode", ENCRYPTING)
def test_a_mode_that_can_encrypt_does(endpoint: Endpoint, authority: Authority, mode: str) -> None:
    with connected(endpoint.port, sslmode=mode, sslrootcert=authority.certificate) as connection:
        assert endpoint.encrypted(connection)


@pytest.mark.parametrize("mode", ["disable", "allow"])
def test_a_mode_that_does_not_ask_for_tls_gets_none(endpoint: Endpoint, mode: str) -> None:
    with connected(endpoint.port, sslmode=mode) as connection:
        assert not endpoint.encrypted(connection)


@pytest.mark.parametrize("mode", ["prefer", "require"])
def test_without_an_authority_any_certificate_will_do(endpoint: Endpoint, mode: str) -> None:
    with connected(endpoint.port, host="127.0.0.1", sslmode=mode) as connection:
        assert endpoint.encrypted(connection)


def test_the_wrong_name_is_refused_by_verify_full_alone(endpoint: Endpoint, authority: Authority) -> None:
    wrong: dict[str, Any] = {"host": "127.0.0.1", "sslrootcert": authority.certificate}
    assert refusal(endpoint.port, sslmode="verify-full", **wrong) == "tls"
    with connected(endpoint.port, sslmode="verify-ca", **wrong) as connection:
        assert endpoint.encrypted(connection)


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_a_certificate_of_another_authority_is_refused(endpoint: Endpoint, stranger: Authority, mode: str) -> None:
    assert refusal(endpoint.port, sslmode=mode, sslrootcert=stranger.certificate) == "tls"


def test_a_certificate_of_no_public_authority_is_refused_by_the_systems(endpoint: Endpoint) -> None:
    assert refusal(endpoint.port, sslrootcert="system") == "tls"


@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_a_missing_file_is_a_matter_of_tls(endpoint: Endpoint, folder: Path, mode: str) -> None:
    assert refusal(endpoint.port, sslmode=mode, sslrootcert=folder / "none.pem") == "tls"
    none = folder / "none.pem"
    assert refusal(endpoint.port, sslmode="require", sslcert=none, sslkey=none) == "tls"


def test_an_answer_of_many_records_comes_whole(endpoint: Endpoint) -> None:
    with connected(endpoint.port, sslmode="require") as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT repeat('x', 1000000)")
        assert cursor.fetchone()[0] == "x" * 1_000_000


def test_an_expired_certificate_is_refused(postgres_server: pg.Server, authority: Authority) -> None:
    pair = authority.issue("old", "localhost", days=-1)
    with contextlib.closing(Front(postgres_server.port, pair)) as front:
        for mode in ("verify-ca", "verify-full"):
            assert refusal(front.port, sslmode=mode, sslrootcert=authority.certificate) == "tls"
        with connected(front.port, sslmode="require") as connection:
            assert front.encrypted(connection)


def test_prefer_falls_back_where_the_server_has_no_tls_and_the_stricter_do_not(
    postgres_server: pg.Server, authority: Authority
) -> None:
    with connected(postgres_server.port, sslmode="prefer") as connection:
        connection.cursor().execute("SELECT 1")
    for mode in ("require", "verify-ca", "verify-full"):
        assert refusal(postgres_server.port, sslmode=mode, sslrootcert=authority.certificate) == "tls"


def test_a_client_shows_its_certificate(postgres_server: pg.Server, authority: Authority, stranger: Authority) -> None:
    ours, theirs = authority.issue("t_certificate"), stranger.issue("t_stranger")
    pair = authority.issue("strict", "localhost")
    with contextlib.closing(Front(postgres_server.port, pair, clients=authority.certificate)) as front:
        with connected(front.port, sslmode="require", sslcert=ours.certificate, sslkey=ours.key) as connection:
            assert front.encrypted(connection)
        assert refusal(front.port, sslmode="require", sslcert=theirs.certificate, sslkey=theirs.key) in UNWANTED
        assert refusal(front.port, sslmode="require") in UNWANTED


# What only PostgreSQL itself can say


@pytest.mark.system
def test_a_role_may_log_in_by_its_certificate(real: Real, authority: Authority, stranger: Authority) -> None:
    ours, theirs = authority.issue("t_certificate"), stranger.issue("t_certificate")
    query: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": authority.certificate}
    query |= {"sslcert": ours.certificate, "sslkey": ours.key}
    with connected(real.port, user="t_certificate", **query) as connection:
        assert real.encrypted(connection)
    query |= {"sslcert": theirs.certificate, "sslkey": theirs.key}
    assert refusal(real.port, user="t_certificate", **query) in UNWANTED
    with pytest.raises(Exception, match="28000"), connected(real.port, user="t_certificate", sslmode="require"):
        pass


@pytest.mark.system
def test_a_password_is_checked_by_scram_inside_tls(real: Real) -> None:
    with connected(real.port, user="t_scram:sesame", sslmode="require") as connection:
        assert real.encrypted(connection)


@pytest.mark.system
def test_allow_turns_to_tls_and_prefer_to_none_where_the_server_wants_it_so(real: Real) -> None:
    with connected(real.port, user="t_secure", sslmode="allow") as connection:
        assert real.encrypted(connection)
    with connected(real.port, user="t_plain", sslmode="prefer") as connection:
        assert not real.encrypted(connection)
    for user, mode in (("t_secure", "disable"), ("t_plain", "require")):
        with pytest.raises(Exception, match="28000") as caught, connected(real.port, user=user, sslmode=mode):
            pass
        assert sqlstate(caught.value) == "28000"
