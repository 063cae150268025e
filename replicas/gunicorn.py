"""Hooks for a gunicorn configuration: one identity per master, one background thread per worker, one farewell.

Import them into gunicorn.conf.py by name. A host with hooks of its own calls these from them.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

#: How the identity reaches the workers. Set by the master before the fork and never taken from outside.
VARIABLE = "READYGATE_REPLICA_ID"


def on_starting(server: Any) -> None:
    """In the master, once: make the identity. A master made by SIGUSR2 inherits one and replaces it here."""
    os.environ[VARIABLE] = str(uuid.uuid4())


def pre_exec(server: Any) -> None:
    """In the master that SIGUSR2 is about to make: forget the identity of the old one."""
    os.environ.pop(VARIABLE, None)


def replica_id() -> str:
    """The identity of this server. Where no master made one (`flask run`), the process makes its own."""
    return os.environ.setdefault(VARIABLE, str(uuid.uuid4()))


def starter(start: Callable[[Any], None]) -> Callable[[Any], None]:
    """A post_worker_init hook that hands the worker's WSGI application to `start`."""

    def post_worker_init(worker: Any) -> None:
        start(worker.wsgi)

    return post_worker_init
