"""What the tests of faults share: the combinations of workers, those who watch, and the times that were measured."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import postgres as pg
import pytest
from servers import HEARTBEAT, Gunicorn, all_ready, answers, gunicorn, ready, until

import schema

TIMEOUT = 1.0
#: Spec, section 11: a refusing database, and one that hangs or is slow, is noticed within.
REFUSED_SECONDS, HUNG_SECONDS = 1.5, TIMEOUT + 1.5
#: A ping a second, each bounded by the timeout; then a sync; then a dozen answers.
RECOVERED_SECONDS = TIMEOUT + 2.0
STALE = 3 * HEARTBEAT
#: Spec, section 4, where another replica could take the place; a second for the sync that fails and the answers.
LEASE_SECONDS = 2 / 3 * STALE + 1
LIVENESS_P99_SECONDS = 0.05
#: Ten ask at once, and liveness: a worker that dies may be answering that many.
TAKEN_ALONG = 11
#: An API call that is under way when the database stops answering holds a worker that does one thing at a time, for its
#: bound of a second at most, once per outage. What is due in this time after a fault began is left out of the p99 of
#: such a worker, and no answer of it may take longer than this.
HELD_SECONDS = 1.5
#: A call's bound of a second; the rest is its turn at a worker that others ask as well.
SLOWEST_CALL_SECONDS = 3.0
#: Where the p99 of a server that does nothing but answer is longer, the machine is too busy to tell.
NOISE_SECONDS = 0.02
ADMIN = "an-admin-token-of-the-secret-store"
SHORT: dict[str, Any] = {"READYGATE_DATABASE_TIMEOUT_SECONDS": str(TIMEOUT), "READYGATE_ADMIN_TOKEN": ADMIN}
KINDS = ("sync", "gthread", "gevent")
UNREACHABLE = "database unreachable"


class NoisyMachineError(AssertionError):
    """Liveness was slow, and so was a server that only answers: what was measured is the machine."""


@dataclass(frozen=True)
class Case:
    """One combination of gunicorn's settings."""

    kind: str
    preload: bool

    def __str__(self) -> str:
        return self.kind + ("-preload" if self.preload else "")

    @property
    def arguments(self) -> list[str]:
        """gunicorn's."""
        # gunicorn makes gthread of a sync worker with several threads, and gunicorn.conf.py asks for four.
        one_thread = ["--threads", "1"] if self.kind == "sync" else []
        return ["--worker-class", self.kind, *one_thread, *(["--preload"] if self.preload else [])]

    @contextlib.contextmanager
    def serve(
        self, url: str, *more: str, workers: int = 2, prefix: tuple[str, ...] = (), **variables: str
    ) -> Iterator[Gunicorn]:
        """A server of this combination, with short times."""
        with gunicorn(url, *self.arguments, *more, workers=workers, prefix=prefix, **{**SHORT, **variables}) as master:
            yield master
            assert f"Using worker: {self.kind}\n" in master.lines


def missing(what: str) -> NoReturn:
    """End a test that this machine cannot run: CI fails, and everybody else skips aloud."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and this is CI: it must be able to run everything")
    pytest.skip(what)


def cases(
    first: tuple[str, bool],
    *,
    all_of_them: bool,
    kinds: tuple[str, ...] = KINDS,
    preloads: tuple[bool, ...] = (False, True),
) -> list[Case]:
    """`first` alone, or every combination."""
    if not all_of_them:
        return [Case(*first)]
    return [Case(kind, preload) for kind in kinds for preload in preloads]


@dataclass
class Watch:
    """What those who watch saw; there once the watching is over."""

    p99_seconds: float = 0.0
    #: The slowest answer of all.
    max_seconds: float = 0.0
    #: The p99 of a server that does nothing but answer.
    noise_seconds: float = 0.0
    asked: int = 0
    #: /readyz, by status and body.
    ready: dict[str, int] = field(default_factory=dict)
    #: The API, likewise.
    called: dict[str, int] = field(default_factory=dict)
    #: The slowest answer of the API.
    slowest_call_seconds: float = 0.0
    #: How many answers may be lost, of liveness and of the API each.
    lost: int = 0
    #: When faults began, on the monotonic clock.
    faults: list[float] = field(default_factory=list)

    def begins(self, at: float | None = None) -> float:
        """Note that a fault begins, and when: `at` (monotonic; None: now)."""
        self.faults.append(time.monotonic() if at is None else at)
        return self.faults[-1]


@contextlib.contextmanager
def watched(master: Gunicorn, *, lost: int = 0, slowest: float = SLOWEST_CALL_SECONDS) -> Iterator[Watch]:
    """Ask for /healthz all along under a flood of probes and API calls.

    None of its answers is lost but `lost` (of which the watch may get more), and 99 of 100 come within 50 ms. No API
    call ends in anything but its result or a 503 in JSON, nor takes longer than `slowest` seconds.
    """
    watch, where = Watch(lost=lost), (master.host, master.port)
    one_at_a_time = "Using worker: sync\n" in master.lines
    # Where requests wait for each other, six callers alone would make 99 of 100 probes wait for longer, whatever fails.
    callers = ["2"] if one_at_a_time else []
    crowd = [asking("liveness", where), asking("flood", where, ADMIN, *callers)]
    try:
        yield watch
    finally:
        seen, asked = (ended(process) for process in crowd)
    watch.ready, watch.called, watch.slowest_call_seconds = asked["ready"], asked["called"], asked["slowest"]
    assert len(seen["bad"]) <= watch.lost, seen["bad"]
    watch.noise_seconds = _one_of_a_hundred(seen["noise"])
    judge(watch, seen["asked"], seen["late"], one_at_a_time=one_at_a_time)
    wrong = {answer for answer in watch.called if not re.match(r'200|503 \{"message":"', answer)}
    assert sum(watch.called[answer] for answer in wrong) <= watch.lost, wrong
    assert watch.slowest_call_seconds < slowest
    assert sum(watch.ready.values()) > 100


def judge(
    watch: Watch, asked: Sequence[tuple[float, float]], late: Sequence[tuple[float, float]], *, one_at_a_time: bool
) -> None:
    """Hold what was seen of /healthz, when each answer was due and how long it took, against the promise.

    `late`: when who asked wanted to run, and by how much it was late. No answer took what it was not running for.
    """
    held = watch.faults if one_at_a_time else []
    blind = _together(late)
    took = [(due, seconds - _overlap(blind, due, due + seconds)) for due, seconds in asked]
    counted = [seconds for due, seconds in took if not any(begun <= due < begun + HELD_SECONDS for begun in held)]
    assert len(counted) >= 100
    watch.asked, watch.max_seconds = len(asked), max(seconds for _, seconds in took)
    watch.p99_seconds = _one_of_a_hundred(counted)
    # On a machine that is too busy to tell, what a bare server takes is the machine's share of it.
    noise = watch.noise_seconds if watch.noise_seconds > NOISE_SECONDS else 0.0
    too_slow = watch.p99_seconds >= LIVENESS_P99_SECONDS + noise
    too_slow |= one_at_a_time and watch.max_seconds >= HELD_SECONDS + noise
    measured = f"p99 {watch.p99_seconds:.3f} s, slowest {watch.max_seconds:.3f} s"
    if too_slow and noise:
        raise NoisyMachineError(f"{measured}, where a bare server takes {watch.noise_seconds:.3f} s")
    assert not too_slow, measured


def _together(lates: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """When who asked could not run, though it wanted to: from when to when, none of them twice."""
    found: list[tuple[float, float]] = []
    for due, late in lates:
        begins = max(due, found[-1][1]) if found else due
        if due + late > begins:
            found.append((begins, due + late))
    return found


def _overlap(blind: Sequence[tuple[float, float]], begins: float, ends: float) -> float:
    return sum(max(0.0, min(ends, end) - max(begins, begin)) for begin, end in blind)


def _one_of_a_hundred(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def asking(kind: str, where: tuple[str, int], *more: str) -> subprocess.Popen[str]:
    """A process of those who ask, which has begun."""
    program = [sys.executable, str(Path(__file__).with_name("crowd.py")), kind, where[0], str(where[1]), *more]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    return process


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What they saw."""
    printed, _ = process.communicate(timeout=40)
    found: dict[str, Any] = json.loads(printed)
    return found


class Figures:
    """The times measured in this run, by fault and combination."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, dict[str, Any]]] = {}

    def note(self, fault: str, case: Case, watch: Watch | None = None, **values: Any) -> None:
        """Keep what was measured; durations in seconds."""
        if "recovered" in values:
            values.setdefault("recovered_promised", RECOVERED_SECONDS)
        if watch is not None:
            values["healthz_p99_ms"] = watch.p99_seconds * 1000
            values["healthz_max_ms"] = watch.max_seconds * 1000
        self.found.setdefault(fault, {})[str(case)] = {
            name: round(value, 2) if isinstance(value, float) else value for name, value in values.items()
        }

    def write(self, file: Path, *, command: str, anew: bool) -> None:
        """Put what was measured in the place of what `file` held of the same; the rest stays, unless it begins `anew`.

        `command`: what measured this.
        """
        kept: dict[str, Any] = {} if anew or not file.exists() else json.loads(file.read_text())
        found: dict[str, Any] = kept.get("faults", {})
        for fault, by_case in self.found.items():
            found[fault] = {**found.get(fault, {}), **by_case}
        commands = [*(known for known in kept.get("commands", []) if known != command), command]
        text = json.dumps({"commands": commands, "machine": machine(), "faults": found}, indent=1, sort_keys=True)
        file.write_text(text + "\n")


def machine() -> dict[str, Any]:
    """What measured."""
    version = subprocess.run([pg.BIN / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    return {"cores": os.cpu_count(), "python": platform.python_version(), "postgresql": version.split()[-1]}


def seconds_until(what: Callable[[], bool], *, within: float, since: float | None = None) -> float:
    """Seconds from `since` (monotonic; None: now) until `what` holds; fails where that is not `within` the promise."""
    started = time.monotonic() if since is None else since
    until(what, seconds=within + 10)
    seconds = time.monotonic() - started
    assert seconds < within, f"{seconds:.2f} s"
    return seconds


def started(master: Gunicorn) -> None:
    """Wait until every worker of a new server is ready: of an idle one, the same may give all the answers."""
    until(lambda: all_ready(master) and ready(master))


def noticed(master: Gunicorn, body: str, *, within: float, since: float | None = None) -> float:
    """Seconds until every worker answers `body`."""
    return seconds_until(lambda: answers(master, body), within=within, since=since)


def recovered(master: Gunicorn, *, within: float = RECOVERED_SECONDS, since: float | None = None) -> float:
    """Seconds until every worker is ready."""
    return seconds_until(lambda: ready(master), within=within, since=since)


_READY = ": ready"
_AT_START = (_READY, ": not ready: starting", ": not ready: schema outdated", f"schema: at revision {schema.REVISION}")
_LINE = re.compile(r"\[(\d+)\] \[(?:INFO|WARNING|ERROR)\] (readygate\.\w+: .*)")


def told(master: Gunicorn, watch: Watch | None = None, *, after: int = 0) -> list[str]:
    """What its workers told of one fault: fails where one of them said a thing twice, or only one end of it.

    That a worker is ready it says at its start, and once more after the fault. What each start says is left out.
    `watch`: of the fault; on a machine that was too busy a healthy database may exceed its bound once more.
    `after`: how much of the log is of what came before the fault.
    """
    # Who asked for /readyz a dozen times may have been answered by the same worker each time.
    until(lambda: not _unfinished(master, after), seconds=RECOVERED_SECONDS)
    seen = _LINE.findall(master.lines[after:])
    twice = {message for (_, message), number in Counter(seen).items() if number > 1 + message.endswith(_READY)}
    if twice and watch is not None and watch.noise_seconds > NOISE_SECONDS:
        raise NoisyMachineError(f"told twice, where a bare server takes {watch.noise_seconds:.3f} s: {sorted(twice)}")
    assert twice == set(), sorted(twice)
    assert "Traceback" not in master.lines
    messages = [message for _, message in dict.fromkeys(seen)]
    return [message for message in messages if not message.endswith(_AT_START)]


def _unfinished(master: Gunicorn, after: int) -> set[str]:
    """The workers that told of a failure, and not yet of its end."""
    seen = set(_LINE.findall(master.lines[after:]))
    found = set()
    for begins, ends in (
        (r"readygate.database: database \S+: (?!answers again)", "answers again"),
        (r"readygate.\w+: heartbeat failed", "heartbeat succeeds again"),
    ):
        begun = {pid for pid, message in seen if re.match(begins, message)}
        found |= begun - {pid for pid, message in seen if ends in message}
    return found
