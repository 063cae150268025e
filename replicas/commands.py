"""The command group `replicas`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import click
from sqlalchemy.engine import Connection

from .registry import Registry, Replica

Show = Callable[[Sequence[dict[str, Any]], bool], None]


def commands(
    registry: Registry,
    connect: Callable[[], AbstractContextManager[Connection]],
    show: Show,
) -> click.Group:
    """The group. `connect`: a connection in autocommit mode, whose failures become one line for people."""
    group = click.Group("replicas", help="The replicas that share the database.")

    @group.command("list")
    @click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def list_(limit: int, as_json: bool) -> None:
        """Show the active replicas, longest-serving first.

        \b
        Example:
          flask --app app replicas list --json
        """
        with connect() as connection:
            now, rows = registry.now(connection), registry.active(connection, count=limit)
        show([_row(row, now) for row in rows], as_json)

    return group


def _row(replica: Replica, now: int) -> dict[str, Any]:
    draining = replica.draining_at is not None and replica.draining_at <= now
    state = "draining" if draining else "grace" if replica.aged_at > now else "counts"
    return {
        "id": replica.id,
        "hostname": replica.hostname,
        "version": replica.version,
        "state": state,
        "created_at": _time(replica.created_at),
        "updated_at": _time(replica.updated_at),
    }


def _time(instant: int) -> str:
    return datetime.fromtimestamp(instant / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
