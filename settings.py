"""The configuration: read once from the environment into one frozen value."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

#: Set by gunicorn.conf.py: the key set as it was when the start was checked. Public keys, nothing secret.
PINNED_KEYS = "READYGATE_LICENSE_KEYS_CHECKED"
#: Set by gunicorn.conf.py where the URL stands in a file: which database it was, without user and password.
PINNED_DATABASE = "READYGATE_DATABASE_CHECKED"
#: Set by gunicorn.conf.py once a start was checked: files that turn bad later stop no worker.
CHECKED = "READYGATE_CHECKED"
#: Every variable of ours, so that a misspelt one is not taken for one that was left out.
VARIABLES = (
    "READYGATE_ADMIN_TOKEN",
    "READYGATE_ADMIN_TOKEN_FILE",
    "READYGATE_AUTO_MIGRATE",
    "READYGATE_DATABASE_TIMEOUT_SECONDS",
    "READYGATE_EXCLUDE",
    "READYGATE_HEARTBEAT_SECONDS",
    "READYGATE_LICENSE_FILE",
    "READYGATE_LICENSE_KEYS",
    "READYGATE_LOG",
    "READYGATE_LOG_PROBES",
    "READYGATE_METRICS",
    "READYGATE_REPLICA_GRACE_SECONDS",
    "READYGATE_REPLICA_ID",
    "READYGATE_REPLICA_MAKER",
    "READYGATE_STALE_AFTER_SECONDS",
)
#: Files are read no further than they can be of use: one may be a device by mistake.
MAX_KEYS_BYTES, MAX_URL = 64 * 1024, 8 * 1024
_ADMIN_TOKEN = re.compile(r"[\x21-\x7e]{32,1024}")
#: Of a Service: NAME_SERVICE_HOST, NAME_SERVICE_PORT, NAME_PORT, NAME_PORT_80_TCP_ADDR and so on.
_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_(TCP|UDP|SCTP).*)?$")
_DEFAULT_DATABASE = Path(__file__).parent / "instance" / "readygate.db"


class SettingsError(ValueError):
    """A variable is wrong; the message is one line that names it and says what it takes."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the environment says. Durations are seconds."""

    #: As the start read it; without its user and password in a worker whose file has turned bad since.
    database_url: str = field(repr=False)
    #: None: DATABASE_URL holds it. Otherwise the file is read again at each connect (rotated passwords).
    database_url_file: Path | None = None
    heartbeat_seconds: float = 5.0
    stale_after_seconds: float = 15.0
    replica_grace_seconds: float = 60.0
    database_timeout_seconds: float = 5.0
    exclude: str = "all"
    license_keys_file: Path | None = None
    #: The key set (RFC 7517, JSON) as the start read it; None: no license verifies.
    license_keys: str | None = None
    license_files: tuple[Path, ...] = ()
    admin_token: str | None = field(default=None, repr=False)
    #: None: admin_token holds it, if there is one. Otherwise the file is read again at each use (rotated tokens).
    admin_token_file: Path | None = None
    auto_migrate: bool = True
    #: Who may look at /metrics: who has a token, anybody (public), or nobody (off).
    metrics: str = "token"
    log: str = "text"
    #: Whether the access log, where there is one, shows probes and scrapes as well.
    log_probes: bool = False
    port: int = 8000
    workers: int = 2

    def current_database_url(self) -> str:
        """The URL as it is now. Raises database_url.UrlError when its file is no good."""
        return self.database_url if self.database_url_file is None else _url_in(self.database_url_file)

    def database_without_login(self) -> str:
        """Which database it is, for those who need not enter."""
        from database_url import parse, without_login

        return without_login(parse(self.database_url))

    def current_admin_token(self) -> str | None:
        """The admin token as it is now; None: there is none. Raises SettingsError when its file is no good."""
        return self.admin_token if self.admin_token_file is None else _token_in(self.admin_token_file)


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from `environ`; raises SettingsError at the first wrong variable.

    With PINNED_KEYS in `environ` (a worker of a master that checked the start), a key file that has since turned
    bad raises nothing: the pinned keys stand, and the background thread says so in the log. Likewise PINNED_DATABASE:
    each connect reads the file again, and fails for as long as it is bad.
    """
    _refuse_typos(environ)
    url, url_file = _database(environ)
    heartbeat = _seconds(environ, "READYGATE_HEARTBEAT_SECONDS", 5.0, least=0.05, most=3600)
    stale = _seconds(environ, "READYGATE_STALE_AFTER_SECONDS", 3 * heartbeat, least=0.15, most=86400)
    # In microseconds, as the table has them: three times 0.1 is more than 0.3 to a float.
    if round(stale * 1e6) < 3 * round(heartbeat * 1e6):
        raise SettingsError(
            f"READYGATE_STALE_AFTER_SECONDS: takes at least 3 heartbeats, which is {3 * heartbeat:g}; "
            "raise it or lower READYGATE_HEARTBEAT_SECONDS"
        )
    keys_file = _path(environ, "READYGATE_LICENSE_KEYS")
    return Settings(
        database_url=url,
        database_url_file=url_file,
        heartbeat_seconds=heartbeat,
        stale_after_seconds=stale,
        replica_grace_seconds=_seconds(environ, "READYGATE_REPLICA_GRACE_SECONDS", 60.0, least=0, most=86400),
        database_timeout_seconds=_seconds(environ, "READYGATE_DATABASE_TIMEOUT_SECONDS", 5.0, least=0.1, most=300),
        exclude=_choice(environ, "READYGATE_EXCLUDE", "all", ("all", "surplus")),
        license_keys_file=keys_file,
        license_keys=_keys(environ, keys_file),
        license_files=_license_files(environ),
        **_admin_token(environ),
        auto_migrate=_choice(environ, "READYGATE_AUTO_MIGRATE", "1", ("0", "1")) == "1",
        metrics=_choice(environ, "READYGATE_METRICS", "token", ("token", "public", "off")),
        log=_choice(environ, "READYGATE_LOG", "text", ("text", "json")),
        log_probes=_choice(environ, "READYGATE_LOG_PROBES", "0", ("0", "1")) == "1",
        port=_whole(environ, "PORT", 8000, least=1, most=65535),
        workers=_whole(environ, "WEB_CONCURRENCY", 2, least=1, most=512),
    )


def _refuse_typos(environ: Mapping[str, str]) -> None:
    # Only what is close to a name of ours, and none that Kubernetes gives every pod where a Service is called
    # readygate, readygate-metrics or the like.
    for name in sorted(environ):
        if name.startswith("READYGATE_") and name not in VARIABLES and not _OF_KUBERNETES.search(name):
            near = difflib.get_close_matches(name, VARIABLES, n=1, cutoff=0.8)
            if near and not name.endswith("_CHECKED"):
                raise SettingsError(f"{name}: there is no such variable; did you mean {near[0]}?")


def _database(environ: Mapping[str, str]) -> tuple[str, Path | None]:
    # Imported here so that gunicorn.conf.py loads no socket code before a gevent worker has patched it.
    from database_url import UrlError, parse

    given, file = environ.get("DATABASE_URL", ""), _path(environ, "DATABASE_URL_FILE")
    if given and file:
        raise SettingsError("DATABASE_URL and DATABASE_URL_FILE: set one of them, not both")
    if not given and not file:
        if environ.get("KUBERNETES_SERVICE_HOST"):
            raise SettingsError(
                "DATABASE_URL: needed in Kubernetes, where the embedded SQLite would give each pod a database of its "
                "own; set it to postgresql://user:password@host/database, or DATABASE_URL_FILE to a file that holds it"
            )
        return "sqlite:///" + quote(str(_DEFAULT_DATABASE)), None
    try:
        if file is None:
            parse(given)
            return given, None
        return _url_in(file), file
    except UrlError as error:
        if file is None:
            raise SettingsError(f"DATABASE_URL: {error}") from None
        if environ.get(CHECKED) and environ.get(PINNED_DATABASE):
            # A secret that is being rotated, or a volume that is away: each connect looks again.
            return environ[PINNED_DATABASE], file
        raise SettingsError(str(error)) from None


def _url_in(file: Path) -> str:
    from database_url import UrlError, parse

    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_URL + 1).strip()
    except (OSError, UnicodeDecodeError):
        raise UrlError("DATABASE_URL_FILE: takes a readable text file that holds one database URL") from None
    try:
        parse(text)
    except UrlError as error:
        raise UrlError(f"DATABASE_URL_FILE: {error}") from None
    return text


def _keys(environ: Mapping[str, str], file: Path | None) -> str | None:
    if file is None:
        return None
    if environ.get(PINNED_KEYS):
        return environ[PINNED_KEYS]
    # The reader of keys belongs to the entitlements; here only because an unreadable set must stop the start.
    from entitlements import KeySetError, key_set

    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_KEYS_BYTES + 1)
        if len(text) > MAX_KEYS_BYTES:
            raise SettingsError("READYGATE_LICENSE_KEYS: the file is over 64 KiB; it takes a JWK set (RFC 7517)")
        key_set(text)
    except (OSError, UnicodeDecodeError):
        raise SettingsError("READYGATE_LICENSE_KEYS: takes the path of a readable JWK set (RFC 7517)") from None
    except KeySetError as error:
        raise SettingsError(f"READYGATE_LICENSE_KEYS: {error}") from None
    return text


def _admin_token(environ: Mapping[str, str]) -> dict[str, Any]:
    given, file = environ.get("READYGATE_ADMIN_TOKEN"), _path(environ, "READYGATE_ADMIN_TOKEN_FILE")
    if given and file:
        raise SettingsError("READYGATE_ADMIN_TOKEN and READYGATE_ADMIN_TOKEN_FILE: set one of them, not both")
    if given and not _ADMIN_TOKEN.fullmatch(given):
        raise SettingsError(
            "READYGATE_ADMIN_TOKEN: takes 32 to 1024 printable ASCII characters without spaces, such as "
            "`openssl rand -hex 32` prints"
        )
    if file is not None and not environ.get(CHECKED):
        _token_in(file)
    return {"admin_token": given or None, "admin_token_file": file}


def _token_in(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(2048).strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not _ADMIN_TOKEN.fullmatch(text):
        raise SettingsError(
            "READYGATE_ADMIN_TOKEN_FILE: takes a readable file that holds 32 to 1024 printable ASCII characters "
            "without spaces"
        )
    return text


def _license_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    return tuple(Path(part) for part in environ.get("READYGATE_LICENSE_FILE", "").split(os.pathsep) if part)


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    return Path(environ[name]) if environ.get(name) else None


def _seconds(environ: Mapping[str, str], name: str, default: float, *, least: float, most: float) -> float:
    text = environ.get(name, "")
    if not text:
        return default
    # Plain decimals only: float() would take nan, inf, 1e9 and the digits of every script as well.
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not least <= float(text) <= most:
        raise SettingsError(f"{name}: takes seconds from {least:g} to {most:g}, such as {default:g}")
    return float(text)


def _whole(environ: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise SettingsError(f"{name}: takes a whole number from {least} to {most}, such as {default}")
    return int(text)


def _choice(environ: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    text = environ.get(name) or default
    if text not in choices:
        raise SettingsError(f"{name}: takes {' or '.join(choices)}")
    return text
