"""gunicorn's own lines: JSON where ours are, probes kept out of the access log, and no credentials in it."""

from __future__ import annotations

import os
import re
from typing import Any

from gunicorn import glogging

import logs

_PROBE = re.compile(r"/(healthz|readyz|readyz/.*|metrics)")
#: A token in a URL is a mistake, and must not become another one.
_TOKEN = re.compile(r"rg_[A-Za-z0-9_-]{43}")
#: With Basic, people may give their token as the user; the other two are the header itself.
_WITHHELD = ("u", "{authorization}i", "{http_authorization}e")


class Atoms(glogging.SafeAtoms):  # type: ignore[misc]  # gunicorn has no types
    """What an access log's format may name."""

    def __getitem__(self, name: str) -> Any:
        if name.lower() in _WITHHELD:
            return "-"
        value = super().__getitem__(name)
        return _TOKEN.sub("rg_...", value) if isinstance(value, str) else value


class Logger(glogging.Logger):  # type: ignore[misc]
    """gunicorn's logger; its settings (`--access-logfile`, `--log-level`, ...) mean what they mean elsewhere."""

    atoms_wrapper_class = Atoms

    def setup(self, cfg: Any) -> None:
        """Make the handlers, at the start and at each SIGHUP."""
        super().setup(cfg)
        # gunicorn makes its logger with its own configuration alone. What these say was checked at the start.
        form = os.environ.get("READYGATE_LOG") or "text"
        self._probes = os.environ.get("READYGATE_LOG_PROBES") == "1"
        logs.set_up(form, file=None if cfg.errorlog == "-" else cfg.errorlog)
        if form == "json":
            for handler in (*self.error_log.handlers, *self.access_log.handlers):
                handler.setFormatter(logs.JsonFormatter())

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: Any) -> None:
        """One line of the access log, where there is one."""
        if self._probes or not _PROBE.fullmatch(environ.get("PATH_INFO", "")):
            super().access(resp, req, environ, request_time)
