"""How log lines look: text for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime

#: Where the master leaves the id of this replica (replicas.gunicorn); it makes its logger before that.
REPLICA = "READYGATE_REPLICA_ID"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, process, replica, message; exception if any.

    `replica` is null before the master has made its id.
    """

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "replica": os.environ.get(REPLICA),
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(form: str) -> None:
    """Send the lines of `readygate` to standard error, unless the process has handlers for them already.

    With `json` those of everything else in the process too, from warnings on: one line in another form would spoil it
    for the program that reads them.
    """
    if form == "json" and not logging.root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.root.addHandler(handler)
        logging.captureWarnings(True)
    logger = logging.getLogger("readygate")
    if logger.handlers:
        return
    handler = logging.StreamHandler()
    text = logging.Formatter("[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
