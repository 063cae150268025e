"""What the tests of faults share: the combinations of workers, those who watch, and the times that were measured."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
#: A machine on which sleeping is further off is too busy to tell.
_NOISE_SECONDS = 0.01
ADMIN = "an-admin-token-of-the-secret-store"
SHORT: dict[str, Any] = {"READYGATE_DATABASE_TIMEOUT_SECONDS": str(TIMEOUT), "READYGATE_ADMIN_TOKEN": ADMIN}
KINDS = ("sync", "gthread", "gevent")
UNREACHABLE = "database unreachable"


class NoisyMachineError(AssertionError):
    """Liveness was slow, and so was a process that only slept: what was measured is the machine."""


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
        return ["--worker-class", self.kind, *(["--preload"] if self.preload else [])]

    def serve(
        self, url: str, *more: str, workers: int = 2, prefix: tuple[str, ...] = (), **variables: str
    ) -> contextlib.AbstractContextManager[Gunicorn]:
        """A server of this combination, with short times."""
        return gunicorn(url, *self.arguments, *more, workers=workers, prefix=prefix, **{**SHORT, **variables})


def cases(first: tuple[str, bool], *, all_of_them: bool, kinds: tuple[str, ...] = KINDS) -> list[Case]:
    """`first` alone, or every combination."""
    if not all_of_them:
        return [Case(*first)]
    return [Case(kind, preload) for kind in kinds for preload in (False, True)]


@dataclass
class Watch:
    """What those who watch saw; there once the watching is over."""

    p99_seconds: float = 0.0
    #: By how much two of a hundred pauses were too long.
    noise_seconds: float = 0.0
    asked: int = 0
    #: /readyz, by status and body.
    ready: dict[str, int] = field(default_factory=dict)
    #: The API, likewise.
    called: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def watched(master: Gunicorn, *, lost: int = 0, slowest: float = 8.0) -> Iterator[Watch]:
    """Ask for /healthz all along under a flood of probes and API calls.

    None of its answers is lost but `lost`, and 99 of 100 come within 50 ms. No API call ends in anything but its result
    or a 503 in JSON, nor takes longer than `slowest` seconds.
    """
    where = [master.host, str(master.port)]
    live, flood = _crowd("liveness", *where), _crowd("flood", *where, ADMIN)
    watch = Watch()
    try:
        yield watch
    finally:
        seen, asked = (_end(process) for process in (live, flood))
    seconds = sorted(seen["seconds"])
    watch.asked, watch.p99_seconds = len(seconds), seconds[int(len(seconds) * 0.99)]
    watch.ready, watch.called = asked["ready"], asked["called"]
    assert len(seen["bad"]) <= lost, seen["bad"]
    assert len(seconds) >= 100
    watch.noise_seconds = sorted(seen["noise"])[int(len(seen["noise"]) * 0.98)]
    if watch.p99_seconds >= LIVENESS_P99_SECONDS and watch.noise_seconds > _NOISE_SECONDS:
        raise NoisyMachineError(f"p99 {watch.p99_seconds:.3f} s where sleeping is {watch.noise_seconds:.3f} s off")
    assert watch.p99_seconds < LIVENESS_P99_SECONDS, f"{watch.p99_seconds:.3f} s"
    wrong = {answer for answer in watch.called if not re.match(r'200|503 \{"message":"', answer)}
    assert sum(watch.called[answer] for answer in wrong) <= lost, wrong
    assert asked["slowest"] < slowest
    assert sum(watch.ready.values()) > 100


def _crowd(*arguments: str) -> subprocess.Popen[str]:
    program = [sys.executable, str(Path(__file__).with_name("crowd.py")), *arguments]
    return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _end(process: subprocess.Popen[str]) -> dict[str, Any]:
    printed, _ = process.communicate(timeout=40)
    found: dict[str, Any] = json.loads(printed)
    return found


class Figures:
    """The times measured in this run, by fault and combination."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, dict[str, Any]]] = {}

    def note(self, fault: str, case: Case, watch: Watch | None = None, **values: Any) -> None:
        """Keep what was measured; durations in seconds."""
        if watch is not None:
            values["healthz_p99_ms"] = watch.p99_seconds * 1000
        self.found.setdefault(fault, {})[str(case)] = {
            name: round(value, 2) if isinstance(value, float) else value for name, value in values.items()
        }

    def write(self, file: Path) -> None:
        """Put what was measured in the place of what `file` held of the same; the rest of it stays."""
        known = json.loads(file.read_text()) if file.exists() else {}
        for fault, by_case in self.found.items():
            known[fault] = {**known.get(fault, {}), **by_case}
        file.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


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


def told(master: Gunicorn, watch: Watch | None = None) -> list[str]:
    """What its workers told of one fault: fails where one of them said a thing twice, or only one end of it.

    That a worker is ready it says at its start, and once more after the fault. What each start says is left out.
    `watch`: of the fault; on a machine that was too busy a healthy database may exceed its bound once more.
    """
    seen = Counter(_LINE.findall(master.lines))
    twice = {message for (_, message), number in seen.items() if number > 1 + message.endswith(_READY)}
    if twice and watch is not None and watch.noise_seconds > _NOISE_SECONDS:
        raise NoisyMachineError(f"told twice, where sleeping is {watch.noise_seconds:.3f} s off: {sorted(twice)}")
    assert twice == set(), sorted(twice)
    assert "Traceback" not in master.lines
    # Who asked for /readyz a dozen times may have been answered by the same worker each time.
    until(lambda: not _unfinished(master), seconds=RECOVERED_SECONDS)
    messages = [message for _, message in dict.fromkeys(_LINE.findall(master.lines))]
    return [message for message in messages if not message.endswith(_AT_START)]


def _unfinished(master: Gunicorn) -> set[str]:
    """The workers that told of a failure, and not yet of its end."""
    seen = set(_LINE.findall(master.lines))
    found = set()
    for begins, ends in (
        (r"readygate.database: database \S+: (?!answers again)", "answers again"),
        (r"readygate.\w+: heartbeat failed", "heartbeat succeeds again"),
    ):
        begun = {pid for pid, message in seen if re.match(begins, message)}
        found |= begun - {pid for pid, message in seen if ends in message}
    return found
