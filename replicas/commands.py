"""The command group `replicas`."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click
from sqlalchemy.engine import Connection
from werkzeug.exceptions import HTTPException

from .errors import RegistryError
from .registry import Registry
from .replica import Replica, shown, state

Show = Callable[[Sequence[dict[str, Any]], bool], None]
_POLL_SECONDS = 0.2
#: How long beyond the appointment `--wait` waits: one heartbeat of the longest kind, for the clocks' rates.
_LATE_SECONDS = 10.0
_FOR_PEOPLE = ("id", "hostname", "version", "state", "created_at", "updated_at", "draining_at")


def plain(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows: JSON, or a line each under the names of their fields, with tabs in between."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    lines = [list(rows[0]), *(row.values() for row in rows)] if rows else [["none"]]
    click.echo("\n".join("\t".join("-" if cell is None else str(cell) for cell in line) for line in lines))


def commands(
    registry: Registry,
    connect: Callable[[], AbstractContextManager[Connection]],
    show: Show = plain,
    *,
    allowed: Callable[[Any], tuple[int | None, bool]] = lambda connection: (None, True),
) -> click.Group:
    """The group. `connect`: a connection in autocommit mode, whose failures become one line for people.

    `show`: prints rows. `allowed`: as the blueprint takes it.
    """
    group = click.Group("replicas", help="The replicas that share the database.")

    @contextmanager
    def connection_in_words() -> Iterator[Connection]:
        try:
            with connect() as connection:
                yield connection
        except RegistryError as error:
            raise click.ClickException(str(error)) from None
        except HTTPException as error:
            raise click.ClickException(f"{error.description}; is it up?") from None

    def rows_of(connection: Connection, replicas: Sequence[Replica], as_json: bool) -> list[dict[str, Any]]:
        number, high_availability = allowed(connection)
        last, now = registry.last_allowed(connection, allowed=number), registry.now(connection)
        rows = [shown(row, None, state(row, now, last, high_availability)) for row in replicas]
        for row in rows:
            # It tells which replica answers, and a command is none.
            del row["self"]
        return rows if as_json else [{name: row[name] for name in _FOR_PEOPLE} for row in rows]

    @group.command("list")
    @click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def list_(limit: int, as_json: bool) -> None:
        """Show the active replicas, longest-serving first.

        \b
        Example:
          flask --app app replicas list --json
        """
        with connection_in_words() as connection:
            rows = rows_of(connection, registry.active(connection, count=limit), as_json)
        show(rows, as_json)

    @group.command()
    @click.argument("id", required=False)
    @click.option("--wait", is_flag=True, help="Return once the place is given up.")
    @click.option("--now", "at_once", is_flag=True, help="Give the place up at once, as a preStop hook does.")
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def drain(id: str | None, wait: bool, at_once: bool, as_json: bool) -> None:
        """Hand the place of a replica over; without ID, of the one on this host.

        It serves on until its appointment, which is its READYGATE_STALE_AFTER_SECONDS from now, and then answers 503
        `draining`; the next in line takes its place. A second drain postpones nothing. Drain it before you stop it,
        and no request is lost. Exit status 1: there is no such replica, or, with --wait, the drain was taken back.

        \b
        Example:
          flask --app app replicas drain --wait && systemctl stop readygate
        """
        with connection_in_words() as connection:
            row = registry.drain(connection, id or _here(registry, connection), now=at_once)
            if wait:
                row = _wait(registry, connection, row)
            rows = rows_of(connection, [row], as_json)
        show(rows, as_json)

    @group.command()
    @click.argument("id", required=False)
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def undrain(id: str | None, as_json: bool) -> None:
        """Take a drain back, before its appointment; without ID, of the replica on this host.

        \b
        Example:
          flask --app app replicas undrain 8b6299a5-6919-4228-9354-4004f670bc13
        """
        with connection_in_words() as connection:
            row = registry.undrain(connection, id or _here(registry, connection))
            rows = rows_of(connection, [row], as_json)
        show(rows, as_json)

    return group


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


def _wait(registry: Registry, connection: Connection, row: Replica) -> Replica:
    """The row at its appointment by the database's clock; never later than that by much on our own.

    Raises RegistryError where somebody took the drain back, or the replica stopped meanwhile.
    """
    ends = time.monotonic() + row.stale_after / 1_000_000 + _LATE_SECONDS
    while row.draining_at is not None and registry.now(connection) < row.draining_at:
        if time.monotonic() >= ends:
            raise RegistryError("the database's clock does not move on; the drain stands, see `replicas list`")
        time.sleep(_POLL_SECONDS)
        row = registry.find(connection, row.id)
    # Once more: somebody may have been taking it back at that very instant.
    row = registry.find(connection, row.id)
    if row.draining_at is None:
        raise RegistryError("the drain was taken back meanwhile; the replica serves on")
    return row
