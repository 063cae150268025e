"""The commands of the service itself, and what its packages' commands share."""

from __future__ import annotations

import http.client
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

import auth.commands
import database
import entitlements.commands
import entitlements.service
import overview
import replicas.commands
import schema
from auth import Tokens
from database_url import UrlError, parse
from entitlements import EntitlementsService, Feature
from entitlements.license import HIGH_AVAILABILITY
from replicas import Registry
from replicas.replica import rfc3339
from settings import Settings

#: How many replicas `status` shows, one line each.
_MOST_REPLICAS = 1000
#: How long `status` waits for the replica on this host.
_PROBE_SECONDS = 2.0


class Wiring(Protocol):
    """What the commands need of the application."""

    settings: Settings
    engine: Engine
    entitlements: EntitlementsService
    registry: Registry
    tokens: Tokens


def register(app: Flask, wiring: Wiring) -> None:
    """Add the commands to `flask --app app`. None of them beats, migrates or imports by the way."""

    @contextmanager
    def connect() -> Iterator[Connection]:
        with _failing_in_words(wiring.settings), wiring.engine.connect() as connection:
            schema.require(connection)
            yield connection

    app.cli.add_command(entitlements.commands.commands(wiring.entitlements, connect, show))
    app.cli.add_command(auth.commands.commands(wiring.tokens, connect, show))
    app.cli.add_command(replicas.commands.commands(wiring.registry, connect, show, allowed=wiring.entitlements.allowed))
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
    lines = [list(rows[0]), *(["-" if value is None else str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _db(wiring: Wiring) -> click.Group:
    group = click.Group("db", help="The database schema.")

    @group.command()
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def upgrade(as_json: bool) -> None:
        """Bring the schema to this release.

        \b
        Example:
          flask --app app db upgrade
        """
        engine = database.background_engine(
            wiring.settings.current_database_url,
            timeout_seconds=600,
            connect_seconds=wiring.settings.database_timeout_seconds,
        )
        with _failing_in_words(wiring.settings):
            schema.upgrade(engine)
        if as_json:
            show([{"revision": schema.REVISION}], True)
        else:
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
                seen = overview.read(connection, wiring.entitlements, wiring.registry, most=_MOST_REPLICAS)
            found |= _fleet(seen, wiring.settings.exclude)
        except click.ClickException as error:
            found["database"] = error.format_message()
        click.echo(json.dumps(found, indent=2) if as_json else _for_people(found))
        context.exit(0 if found["ready"] else 1)

    return status


def _fleet(seen: overview.Overview, exclude: str) -> dict[str, Any]:
    """What the shared database says, for programs."""
    judged = overview.judge(seen, exclude=exclude)
    return {
        "deployment_id": seen.deployment_id,
        "licenses": [entitlements.service.summary(row) for row in seen.stored.rows],
        "allowed": seen.allowed,
        "violation": seen.last is not None,
        "features": {name: _feature(feature) for name, feature in judged.features.items()},
        "notices": [
            {
                "code": notice.code,
                "message": notice.message,
                "detail": notice.detail,
                "severity": notice.severity,
                "blocking": notice.blocking,
            }
            for notice in judged.notices
        ],
        "replicas": [
            {
                "id": replica.id,
                "hostname": replica.hostname,
                "version": replica.version,
                "state": state,
                "policy": replica.exclude,
                "draining_at": None if replica.draining_at is None else rfc3339(replica.draining_at),
                "updated_at": rfc3339(replica.updated_at),
            }
            for replica, state in seen.replicas
        ],
        "complete": seen.complete,
        "policies": seen.policies,
    }


def _feature(feature: Feature) -> dict[str, Any]:
    ends = None if feature.ends is None else rfc3339(feature.ends * 1_000_000)
    return {"entitlement": feature.entitlement, "limit": feature.limit, "ends": ends}


def _for_people(found: dict[str, Any]) -> str:
    lines = ["ready" if found["ready"] else "not ready", *(f"  {line}" for line in found["readyz"])]
    lines.append(f"policy: {found['policy']} ({_POLICIES[found['policy']]})")
    if "database" in found:
        return "\n".join([*lines, f"database: {found['database']}"])
    for notice in found["notices"]:
        lines += [f"{notice['severity']}: {notice['message']}", f"  {notice['detail']}"]
    if len(found["policies"]) > 1:
        lines.append(f"warning: replicas run different policies: {', '.join(found['policies'])}")
    refused = sum(1 for license_ in found["licenses"] if license_["refusal"])
    lines.append(f"deployment: {found['deployment_id']}")
    lines.append(f"licenses: {len(found['licenses'])} stored, {refused} of them refused")
    lines += [f"  {name}: {_standing(name, feature)}" for name, feature in found["features"].items()]
    may = "any number" if found["allowed"] is None else str(found["allowed"])
    lines.append(f"replicas: {len(found['replicas'])}{'' if found['complete'] else ' or more'} active, {may} may serve")
    width = max((len(row["hostname"]) for row in found["replicas"]), default=0)
    lines += [f"  {row['id']}  {row['hostname']:{width}}  {_doing(row)}" for row in found["replicas"]]
    return "\n".join(lines)


def _doing(row: dict[str, Any]) -> str:
    if row["draining_at"] is None or row["state"] == "draining":
        return str(row["state"])
    return f"{row['state']}, hands its place over at {row['draining_at']}"


def _standing(name: str, feature: dict[str, Any]) -> str:
    words = str(feature["entitlement"]).replace("_", " ")
    number = "" if feature["limit"] is None or name == HIGH_AVAILABILITY else f" ({feature['limit']})"
    return words + number + ("" if feature["ends"] is None else f" until {feature['ends'][:10]}")


_POLICIES = {
    "all": "a violation takes every replica out of service",
    "surplus": "a violation takes only the surplus out of service",
}


def _probe(url: str) -> tuple[int, str]:
    """Status and body of /readyz?verbose; 0 where nothing answers."""
    # A proxy that the environment names for the outside knows nothing of this host.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        try:
            answer = opener.open(f"{url.rstrip('/')}/readyz?verbose", timeout=_PROBE_SECONDS)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, answer.read(65536).decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException):
        return 0, f"no replica answers at {url}; start it with `gunicorn`, or name another with --url"


@contextmanager
def _failing_in_words(settings: Settings) -> Iterator[None]:
    """A failure of the database becomes one line and exit status 1."""
    try:
        yield
    except schema.SchemaOutdatedError as error:
        raise click.ClickException(str(error)) from None
    except (SQLAlchemyError, OSError, UrlError) as error:
        label, why = parse(settings.database_url).label, database.failure(error)
        raise click.ClickException(f"database {label}: {why}; is it up, and is DATABASE_URL right?") from None
