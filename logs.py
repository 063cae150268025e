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


def set_up(form: str, *, file: str | None = None) -> None:
    """Send the lines of `readygate` to standard error, unless the process has handlers for them already.

    `file`: where they go instead, as where gunicorn has a log file: a daemon has no standard error.

    With `json` those of everything else in the process too, from warnings on: one line in another form would spoil it
    for the program that reads them.
    """

    def handler() -> logging.Handler:
        return logging.StreamHandler() if file is None else logging.FileHandler(file)

    if form == "json" and not logging.root.handlers:
        others = handler()
        others.setFormatter(JsonFormatter())
        logging.root.addHandler(others)
        logging.captureWarnings(True)
    logger = logging.getLogger("readygate")
    if logger.handlers:
        return
    own = handler()
    text = logging.Formatter("[%(asctime)s] [%(process)d] [%(levelname)s] %(name)s: %(message)s")
    own.setFormatter(JsonFormatter() if form == "json" else text)
    logger.addHandler(own)
    logger.setLevel(logging.INFO)
    logger.propagate = False
