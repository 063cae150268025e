"""The command group `token`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any

import click
from sqlalchemy.engine import Connection
from werkzeug.exceptions import HTTPException

from .errors import AuthError
from .tokens import Role, Token, Tokens

_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_MOST_SECONDS = 100 * _SECONDS["y"]
Show = Callable[[Sequence[dict[str, Any]], bool], None]


def plain(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows: JSON, or a line each under the names of their fields, with tabs in between."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    lines = [list(rows[0]), *(row.values() for row in rows)] if rows else [["none"]]
    click.echo("\n".join("\t".join("-" if cell is None else str(cell) for cell in line) for line in lines))


def commands(
    tokens: Tokens,
    connect: Callable[[], AbstractContextManager[Connection]],
    show: Show = plain,
) -> click.Group:
    """The group. `connect`: a connection in autocommit mode, whose failures become one line for people.

    `show`: prints rows.
    """
    group = click.Group("token", help="Tokens for the API: make, list and revoke them.")

    @group.command()
    @click.argument("name")
    @click.option("--role", type=click.Choice(["viewer", "admin"]), required=True)
    @click.option("--expires", callback=_duration, metavar="TIME", help="12h, 90d, 2w or 1y; without it, never.")
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def create(name: str, role: Role, expires: int | None, as_json: bool) -> None:
        """Make a token and print it: this once, since only its digest is kept.

        \b
        Example:
          flask --app app token create ci --role viewer --expires 90d > token
          curl -H "Authorization: Bearer $(cat token)" localhost:8000/api/v2/entitlements
        """
        with _one_line(), connect() as connection:
            text, row = tokens.create(connection, name, role=role, expires_seconds=expires)
        if as_json:
            show([{**_row(row, row.created_at), "token": text}], True)
        else:
            click.echo(text)
            click.echo("This is shown once: only its digest is kept.", err=True)

    @group.command("list")
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def list_(as_json: bool) -> None:
        """Show the tokens by name, the expired ones too; never their text.

        \b
        Example:
          flask --app app token list --json
        """
        with _one_line(), connect() as connection:
            rows, now = tokens.all(connection)
        shown = [_row(row, now) for row in rows]
        show(shown if as_json else [{**row, "expires_at": row["expires_at"] or "never"} for row in shown], as_json)

    @group.command()
    @click.argument("name")
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def revoke(name: str, as_json: bool) -> None:
        """End a token; it stops working within one heartbeat on every replica.

        \b
        Example:
          flask --app app token revoke ci
        """
        with _one_line(), connect() as connection:
            tokens.revoke(connection, name)
        if as_json:
            show([{"revoked": name}], True)
        else:
            click.echo(f"revoked {name}; it stops working within one heartbeat")

    return group


@contextmanager
def _one_line() -> Iterator[None]:
    """An error of this package becomes one line and exit status 1."""
    try:
        yield
    except AuthError as error:
        raise click.ClickException(str(error)) from None
    except HTTPException as error:
        raise click.ClickException(f"{error.description}; is it up?") from None


def _duration(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,5})([hdwy])", value)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= _MOST_SECONDS:
        raise click.BadParameter("takes hours, days, weeks or years, at most 100y, such as 12h, 90d, 2w or 1y")
    return seconds


def _row(token: Token, now: int) -> dict[str, Any]:
    return {
        "name": token.name,
        "role": token.role,
        "state": "expired" if token.expires_at is not None and token.expires_at <= now else "valid",
        "created_at": _time(token.created_at),
        "expires_at": None if token.expires_at is None else _time(token.expires_at),
    }


def _time(instant: int) -> str:
    return datetime.fromtimestamp(instant / 1_000_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
