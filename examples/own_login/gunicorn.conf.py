"""Four workers, one replica."""

from readygate.replicas.gunicorn import on_exit, on_starting, post_worker_init, pre_exec

__all__ = ["on_exit", "on_starting", "post_worker_init", "pre_exec"]
wsgi_app = "app:create_app()"
workers = 4
