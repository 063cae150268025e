"""The command group `replicas`."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from sqlalchemy.engine import Connection

from .errors import RegistryError
from .registry import Registry
from .replica import Replica

Show = Callable[[Sequence[dict[str, Any]], bool], None]
_POLL_SECONDS = 0.2
#: How long beyond the appointment `--wait` waits: one heartbeat of the longest kind, for the clocks' rates.
_LATE_SECONDS = 10.0


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

    @group.command()
    @click.argument("id", required=False)
    @click.option("--wait", is_flag=True, help="Return once the place is given up.")
    @click.option("--now", "at_once", is_flag=True, help="Give the place up at once, as a preStop hook does.")
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def drain(id: str | None, wait: bool, at_once: bool, as_json: bool) -> None:
        """Hand the place of a replica over; without ID, of the one on this host.

        It serves on until its appointment, three heartbeats from now, and then answers 503 `draining`; the next in
        line takes its place. A second drain postpones nothing. Drain it before you stop it, and no request is lost.

        \b
        Example:
          flask --app app replicas drain --wait && systemctl stop readygate
        """
        with connect() as connection:
            with _in_words():
                row = registry.drain(connection, id or _here(registry, connection), now=at_once)
            if wait:
                _wait(registry, connection, row)
            now = registry.now(connection)
        show([{**_row(row, now), "draining_at": _time(row.draining_at or now)}], as_json)

    @group.command()
    @click.argument("id", required=False)
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def undrain(id: str | None, as_json: bool) -> None:
        """Take a drain back, before its appointment; without ID, of the replica on this host.

        \b
        Example:
          flask --app app replicas undrain 8b6299a5-6919-4228-9354-4004f670bc13
        """
        with connect() as connection:
            with _in_words():
                row = registry.undrain(connection, id or _here(registry, connection))
            now = registry.now(connection)
        show([_row(row, now)], as_json)

    return group


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except RegistryError as error:
        raise click.ClickException(str(error)) from None


def _here(registry: Registry, connection: Connection) -> str:
    """The id of the one replica that runs on this host."""
    now, host = registry.now(connection), platform.node()
    rows = [row for row in registry.active(connection, count=10_000) if row.hostname == host]
    # A container that was restarted in place leaves a row behind that beats no more.
    beating = [row for row in rows if now - row.updated_at < row.stale_after / 2] if len(rows) > 1 else rows
    if len(beating) == 1:
        return beating[0].id
    found = "no replica runs" if not beating else f"{len(beating)} replicas run"
    raise RegistryError(f"{found} on this host ({host}); name one by its id, which `replicas list` shows")


def _wait(registry: Registry, connection: Connection, row: Replica) -> None:
    """Return at the appointment by the database's clock, and never later than that by much on our own."""
    assert row.draining_at is not None
    ends = time.monotonic() + row.stale_after / 1_000_000 + _LATE_SECONDS
    while registry.now(connection) < row.draining_at:
        if time.monotonic() >= ends:
            raise click.ClickException("the database's clock does not move on; the drain stands, see `replicas list`")
        time.sleep(_POLL_SECONDS)


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
