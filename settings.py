"""The configuration: read once from the environment into one frozen value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

#: Set by gunicorn.conf.py: the key set as it was when the start was checked. Public keys, nothing secret.
PINNED_KEYS = "READYGATE_LICENSE_KEYS_CHECKED"
MAX_KEYS_BYTES = 64 * 1024
_DEFAULT_DATABASE = Path(__file__).parent / "instance" / "readygate.db"


class SettingsError(ValueError):
    """A variable is wrong; the message is one line that names it and says what it takes."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything the environment says. Durations are seconds."""

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
    auto_migrate: bool = True
    log: str = "text"
    port: int = 8000
    workers: int = 2

    def current_database_url(self) -> str:
        """The URL as it is now. Raises OSError when its file cannot be read."""
        if self.database_url_file is None:
            return self.database_url
        return self.database_url_file.read_text(encoding="utf-8").strip()


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from `environ`; raises SettingsError at the first wrong variable.

    With PINNED_KEYS in `environ` (a worker of a master that checked the start), a key file that has since turned
    bad raises nothing: the pinned keys stand, and the background thread says so in the log.
    """
    url, url_file = _database(environ)
    heartbeat = _seconds(environ, "READYGATE_HEARTBEAT_SECONDS", 5.0, least=0.05, most=3600)
    stale = _seconds(environ, "READYGATE_STALE_AFTER_SECONDS", 3 * heartbeat, least=0.15, most=86400)
    if stale < 3 * heartbeat:
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
        auto_migrate=_choice(environ, "READYGATE_AUTO_MIGRATE", "1", ("0", "1")) == "1",
        log=_choice(environ, "READYGATE_LOG", "text", ("text", "json")),
        port=_whole(environ, "PORT", 8000, least=1, most=65535),
        workers=_whole(environ, "WEB_CONCURRENCY", 2, least=1, most=512),
    )


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
    name = "DATABASE_URL_FILE" if file else "DATABASE_URL"
    if file:
        try:
            given = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise SettingsError("DATABASE_URL_FILE: takes a readable text file that holds one database URL") from None
    try:
        parse(given)
    except UrlError as error:
        raise SettingsError(f"{name}: {error}") from None
    return given, file


def _keys(environ: Mapping[str, str], file: Path | None) -> str | None:
    if file is None:
        return None
    if environ.get(PINNED_KEYS):
        return environ[PINNED_KEYS]
    # The reader of keys belongs to the entitlements; here only because an unreadable set must stop the start.
    from entitlements import KeySetError, key_set

    try:
        text = file.read_text(encoding="utf-8")
        if len(text) > MAX_KEYS_BYTES:
            raise SettingsError("READYGATE_LICENSE_KEYS: the file is over 64 KiB; it takes a JWK set (RFC 7517)")
        key_set(text)
    except (OSError, UnicodeDecodeError):
        raise SettingsError("READYGATE_LICENSE_KEYS: takes the path of a readable JWK set (RFC 7517)") from None
    except KeySetError as error:
        raise SettingsError(f"READYGATE_LICENSE_KEYS: {error}") from None
    return text


def _license_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    return tuple(Path(part) for part in environ.get("READYGATE_LICENSE_FILE", "").split(os.pathsep) if part)


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    return Path(environ[name]) if environ.get(name) else None


def _seconds(environ: Mapping[str, str], name: str, default: float, *, least: float, most: float) -> float:
    text = environ.get(name, "")
    if not text:
        return default
    # Plain decimals only: float() would take nan, inf and 1e9 as well.
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) or not least <= float(text) <= most:
        raise SettingsError(f"{name}: takes seconds from {least:g} to {most:g}, such as {default:g}")
    return float(text)


def _whole(environ: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"\d{1,9}", text) or not least <= int(text) <= most:
        raise SettingsError(f"{name}: takes a whole number from {least} to {most}, such as {default}")
    return int(text)


def _choice(environ: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]) -> str:
    text = environ.get(name) or default
    if text not in choices:
        raise SettingsError(f"{name}: takes {' or '.join(choices)}")
    return text
