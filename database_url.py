"""Database URLs, as libpq and SQLAlchemy users write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_PARAMETERS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "connect_timeout", "application_name", "host")
_SCHEMES = ("postgresql", "postgres", "postgresql+pg8000")


class UrlError(ValueError):
    """The URL is wrong; the message says what it takes and repeats nothing of its value."""


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """Where a PostgreSQL server is and how to talk to it (parameters as in libpq, section 34.1)."""

    host: str
    port: int
    user: str
    database: str
    password: str | None = field(default=None, repr=False)
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    #: Seconds; None: only the bound of every database operation counts.
    connect_timeout: float | None = None
    application_name: str = "readygate"

    @property
    def label(self) -> str:
        """host:port/database, for the log; nothing in it can end a line."""
        return "".join(one if one.isprintable() else "?" for one in f"{self.host}:{self.port}/{self.database}")


@dataclass(frozen=True, kw_only=True)
class Sqlite:
    """An SQLite file."""

    path: Path

    @property
    def label(self) -> str:
        """The file's name without its folder: no log line holds a path."""
        return f"sqlite:{self.path.name}"


def parse(url: str) -> Postgres | Sqlite:
    """What `url` names; raises UrlError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlError("is no URL; it takes postgresql://user:password@host:5432/database") from None
    if parts.scheme == "sqlite":
        return _sqlite(url)
    if parts.scheme not in _SCHEMES:
        raise UrlError("takes postgresql://user:password@host:5432/database, or sqlite:////absolute/path.db")
    if "@" in parts.path + parts.query or parts.fragment:
        # Half of a password would pass for the database's name, or for a parameter, and both are shown.
        raise UrlError("takes a password whose / ? # and @ are percent-encoded (%2F %3F %23 %40)")
    options = _options(parts.query)
    host = options.pop("host", None) or unquote(parts.hostname or "") or "localhost"
    if "," in parts.netloc or "," in host:
        raise UrlError("takes one host; put a proxy or a virtual address in front of several")
    if not parts.username:
        raise UrlError("lacks the user: postgresql://user:password@host/database")
    if port == 0:
        raise UrlError("takes a port from 1 to 65535")
    return Postgres(
        host=host,
        port=5432 if port is None else port,
        user=unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        database=unquote(parts.path.lstrip("/")) or unquote(parts.username),
        connect_timeout=_connect_timeout(options.pop("connect_timeout", None)),
        **_ssl(options),
    )


def without_login(target: Postgres | Sqlite) -> str:
    """A URL that names the same database and holds neither user nor password: fit for an environment."""
    if isinstance(target, Sqlite):
        return "sqlite:///" + quote(str(target.path))
    return f"postgresql://nobody@:{target.port}/{quote(target.database, safe='')}?host={quote(target.host, safe='')}"


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    # In a path a plus sign is one; only HTML forms mean a space by it.
    for name, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True):
        if name not in _PARAMETERS:
            # A name is no secret, but it could be anything: only what looks like a parameter is repeated.
            shown = name if name.isidentifier() and len(name) <= 40 else "?"
            raise UrlError(f"the parameter {shown} is not supported; it takes {', '.join(_PARAMETERS)}")
        if name in options:
            raise UrlError(f"takes {name} once")
        options[name] = value
    return options


def _ssl(options: dict[str, str]) -> dict[str, str]:
    system = options.get("sslrootcert") == "system"
    mode = options.setdefault("sslmode", "verify-full" if system else "prefer")
    if mode not in SSL_MODES:
        raise UrlError(f"sslmode takes {', '.join(SSL_MODES)}")
    if mode in ("verify-ca", "verify-full") and not options.get("sslrootcert"):
        raise UrlError(f"sslmode={mode} needs sslrootcert, the file with the certificate authority")
    if system and mode != "verify-full":
        # As in libpq: anybody can have a certificate of some public authority, so only the name tells.
        raise UrlError("sslrootcert=system takes sslmode=verify-full and no weaker one")
    if ("sslcert" in options) != ("sslkey" in options):
        raise UrlError("sslcert and sslkey belong together: give both or neither")
    return {name: value for name, value in options.items() if value}


def _connect_timeout(text: str | None) -> float | None:
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 4:
        raise UrlError("connect_timeout takes whole seconds, such as 5")
    # libpq: zero means no bound of its own.
    return float(text) or None


def _sqlite(url: str) -> Sqlite:
    rest = url.removeprefix("sqlite://")
    path = unquote(rest[1:])
    if not rest.startswith("/") or not path or path == ":memory:" or "?" in path:
        raise UrlError("SQLite takes a file that all workers share: sqlite:////absolute/path.db")
    return Sqlite(path=Path(path))
