"""How log lines look: text for people, JSON for programs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, process, message."""

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line."""
        return json.dumps(
            {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
                "level": record.levelname.lower(),
                "logger": record.name,
                "process": record.process,
                "message": record.getMessage(),
            }
        )


def set_up(form: str) -> None:
    """Send the lines of `readygate` to standard error, unless the process has handlers for them already."""
    logger = logging.getLogger("readygate")
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    text = logging.Formatter("[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
