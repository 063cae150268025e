"""From signed text to a license, or to the reason why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import jwt

from .errors import LicenseError
from .keys import KeySet

MAX_BYTES = 64 * 1024
VERSION = 3
HIGH_AVAILABILITY = "high_availability"
REPLICA_LIMIT = "replica_limit"
_YEAR = 366 * 86400
#: No five years have more than two leap days, the ones beyond 2100 and 2400 left out.
_FIVE_YEARS = (5 * 365 + 2) * 86400
_REQUIRED = ("version", "jti", "iat", "nbf", "license_expires", "exp", "account_type", "account_id", "features")


@dataclass(frozen=True, kw_only=True)
class License:
    """What a verified license grants. Instants are whole seconds since 1970."""

    uuid: str
    key_id: str
    issued_at: int
    not_before: int
    #: The end of the term: from here on it is in its own grace period.
    license_expires: int
    #: The end of the grace period, hence of the license.
    expires: int
    account_type: str
    account_id: str
    features: Mapping[str, int]
    subject: str | None = None
    trial: bool = False
    #: None: for any deployment.
    deployment_ids: tuple[str, ...] | None = None

    def active(self, at: float) -> bool:
        """Whether it grants anything at the instant `at`, in its term or its grace period."""
        return self.not_before <= at < self.expires

    def claims(self) -> dict[str, Any]:
        """The claims as they were signed, for people who may look; never the signed text."""
        claims: dict[str, Any] = {
            "version": VERSION,
            "jti": self.uuid,
            "iat": self.issued_at,
            "nbf": self.not_before,
            "license_expires": self.license_expires,
            "exp": self.expires,
            "account_type": self.account_type,
            "account_id": self.account_id,
            "features": dict(self.features),
            "trial": self.trial,
        }
        if self.subject is not None:
            claims["sub"] = self.subject
        if self.deployment_ids is not None:
            claims["deployment_ids"] = list(self.deployment_ids)
        return claims


def read(text: str, keys: KeySet) -> License:
    """The license that `text` is, verified against `keys`; raises LicenseError. Judges nothing by the clock."""
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise LicenseError("too_large", "the license is over 64 KiB; it takes one signed text and nothing else")
    text = "".join(text.split())
    if not text:
        raise LicenseError("empty", "the license is empty; it takes the text that `license issue` printed")
    # Base64 decoders pass over characters that they do not know: such a text would not be stored as it was verified.
    if not re.fullmatch(r"[A-Za-z0-9_=.-]+", text):
        raise LicenseError("malformed", "this is no license: it is no signed text (JWT)")
    key_id, claims = _verified(text, keys)
    missing = [name for name in _REQUIRED if name not in claims]
    if missing:
        raise LicenseError("missing_claim", f"the license lacks the claim {missing[0]}; ask its issuer for another")
    if type(claims["version"]) is not int or claims["version"] != VERSION:
        raise LicenseError("version", f"the license is of another version than {VERSION}; ask its issuer for another")
    license_ = License(
        uuid=_uuid(claims["jti"]),
        key_id=key_id,
        issued_at=_instant(claims, "iat"),
        not_before=_instant(claims, "nbf"),
        license_expires=_instant(claims, "license_expires"),
        expires=_instant(claims, "exp"),
        account_type=_text(claims, "account_type"),
        account_id=_text(claims, "account_id"),
        features=_features(claims["features"]),
        subject=_text(claims, "sub") if "sub" in claims else None,
        trial=_trial(claims.get("trial", False)),
        deployment_ids=_deployment_ids(claims),
    )
    if license_.expires < license_.license_expires:
        raise LicenseError("exp_before_term", "the license's exp comes before its license_expires")
    if license_.expires - license_.license_expires > _YEAR:
        raise LicenseError("grace_too_long", "the license's exp is more than a year after its license_expires")
    return license_


def admit(license_: License, *, now: int, deployment_id: str) -> None:
    """Refuse at the door what may be stored no more; raises LicenseError.

    `now`: seconds since 1970 by the database's clock. A license may come before its nbf.
    """
    if license_.expires <= now:
        raise LicenseError("ended", "the license has ended; ask its issuer for another")
    if license_.not_before >= license_.expires:
        raise LicenseError("never", "the license's nbf comes after its exp: it would never grant anything")
    if license_.license_expires > now + _FIVE_YEARS:
        raise LicenseError("too_far_ahead", "the license's term ends more than five years ahead")
    if license_.deployment_ids is not None and deployment_id not in license_.deployment_ids:
        raise LicenseError(
            "other_deployment",
            f"the license is for another deployment; ask its issuer for one for {deployment_id}",
        )


def _verified(text: str, keys: KeySet) -> tuple[str, dict[str, Any]]:
    try:
        header = jwt.get_unverified_header(text)
    except (jwt.DecodeError, ValueError, RecursionError):
        raise LicenseError("malformed", "this is no license: it is no signed text (JWT), or a cut one") from None
    except jwt.PyJWTError:
        raise LicenseError(
            "header", "the license's kid is no text, or its header asks for an extension (crit) that is not known"
        ) from None
    # The first thing asked, and the only algorithm ever tried: a key is never offered to another one.
    if header.get("alg") != "EdDSA":
        raise LicenseError("algorithm", "the license is not signed with EdDSA, the only algorithm taken")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise LicenseError("no_key_id", "the license does not say which key signed it (kid)")
    if kid not in keys:
        raise LicenseError(
            "unknown_key",
            "the license was signed with a key that is not in READYGATE_LICENSE_KEYS; add it there, or use another",
        )
    key = keys[kid]
    if key is None:
        raise LicenseError("key_type", "the license names a key that is not Ed25519")
    # The clock is the database's and is asked later: a host five seconds behind must not refuse a fresh license.
    unjudged = {f"verify_{name}": False for name in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
    try:
        claims = jwt.decode(text, key, algorithms=["EdDSA"], options=unjudged)  # type: ignore[arg-type]
    except jwt.InvalidSignatureError:
        raise LicenseError("signature", "the license's signature does not verify: it was changed, or cut") from None
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise LicenseError("malformed", "this is no license: its content cannot be read") from None
    return kid, claims


def _uuid(value: object) -> str:
    # Only the usual form: UUID() would take braces and urn: too, and one license would have several names.
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value):
        raise LicenseError("jti", "the license's jti is no UUID")
    return str(UUID(value))


def _instant(claims: Mapping[str, Any], name: str) -> int:
    value = claims[name]
    # type() rather than isinstance: True is an int, and JSON's 1e300 is none.
    if type(value) is not int or not 0 <= value < 2**40:
        raise LicenseError("time", f"the license's {name} is no whole number of seconds since 1970")
    return value


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims[name]
    if not _is_text(value):
        raise LicenseError("text", f"the license's {name} is no text of at most 1000 characters")
    return str(value)


def _is_text(value: object) -> bool:
    """Whether it can be shown to people as it is: JSON knows halves of characters, and no page can hold one."""
    return (
        isinstance(value, str)
        and len(value) <= 1000
        and "\x00" not in value
        and not any(0xD800 <= ord(character) <= 0xDFFF for character in value)
    )


def _trial(value: object) -> bool:
    if not isinstance(value, bool):
        raise LicenseError("trial", "the license's trial is neither true nor false")
    return value


def _deployment_ids(claims: Mapping[str, Any]) -> tuple[str, ...] | None:
    value = claims.get("deployment_ids")
    if "deployment_ids" not in claims:
        return None
    if not isinstance(value, list) or not value or not all(_is_text(one) for one in value):
        raise LicenseError("deployment_ids", "the license's deployment_ids is no list of texts")
    return tuple(value)


def _features(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise LicenseError("features", "the license's features is no object")
    for name, number in value.items():
        # Names are shown to people, in tables and logs too: nothing in one may move a cursor or end a line.
        if not 0 < len(name) <= 100 or not name.isprintable():
            raise LicenseError("features", "a feature of the license has no printable name of at most 100 characters")
        if type(number) is not int or not 0 <= number < 2**53:
            raise LicenseError("features", "a feature of the license is not a name with a whole number from 0 on")
    if value.get(REPLICA_LIMIT) == 0:
        raise LicenseError("replica_limit", "the license's replica_limit is 0; leave it out for no bound")
    return value
