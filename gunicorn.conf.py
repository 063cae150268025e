"""How it is served: `gunicorn` alone, in this folder, reads this file.

gunicorn reads it again at SIGHUP, in the same master. What could turn bad between the two (a file) was checked at the
start and must not end a running service: so the checks run once per master.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.chdir(Path(__file__).parent)

import settings

_CHECKED = settings.CHECKED
if os.environ.get(_CHECKED) != str(os.getpid()):
    os.environ.pop(settings.PINNED_KEYS, None)
    os.environ.pop(settings.PINNED_DATABASE, None)
    os.environ.pop(_CHECKED, None)
    try:
        _settings = settings.read(os.environ)
    except settings.SettingsError as error:
        raise SystemExit(str(error)) from None
    if _settings.license_keys is not None:
        os.environ[settings.PINNED_KEYS] = _settings.license_keys
    if _settings.database_url_file is not None:
        os.environ[settings.PINNED_DATABASE] = _settings.database_without_login()
    os.environ[_CHECKED] = str(os.getpid())

wsgi_app = "app:create_app()"
bind = f"0.0.0.0:{os.environ.get('PORT') or 8000}"
workers = int(os.environ.get("WEB_CONCURRENCY") or 2)
worker_class = "gthread"
# One of them is left for probes while the others wait for the database (patience.Turnstile). `--worker-class sync`
# needs `--threads 1` beside it: with more, gunicorn takes gthread.
threads = 8
# A worker that does not answer its master for this long is killed; no request here waits longer for anything.
timeout = 30
graceful_timeout = 30
# In memory, so that a full or slow disk makes no worker look dead; and the root may be read-only.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None
# gunicorn would make one in the home directory, which may be read-only, and nobody here listens to it.
control_socket_disable = True
# JSON where READYGATE_LOG says so, and no probes in the access log, which is off unless gunicorn is told otherwise.
logger_class = "server_logs.Logger"


def on_starting(server):
    """In the master, before any worker: make this replica's identity."""
    from replicas import gunicorn

    if server.cfg.worker_class_str == "gevent" and _is_sqlite():
        raise SystemExit("DATABASE_URL: gevent needs PostgreSQL, since a lock of SQLite would stop all its requests")
    gunicorn.on_starting(server)
    # With --daemon the master is another process by now than the one that read this file.
    os.environ[_CHECKED] = str(os.getpid())


def post_fork(server, worker):
    """In each worker, before gevent patches: with --preload it finds modules that were loaded before, and says so.

    Nothing of TLS is made before the patch, so the warning means nothing here, and would be a line that is no JSON.
    """
    import warnings

    warnings.filterwarnings("ignore", message="Monkey-patching ssl after ssl has already been imported")


def when_ready(server):
    """In the master: one line that says what this replica would do in a violation."""
    current = settings.read(os.environ)
    server.log.info(
        "readygate: replica %s, database %s, policy %s: %s",
        os.environ["READYGATE_REPLICA_ID"],
        _label(current),
        current.exclude,
        "a violation takes every replica out, one of a replica_limit the surplus"
        if current.exclude == "all"
        else "a violation takes the surplus out",
    )


def pre_exec(server):
    """In the master that SIGUSR2 makes: it is another replica, and checks its own start."""
    from replicas import gunicorn

    gunicorn.pre_exec(server)
    os.environ.pop(_CHECKED, None)


def post_worker_init(worker):
    """In each worker, after the fork: start the thread that pings, beats and judges."""
    replica = worker.wsgi.extensions["readygate"]
    # Only what serves in threads has a number of them: gevent's requests wait for nobody.
    replica.patience.threads = {"sync": 1, "gthread": worker.cfg.threads}.get(worker.cfg.worker_class_str)
    replica.lease.follow_parent(worker.ppid)
    replica.start()


def on_exit(server):
    """In the master, once its workers are gone: leave, so that the others need not wait for this one to go stale."""
    import farewell

    farewell.leave()


def _is_sqlite():
    return _label(settings.read(os.environ)).startswith("sqlite:")


def _label(current):
    from database_url import parse

    return parse(current.database_url).label
