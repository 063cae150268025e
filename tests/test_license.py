"""Forged and broken licenses, each by its name, and those that are taken."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from entitlements import License, LicenseError, admit, key_set, read, signing

DAY, YEAR = 86400, 365 * 86400
#: The instant at which these licenses are issued.
NOW = 1_800_000_000
DEPLOYMENT = "0d5f7c7e-6f0c-4b6c-9d5c-3f0f4d6f1a11"
JTI = "9b0e7c1a-51f5-4c0e-8a53-2f1b6b1d7c22"
KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
RSA_KEY, EC_KEY = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
ED448_KEY = Ed448PrivateKey.generate()
JWK = signing.jwk(KEY.public_key())
KID = JWK["kid"]
RAW = KEY.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
JWK_SET = json.dumps({"keys": [JWK]})


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw(public: Any) -> str:
    return base64url(public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


#: The set that the licenses are read with; all but the first of its keys are of a type that verifies nothing.
KEYS = key_set(
    json.dumps(
        {
            "keys": [
                JWK,
                {"kty": "OKP", "crv": "Ed448", "kid": "ed448", "x": raw(ED448_KEY.public_key())},
                {"kty": "OKP", "crv": "X25519", "kid": "x25519", "x": raw(X25519PrivateKey.generate().public_key())},
                {"kty": "RSA", "kid": "rsa", "n": base64url(bytes(256)), "e": "AQAB"},
                {"kty": "oct", "kid": "oct", "k": base64url(b"secret" * 8)},
            ]
        }
    )
)


def claims(**changed: Any) -> dict[str, Any]:
    """The claims of a good license, with some changed; `...` leaves one out."""
    good = {
        "version": 3,
        "jti": JTI,
        "iat": NOW,
        "nbf": NOW,
        "license_expires": NOW + YEAR,
        "exp": NOW + YEAR + 14 * DAY,
        "account_type": "company",
        "account_id": "acme",
        "features": {"high_availability": 1},
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not ...}


def sign(payload: Any, *, key: Any = KEY, signer: Callable[[bytes], bytes] | None = None, **header: Any) -> str:
    """A JWT of whatever is given, made by hand: no library would make most of these. `...` leaves a header out."""
    head = {"alg": "EdDSA", "kid": KID, "typ": "JWT", **header}
    parts = [{name: value for name, value in head.items() if value is not ...}, payload]
    signed = ".".join(base64url(one if isinstance(one, bytes) else json.dumps(one).encode()) for one in parts)
    return f"{signed}.{base64url((signer or key.sign)(signed.encode()))}"


def a_license(**changed: Any) -> str:
    """A signed license, good but for what is changed; another one each time, unless it is given a jti."""
    return sign(claims(**{"jti": str(uuid.uuid4()), **changed}))


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda data: hmac.new(secret, data, hashlib.sha256).digest()


def cut(text: str, part: int, characters: int) -> str:
    parts = text.split(".")
    parts[part] = parts[part][:-characters]
    return ".".join(parts)


GOOD = sign(claims())
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")
EVIL = "acme\r\nSet-Cookie: admin=1\r\n\r\n<script>"

NO_VERSIONS: list[Any] = [2, 4, 0, -3, "3", 3.0, True, None, [3], {"is": 3}, EVIL]
NO_INSTANTS: list[Any] = [str(NOW), True, False, 1e300, float(NOW), -1, 2**40, 2**63, None, [NOW], {}, EVIL]
NO_NUMBERS: list[Any] = [True, False, 1.0, 1e300, -1, 2**53, 10**30, "1", None, [1], {}]
NO_DEPLOYMENTS: list[Any] = [DEPLOYMENT, None, [], [1], [None], {DEPLOYMENT: 1}, [[DEPLOYMENT]], ["\udce9"]]

#: Name, the code that it is refused with, and the text.
FORGED: dict[str, tuple[str, str]] = {
    # The algorithm
    "alg none": ("algorithm", sign(claims(), alg="none", signer=lambda _: b"")),
    "alg None, capital": ("algorithm", sign(claims(), alg="None", signer=lambda _: b"")),
    "alg none with a good signature": ("algorithm", sign(claims(), alg="none")),
    "HS256 with the public key as PEM": ("algorithm", sign(claims(), alg="HS256", signer=hs256(PEM))),
    "HS256 with the raw public key": ("algorithm", sign(claims(), alg="HS256", signer=hs256(RAW))),
    "HS256 with the JWK": ("algorithm", sign(claims(), alg="HS256", signer=hs256(json.dumps(JWK).encode()))),
    "HS256 with the JWK's x": ("algorithm", sign(claims(), alg="HS256", signer=hs256(JWK["x"].encode()))),
    "HS256 with an empty secret": ("algorithm", sign(claims(), alg="HS256", signer=hs256(b""))),
    "HS256 with the set's own secret": (
        "algorithm",
        sign(claims(), alg="HS256", kid="oct", signer=hs256(b"secret" * 8)),
    ),
    "RS256": (
        "algorithm",
        sign(claims(), alg="RS256", signer=lambda data: RSA_KEY.sign(data, padding.PKCS1v15(), hashes.SHA256())),
    ),
    "ES256": (
        "algorithm",
        sign(claims(), alg="ES256", signer=lambda data: EC_KEY.sign(data, ec.ECDSA(hashes.SHA256()))),
    ),
    "alg Ed25519, the newer name": ("algorithm", sign(claims(), alg="Ed25519")),
    "alg in small letters": ("algorithm", sign(claims(), alg="eddsa")),
    "alg a list": ("algorithm", sign(claims(), alg=["EdDSA"])),
    "alg null": ("algorithm", sign(claims(), alg=None)),
    "alg missing": ("algorithm", sign(claims(), alg=...)),
    "alg with a header in it": ("algorithm", sign(claims(), alg=EVIL)),
    # The key
    "signed by another key": ("signature", sign(claims(), key=OTHER_KEY)),
    "signed by another key, its JWK in the header": (
        "signature",
        sign(claims(), key=OTHER_KEY, jwk=signing.jwk(OTHER_KEY.public_key())),
    ),
    "signed by another key, its set's address in the header": (
        "signature",
        sign(claims(), key=OTHER_KEY, jku="https://example.com/keys.json"),
    ),
    "unknown kid": ("unknown_key", sign(claims(), key=OTHER_KEY, kid="another")),
    "kid a path": ("unknown_key", sign(claims(), kid="../../../dev/null")),
    "kid an SQL statement": ("unknown_key", sign(claims(), kid="' UNION SELECT 'x'; --")),
    "kid with a header in it": ("unknown_key", sign(claims(), kid=EVIL)),
    "kid in other letters": ("unknown_key", sign(claims(), kid=KID.swapcase())),
    "kid missing": ("no_key_id", sign(claims(), kid=...)),
    "kid empty": ("no_key_id", sign(claims(), kid="")),
    "kid null": ("header", sign(claims(), kid=None)),
    "kid a number": ("header", sign(claims(), kid=1)),
    "kid a list": ("header", sign(claims(), kid=[KID])),
    "kid an object": ("header", sign(claims(), kid={"kid": KID})),
    "an Ed448 key under the kid": ("key_type", sign(claims(), key=ED448_KEY, kid="ed448")),
    "an X25519 key under the kid": ("key_type", sign(claims(), kid="x25519")),
    "an RSA key under the kid": ("key_type", sign(claims(), kid="rsa")),
    "a secret under the kid": ("key_type", sign(claims(), kid="oct", signer=hs256(b"secret" * 8))),
    "an unknown extension that is critical": ("header", sign(claims(), crit=["readygate"], readygate=1)),
    "crit that is no list": ("header", sign(claims(), crit="exp")),
    "a detached payload": ("malformed", sign(claims(), crit=["b64"], b64=False)),
    # The signature
    "signature of other claims": ("signature", f"{HEADER}.{base64url(json.dumps(claims(exp=1)).encode())}.{SIGNATURE}"),
    "signature empty": ("signature", f"{HEADER}.{PAYLOAD}."),
    "signature of zeros": ("signature", f"{HEADER}.{PAYLOAD}.{base64url(bytes(64))}"),
    "signature of 5,000 bytes": ("signature", f"{HEADER}.{PAYLOAD}.{base64url(bytes(5000))}"),
    "signature with four characters more": ("signature", f"{GOOD}AAAA"),
    "cut in its signature": ("signature", cut(GOOD, 2, 6)),
    # The text
    "cut in its payload": ("malformed", f"{HEADER}.{PAYLOAD[:-3]}"),
    "cut in its header": ("malformed", HEADER[:-3]),
    "a payload of other bytes": ("malformed", cut(GOOD, 1, 1)),
    "an end that another text decodes to": ("malformed", GOOD[:-1] + chr(ord(GOOD[-1]) + 1)),
    "padding in its payload": ("malformed", f"{HEADER}.{PAYLOAD}==.{SIGNATURE}"),
    "padding too much": ("malformed", f"{GOOD}===="),
    "characters that base64 decoders pass over": ("malformed", f"{HEADER}.{PAYLOAD}.!{SIGNATURE}"),
    "base64's other alphabet": ("malformed", f"{HEADER}.{PAYLOAD}.{'+/' * 43}"),
    "a quote": ("malformed", GOOD + "'"),
    "a NUL": ("malformed", GOOD + "\x00"),
    "a percent sign": ("malformed", GOOD + "%s"),
    "a lone surrogate": ("malformed", GOOD + "\ud800"),
    "a byte order mark within": ("malformed", HEADER + "\ufeff." + PAYLOAD + "." + SIGNATURE),
    "Cyrillic letters": ("malformed", GOOD.replace("e", "\u0435")),
    "Bearer before it": ("malformed", f"Bearer: {GOOD}"),
    "in quotes": ("malformed", f'"{GOOD}"'),
    "one part": ("malformed", "garbage"),
    "two parts": ("malformed", f"{HEADER}.{PAYLOAD}"),
    "four parts": ("malformed", f"{GOOD}.{SIGNATURE}"),
    "two licenses": ("malformed", f"{GOOD}\n{sign(claims(jti=DEPLOYMENT))}"),
    "dots": ("malformed", ".."),
    "an encrypted JWT of five parts": ("malformed", f"{HEADER}.AAAA.AAAA.AAAA.AAAA"),
    "HTML": ("malformed", "<html><body>404</body></html>"),
    "the JWK set itself": ("malformed", JWK_SET),
    "a header that is no JSON": ("malformed", f"{base64url(b'{alg}')}.{PAYLOAD}.{SIGNATURE}"),
    "a header that is no object": ("malformed", f"{base64url(b'[]')}.{PAYLOAD}.{SIGNATURE}"),
    "a header nested 30,000 deep": ("malformed", f"{base64url(b'[' * 30_000)}.{PAYLOAD}.{SIGNATURE}"),
    "empty": ("empty", ""),
    "white space only": ("empty", " \r\n\t\u00a0\u2003\n"),
    "64 KiB and one byte": ("too_large", "x" * 65537),
    "64 KiB and one byte of white space": ("too_large", GOOD + " " * (65537 - len(GOOD))),
    "64 KiB of wide white space": ("too_large", GOOD + "\u2003" * (65536 - len(GOOD))),
    "5 MB": ("too_large", "x" * 5_000_000),
    # The payload
    "payload a list": ("malformed", sign([claims()])),
    "payload a text": ("malformed", sign("license")),
    "payload null": ("malformed", sign(None)),
    "payload no JSON": ("malformed", sign(b"{")),
    "payload no UTF-8": ("malformed", sign(b'{"version": "\xff"}')),
    "payload empty": ("malformed", sign(b"")),
    "payload nested 20,000 deep": ("malformed", sign(b'{"a":' * 8_000)),
    "payload with a number of 5,000 digits": ("malformed", sign(b'{"exp": ' + b"9" * 5_000 + b"}")),
    # The claims
    **{f"{name} missing": ("missing_claim", a_license(**{name: ...})) for name in claims()},
    "no claims at all": ("missing_claim", sign({})),
    **{f"version {value!r}": ("version", a_license(version=value)) for value in NO_VERSIONS},
    **{
        f"{name} {value!r}": ("time", a_license(**{name: value}))
        for name in ("iat", "nbf", "license_expires", "exp")
        for value in NO_INSTANTS
    },
    "exp NaN": ("time", a_license(exp=float("nan"))),
    "exp infinite": ("time", a_license(exp=float("inf"))),
    "exp before license_expires": ("exp_before_term", a_license(exp=NOW + YEAR - 1)),
    "exp more than a year after license_expires": ("grace_too_long", a_license(exp=NOW + YEAR + 366 * DAY + 1)),
    **{
        f"jti {name}": ("jti", a_license(jti=value))
        for name, value in {
            "no UUID": "license-1",
            "empty": "",
            "a number": 7,
            "null": None,
            "in braces": f"{{{JTI}}}",
            "without hyphens": JTI.replace("-", ""),
            "as a urn": f"urn:uuid:{JTI}",
            "with a line end": JTI + "\n",
            "with a space": " " + JTI,
            "with a header in it": EVIL,
            "with an SQL statement in it": "'); DROP TABLE readygate_licenses; --",
            "in wide digits": JTI.replace("0", "\uff10"),
        }.items()
    },
    **{
        f"{name} {what}": ("text", a_license(**{name: value}))
        for name in ("account_type", "account_id", "sub")
        for what, value in {
            "a number": 1,
            "null": None,
            "a list": ["acme"],
            "of 1,001 characters": "x" * 1001,
            "with a NUL": "ac\x00me",
            "with half a character": "caf\udce9",
        }.items()
    },
    **{f"trial {value!r}": ("trial", a_license(trial=value)) for value in (1, 0, "true", None, [True])},
    **{f"deployment_ids {value!r}": ("deployment_ids", a_license(deployment_ids=value)) for value in NO_DEPLOYMENTS},
    **{
        f"features {value!r}": ("features", a_license(features=value))
        for value in (None, [], ["high_availability"], "high_availability", 1, True)
    },
    **{
        f"a feature of {value!r}": ("features", a_license(features={"high_availability": value}))
        for value in NO_NUMBERS
    },
    "a feature of NaN": ("features", a_license(features={"high_availability": float("nan")})),
    "a feature without a name": ("features", a_license(features={"": 1})),
    "a feature's name of 101 characters": ("features", a_license(features={"x" * 101: 1})),
    "a feature's name with a header in it": ("features", a_license(features={EVIL: 1})),
    "a feature's name with an escape sequence in it": ("features", a_license(features={"\x1b[2Jha": 1})),
    "a feature's name with a lone surrogate in it": ("features", a_license(features={"\ud800": 1})),
    "replica_limit 0": ("replica_limit", a_license(features={"high_availability": 1, "replica_limit": 0})),
}

#: What the door refuses, though it verifies.
TURNED_AWAY: dict[str, tuple[str, dict[str, Any]]] = {
    "ended a second ago": ("ended", {"nbf": NOW - YEAR, "license_expires": NOW - DAY, "exp": NOW - 1}),
    "ending now": ("ended", {"nbf": NOW - YEAR, "license_expires": NOW - DAY, "exp": NOW}),
    "ended in 1970": ("ended", {"nbf": 0, "license_expires": 0, "exp": 0}),
    "five years and three days ahead": (
        "too_far_ahead",
        {"license_expires": NOW + 5 * YEAR + 3 * DAY, "exp": NOW + 5 * YEAR + 3 * DAY},
    ),
    "never": ("never", {"nbf": NOW + 2 * YEAR, "license_expires": NOW + YEAR, "exp": NOW + 2 * YEAR}),
    "six years ahead": ("too_far_ahead", {"license_expires": NOW + 6 * YEAR, "exp": NOW + 6 * YEAR}),
    "as far ahead as a number goes": ("too_far_ahead", {"license_expires": 2**40 - 1, "exp": 2**40 - 1}),
    "for another deployment": ("other_deployment", {"deployment_ids": [JTI]}),
    "for other deployments": ("other_deployment", {"deployment_ids": [JTI, "", EVIL]}),
}

TAKEN: dict[str, dict[str, Any]] = {
    "as `license issue` makes it": {},
    "before its nbf": {"nbf": NOW + YEAR - DAY},
    "issued by a clock ahead": {"iat": NOW + DAY},
    "issued in 1970": {"iat": 0},
    "in its grace period": {"nbf": NOW - YEAR, "license_expires": NOW - DAY, "exp": NOW + 1},
    "without a grace period": {"exp": NOW + YEAR},
    "a year of grace": {"exp": NOW + YEAR + 365 * DAY},
    "five years ahead": {"license_expires": NOW + 5 * YEAR, "exp": NOW + 5 * YEAR},
    "five years ahead, two of them leap years": {
        "license_expires": NOW + 5 * YEAR + 2 * DAY,
        "exp": NOW + 5 * YEAR + 2 * DAY,
    },
    "a trial": {"trial": True},
    "no trial": {"trial": False},
    "with a remark": {"sub": "for the staging fleet"},
    "with a remark in Greek": {"sub": "\u03b5\u03cd\u03c1\u03b7\u03ba\u03b1"},
    "with an account that has a header in it": {"account_id": EVIL},
    "for this deployment": {"deployment_ids": [DEPLOYMENT]},
    "for this deployment and another": {"deployment_ids": [JTI, DEPLOYMENT]},
    "no feature": {"features": {}},
    "a feature that is not granted": {"features": {"high_availability": 0}},
    "a feature of the host's": {"features": {"audit_log": 1, "seats": 2**53 - 1}},
    "a feature with a name of the host's own form": {"features": {"Audit-Log.v2 \u00fc": 1}},
    "a replica_limit": {"features": {"high_availability": 1, "replica_limit": 1}},
    "claims of others": {"iss": 7, "aud": ["x"], "https://example.com/x": {"y": None}},
}


def refusal(text: str) -> LicenseError:
    with pytest.raises(LicenseError) as caught:
        read(text, KEYS)
    return caught.value


def the_license(**changed: Any) -> License:
    return read(a_license(**changed), KEYS)


@pytest.mark.parametrize(("code", "text"), FORGED.values(), ids=FORGED)
def test_it_is_refused(code: str, text: str) -> None:
    error = refusal(text)
    assert error.code == code
    assert str(error).isprintable()
    assert len(str(error)) < 200


@pytest.mark.parametrize(("code", "text"), FORGED.values(), ids=FORGED)
def test_its_refusal_never_echoes_it(code: str, text: str) -> None:
    message = str(refusal(text))
    pieces = [piece for piece in text.replace(".", " ").split() if len(piece) > 12]
    assert not [piece for piece in pieces if piece in message]
    assert "Set-Cookie" not in message
    assert "DROP" not in message


@pytest.mark.parametrize(("code", "changed"), TURNED_AWAY.values(), ids=TURNED_AWAY)
def test_it_verifies_and_is_turned_away_at_the_door(code: str, changed: dict[str, Any]) -> None:
    license_ = the_license(**changed)
    with pytest.raises(LicenseError) as caught:
        admit(license_, now=NOW, deployment_id=DEPLOYMENT)
    assert caught.value.code == code
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("changed", TAKEN.values(), ids=TAKEN)
def test_it_is_taken_and_says_what_was_signed(changed: dict[str, Any]) -> None:
    license_ = the_license(jti=JTI, **changed)
    admit(license_, now=NOW, deployment_id=DEPLOYMENT)
    known = {*claims(), "sub", "trial", "deployment_ids"}
    signed = {"trial": False, **claims(jti=JTI, **changed)}
    assert license_.claims() == {name: value for name, value in signed.items() if name in known}
    assert license_.key_id == KID


@pytest.mark.parametrize(
    "text",
    {
        "around": f"\n\r\n\t {GOOD} \u00a0\u2003\r\n",
        "a line end": GOOD + "\n",
        "lines as mail wraps them": "\r\n".join(GOOD[at : at + 64] for at in range(0, len(GOOD), 64)),
        "as far as 64 KiB go": GOOD + " " * (65536 - len(GOOD)),
    }.values(),
    ids=["around", "a line end", "lines as mail wraps them", "as far as 64 KiB go"],
)
def test_white_space_is_forgiven(text: str) -> None:
    assert read(text, KEYS) == read(GOOD, KEYS)


def test_what_the_issuing_side_makes_is_read_as_it_was_made() -> None:
    text = signing.issue(
        KEY,
        now=NOW,
        not_before=NOW + 1,
        license_expires=NOW + YEAR,
        expires=NOW + YEAR + DAY,
        account_type="company",
        account_id="acme",
        features={"high_availability": 1, "replica_limit": 3},
        subject="a remark",
        trial=True,
        deployment_ids=[DEPLOYMENT],
    )
    found = read(text, KEYS)
    assert replace(found, uuid=JTI) == License(
        uuid=JTI,
        key_id=KID,
        issued_at=NOW,
        not_before=NOW + 1,
        license_expires=NOW + YEAR,
        expires=NOW + YEAR + DAY,
        account_type="company",
        account_id="acme",
        features={"high_availability": 1, "replica_limit": 3},
        subject="a remark",
        trial=True,
        deployment_ids=(DEPLOYMENT,),
    )


def test_a_license_is_known_by_its_jti_whatever_its_spelling() -> None:
    assert the_license(jti=JTI.upper()).uuid == the_license(jti=JTI).uuid == JTI


def test_no_key_verifies_nothing() -> None:
    with pytest.raises(LicenseError) as caught:
        read(GOOD, {})
    assert caught.value.code == "unknown_key"


def test_it_is_active_from_its_nbf_until_before_its_exp() -> None:
    license_ = the_license(exp=NOW + YEAR + DAY)
    instants = (NOW - 0.001, NOW, NOW + YEAR, NOW + YEAR + DAY - 0.001, NOW + YEAR + DAY)
    assert [license_.active(at) for at in instants] == [False, True, True, True, False]


def test_the_clock_of_this_host_decides_nothing() -> None:
    # What is read here ended, or begins, decades before or after any test runs.
    assert the_license(nbf=0, iat=0, license_expires=1, exp=1).expires == 1
    assert the_license(nbf=2**39, iat=2**39).not_before == 2**39
