"""Liveness and readiness routes for any Flask app; needs Flask alone.

    from flask import Flask
    from readygate import health

    app = Flask(__name__)
    app.register_blueprint(health.blueprint(ready={"disk": disk_is_full}))

A check is a function that returns None, or what is wrong. No request runs it: a thread does, once a second, and
`/readyz` answers from memory with `disk failed` (503) or `OK` (200); what was wrong goes to the log. An orchestrator
takes an instance whose `/readyz` fails out of the load balancer, and restarts one whose `/healthz` fails; so
`/healthz` says `OK` for as long as the process can say anything.
"""

from .blueprint import blueprint
from .checks import Check, Measured, Public, Remark, disclosed, first_failure

__all__ = ["Check", "Measured", "Public", "Remark", "blueprint", "disclosed", "first_failure"]
