"""Public keys: sets that are refused, and a file of them that changes under a running service."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from entitlements import KeyFile, KeySetError, key_set, signing


def a_jwk(**changed: Any) -> dict[str, Any]:
    """A public key, with some of its members changed; `...` leaves one out."""
    found = {**signing.jwk(Ed25519PrivateKey.generate().public_key()), **changed}
    return {name: value for name, value in found.items() if value is not ...}


def a_set(*keys: object) -> str:
    return json.dumps({"keys": list(keys)})


JWK = a_jwk()
RSA = {"kty": "RSA", "kid": "rsa", "n": "AQAB", "e": "AQAB"}
SECRET = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"

REFUSED: dict[str, tuple[str, str]] = {
    "empty": ("no JWK set", ""),
    "no JSON": ("no JWK set", "-----BEGIN PUBLIC KEY-----"),
    "a JSON list": ("no JWK set", json.dumps([JWK])),
    "a JSON text": ("no JWK set", '"keys"'),
    "null": ("no JWK set", "null"),
    "a key that is not in a set": ("no JWK set", json.dumps(JWK)),
    "nested 30,000 deep": ("no JWK set", "[" * 30_000),
    "a number of 5,000 digits": ("no JWK set", '{"keys": ' + "9" * 5000 + "}"),
    "over 64 KiB": ("over 64 KiB", a_set(JWK) + " " * 65536),
    "keys null": ("no Ed25519 key", '{"keys": null}'),
    "keys a number": ("no Ed25519 key", '{"keys": 7}'),
    "keys an object": ("no Ed25519 key", json.dumps({"keys": {"kid": JWK}})),
    "keys a text": ("no Ed25519 key", '{"keys": "kid"}'),
    "no keys": ("no Ed25519 key", a_set()),
    "keys that are no objects": ("kid", a_set(JWK["x"])),
    "no kid": ("kid", a_set(a_jwk(kid=...))),
    "kid empty": ("kid", a_set(a_jwk(kid=""))),
    "kid a number": ("kid", a_set(a_jwk(kid=7))),
    "kid a list": ("kid", a_set(a_jwk(kid=["k"]))),
    "two keys of one kid": ("kid", a_set(a_jwk(kid="k"), a_jwk(kid="k"))),
    "one key twice": ("kid", a_set(JWK, JWK)),
    "another kty under the kid of one": ("kid", a_set(a_jwk(kid="rsa"), RSA)),
    "a private key": ("private key", a_set({**JWK, "d": SECRET})),
    "a private key after a public one": ("private key", a_set(JWK, a_jwk(d=SECRET))),
    "a private RSA key after a public one": ("private key", a_set(JWK, {**RSA, "d": SECRET})),
    "only an RSA key": ("no Ed25519 key", a_set(RSA)),
    "only a secret": ("no Ed25519 key", a_set({"kty": "oct", "kid": "k", "k": SECRET})),
    "kty EC": ("no Ed25519 key", a_set(a_jwk(kty="EC"))),
    "kty missing": ("no Ed25519 key", a_set(a_jwk(kty=...))),
    "kty in small letters": ("no Ed25519 key", a_set(a_jwk(kty="okp"))),
    "kty a list": ("no Ed25519 key", a_set(a_jwk(kty=["OKP"]))),
    "crv Ed448": ("no Ed25519 key", a_set(a_jwk(crv="Ed448"))),
    "crv X25519": ("no Ed25519 key", a_set(a_jwk(crv="X25519"))),
    "crv missing": ("no Ed25519 key", a_set(a_jwk(crv=...))),
    "x missing": ("cannot be read", a_set(a_jwk(x=...))),
    "x empty": ("cannot be read", a_set(a_jwk(x=""))),
    "x too short": ("cannot be read", a_set(a_jwk(x=JWK["x"][:-4]))),
    "x too long": ("cannot be read", a_set(a_jwk(x=JWK["x"] + "AAAA"))),
    "x of half a byte": ("cannot be read", a_set(a_jwk(x="A"))),
    "x a number": ("cannot be read", a_set(a_jwk(x=7))),
    "x null": ("cannot be read", a_set(a_jwk(x=None))),
    "x a list": ("cannot be read", a_set(a_jwk(x=[JWK["x"]]))),
    "x not ASCII": ("cannot be read", a_set(a_jwk(x="\u00fc" * 43))),
}


@pytest.mark.parametrize(("words", "text"), REFUSED.values(), ids=REFUSED)
def test_the_set_is_refused_in_words_that_do_not_repeat_it(words: str, text: str) -> None:
    with pytest.raises(KeySetError, match=words) as caught:
        key_set(text)
    assert SECRET not in str(caught.value)
    assert JWK["x"] not in str(caught.value)


def test_a_set_holds_its_keys_by_their_ids() -> None:
    assert set(key_set(a_set(JWK, a_jwk(kid="second")))) == {JWK["kid"], "second"}


def test_a_set_needs_no_more_than_a_key_with_an_id() -> None:
    assert key_set(a_set(a_jwk(kid="k", use=..., alg=...)))["k"] is not None


def test_a_key_of_another_type_beside_a_good_one_verifies_nothing() -> None:
    assert key_set(a_set(JWK, RSA))["rsa"] is None


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application made by a test before this one keeps the lines of `readygate` to itself."""
    monkeypatch.setattr(logging.getLogger("readygate"), "propagate", True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(a_set(JWK))
    return path


def a_key_file(file: Path) -> KeyFile:
    return KeyFile(file, file.read_text())


def test_a_key_that_is_added_to_the_file_counts(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    keys = a_key_file(file)
    assert set(keys()) == {JWK["kid"]}
    file.write_text(a_set(JWK, a_jwk(kid="second")))
    assert set(keys()) == {JWK["kid"], "second"}
    assert caplog.messages == ["license keys: read again, 2 in the set"]


def test_a_file_that_is_replaced_as_kubernetes_does_counts(file: Path, tmp_path: Path) -> None:
    keys = a_key_file(file)
    keys()
    other = tmp_path / "other.json"
    other.write_text(a_set(a_jwk(kid=JWK["kid"][::-1])))
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)
    assert set(keys()) == {JWK["kid"][::-1]}


def test_an_unchanged_file_is_the_same_set_and_logs_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    keys = a_key_file(file)
    first = keys()
    file.touch()
    assert keys() is first
    assert caplog.messages == []


def test_a_worker_that_starts_later_reads_what_the_file_holds_by_then(file: Path) -> None:
    checked_at_the_start = file.read_text()
    file.write_text(a_set(a_jwk(kid="rotated")))
    assert set(KeyFile(file, checked_at_the_start)()) == {"rotated"}


def turn_unreadable(file: Path) -> None:
    file.unlink()
    file.mkdir()


BAD: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda file: file.write_text(""),
    "no JSON": lambda file: file.write_text("{"),
    "no UTF-8": lambda file: file.write_bytes(b'{"keys": "\xff"}'),
    "a private key": lambda file: file.write_text(a_set(a_jwk(d=SECRET))),
    "an unreadable x": lambda file: file.write_text(a_set(a_jwk(x=7))),
    "no keys": lambda file: file.write_text(a_set()),
    "over 64 KiB": lambda file: file.write_text(a_set(JWK) + " " * 65536),
    "a folder": turn_unreadable,
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_a_file_that_turns_bad_leaves_the_loaded_keys_and_is_logged_once(
    spoil: Callable[[Path], object], file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = a_key_file(file)
    loaded = keys()
    spoil(file)
    assert [keys() for _ in range(3)] == [loaded] * 3
    assert len(caplog.messages) == 1
    assert "the keys loaded before stay in use" in caplog.messages[0]
    assert SECRET not in caplog.text


def test_a_file_that_turned_bad_before_a_worker_started_stops_no_worker(file: Path) -> None:
    text = file.read_text()
    file.write_text("{")
    assert set(KeyFile(file, text)()) == {JWK["kid"]}


def test_a_file_that_turns_good_again_counts(file: Path) -> None:
    keys = a_key_file(file)
    file.unlink()
    keys()
    file.write_text(a_set(a_jwk(kid="second")))
    assert set(keys()) == {"second"}


def test_without_a_file_there_is_no_key() -> None:
    assert KeyFile(None, None)() == {}


def test_a_file_that_cannot_be_used_from_the_start_is_refused(file: Path) -> None:
    with pytest.raises(KeySetError, match="no JWK set"):
        KeyFile(file, "{")
