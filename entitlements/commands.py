"""The command group `license`."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from sqlalchemy.engine import Connection
from werkzeug.exceptions import HTTPException

from . import signing
from .errors import EntitlementsError
from .license import MAX_BYTES
from .service import EntitlementsService, summary

_DAY = 86400
Show = Callable[[Sequence[dict[str, Any]], bool], None]


def plain(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print rows: JSON, or a line each under the names of their fields, with tabs in between."""
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    lines = [list(rows[0]), *(row.values() for row in rows)] if rows else [["none"]]
    click.echo("\n".join("\t".join("-" if cell is None else str(cell) for cell in line) for line in lines))


class Duration(click.ParamType[int]):
    """Days, weeks or years (90d, 2w, 1y), as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,5})([dwy])", str(value))
        if not found:
            self.fail("takes days, weeks or years, such as 90d, 2w or 1y", param, ctx)
        return int(found[1]) * {"d": _DAY, "w": 7 * _DAY, "y": 365 * _DAY}[found[2]]


class Grant(click.ParamType[tuple[str, int]]):
    """NAME or NAME=NUMBER."""

    name = "feature"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """The name and its number, 1 where none is given."""
        name, _, number = str(value).partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", name) or not re.fullmatch(r"\d{0,15}", number):
            self.fail("takes NAME or NAME=NUMBER, such as high_availability or replica_limit=3", param, ctx)
        return name, int(number or 1)


def commands(
    service: EntitlementsService,
    connect: Callable[[], AbstractContextManager[Connection]],
    show: Show = plain,
) -> click.Group:
    """The group. `connect`: a connection in autocommit mode, whose failures become one line for people.

    `show`: prints rows.
    """
    group = click.Group("license", help="Signed licenses: make keys and licenses, store and remove them.")

    @group.command()
    @click.option("--out", type=click.Path(path_type=Path), default="license-key.pem", show_default=True)
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def keygen(out: Path, as_json: bool) -> None:
        """Make a key pair: the private key, and the public JWK set beside it.

        \b
        Example:
          flask --app app license keygen --out vendor.pem
          export READYGATE_LICENSE_KEYS=vendor.public.json
        """
        if not out.name:
            raise click.UsageError("--out takes the name of a file")
        public = out.with_suffix(".public.json")
        with _one_line():
            kid = signing.generate(out, public)
        if as_json:
            show([{"private_key": str(out), "public_keys": str(public), "kid": kid}], True)
            return
        click.echo(f"private key: {out} (keep it secret)\npublic keys: {public} (READYGATE_LICENSE_KEYS)\nkid: {kid}")

    @group.command()
    @click.option("--key", type=click.Path(path_type=Path), default="license-key.pem", show_default=True)
    @click.option("--account-id", required=True, help="Whom it is for.")
    @click.option("--account-type", default="company", show_default=True)
    @click.option("--feature", "features", type=Grant(), multiple=True, help="NAME or NAME=NUMBER; repeatable.")
    @click.option("--starts-in", type=Duration(), default="0d", show_default=True)
    @click.option("--term", type=Duration(), default="1y", show_default=True, help="How long it is valid.")
    @click.option("--grace", type=Duration(), default="14d", show_default=True, help="How long it goes on after that.")
    @click.option("--subject", help="A remark for people.")
    @click.option("--trial", is_flag=True)
    @click.option("--deployment-id", "deployment_ids", multiple=True, help="Only for this deployment; repeatable.")
    @click.option("--json", "as_json", is_flag=True, help="For programs: what POST /api/v2/licenses takes.")
    def issue(
        key: Path,
        account_id: str,
        account_type: str,
        features: Sequence[tuple[str, int]],
        starts_in: int,
        term: int,
        grace: int,
        subject: str | None,
        trial: bool,
        deployment_ids: Sequence[str],
        as_json: bool,
    ) -> None:
        """Sign a license and print it.

        \b
        Example:
          flask --app app license issue --key vendor.pem --account-id acme \\
            --feature high_availability --feature replica_limit=3 --term 1y > acme.jwt
        """
        if dict(features).get("replica_limit") == 0:
            raise click.UsageError("replica_limit 0 would allow nothing; leave it out for no bound")
        if grace > 365 * _DAY or starts_in + term > 5 * 365 * _DAY:
            raise click.UsageError("--grace takes at most 1y, and the term ends at most 5y from now")
        if term == 0:
            raise click.UsageError("--term takes a day or more: without one the license has ended before it begins")
        now = int(time.time())
        with _one_line():
            text = signing.issue(
                signing.load(key),
                now=now,
                not_before=now + starts_in,
                license_expires=now + starts_in + term,
                expires=now + starts_in + term + grace,
                account_type=account_type,
                account_id=account_id,
                features=dict(features),
                subject=subject,
                trial=trial,
                deployment_ids=deployment_ids,
            )
        click.echo(json.dumps({"license": text}) if as_json else text)

    @group.command()
    @click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def add(file: str, as_json: bool) -> None:
        """Store the license in FILE (- for standard input); it counts on every replica within a heartbeat.

        \b
        Example:
          flask --app app license add acme.jwt
        """
        text = _text(file)
        with _one_line(), connect() as connection:
            stored = service.add(connection, text)
        show([_row(summary(stored), as_json, stored.uploaded_at)], as_json)

    @group.command("list")
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def list_(as_json: bool) -> None:
        """Show the stored licenses.

        \b
        Example:
          flask --app app license list --json
        """
        with _one_line(), connect() as connection:
            stored = service.read(connection)
        show([_row(summary(row), as_json, stored.now) for row in stored.rows], as_json)

    @group.command()
    @click.argument("license_id", metavar="ID", type=int)
    @click.option("--json", "as_json", is_flag=True, help="For programs.")
    def remove(license_id: int, as_json: bool) -> None:
        """Delete a license by the id that `license list` shows; what it granted ends within a heartbeat.

        \b
        Example:
          flask --app app license remove 3
        """
        with _one_line(), connect() as connection:
            service.remove(connection, license_id)
        if as_json:
            show([{"removed": license_id}], True)
        else:
            click.echo(f"removed license {license_id}")

    return group


@contextmanager
def _one_line() -> Iterator[None]:
    """An error of this package becomes one line and exit status 1."""
    try:
        yield
    except EntitlementsError as error:
        raise click.ClickException(str(error)) from None
    except HTTPException as error:
        raise click.ClickException(f"{error.description}; is it up?") from None


def _text(file: str) -> str:
    """What is in `file`, or comes in where that is a dash; one character more than is taken, at most."""
    if file == "-" and sys.stdin is None:
        raise click.ClickException("standard input is closed; it takes the license, or FILE does")
    try:
        with click.open_file(file, encoding="utf-8", errors="replace") as opened:
            return str(opened.read(MAX_BYTES + 1))
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}") from None


def _row(license_: dict[str, Any], as_json: bool, now: int) -> dict[str, Any]:
    """`now`: microseconds since 1970 by the database's clock."""
    if as_json:
        return {**license_, "uploaded_at": _time(license_["uploaded_at"] // 1_000_000)}
    claims = license_["claims"]
    if claims is None:
        return {
            "id": license_["id"],
            "uuid": license_["uuid"],
            "state": license_["refusal"],
            "term": "",
            "features": "",
        }
    features = " ".join(f"{name}={number}" for name, number in claims["features"].items())
    term = f"{_time(claims['nbf'])[:10]} to {_time(claims['license_expires'])[:10]}"
    state = _state(claims, now / 1_000_000)
    return {"id": license_["id"], "uuid": license_["uuid"], "state": state, "term": term, "features": features}


def _state(claims: dict[str, Any], now: float) -> str:
    if now < claims["nbf"]:
        return "not yet"
    if now < claims["license_expires"]:
        return "valid"
    return "in its grace period" if now < claims["exp"] else "ended"


def _time(seconds: int) -> str:
    # A signed number may lie beyond the calendar, which ends with the year 9999.
    return datetime.fromtimestamp(min(seconds, 253_402_300_799), UTC).isoformat().replace("+00:00", "Z")
