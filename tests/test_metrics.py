"""/metrics: what it tells, who may look, and that alerts and dashboard name nothing that it does not show."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import postgres as pg
import pytest
import yaml
from flask import Flask, abort
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from servers import HEARTBEAT, Gunicorn, answers, gunicorn, ready, until, worker_class
from test_api import _DAY, Api, a_license, make
from test_servers import flask

import entitlements
import metrics
import settings
from app import create_app
from database_url import parse
from metrics import Found, License, Reading

__all__ = ["make"]  # A fixture, known by its name.

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
ADMIN = "an-admin-token-of-the-secret-store"
Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
_FULL = Reading(
    replica="8b6299a5-6919-4228-9354-4004f670bc13",
    exclude="surplus",
    checks={"database": None, "replica": "draining", "entitlements": "entitlement error"},
    heartbeat_age_seconds=1.5,
    heartbeat_lost=False,
    ping_seconds=0.002,
    syncs_failed=3,
    found=Found(
        allowed=2,
        violation=True,
        replicas={"grace": 0, "serving": 2, "excluded": 1, "draining": 0},
        errors=dict.fromkeys(entitlements.ERROR_CODES, 1),
        warnings=dict.fromkeys(entitlements.WARNING_CODES, 2),
        licenses=(License('a "quoted" one', 1_000.0, 2_000.0),),
    ),
)


def app_with(read: Callable[[], Reading], guard: metrics.Guard = lambda role: None) -> Flask:
    app = Flask(__name__)
    app.register_blueprint(metrics.blueprint(read, guard=guard, version="2.4"))
    return app


def samples(text: str) -> Samples:
    """All samples by name and labels; fails where the text is not in the format."""
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value for family in plain(text) for one in family.samples
    }


def shown(reading: Reading) -> Samples:
    return samples(app_with(lambda: reading).test_client().get("/metrics").text)


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((f"readygate_{name}", tuple(sorted(labels.items()))))


# The package alone


def test_it_tells_all_that_was_read() -> None:
    found = shown(_FULL)
    assert value(found, "ready") == 0
    assert value(found, "check_ok", check="database") == 1
    assert value(found, "check_ok", check="replica") == 0
    assert value(found, "unready", reason="draining") == 1  # The first that fails, as /readyz has it.
    assert value(found, "unready", reason="entitlement error") is None
    assert value(found, "heartbeat_age_seconds") == 1.5
    assert value(found, "heartbeat_lost") == 0
    assert value(shown(replace(_FULL, heartbeat_lost=True)), "heartbeat_lost") == 1
    assert value(found, "database_ping_seconds") == 0.002
    assert value(found, "syncs_failed_total", worker=str(os.getpid())) == 3
    assert value(found, "replicas_allowed") == 2
    assert value(found, "replicas", state="serving") == 2
    assert value(found, "violation") == 1
    assert value(found, "entitlement_errors", code="invalid_license") == 1
    assert value(found, "entitlement_warnings", code="license_expires") == 2
    assert value(found, "license_term_end_timestamp_seconds", license='a "quoted" one') == 1000
    assert value(found, "license_end_timestamp_seconds", license='a "quoted" one') == 2000
    assert value(found, "replica_info", replica=_FULL.replica, exclude="surplus") == 1
    assert next(labels for name, labels in found if name == "readygate_build_info")[1] == ("version", "2.4")


def test_what_is_not_known_yet_has_no_sample() -> None:
    found = shown(Reading())
    assert {name for name, _ in found} == {
        "readygate_build_info",
        "readygate_replica_info",
        "readygate_ready",
        "readygate_heartbeat_lost",
        "readygate_syncs_failed_total",
    }


def test_any_number_is_infinity_and_nobody_is_counted() -> None:
    found = shown(Reading(found=Found(allowed=None, violation=False, replicas=None, errors={}, warnings={})))
    assert value(found, "replicas_allowed") == math.inf
    assert not [name for name, _ in found if name == "readygate_replicas"]


def test_one_scrape_reads_once_so_that_its_samples_agree() -> None:
    calls: list[None] = []
    client = app_with(lambda: calls.append(None) or _FULL).test_client()  # type: ignore[func-returns-value]
    assert calls == []
    client.get("/metrics")
    assert len(calls) == 1


def test_two_apps_in_one_process_never_meet() -> None:
    one, two = app_with(lambda: Reading(replica="one")), app_with(lambda: Reading(replica="two"))
    for app, own, other in ((one, "one", 'replica="two"'), (two, "two", 'replica="one"')):
        text = app.test_client().get("/metrics").text
        assert f'replica="{own}"' in text
        assert other not in text
    # Nor does the host's own registry of the client library show up, or fill up.
    assert "python_gc" not in one.test_client().get("/metrics").text


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    client = app_with(lambda: _FULL).test_client()
    # What Prometheus 2.42 sends.
    accept = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain"
    answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    kinds = {family.name: family.type for family in openmetrics(answer.text)}  # type: ignore[no-untyped-call]
    assert kinds["readygate_build"] == "info"
    assert kinds["readygate_syncs_failed"] == "counter"
    assert client.get("/metrics").content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert [family.name for family in plain(client.get("/metrics?name[]=readygate_ready").text)] == ["readygate_ready"]


@pytest.mark.parametrize(
    "version", ["abc", "1.0.x", "", "1", "-1.0.0", "1.0.0\xff", "9" * 30 + ".0.0", "1.0.0 x", "٣.0.0"]
)
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_no_accept_header_is_an_error(kind: str, version: str) -> None:
    header = f"{kind}; version={version}".encode().decode("latin-1")
    answer = app_with(lambda: _FULL).test_client().get("/metrics", headers={"Accept": header})
    assert answer.status_code == 200
    assert samples(answer.text.replace("# EOF\n", ""))


def test_head_is_a_get_without_its_body_and_nothing_is_cached() -> None:
    client = app_with(lambda: _FULL).test_client()
    get, head = client.get("/metrics"), client.head("/metrics")
    assert (head.status_code, head.data, head.headers["Content-Length"]) == (200, b"", str(len(get.data)))
    assert get.headers["Cache-Control"] == head.headers["Cache-Control"] == "no-store"
    assert client.post("/metrics").status_code == 405


def test_the_guard_comes_first_and_asks_for_a_viewer() -> None:
    asked: list[str] = []

    def refuse(role: str) -> Any:
        asked.append(role)
        return "no", 418

    def read() -> Reading:
        raise AssertionError

    answer = app_with(read, refuse).test_client().get("/metrics")
    assert (answer.status_code, answer.text, asked) == (418, "no", ["viewer"])
    assert answer.headers["Cache-Control"] == "no-store"
    aborted = app_with(read, lambda role: abort(403)).test_client().get("/metrics")
    assert (aborted.status_code, aborted.content_type) == (403, "application/json")


# The service in this process


def scrape(api: Api, **options: Any) -> Samples:
    answer = api.ask("/metrics", **options)
    assert answer.status_code == 200, answer.text
    return samples(answer.text)


def synced(api: Api) -> Samples:
    assert api.ask("/api/v2/licenses/refresh-entitlements", method="POST").status_code == 200
    return scrape(api)


def test_a_token_is_asked_for_unless_it_is_public_or_off(make: Callable[..., Api], sqlite_url: str) -> None:
    api = make(sqlite_url)
    assert api.ask("/metrics", None).status_code == 401
    assert api.ask("/metrics", "viewer").status_code == 200
    statuses = {}
    for who in ("public", "off"):
        app = create_app(settings.read({"DATABASE_URL": "sqlite:////dev/null/none.db", "READYGATE_METRICS": who}))
        statuses[who] = app.test_client().get("/metrics").status_code
        app.extensions["readygate"].heartbeat.stop()
    assert statuses == {"public": 200, "off": 404}


@pytest.mark.parametrize("exclude", ["all", "surplus"])
def test_it_follows_the_fleet_and_counts_no_further_than_a_sync(
    make: Callable[..., Api], database_url: str, exclude: str
) -> None:
    api = make(database_url, READYGATE_EXCLUDE=exclude)
    found = synced(api)
    assert value(found, "ready") == 1
    assert value(found, "replicas_allowed") == 1
    assert value(found, "violation") == 0
    assert value(found, "replicas", state="serving") == 1
    for _ in range(4):
        api.add_replica(exclude=exclude)
    api.add_replica(grace_seconds=600, exclude=exclude)
    found = synced(api)
    assert value(found, "violation") == 1
    assert value(found, "entitlement_errors", code="multi_replica_without_ha") == 1
    out = {"all": (0.0, 2.0, 0.0), "surplus": (1.0, 1.0, 1.0)}[exclude]
    assert tuple(value(found, "replicas", state=state) for state in ("serving", "excluded", "grace")) == out
    # This one came first.
    assert value(found, "ready") == (0 if exclude == "all" else 1)
    assert value(found, "unready", reason="entitlement error") == (1 if exclude == "all" else None)


def test_it_follows_the_licenses(make: Callable[..., Api], database_url: str) -> None:
    api = make(database_url)
    api.add_replica()
    uuid = api.post(a_license(ends_in=10 * _DAY, high_availability=1, replica_limit=3)).json["uuid"]  # type: ignore[index]
    found = scrape(api)
    assert value(found, "replicas_allowed") == 3
    assert value(found, "violation") == 0
    assert value(found, "replicas", state="serving") == 2
    assert value(found, "entitlement_warnings", code="license_expires") == 1
    term = value(found, "license_term_end_timestamp_seconds", license=uuid)
    end = value(found, "license_end_timestamp_seconds", license=uuid)
    assert term == pytest.approx(time.time() + 10 * _DAY, abs=60)
    assert end == pytest.approx(time.time() + 24 * _DAY, abs=60)
    api.post(a_license(high_availability=1))
    found = scrape(api)
    assert value(found, "replicas_allowed") == math.inf
    assert value(found, "entitlement_warnings", code="license_expires") == 0
    assert not [name for name, _ in found if name == "readygate_replicas"]


def test_a_scrape_asks_the_database_for_a_token_once_a_heartbeat_and_for_nothing_else(
    make: Callable[..., Api], sqlite_url: str
) -> None:
    from sqlalchemy import event

    api = make(sqlite_url, READYGATE_HEARTBEAT_SECONDS="60")
    scrape(api)
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(api.replica.requests, "before_cursor_execute", note)
    for _ in range(20):
        scrape(api)
    assert statements == []


# What alerts and dashboard name


def expressions() -> Iterator[str]:
    rules = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())
    yield from (rule["expr"] for group in rules["groups"] for rule in group["rules"])
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    yield from (variable["query"] for variable in dashboard["templating"]["list"])


def test_alerts_and_dashboard_name_only_what_is_shown() -> None:
    found = shown(_FULL)
    names = {name for name, _ in found}
    labels = {(name, key, text) for (name, pairs) in found for key, text in pairs}
    used = set()
    for expression in expressions():
        for name, selector in re.findall(r"\b(readygate_[a-z_]+)(?:\{([^}]*)\})?", expression):
            used.add(name)
            assert name in names, f"{name} in {expression}"
            for key, text in re.findall(r'(\w+)="([^"]*)"', selector):
                # The job, and the instance, are Prometheus's own.
                assert key == "job" or (name, key, text) in labels or (key, text) == ("reason", "draining"), expression
        for group in re.findall(r"\bby \(([^)]*)\)", expression):
            known = {key for _, key, _ in labels} | {"job", "instance", "alertname"}
            assert {key.strip() for key in group.split(",")} <= known, expression
    # And what is worth showing is used somewhere.
    assert names - used <= {"readygate_license_term_end_timestamp_seconds"}


def test_the_service_shows_the_families_that_they_name(make: Callable[..., Api], sqlite_url: str) -> None:
    def families(text: str) -> set[str]:
        return set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))

    assert families(make(sqlite_url).ask("/metrics").text) == families(
        app_with(lambda: _FULL).test_client().get("/metrics").text
    )


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus-rules.yaml").read_text())["groups"][0]["rules"]
    assert len(rules) > 10
    for rule in rules:
        assert rule["alert"].startswith("Readygate")
        assert rule["for"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".")
        assert len(rule["annotations"]["runbook"]) > 60
        for metric in re.findall(r"readygate_[a-z_]+", rule["annotations"]["runbook"]):
            assert metric in {name for name, _ in shown(_FULL)} | {"readygate_replicas"}


@pytest.mark.system
@pytest.mark.parametrize(
    "what", [("check", "rules", "prometheus-rules.yaml"), ("test", "rules", "../tests/prometheus-rules-test.yaml")]
)
def test_promtool_takes_the_rules_and_they_fire_when_they_should(
    need: Callable[[str], str], what: tuple[str, ...]
) -> None:
    result = subprocess.run(
        [need("promtool"), *what], cwd=DEPLOY, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


# Real servers


def fetch(server: Gunicorn, token: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    headers = {"Connection": "close", **({"Authorization": f"Bearer {token}"} if token else {})}
    try:
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def fetched(server: Gunicorn, token: str | None = None) -> Samples:
    status, text = fetch(server, token)
    assert status == 200, text
    return samples(text)


@pytest.mark.server
def test_whichever_worker_answers_tells_of_the_same_replica(database_url: str) -> None:
    with gunicorn(database_url, workers=3, READYGATE_METRICS="public") as server:
        until(lambda: ready(server))
        scrapes = [fetched(server) for _ in range(40)]
        workers = {labels for one in scrapes for name, labels in one if name == "readygate_syncs_failed_total"}
        assert len(workers) > 1  # Several did answer.
        assert {labels[0] for labels in workers} <= {("worker", str(one.pid)) for one in server.workers()}
        assert len({labels for one in scrapes for name, labels in one if name == "readygate_replica_info"}) == 1
        until(lambda: all(value(fetched(server), "replicas", state="serving") == 1 for _ in range(12)))
        assert max(value(one, "heartbeat_age_seconds") or 0 for one in scrapes) < 2 * HEARTBEAT + 1


@pytest.mark.server
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_it_answers_while_the_database_is_down(kind: str) -> None:
    server = pg.Server()
    try:
        with pg.new_database(server.url()) as url:
            assert parse(url)
            with gunicorn(url, *worker_class(kind), workers=1, READYGATE_ADMIN_TOKEN=ADMIN) as master:
                until(lambda: ready(master))
                known, unknown = (
                    flask(url, "token", "create", name, "--role", "viewer").stdout.strip() for name in ("one", "two")
                )
                assert value(fetched(master, known), "check_ok", check="database") == 1
                server.stop("immediate")
                until(lambda: answers(master, "database unreachable"))
                for token in (known, ADMIN):
                    found = fetched(master, token)
                    assert value(found, "ready") == 0
                    assert value(found, "check_ok", check="database") == 0
                    assert value(found, "unready", reason="database unreachable") == 1
                    assert value(found, "replicas_allowed") == 1  # As of the last sync.
                # Nobody can be asked about a token that this worker has never seen.
                assert fetch(master, unknown)[0] == 503
                assert fetch(master)[0] == 401
                server.start()
                until(lambda: ready(master))
                assert value(fetched(master, unknown), "ready") == 1
                for hidden in (known, unknown, ADMIN):
                    assert hidden not in master.lines
    finally:
        server.remove()


@pytest.mark.server
def test_many_scrapes_at_once_hold_up_no_probe(postgres_url: str) -> None:
    with gunicorn(postgres_url, READYGATE_METRICS="public") as server:
        until(lambda: ready(server))
        stop, failed = threading.Event(), []

        def flood() -> None:
            while not stop.is_set():
                status, _ = fetch(server)
                if status != 200:
                    failed.append(status)

        threads = [threading.Thread(target=flood) for _ in range(3)]
        for thread in threads:
            thread.start()
        slowest = 0.0
        for _ in range(100):
            started = time.monotonic()
            assert server.get("/healthz") == (200, "OK")
            slowest = max(slowest, time.monotonic() - started)
        stop.set()
        for thread in threads:
            thread.join(20)
        assert failed == []
        assert slowest < 0.5
