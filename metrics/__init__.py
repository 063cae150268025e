"""What one worker knows of itself, of its fleet and of its licenses, at `/metrics` for Prometheus.

    def read() -> Reading:
        return Reading(replica=replica_id(), checks={"disk": disk_is_full()}, heartbeat_age_seconds=1.2)

    app.register_blueprint(metrics.blueprint(read, guard=guard, version="2.4"))

A scrape reads memory and nothing else, so it answers while the database is down, and costs the database nothing.
Whichever worker of a server answers, it tells of the same replica: what only holds for one worker says so in its HELP.
The one counter has the worker as a label, so nothing has to be added up in a directory that workers share.
"""

from .blueprint import Guard, blueprint
from .collector import Found, License, Reading

__all__ = ["Found", "Guard", "License", "Reading", "blueprint"]
