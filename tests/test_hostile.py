"""A thousand hostile requests to a real server: none is a 500, and nothing secret is in an answer or a log line."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from servers import Gunicorn, gunicorn, ready, until, worker_class
from test_servers import flask, keys, public

from entitlements import signing

pytestmark = pytest.mark.server
__all__ = ["keys"]  # A fixture, known by its name.

ADMIN = "an-admin-token-of-the-secret-store"
PASSWORD = "a-password-of-the-database"
#: What an answer to one of these may be. 400 and 431 are gunicorn's own, too, for what is no HTTP.
STATUSES = {200, 201, 204, 302, 303, 400, 401, 403, 404, 405, 409, 413, 414, 415, 417, 431, 501, 505}
PATHS = ["entitlements", "replicas", "licenses", "licenses/1", "licenses/refresh-entitlements", "", "nothing"]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW", "get"]
ODD = [
    "'",
    "''; DROP TABLE readygate_licenses;--",
    "1 OR 1=1",
    "1'; SELECT pg_sleep(10);--",
    "%27%20OR%201%3D1",
    "%00",
    "%0d%0aSet-Cookie:%20x=1",
    "%ff%fe",
    "%c0%ae%c0%ae/%c0%ae%c0%ae/etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "-1",
    "0",
    "9" * 10,
    "9" * 400,
    "1e9",
    "NaN",
    "true",
    "[]",
    "%F0%9F%92%A9",
    "%E2%80%AE",
]
VALUES: list[Any] = [None, True, 0, -1, 1e308, "", " ", "x", "'", "\x00", "\ud800", "💩" * 50, [], {}, [[]], {"a": {}}]


def exchange(server: Gunicorn, data: bytes) -> bytes:
    """What the server answers to these very bytes."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.settimeout(10)
        found = b""
        # It may hang up on what it need not read to its end.
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while block := sock.recv(65536):
                found += block
    return found


def request(method: str, target: str, *headers: str, body: bytes = b"", length: bool = True) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if length and (body or method in ("POST", "PUT", "PATCH")):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


class Attacker:
    """Makes up requests, the same ones at every run."""

    def __init__(self, key: Ed25519PrivateKey, stranger: Ed25519PrivateKey) -> None:
        self._random = random.Random(3)
        self._key, self._stranger = key, stranger
        self.texts: list[str] = []

    def requests(self, credentials: list[str]) -> Iterator[bytes]:
        """A thousand of them."""
        makers = [self._odd_target, self._odd_json, self._odd_bytes, self._odd_chunks, self._odd_headers, self._license]
        for number in range(1000):
            yield makers[number % len(makers)](self._random.choice(credentials))

    def _odd_target(self, credential: str) -> bytes:
        pick = self._random.choice
        target = pick(
            [
                f"/api/v2/licenses/{pick(ODD)}",
                f"/api/v2/{pick(ODD)}",
                f"/api/v2/replicas?limit={pick(ODD)}",
                f"/api/v2/replicas?after={pick(ODD)}&limit=5",
                f"/api/v2/replicas?after=1_{pick(ODD)}",
                f"/api/v2/replicas/{pick(ODD)}/drain",
                f"/status/replicas/{pick(ODD)}/drain",
                f"/status?done={pick(ODD)}",
                f"/api/v2/{pick(PATHS)}?{pick(ODD)}",
                f"/readyz/{pick(ODD)}",
                f"/readyz?exclude={pick(ODD)}",
            ]
        ).replace(" ", "%20")
        return request(pick(METHODS), target, credential)

    def _odd_json(self, credential: str) -> bytes:
        pick = self._random.choice
        body: Any = pick([pick(VALUES), {"license": pick(VALUES)}, {pick(["", "x", "license "]): "x"}, [pick(VALUES)]])
        return self._post(credential, json.dumps(body).encode())

    def _odd_bytes(self, credential: str) -> bytes:
        good = json.dumps({"license": "a.b.c"})
        body = self._random.choice(
            [
                b"",
                b"{",
                b'{"license": "' + b"\xff" * 50 + b'"}',
                good.encode("utf-16"),
                good.encode("utf-32"),
                b"\xef\xbb\xbf" + good.encode(),
                good.encode() * 2,
                b"[" * 50_000,
                b'{"license":' * 5_000,
                b"9" * 5_000,
                b'{"license": "' + b"x" * 65_500 + b'"}',
                b'{"license": "' + b"x" * 200_000 + b'"}',
                b'{"license": "a.b.c", "license": "d.e.f"}',
                b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
                self._random.randbytes(500),
            ]
        )
        return self._post(credential, body)

    def _odd_chunks(self, credential: str) -> bytes:
        body = self._random.choice(
            [
                b'5\r\n{"lic\r\n0\r\n\r\n',
                b"zz\r\nxx\r\n0\r\n\r\n",
                b"-5\r\nxx\r\n0\r\n\r\n",
                b"ffffffffffffffff\r\nxx",
                b"10000\r\nshort",
                b'5;ext="\r\n"\r\nhello\r\n0\r\n\r\n',
                b"4000\r\n" + b"x" * 0x4000 + b"\r\n",
                (b"4000\r\n" + b"x" * 0x4000 + b"\r\n") * 6 + b"0\r\n\r\n",
                b"5\r\nhello0\r\n\r\n",
                b"",
            ]
        )
        path, method = self._random.choice(
            [
                ("licenses", "POST"),
                ("licenses/1", "DELETE"),
                ("licenses/refresh-entitlements", "POST"),
                (f"replicas/{uuid.UUID(int=7)}/drain", "POST"),
                (f"replicas/{uuid.UUID(int=7)}/drain", "DELETE"),
            ]
        )
        lines = (credential, "Transfer-Encoding: chunked", "Content-Type: application/json")
        return request(method, f"/api/v2/{path}", *lines, body=body, length=False)

    def _odd_headers(self, credential: str) -> bytes:
        pick = self._random.choice
        header = pick(
            [
                f"Authorization: Bearer {pick(ODD)}",
                "Authorization: Basic " + base64.b64encode(pick(ODD).encode() + b":" + pick(ODD).encode()).decode(),
                "Authorization: Basic " + "=" * 50,
                "Authorization: Bearer rg_" + "é" * 43,
                "Authorization: Bearer rg_" + "A" * 43,
                "Authorization: Bearer " + "A" * 7_000,
                f"{credential}\r\nAuthorization: Bearer x",
                f"{credential}\r\nHost: evil.example",
                f"{credential}\r\nOrigin: http://[",
                f"{credential}\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https",
                f"{credential}\r\nContent-Length: -1",
                f"{credential}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
                f"{credential}\r\nExpect: 100-continue",
                f"{credential}\r\nAccept-Encoding: {pick(ODD)}\r\nRange: bytes=0-",
                f"{credential}\r\nContent-Type: {pick(['application/json; charset=utf-7', '/', ';', 'x' * 999])}",
                f"{credential}\r\nCookie: {pick(ODD)}\r\nX-HTTP-Method-Override: DELETE",
                f"{credential}\r\nX-Bad\x00: x",
            ]
        )
        return request(pick(METHODS), f"/api/v2/{pick(PATHS)}", header)

    def _license(self, credential: str) -> bytes:
        """A signed text, the key's own or a stranger's, with claims that mean harm."""
        pick, now = self._random.choice, int(time.time())
        harm = pick(
            ["\r\nX-Injected: yes", "<script>", "'); DROP TABLE x;--", "%0d%0aX-Injected: yes", "💩", "\x1b[31m"]
        )

        def rarely(bad: Any, good: Any) -> Any:
            return bad if self._random.random() < 0.1 else good

        key = rarely(self._stranger, self._key)
        # Not with signing.issue, which makes nothing that no reader takes.
        claims = {
            "version": rarely(pick(["3", None, 4]), 3),
            "jti": rarely(harm, str(uuid.UUID(int=self._random.getrandbits(128)))),
            "iat": now,
            "nbf": now - 60,
            "license_expires": now + rarely(-86400, 9 * 86400),
            "exp": rarely(pick([1e300, -1, str(now), 2**70]), now + 10 * 86400),
            "account_type": harm,
            "account_id": f"account {harm}",
            "features": {rarely(harm, "feature"): 1, "high_availability": rarely(2**64, 1)},
            "sub": harm,
            "trial": rarely(harm, False),
        }
        header = {"kid": rarely(harm, signing.jwk(key.public_key())["kid"])}
        text = jwt.encode(claims, key, algorithm="EdDSA", headers=header)
        if pick([True, False, False]):
            at = self._random.randrange(len(text))
            text = text[:at] + pick(["", "A", "'", "\r\n", " "]) + text[at + 1 :]
        if self.texts and self._random.random() < 0.4:
            text = pick(self.texts[-5:])
        self.texts.append(text)
        body = json.dumps({"license": text}).encode()
        return request("POST", "/api/v2/licenses", credential, "Content-Type: application/json", body=body)

    def _post(self, credential: str, body: bytes) -> bytes:
        kind = self._random.choice(["application/json"] * 5 + ["", "text/plain", "application/json; charset=x"])
        return request("POST", "/api/v2/licenses", credential, f"Content-Type: {kind}", body=body)


@pytest.mark.parametrize("kind", ["gthread", "sync"])
def test_a_thousand_hostile_requests(postgres_url: str, keys: Path, kind: str) -> None:
    url = postgres_url.replace("postgres@", f"postgres:{PASSWORD}@")
    variables: dict[str, Any] = {"READYGATE_LICENSE_KEYS": public(keys), "READYGATE_ADMIN_TOKEN": ADMIN}
    with gunicorn(url, *worker_class(kind), "--access-logfile", "-", workers=1, **variables) as server:
        until(lambda: ready(server))
        tokens = {
            role: flask(url, "token", "create", role, "--role", role).stdout.strip() for role in ("viewer", "admin")
        }
        basic = base64.b64encode(f"x:{tokens['admin']}".encode()).decode()
        credentials = [f"Authorization: Bearer {token}" for token in (tokens["admin"], tokens["admin"], ADMIN)]
        credentials += [f"Authorization: Bearer {tokens['viewer']}", f"Authorization: Basic {basic}", "X-None: x"]
        attacker = Attacker(signing.load(keys), Ed25519PrivateKey.generate())
        answers: list[bytes] = []
        statuses: dict[int, int] = {}
        for data in attacker.requests(credentials):
            answer = exchange(server, data).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
            answers.append(answer)
            status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
            statuses[status] = statuses.get(status, 0) + 1
            assert status in STATUSES | {0}, (data[:300], answer[:500])
        # Most were understood, and the server hung up on few.
        assert statuses.get(0, 0) < 50, statuses
        assert {200, 201, 400, 401, 403, 404, 405, 409, 413, 415} <= set(statuses), statuses
        until(lambda: ready(server))
        said = b"".join(answers).decode("latin-1")
        logged = server.lines
    assert "X-Injected: yes\r\n" not in said.replace("%0D%0AX-Injected: yes", "")
    for header in said.split("\r\n"):
        assert not header.startswith(("X-Injected", "Set-Cookie"))
    assert "Traceback" not in logged
    assert logged.count("Booting worker") == 1
    secrets = [
        ADMIN,
        PASSWORD,
        *tokens.values(),
        basic,
        # However it is spelt: with its password, without, or as SQLAlchemy shows it. (Host, port and name are told.)
        "@" + url.partition("@")[2],
        *(text.replace("\r\n", "") for text in attacker.texts),
    ]
    # The signature is what nobody needs but who wants to use the license.
    secrets += [text.rpartition(".")[2] for text in attacker.texts if len(text.rpartition(".")[2]) > 40]
    for secret in secrets:
        assert secret not in said
        assert secret not in logged
    for place in ("/site-packages/", 'File "', "sqlalchemy", "pg8000", "INSERT INTO"):
        assert place not in said
