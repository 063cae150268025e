"""Replicas of a service, registered in a table they share, with heartbeats by the database's clock.

One server (a gunicorn master with all its workers) is one replica. In an app with an SQLAlchemy engine:

    from readygate import health, replicas
    from readygate.replicas import gunicorn

    membership = replicas.Membership(engine, replica_id=gunicorn.replica_id, version="2.4")
    app.extensions["readygate"] = membership     # where the gunicorn hooks find it, see replicas.gunicorn
    checks = health.disclosed(database=membership.database_reason, replica=membership.reason)
    app.register_blueprint(health.blueprint(measured=checks, start=membership.start))

`blueprint` shows the fleet at `/api/v2/replicas`; who may look is the app's to say:

    app.register_blueprint(replicas.blueprint(membership.registry, connect=membership.connect, guard=guard))

Underneath, `Registry.sync` is called once a heartbeat: it touches the row, or joins the line anew where the row is
gone, and reads the facts that decide over this replica. A `Lease` says how long those facts may be believed, and
`Heartbeat` is the thread that keeps them fresh. The table is in `metadata`, for the app's own migrations.
"""

from .blueprint import Guard, blueprint
from .errors import DrainEnded, RegistryError, ReplicaNotFound
from .heartbeat import Heartbeat
from .lease import HASTE, Lease, elapsed
from .membership import Judge, Membership
from .policies import Policies
from .registry import Registry
from .replica import Facts, Replica, State, state
from .schema import metadata

__all__ = [
    "HASTE",
    "DrainEnded",
    "Facts",
    "Guard",
    "Heartbeat",
    "Judge",
    "Lease",
    "Membership",
    "Policies",
    "Registry",
    "RegistryError",
    "Replica",
    "ReplicaNotFound",
    "State",
    "blueprint",
    "elapsed",
    "metadata",
    "state",
]
