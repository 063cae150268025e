"""What a fleet costs the database, from 10 to 10,000 replicas, and what a sync costs each of them.

    .venv/bin/python bench/fleet.py             (three minutes; writes docs/figures/fleet.json)
    .venv/bin/python bench/fleet.py --quick     (less of everything; prints only)

A real PostgreSQL has one database per size of the fleet. One real worker's link and thread sync beside rows whose own
stale_after is an hour, so that they live without beating; the sizes take turns. Then every query is explained in
fleets of every kind; then an hour's beats are written, one transaction each, as fast as they go; and last, two graces
end before real threads that watch.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pg8000.native
import psutil
from figures import record, spread

# isort: split
import postgres as pg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import event
from sqlalchemy.engine import Connection

import database
import schema
from app import Replica
from entitlements import signing
from replicas import Registry
from settings import Settings

SIZES = (10, 100, 1000, 10_000)
HEARTBEAT, WORKERS = 5.0, 2
_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_HOUR = 3_600_000_000
_LICENSES: dict[str, dict[str, int] | None] = {
    "no license": None,
    "replica_limit 50": {"high_availability": 1, "replica_limit": 50},
    "no bound": {"high_availability": 1},
}


@dataclass(frozen=True)
class Case:
    """A license and a policy."""

    license: str
    exclude: str

    @property
    def title(self) -> str:
        """As the figures call it."""
        return f"{self.license}, {self.exclude}"


CASES = (
    Case("no license", "all"),
    Case("no license", "surplus"),
    Case("replica_limit 50", "all"),
    Case("no bound", "all"),
)
#: How many rows of a fleet of n have given up their places, are stale, have aged, are in their grace; in line.
FLEETS: dict[str, Callable[[int], tuple[int, int, int, int]]] = {
    "all aged": lambda n: (0, 0, n, 0),
    "all in their grace": lambda n: (0, 0, 0, n),
    "half of them in their grace": lambda n: (0, 0, n // 2, n - n // 2),
    "half of them drained": lambda n: (n // 2, 0, n - n // 2, 0),
    "all but two drained": lambda n: (n - 2, 0, 2, 0),
    "half of them stale": lambda n: (0, n // 2, n - n // 2, 0),
}


def main() -> None:
    """Measure, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything; writes nothing")
    quick = parser.parse_args().quick
    logging.disable(logging.ERROR)
    found = record("fleet", lambda: measure(quick=quick), file=not quick)
    print(json.dumps(found, indent=1) if quick else table(found))


def measure(*, quick: bool) -> dict[str, Any]:
    """Everything, on one server."""
    settings = {"max_connections": "100", "autovacuum": "off", "synchronous_commit": "off", "max_wal_size": "4GB"}
    server = pg.Server(settings=settings)
    try:
        return {
            "settings": {"heartbeat": HEARTBEAT, "workers": WORKERS, "sizes": SIZES},
            "syncs": syncs(server, rounds=15 if quick else 150),
            "ping": ping_cost(server, count=200 if quick else 4000),
            "rows passed over": passed_over(server),
            "an hour's beats": [beats(server, size, minutes=1 if quick else 60) for size in SIZES],
            "violation": [violation(server, size, grace=3 if quick else 12) for size in SIZES],
        }
    finally:
        server.remove()


# The sync


def syncs(server: pg.Server, *, rounds: int) -> dict[str, Any]:
    """Milliseconds, statements, and CPU of the database per sync, for each case and size."""
    with ExitStack() as stack:
        urls = {size: stack.enter_context(fleet(server, size)) for size in SIZES}
        return {case.title: case_of(case, urls, rounds=rounds) for case in CASES}


def case_of(case: Case, urls: dict[int, str], *, rounds: int) -> dict[str, Any]:
    """One case; the sizes take turns within each round."""
    with ExitStack() as stack:
        workers = {size: stack.enter_context(a_worker(url, case)) for size, url in urls.items()}
        times: dict[int, list[float]] = {size: [] for size in urls}
        cpu: dict[int, float] = dict.fromkeys(urls, 0.0)
        for number in range(rounds + 5):
            for size, worker in workers.items():
                due(worker)
                before, started = worker.backend_cpu(), time.perf_counter()
                worker.replica.sync()
                elapsed = time.perf_counter() - started
                if number >= 5:
                    times[size].append(elapsed * 1000)
                    cpu[size] += worker.backend_cpu() - before
        facts = {size: worker.replica.lease.facts for size, worker in workers.items()}
    found: dict[str, Any] = {}
    for size in urls:
        members = facts[size]
        assert members is not None
        found[str(size)] = {
            "ms": spread(times[size]),
            "database_cpu_ms": round(cpu[size] / rounds * 1000, 3),
            "rows": max(1, len(members.members)),
        }
    smallest = min(urls)
    found["to the smallest"] = {
        str(size): spread([one / least for one, least in zip(times[size], times[smallest], strict=True)])
        for size in urls
    }
    return found


@dataclass
class Worker:
    """A real worker without its server: what it knows, and the process that serves its link."""

    replica: Replica
    url: str
    backend: psutil.Process

    def backend_cpu(self) -> float:
        """Seconds of CPU that the database spent on this worker's connection."""
        times = self.backend.cpu_times()
        return float(times.user + times.system)


@contextmanager
def a_worker(url: str, case: Case, *, grace: float = 0.0) -> Iterator[Worker]:
    """A worker of a replica of its own, which has synced once; what it stored is gone afterwards."""
    key = Ed25519PrivateKey.generate()
    keys = json.dumps({"keys": [signing.jwk(key.public_key())]})
    settings = Settings(
        database_url=url, exclude=case.exclude, replica_grace_seconds=grace, license_keys=keys, auto_migrate=False
    )
    replica = Replica(settings)
    replica.registry = Registry(replica_id=str(uuid4()), hostname="h", version="v", grace_seconds=grace)
    with closing(replica.link), replica.engine.connect() as connection:
        features = _LICENSES[case.license]
        if features:
            now = int(time.time())
            year = now + 365 * 86400
            text = signing.issue(
                key,
                now=now,
                not_before=now - 60,
                license_expires=year,
                expires=year,
                account_type="company",
                account_id="bench",
                features=features,
            )
            replica.entitlements.add(connection, text)
        replica.sync()
        pid = replica.link.use(lambda used: used.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        yield Worker(replica, url, psutil.Process(pid))
        connection.exec_driver_sql("DELETE FROM readygate_licenses")
        connection.exec_driver_sql(f"DELETE FROM readygate_replicas WHERE id = '{replica.registry.id}'")


def due(worker: Worker) -> None:
    """Let the next touch be due, as after a heartbeat."""
    back = f"UPDATE readygate_replicas SET updated_at = {_NOW} - 4500000 WHERE id = '{worker.replica.registry.id}'"
    worker.replica.link.use(lambda connection: connection.exec_driver_sql(back))


def ping_cost(server: pg.Server, *, count: int) -> dict[str, float]:
    """What one ping costs."""
    with fleet(server, 10) as url, a_worker(url, CASES[0]) as worker:
        before, started = worker.backend_cpu(), time.perf_counter()
        for _ in range(count):
            worker.replica.link.ping()
        elapsed = time.perf_counter() - started
        return {
            "ms": round(elapsed / count * 1000, 3),
            "database_cpu_ms": round((worker.backend_cpu() - before) / count * 1000, 4),
        }


# The fleet


@contextmanager
def fleet(server: pg.Server, size: int) -> Iterator[str]:
    """A database with a fleet that has aged."""
    with pg.new_database(server.url()) as url:
        engine = database.background_engine(lambda: url, timeout_seconds=120)
        schema.upgrade(engine)
        with engine.connect() as connection:
            fill(connection, *FLEETS["all aged"](size))
        pg.execute(url, "VACUUM ANALYZE readygate_replicas")
        yield url


def fill(connection: Connection, drained: int, stale: int, aged: int, in_grace: int) -> None:
    """A fleet and nothing else, in this order of its line."""
    connection.exec_driver_sql("TRUNCATE readygate_replicas")
    place = 0
    for count, started, drained_at, beat in (
        (drained, f"{_NOW} - {_HOUR}", f"{_NOW} - 1000000", _NOW),
        (stale, f"{_NOW} - {_HOUR}", "NULL", f"{_NOW} - {2 * _HOUR}"),
        (aged, f"{_NOW} - {_HOUR}", "NULL", _NOW),
        (in_grace, f"{_NOW} - 20000000", "NULL", _NOW),
    ):
        connection.exec_driver_sql(
            "INSERT INTO readygate_replicas (id, hostname, version, created_at, started_at, updated_at, stopped_at,"
            " draining_at, drained_at, stale_after, grace, exclude, database_latency)"
            f" SELECT gen_random_uuid()::text, 'host', '0.1.0', {started} + {place} + i, {started} + {place} + i,"
            f" {beat}, NULL, CAST({drained_at} AS bigint),"
            f" CAST({drained_at} AS bigint), {_HOUR}, 60000000, 'all', 300 FROM generate_series(1, {count}) AS i"
        )
        place += count
    connection.exec_driver_sql("ANALYZE readygate_replicas")


# The plans


def passed_over(server: pg.Server) -> dict[str, Any]:
    """For each kind of fleet, the most rows that any query of a sync read in vain, and the most blocks it touched."""
    found: dict[str, Any] = {}
    with pg.new_database(server.url()) as url:
        engine = database.background_engine(lambda: url, timeout_seconds=120)
        schema.upgrade(engine)
        sent: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
        with engine.connect() as connection:
            for title, shape in FLEETS.items():
                found[title] = {str(size): worst(connection, sent, shape(size)) for size in (SIZES[0], SIZES[-1])}
    return found


def worst(connection: Connection, sent: list[str], shape: tuple[int, int, int, int]) -> dict[str, int]:
    """Over all limits, for the first and the last that counts, in steady state."""
    fill(connection, *shape)
    counting = "FROM readygate_replicas WHERE drained_at IS NULL AND stale_after > 0"
    alive = f"{counting} AND updated_at > {_NOW} - {_HOUR} ORDER BY created_at"
    first = connection.exec_driver_sql(f"SELECT id {alive} LIMIT 1").scalar_one()
    last = connection.exec_driver_sql(f"SELECT id {alive} DESC LIMIT 1").scalar_one()
    removed = blocks = 0
    for mine in (first, last):
        for limit in (1, 50, None):
            registry = Registry(replica_id=mine, hostname="h", version="v", stale_after_seconds=3600)
            # What is to be buried is buried first: that is no sync's daily work.
            for _ in range(12):
                registry.sync(connection, limit=limit)
            sent.clear()
            registry.sync(connection, limit=limit)
            for statement in list(sent):
                plan = explain(connection, statement)
                removed, blocks = max(removed, rows_removed(plan)), max(blocks, plan["Shared Hit Blocks"])
    return {"rows_in_vain": removed, "blocks": blocks}


def explain(connection: Connection, statement: str) -> dict[str, Any]:
    """The plan of a statement, as it went."""
    found = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}").scalar_one()
    plan: dict[str, Any] = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    return plan


def rows_removed(plan: dict[str, Any]) -> int:
    """Rows that any part of the plan read and did not want."""
    own = int(plan.get("Rows Removed by Filter", 0) * plan.get("Actual Loops", 1))
    return own + sum(rows_removed(part) for part in plan.get("Plans", []))


# The beats


def beats(server: pg.Server, size: int, *, minutes: float) -> dict[str, Any]:
    """What an hour's beats leave behind, with no vacuum all along: one transaction each, as fast as they go."""
    each = max(1, round(minutes * 60 / HEARTBEAT))
    with fleet(server, size) as url:
        engine = database.background_engine(lambda: url, timeout_seconds=300)
        with engine.connect() as connection:
            registry = Registry(replica_id=str(uuid4()), hostname="h", version="v")
            sent: list[str] = []
            event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
            registry.beat(connection)
            # The very statement of a beat, with the id from a loop, and due at once.
            touch = re.sub(r"id = '[^']*'", "id = mine", sent[0]).replace("- 2500000", "")
            before = size_of(connection)
            connection.exec_driver_sql(
                f"CREATE PROCEDURE hour() LANGUAGE plpgsql AS $$ DECLARE mine text; ids text[]; BEGIN"
                f" SELECT array_agg(id) INTO ids FROM readygate_replicas; FOR n IN 1..{each} LOOP FOREACH mine IN"
                f" ARRAY ids LOOP {touch}; COMMIT; END LOOP; END LOOP; END $$"
            )
            seconds, cpu = call(url, "hour()")
            after = size_of(connection)
            time.sleep(1.2)  # The statistics come with a delay.
            updates, hot, dead = connection.exec_driver_sql(
                "SELECT n_tup_upd, n_tup_hot_upd, n_dead_tup FROM pg_stat_user_tables"
                " WHERE relname = 'readygate_replicas'"
            ).one()
    return {
        "replicas": size,
        "minutes": minutes,
        "beats": each * size,
        "updates": updates,
        "hot_share": round(hot / max(1, updates), 4),
        "dead_tuples": dead,
        "dead_per_replica": round(dead / size, 2),
        "kilobytes_before": before // 1024,
        "kilobytes_after": after // 1024,
        "database_cpu_us_per_beat": round(cpu / (each * size) * 1e6, 1),
        "seconds": round(seconds, 1),
    }


def call(url: str, procedure: str) -> tuple[float, float]:
    """Seconds, and the database's CPU seconds, of a procedure that commits: our own driver would forbid it to."""
    where = urlsplit(url)
    connection = pg8000.native.Connection(
        "postgres", host=where.hostname or "", port=where.port or 0, database=where.path[1:]
    )
    with closing(connection):
        backend = psutil.Process(connection.run("SELECT pg_backend_pid()")[0][0])
        before, started = backend.cpu_times(), time.monotonic()
        connection.run(f"CALL {procedure}")
        seconds, after = time.monotonic() - started, backend.cpu_times()
        connection.run("SELECT pg_stat_force_next_flush()")
    return seconds, after.user + after.system - before.user - before.system


def size_of(connection: Connection) -> int:
    """Bytes of the table and its indexes."""
    found: int = connection.exec_driver_sql("SELECT pg_total_relation_size('readygate_replicas')").scalar_one()
    return found


# The violation


def violation(server: pg.Server, size: int, *, grace: float) -> dict[str, Any]:
    """Seconds from the end of the second replica's grace until each of eight that watch is blocked.

    All but the first start at about the same time, without a license, so that their graces end close together.
    """
    with pg.new_database(server.url()) as url, ExitStack() as stack:
        engine = database.background_engine(lambda: url, timeout_seconds=120)
        schema.upgrade(engine)
        with engine.connect() as connection:
            fill(connection, 0, 0, 1, size - 9)
            connection.exec_driver_sql(
                f"UPDATE readygate_replicas SET grace = {round(grace * 1e6)}, started_at = {_NOW},"
                f" created_at = {_NOW} WHERE started_at > {_NOW} - {_HOUR // 2}"
            )
            watching = [stack.enter_context(a_worker(url, CASES[0], grace=grace)).replica for _ in range(8)]
            ends = connection.exec_driver_sql(
                "SELECT started_at + grace FROM readygate_replicas ORDER BY started_at + grace LIMIT 1 OFFSET 1"
            ).scalar_one()
            now = connection.exec_driver_sql(f"SELECT {_NOW}").scalar_one()
            end = time.monotonic() + (ends - now) / 1e6
        seen: list[float] = []
        threads = [threading.Thread(target=watch, args=(one, end, seen)) for one in watching]
        for one in watching:
            one.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for one in watching:
            one.heartbeat.stop()
    return {"replicas": size, "watching": len(watching), "seconds": spread(seen)}


def watch(replica: Replica, end: float, seen: list[float]) -> None:
    """Note when it is blocked, counted from `end`."""
    while not replica.entitlements.has_blocking_errors() and time.monotonic() < end + 30:
        time.sleep(0.005)
    seen.append(time.monotonic() - end)


def table(found: dict[str, Any]) -> str:
    """The figures for a person."""
    lines = [f"{'case':24} {'replicas':>8} {'ms':>7} {'to the smallest':>15} {'rows':>5} {'database ms':>11}"]
    for title, sizes in found["syncs"].items():
        for size in map(str, SIZES):
            one, ratio = sizes[size], sizes["to the smallest"][size]
            lines.append(
                f"{title:24} {size:>8} {one['ms']['median']:7.2f} {ratio['median']:15.2f} {one['rows']:5}"
                f" {one['database_cpu_ms']:11.3f}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.pop("DATABASE_URL", None)
    main()
