"""A page for people: this replica's checks, all replicas, what the licenses allow, what is wrong, and what to do.

    app.register_blueprint(status.blueprint(see=see, guard=guard))

`see` returns a `View`, which is everything the page shows; it is called at each request and must not wait for long.
`guard` says who may look, and who may change anything, where functions that do are passed too. A browser sends a
password or a cookie by itself, also when a page of somebody else makes it: so a guard must refuse a POST that was
forged there. The page needs no script, and loads nothing from elsewhere; its script only keeps it fresh.
"""

from .blueprint import Actions, Guard, blueprint
from .errors import Refused
from .view import Check, Feature, License, Notice, Replica, View

__all__ = [
    "Actions",
    "Check",
    "Feature",
    "Guard",
    "License",
    "Notice",
    "Refused",
    "Replica",
    "View",
    "blueprint",
]
