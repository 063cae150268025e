"""Replicas of a service, registered in a table they share, with heartbeats by the database's clock.

One server (a gunicorn master with all its workers) is one replica. Its workers call `Registry.sync` once a heartbeat:
it touches the row, or joins the line anew where the row is gone, and reads the facts that decide over this replica.
A `Lease` says how long those facts may be believed, and `Heartbeat` is the thread that keeps them fresh.

    registry = Registry(replica_id=gunicorn.replica_id, hostname="web-1", version="2.4")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        facts = registry.sync(connection, limit=None)
"""

from .heartbeat import Heartbeat
from .lease import HASTE, Lease
from .registry import Facts, Registry, RegistryError, Replica
from .schema import metadata

__all__ = ["HASTE", "Facts", "Heartbeat", "Lease", "Registry", "RegistryError", "Replica", "metadata"]
