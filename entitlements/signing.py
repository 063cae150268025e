"""The issuer's side: keys and licenses made with them. Needs no database."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .errors import EntitlementsError
from .license import VERSION, read


def generate(private_file: Path, public_file: Path) -> str:
    """Make a key pair: the private key (PEM) in a file of mode 600, the public JWK set beside it. Its key id.

    Raises EntitlementsError where one of the files is there already: a lost key cannot be had back.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = jwk(key.public_key())
    _write(private_file, pem, mode=0o600)
    try:
        _write(public_file, json.dumps({"keys": [public]}, indent=2).encode() + b"\n", mode=0o644)
    except EntitlementsError:
        # Half a pair is none, and the next attempt would find it in its way.
        private_file.unlink()
        raise
    return str(public["kid"])


def _write(file: Path, data: bytes, *, mode: int) -> None:
    """Make `file`; raises EntitlementsError where it is there already, or cannot be written to its end."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise EntitlementsError(f"{file} exists; choose another name or move it away") from None
    except (OSError, ValueError) as error:
        raise _unwritable(file, error) from None
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
    except OSError as error:
        file.unlink()
        raise _unwritable(file, error) from None


def _unwritable(file: Path, error: Exception) -> EntitlementsError:
    return EntitlementsError(f"{file} cannot be written: {getattr(error, 'strerror', None) or error}")


def load(file: Path) -> Ed25519PrivateKey:
    """The private key in `file`; raises EntitlementsError."""
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except OSError as error:
        raise EntitlementsError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise EntitlementsError(f"{file} holds no private key that `license keygen` made") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise EntitlementsError(f"{file} holds a key that is not Ed25519; make one with `license keygen`")
    return key


def jwk(key: Ed25519PublicKey) -> dict[str, str]:
    """The key as a JWK, its id the thumbprint of RFC 7638."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    required = {"crv": "Ed25519", "kty": "OKP", "x": _base64(raw)}
    thumbprint = hashlib.sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
    return {**required, "kid": _base64(thumbprint), "use": "sig", "alg": "EdDSA"}


def issue(
    key: Ed25519PrivateKey,
    *,
    now: int,
    not_before: int,
    license_expires: int,
    expires: int,
    account_type: str,
    account_id: str,
    features: Mapping[str, int],
    subject: str | None = None,
    trial: bool = False,
    deployment_ids: Sequence[str] = (),
) -> str:
    """A signed license. Instants are whole seconds since 1970. Raises LicenseError for what no reader would take."""
    claims: dict[str, Any] = {
        "version": VERSION,
        "jti": str(uuid.uuid4()),
        "iat": now,
        "nbf": not_before,
        "license_expires": license_expires,
        "exp": expires,
        "account_type": account_type,
        "account_id": account_id,
        "features": dict(features),
        "trial": trial,
    }
    if subject is not None:
        claims["sub"] = subject
    if deployment_ids:
        claims["deployment_ids"] = list(deployment_ids)
    kid = jwk(key.public_key())["kid"]
    text = jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": kid})
    read(text, {kid: key.public_key()})
    return text


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
