"""Public keys that licenses are verified against: a JWK set (RFC 7517) of Ed25519 keys (RFC 8037)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .errors import KeySetError

_log = logging.getLogger("readygate.entitlements")
MAX_BYTES = 64 * 1024
#: Keys by their id; None where the set has one of another type, which verifies nothing here.
KeySet = Mapping[str, Ed25519PublicKey | None]


def key_set(text: str) -> KeySet:
    """The keys in a JWK set; raises KeySetError."""
    if len(text) > MAX_BYTES:
        raise KeySetError("is over 64 KiB; it takes a JWK set (RFC 7517)")
    try:
        found = json.loads(text)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KeySetError('holds no JWK set; it takes {"keys": [...]} (RFC 7517)') from None
    keys: dict[str, Ed25519PublicKey | None] = {}
    for jwk in found if isinstance(found, list) else []:
        kid = jwk.get("kid") if isinstance(jwk, dict) else None
        if not isinstance(kid, str) or not kid or kid in keys:
            raise KeySetError('holds a key without a "kid" of its own')
        if "d" in jwk:
            raise KeySetError("holds a private key; take the public set that `license keygen` wrote beside it")
        keys[kid] = _ed25519(jwk)
    if not any(keys.values()):
        raise KeySetError("holds no Ed25519 key (kty OKP, crv Ed25519)")
    return keys


def _ed25519(jwk: dict[str, Any]) -> Ed25519PublicKey | None:
    if (jwk.get("kty"), jwk.get("crv")) != ("OKP", "Ed25519"):
        return None
    try:
        key = jwt.PyJWK(jwk, algorithm="EdDSA").key
    except jwt.PyJWTError:
        raise KeySetError("holds an Ed25519 key that cannot be read") from None
    return key if isinstance(key, Ed25519PublicKey) else None


class KeyFile:
    """The key set in a file, read again when the file changes; a file that turned bad leaves the last good set."""

    def __init__(self, path: Path | None, text: str | None) -> None:
        """`text`: the set as it was when the start was checked. None: there is none, and no license verifies."""
        self._path, self._text = path, text
        self._keys: KeySet = {} if text is None else key_set(text)
        # Not looked at yet: a worker may start days after the start was checked, and the file be another by then.
        self._seen: tuple[int, int, int] | str | None = "never"

    def __call__(self) -> KeySet:
        """The keys, as they are now."""
        stamp = _stamp(self._path)
        if self._path is not None and stamp != self._seen:
            self._seen = stamp
            try:
                self._read(self._path)
            except (OSError, UnicodeDecodeError):
                _log.error("license keys: the file cannot be read; the keys loaded before stay in use")
            except KeySetError as error:
                _log.error("license keys: the file %s; the keys loaded before stay in use", error)
        return self._keys

    def _read(self, path: Path) -> None:
        # No more than can be judged: the file may be anything by now.
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
        if text != self._text:
            self._keys, self._text = key_set(text), text
            _log.info("license keys: read again, %d in the set", len(self._keys))


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        status = path.stat() if path is not None else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino) if status else None
