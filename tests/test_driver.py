"""Connections under our own clock: whatever the other side does, each operation ends in time, with one word."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
from certificates import Authority
from cryptography.hazmat.primitives import serialization
from proxy import Proxy
from sqlalchemy.exc import SQLAlchemyError

import database
from database_url import Postgres
from deadline import Budget, ConnectError, Deadline
from driver import BoundedConnection, Connector
from resolver import Resolver

TIMEOUT = 0.5
#: What a busy machine may add.
SLACK = 0.5
AUTHENTICATED = b"R" + struct.pack("!ii", 8, 0) + b"Z" + struct.pack("!i", 5) + b"I"


@contextlib.contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does `serve` with each connection and closes it."""
    ended = threading.Event()

    def each(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            serve(client)

    def accept() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                client, _ = listener.accept()
                client.settimeout(5)
                threading.Thread(target=each, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        ended.set()
        thread.join(5)


def silent(client: socket.socket) -> None:
    while client.recv(4096):
        pass


def drip(client: socket.socket) -> None:
    client.recv(4096)
    client.sendall(b"S" + struct.pack("!i", 10_000))
    while True:
        client.sendall(b"x")
        time.sleep(0.05)


def close(client: socket.socket) -> None:
    client.recv(4096)


def web(client: socket.socket) -> None:
    client.recv(4096)
    client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def rubbish(client: socket.socket) -> None:
    client.recv(4096)
    client.sendall(b"\xff" + struct.pack("!i", 6) + b"\xff\xff")


def target(port: int, **options: Any) -> Postgres:
    defaults: dict[str, Any] = {"host": "127.0.0.1", "user": "app", "password": "sesame", "database": "shop"}
    return Postgres(port=port, **{**defaults, "sslmode": "disable", **options})


def connect(port: int, **options: Any) -> BoundedConnection:
    return Connector(lambda: target(port, **options), timeout_seconds=TIMEOUT)()


def refusal(port: int, **options: Any) -> str:
    """The word for why there is no connection, which must come in time and say nothing else."""
    started = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        connect(port, **options)
    assert time.monotonic() - started < TIMEOUT + SLACK
    assert str(caught.value) == f"network error: {caught.value.word}"
    return caught.value.word


def test_a_deadline_is_an_instant_not_a_bound_of_each_call() -> None:
    deadline = Deadline(60)
    first, second = deadline.left(), deadline.left()
    assert 59 < second <= first <= 60
    with pytest.raises(ConnectError, match="timeout"):
        Deadline(0).left()


@pytest.mark.parametrize(
    ("serve", "word"),
    [(silent, "timeout"), (drip, "timeout"), (close, "connection lost"), (web, "connection lost"), (rubbish, "other")],
)
def test_a_server_that_is_no_postgres_is_left_in_time(serve: Callable[[socket.socket], None], word: str) -> None:
    with server(serve) as port:
        assert refusal(port) == word


@pytest.mark.parametrize(("serve", "word"), [(silent, "timeout"), (close, "connection lost"), (web, "tls")])
def test_a_server_that_does_not_answer_the_question_for_tls_is_left_in_time(
    serve: Callable[[socket.socket], None], word: str
) -> None:
    with server(serve) as port:
        assert refusal(port, sslmode="require") == word


def test_a_server_that_never_begins_its_handshake_is_left_in_time() -> None:
    def agree(client: socket.socket) -> None:
        client.recv(8)
        client.sendall(b"S")
        silent(client)

    with server(agree) as port:
        assert refusal(port, sslmode="require") == "timeout"


def test_both_ways_of_prefer_share_one_bound() -> None:
    def neither(client: socket.socket) -> None:
        if client.recv(8) == struct.pack("!ii", 8, 80877103):
            time.sleep(TIMEOUT * 0.8)
            client.sendall(b"N")
        silent(client)

    with server(neither) as port:
        assert refusal(port, sslmode="prefer") == "timeout"


def test_a_connect_that_nobody_answers_is_left_in_time() -> None:
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # More than its queue holds: from then on the kernel answers nobody.
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        assert refusal(listener.getsockname()[1]) == "timeout"


def test_a_closed_port_and_a_missing_socket_are_refused() -> None:
    assert refusal(pg.free_port()) == "refused"
    assert refusal(5432, host="/nowhere/at/all") == "refused"


def test_a_connect_timeout_of_the_url_counts_where_it_is_shorter() -> None:
    with server(silent) as port:
        connector = Connector(lambda: target(port, connect_timeout=TIMEOUT), timeout_seconds=60)
        started = time.monotonic()
        with pytest.raises(ConnectError, match="timeout"):
            connector()
        assert time.monotonic() - started < TIMEOUT + SLACK


def test_a_connect_may_have_a_shorter_bound_than_a_statement() -> None:
    with server(silent) as port:
        connector = Connector(lambda: target(port), timeout_seconds=60, connect_seconds=TIMEOUT)
        started = time.monotonic()
        with pytest.raises(ConnectError, match="timeout"):
            connector()
        assert time.monotonic() - started < TIMEOUT + SLACK


@pytest.mark.parametrize("serve", [silent, drip])
def test_a_statement_that_is_not_answered_ends_in_time(serve: Callable[[socket.socket], None]) -> None:
    def greet_then(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(AUTHENTICATED)
        serve(client)

    with server(greet_then) as port, contextlib.closing(connect(port)) as connection:
        started = time.monotonic()
        with pytest.raises(ConnectError, match="timeout"):
            connection.cursor().execute("SELECT 1")
        assert time.monotonic() - started < TIMEOUT + SLACK


def test_a_server_that_stops_reading_is_left_in_time() -> None:
    ended = threading.Event()

    def greet_and_read_no_more(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(AUTHENTICATED)
        ended.wait(10)

    with server(greet_and_read_no_more) as port, contextlib.closing(connect(port)) as connection:
        started = time.monotonic()
        with pytest.raises(ConnectError, match="timeout"):
            # More than the buffers of both sides hold.
            connection.execute_simple(f"SELECT '{'x' * 30_000_000}'")
        assert time.monotonic() - started < TIMEOUT + SLACK + 1
        ended.set()


def test_closing_never_waits_for_the_other_side() -> None:
    def greet(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(AUTHENTICATED)
        time.sleep(2)

    with server(greet) as port:
        connection = connect(port)
        started = time.monotonic()
        connection.close()
        assert time.monotonic() - started < SLACK


# Names


@pytest.mark.parametrize("name", ["gate.invalid", "a..b", "x" * 300])
def test_a_name_that_is_none_is_not_resolved(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def offline(host: str, *args: Any, **options: Any) -> Any:
        if host == "gate.invalid":  # Not every machine's resolver is quick to say so.
            raise socket.gaierror(socket.EAI_NONAME, "sesame")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    assert refusal(5432, host=name) == "name not resolved"


def hanging(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[Any]]:
    """A system's resolver that hangs until it is freed, and what it was asked."""
    free, asked = threading.Event(), []

    def hang(*args: Any, **options: Any) -> Any:
        asked.append(args)
        free.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    return free, asked


def test_a_resolver_that_hangs_is_left_in_time_and_never_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    free, asked = hanging(monkeypatch)
    connector = Connector(lambda: target(5432, host="db"), timeout_seconds=TIMEOUT)
    started = time.monotonic()
    with pytest.raises(ConnectError, match="name not resolved"):
        connector()
    assert TIMEOUT <= time.monotonic() - started < TIMEOUT + SLACK
    for _ in range(3):
        with pytest.raises(ConnectError, match="name not resolved"):
            connector()
    assert time.monotonic() - started < TIMEOUT + SLACK
    assert len(asked) == 1
    free.set()
    for thread in threading.enumerate():
        if thread.name == "readygate-resolve":
            thread.join(5)
    with pytest.raises(ConnectError, match="name not resolved"):
        connector()
    assert len(asked) == 2


def test_those_that_connect_at_once_all_resolve(postgres_server: pg.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return resolve(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    port = postgres_server.port
    connector = Connector(lambda: target(port, user="postgres", database="postgres"), timeout_seconds=5)
    outcomes: list[str] = []

    def one() -> None:
        try:
            connector().close()
            outcomes.append("connected")
        except ConnectError as error:
            outcomes.append(error.word)

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert outcomes == ["connected"] * 3


def test_every_address_of_a_name_is_tried(postgres_server: pg.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def two(host: str, port: int, **options: Any) -> list[tuple[Any, ...]]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.1", closed)), (*kind, ("127.0.0.1", port))]

    closed = pg.free_port()
    monkeypatch.setattr(socket, "getaddrinfo", two)
    connect(postgres_server.port, host="db", user="postgres", database="postgres").close()


def test_an_address_that_never_answers_leaves_time_for_the_next(
    postgres_server: pg.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        addresses = [full.getsockname()] * 2 + [("127.0.0.1", postgres_server.port)]
        # A backlog that is full drops what comes, as a black hole does.
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(full.getsockname())
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*kind, address) for address in addresses])
            started = time.monotonic()
            connect(postgres_server.port, host="db", user="postgres", database="postgres").close()
            assert time.monotonic() - started > TIMEOUT / 2


def test_a_kind_of_address_that_the_kernel_lacks_is_passed_over(
    postgres_server: pg.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", postgres_server.port))
    none = (socket.AF_APPLETALK, socket.SOCK_STREAM, 0, "", ("::1", 1))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [none, good])
    connect(postgres_server.port, host="db", user="postgres", database="postgres").close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [none])
    assert refusal(5432, host="db") == "refused"


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-full"])
def test_a_server_that_hangs_up_on_the_question_for_tls_is_a_lost_connection(mode: str) -> None:
    def reset(client: socket.socket) -> None:
        client.recv(8)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with server(reset) as port:
        assert refusal(port, sslmode=mode, sslrootcert="system" if mode == "verify-full" else None) == "connection lost"


def test_one_resolver_serves_all_that_connect_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    free, asked = hanging(monkeypatch)
    resolve = Resolver()
    for _ in range(3):
        connector = Connector(lambda: target(5432, host="db"), timeout_seconds=TIMEOUT, resolve=resolve)
        with pytest.raises(ConnectError, match="name not resolved"):
            connector()
    assert len(asked) == 1
    free.set()


# Several operations together


def test_a_budget_bounds_all_that_is_done_inside() -> None:
    budget = Budget()
    with budget.limit(0.2):
        with budget.limit(60):
            assert budget.deadline(60).left() <= 0.2
        assert budget.deadline(0.1).left() <= 0.1
        time.sleep(0.2)
        with pytest.raises(ConnectError, match="timeout"):
            budget.deadline(60).left()
    assert budget.deadline(60).left() > 59


def test_a_budget_is_of_the_thread_that_set_it() -> None:
    budget, seen = Budget(), []
    with budget.limit(0.2):
        other = threading.Thread(target=lambda: seen.append(budget.deadline(60).left()))
        other.start()
        other.join()
    assert seen[0] > 59


def test_a_connect_and_its_statements_share_a_budget(postgres_server: pg.Server) -> None:
    with contextlib.closing(Proxy(postgres_server.port)) as proxy:
        proxy.delay_seconds = 0.15
        shared = database.Shared()
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        engine = database.background_engine(lambda: url, timeout_seconds=5, shared=shared)
        started = time.monotonic()

        def work() -> None:
            with shared.budget.limit(0.5), engine.connect() as connection:
                for _ in range(20):
                    connection.exec_driver_sql("SELECT 1")

        with pytest.raises(SQLAlchemyError, match="timeout"):
            work()
        assert time.monotonic() - started < 0.5 + SLACK


def test_an_encrypted_key_is_refused_and_asks_nobody(tmp_path: Path) -> None:
    pair = Authority(tmp_path, "authority").issue("client")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"sesame")
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    url = f"postgresql://app@db/shop?sslmode=require&sslcert={pair.certificate}&sslkey={pair.key}"
    program = f"import database_url, driver; driver._context(database_url.parse({url!r}))"

    def own_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    # At a terminal, where OpenSSL would ask for the password, and wait.
    terminal, ours = pty.openpty()
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        stdin=ours,
        capture_output=True,
        text=True,
        timeout=10,
        preexec_fn=own_the_terminal,
    )
    os.close(ours)
    os.close(terminal)
    assert run.stderr.splitlines()[-1].startswith("ssl.SSLError: ")


# What a real server says


@pytest.fixture(scope="module")
def strict(postgres_server: pg.Server) -> pg.Server:
    """A server with roles that need a password, each by another method, and one that may not enter."""
    rules = postgres_server.data / "pg_hba.conf"
    methods = {"t_scram": "scram-sha-256", "t_md5": "md5", "t_password": "password", "t_reject": "reject"}
    lines = [f"host all {role} 127.0.0.1/32 {method}\n" for role, method in methods.items()]
    rules.write_text("".join(lines) + rules.read_text())
    url = postgres_server.url()
    pg.execute(url, "SELECT pg_reload_conf()")
    for role in ("t_scram", "t_password", "t_reject"):
        pg.execute(url, f"CREATE ROLE {role} LOGIN PASSWORD 'sesame'")
    pg.execute(url, "CREATE ROLE t_full LOGIN CONNECTION LIMIT 0")
    pg.execute(url, "SET password_encryption = md5; CREATE ROLE t_md5 LOGIN PASSWORD 'sesame'")
    return postgres_server


def failure(port: int, **options: Any) -> str:
    """What the log says of a failing connect through the engine."""
    one = {"user": "postgres", "password": "sesame", "database": "postgres", **options}
    url = f"postgresql://{one['user']}:{one['password']}@127.0.0.1:{port}/{one['database']}?sslmode=disable"
    engine = database.background_engine(lambda: url.replace(":None@", "@"), timeout_seconds=5)
    with pytest.raises(SQLAlchemyError) as caught:
        engine.connect()
    shown = str(database.failure(caught.value))
    assert not any(word in shown for word in (one["user"], "sesame", "wrong", "FATAL"))
    return shown


@pytest.mark.parametrize("role", ["t_scram", "t_md5", "t_password"])
def test_every_method_of_passwords_is_spoken(strict: pg.Server, role: str) -> None:
    connect(strict.port, user=role, database="postgres").close()
    assert failure(strict.port, user=role, password="wrong") == "authentication (28P01)"


@pytest.mark.parametrize("role", ["t_scram", "t_md5", "t_password"])
def test_a_missing_password_is_a_matter_of_authentication(strict: pg.Server, role: str) -> None:
    assert failure(strict.port, user=role, password=None) == "authentication (28P01)"


def test_a_server_that_refuses_has_its_word(strict: pg.Server) -> None:
    assert failure(strict.port, user="t_reject") == "authentication (28000)"
    assert failure(strict.port, user="t_nobody") == "authentication (28000)"
    assert failure(strict.port, user="t_full") == "too many connections (53300)"
    assert failure(strict.port, database="nowhere") == "other (3D000)"


def test_a_full_server_says_so(strict: pg.Server) -> None:
    url = strict.url()
    pg.execute(url, "ALTER ROLE t_full CONNECTION LIMIT 2")
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(contextlib.closing(connect(strict.port, user="t_full", database="postgres")))
        assert failure(strict.port, user="t_full") == "too many connections (53300)"


def test_a_statement_that_the_server_ends_in_time_leaves_the_connection_alive(postgres_server: pg.Server) -> None:
    with contextlib.closing(connect(postgres_server.port, user="postgres", database="postgres")) as connection:
        connection.autocommit = True
        cursor, started = connection.cursor(), time.monotonic()
        with pytest.raises(Exception, match="57014") as caught:
            cursor.execute("SELECT pg_sleep(30)")
        assert time.monotonic() - started < TIMEOUT + SLACK
        assert str(database.failure(caught.value)) == "timeout (57014)"
        assert not database.failure(caught.value).lost
        cursor.execute("SELECT 1")
        assert tuple(cursor.fetchone()) == (1,)


def test_the_bound_of_a_statement_stays_with_it(postgres_server: pg.Server) -> None:
    with contextlib.closing(connect(postgres_server.port, user="postgres", database="postgres")) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        # A message of one's own, past execute_simple: what the session says once the statement is over.
        context = super(BoundedConnection, connection).execute_simple("SHOW statement_timeout")
        assert context.rows == [["0"]]


def test_a_socket_in_a_folder_is_reached(postgres_server: pg.Server) -> None:
    host, port = str(postgres_server.folder), postgres_server.port
    connect(port, host=host, user="postgres", database="postgres", sslmode="verify-full").close()
