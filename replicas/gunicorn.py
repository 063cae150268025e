"""Hooks for a gunicorn configuration: one identity per master, one background thread per worker, one farewell.

The gunicorn.conf.py of an app that keeps its Membership in `app.extensions["readygate"]` needs this line:

    from readygate.replicas.gunicorn import on_exit, on_starting, post_worker_init, pre_exec

Where it is kept elsewhere, `starter` and `leaver` make the two hooks that look for it. A configuration with hooks
of its own calls these from them.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

from .errors import RegistryError
from .membership import Membership

#: How the identity reaches the workers, and which process made it: one that came from outside is nobody's.
VARIABLE, MAKER = "READYGATE_REPLICA_ID", "READYGATE_REPLICA_MAKER"
#: How long the farewell may delay the master's exit, the app's import included.
_LEAVE_SECONDS = 10.0
_log = logging.getLogger("readygate.replicas")


def on_starting(server: Any) -> None:
    """In the master, once: make the identity. A master made by SIGUSR2 inherits one and replaces it here."""
    _make()


def pre_exec(server: Any) -> None:
    """In the master that SIGUSR2 is about to make: forget the identity of the old one."""
    os.environ.pop(VARIABLE, None)
    os.environ.pop(MAKER, None)


def replica_id() -> str:
    """The identity of this server. Where no master made one (`flask run`), the process makes its own.

    Raises RegistryError under a gunicorn without the hook on_starting: each worker would be a replica.
    """
    known = os.environ.get(VARIABLE)
    if known is not None and os.environ.get(MAKER) in (str(os.getpid()), str(os.getppid())):
        return known
    if os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/"):
        raise RegistryError("each worker would be a replica: gunicorn.conf.py lacks on_starting of replicas.gunicorn")
    return _make()


def _make() -> str:
    os.environ[VARIABLE], os.environ[MAKER] = str(uuid.uuid4()), str(os.getpid())
    return os.environ[VARIABLE]


def extension(app: Any) -> Membership:
    """The membership of a Flask app, where the hooks look for it unless told otherwise."""
    found: Membership = app.extensions["readygate"]
    return found


def starter(find: Callable[[Any], Membership]) -> Callable[[Any], None]:
    """A post_worker_init hook. `find`: given the worker's WSGI application, the membership to start."""

    def post_worker_init(worker: Any) -> None:
        try:
            membership = find(worker.wsgi)
        except Exception:  # noqa: BLE001  # whatever the app does there
            # It may have been good until a SIGHUP, and a hook that raises ends the whole server.
            _log.exception("no membership to start; the first probe may do it")
            return
        membership.lease.follow_parent(worker.ppid)
        membership.start()

    return post_worker_init


def leaver(find: Callable[[Any], Membership]) -> Callable[[Any], None]:
    """An on_exit hook. `find` as for `starter`: the master loads the application for it, unless it is preloaded."""

    def leave(server: Any) -> None:
        try:
            find(server.app.wsgi()).leave()
        except (Exception, SystemExit) as error:  # noqa: BLE001  # the exit goes on, whatever the app does
            _log.warning("leaving failed: %s; the replica counts until it is stale", type(error).__name__)

    def on_exit(server: Any) -> None:
        thread = threading.Thread(target=leave, args=(server,), name="readygate-farewell", daemon=True)
        thread.start()
        thread.join(_LEAVE_SECONDS)

    return on_exit


#: In each worker, after the fork: start the thread that pings, beats and judges.
post_worker_init = starter(extension)
#: In the master, once its workers are gone: leave, so that the others need not wait for this one to go stale.
on_exit = leaver(extension)
