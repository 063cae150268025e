"""The commands of the service itself, and what its packages' commands share."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click
from flask import Flask
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

import database
import entitlements.commands
import entitlements.service
import replicas.commands
import schema
from database_url import parse
from entitlements import EntitlementsService
from replicas import Registry
from settings import Settings

#: How long `status` waits for the replica on this host.
_PROBE_SECONDS = 2.0


class Wiring(Protocol):
    """What the commands need of the application."""

    settings: Settings
    engine: Engine
    entitlements: EntitlementsService
    registry: Registry


def register(app: Flask, wiring: Wiring) -> None:
    """Add the commands to `flask --app app`. None of them beats, migrates or imports by the way."""

    @contextmanager
    def connect() -> Iterator[Connection]:
        with _failing_in_words(wiring.settings), wiring.engine.connect() as connection:
            schema.require(connection)
            yield connection

    app.cli.add_command(entitlements.commands.commands(wiring.entitlements, connect, show))
    app.cli.add_command(replicas.commands.commands(wiring.registry, connect, show))
    app.cli.add_command(_db(wiring))
    app.cli.add_command(_status(wiring, connect))


def show(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows: a table for people, or a JSON array for programs."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("none")
        return
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _db(wiring: Wiring) -> click.Group:
    group = click.Group("db", help="The database schema.")

    @group.command()
    def upgrade() -> None:
        """Bring the schema to this release.

        \b
        Example:
          flask --app app db upgrade
        """
        engine = database.background_engine(wiring.settings.current_database_url, timeout_seconds=600)
        with _failing_in_words(wiring.settings):
            schema.upgrade(engine)
        click.echo(f"the schema is at revision {schema.REVISION} or newer")

    return group


def _status(wiring: Wiring, connect: Callable[[], Any]) -> click.Command:
    @click.command()
    @click.option("--url", default=f"http://127.0.0.1:{wiring.settings.port}", show_default=True)
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    @click.pass_context
    def status(context: click.Context, url: str, as_json: bool) -> None:
        """What the replica on this host says of itself, and what the shared database says of all.

        Exit status 0: the replica is ready. 1: it is not, or does not answer.

        \b
        Example:
          flask --app app status
        """
        code, body = _probe(url)
        found: dict[str, Any] = {"ready": code == 200, "readyz": body.splitlines(), "policy": wiring.settings.exclude}
        try:
            with connect() as connection:
                stored = wiring.entitlements.read(connection)
                rows = wiring.registry.active(connection, count=1000)
                found["deployment_id"] = wiring.entitlements.deployment_id(connection)
            found["licenses"] = [entitlements.service.summary(row) for row in stored.rows]
            found["replicas"] = [row.id for row in rows]
            found["policies"] = sorted({row.exclude for row in rows})
        except click.ClickException as error:
            found["database"] = error.format_message()
        click.echo(json.dumps(found, indent=2) if as_json else _for_people(found))
        context.exit(0 if found["ready"] else 1)

    return status


def _for_people(found: dict[str, Any]) -> str:
    lines = ["ready" if found["ready"] else "not ready", *(f"  {line}" for line in found["readyz"])]
    lines.append(f"policy: {found['policy']} ({_POLICIES[found['policy']]})")
    if "database" in found:
        return "\n".join([*lines, f"database: {found['database']}"])
    if len(found["policies"]) > 1:
        lines.append(f"warning: replicas run different policies: {', '.join(found['policies'])}")
    refused = sum(1 for license_ in found["licenses"] if license_["refusal"])
    lines.append(f"deployment: {found['deployment_id']}")
    lines.append(f"licenses: {len(found['licenses'])} stored, {refused} of them refused")
    lines.append(f"replicas: {len(found['replicas'])} active")
    return "\n".join(lines)


_POLICIES = {
    "all": "a violation takes every replica out of service",
    "surplus": "a violation takes only the surplus out of service",
}


def _probe(url: str) -> tuple[int, str]:
    """Status and body of /readyz?verbose; 0 where nothing answers."""
    try:
        with urllib.request.urlopen(f"{url}/readyz?verbose", timeout=_PROBE_SECONDS) as response:
            return response.status, response.read(65536).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(65536).decode(errors="replace")
    except (OSError, ValueError):
        return 0, f"no replica answers at {url}; start it with `gunicorn`, or name another with --url"


@contextmanager
def _failing_in_words(settings: Settings) -> Iterator[None]:
    """A failure of the database becomes one line and exit status 1."""
    try:
        yield
    except schema.SchemaOutdatedError as error:
        raise click.ClickException(str(error)) from None
    except (SQLAlchemyError, OSError) as error:
        label, why = parse(settings.database_url).label, database.failure(error)
        raise click.ClickException(f"database {label}: {why}; is it up, and is DATABASE_URL right?") from None
