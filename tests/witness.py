"""Threads that ask servers for /readyz all along, and what their notes prove of two being ready at once.

A 200 holds at some instant between the request's sending and the answer's arrival; no more is known of it. So two 200s
whose intervals meet prove nothing. Proof of an overlap is: one server said yes, and said it again later with no other
answer in between, and another server said yes and again likewise, and the two spans, each taken from the first yes's
arrival to the last yes's sending, have an instant in common.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from servers import get

BROKEN = Path(__file__).resolve().parent.parent / ".pytest_cache" / "broken-guarantee"
_PAUSE_SECONDS = 0.02
#: A server that does not answer is asked again after this long, so that the first answers of one that wakes up are to
#: questions put while it slept.
_AGAIN_SECONDS = 0.2
_UNANSWERED = 64
#: Longer than any pause in the tests: the answer of a server that wakes up counts as well.
_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Sample:
    """One answer: when it was asked for and when it was there (monotonic). Status 0: none came."""

    sent: float
    received: float
    status: int
    body: str


class Witness:
    """Asks one server all along, also while it leaves earlier questions unanswered."""

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        self._port, self._host = port, host
        self._samples: list[Sample] = []
        #: The monotonic instant from which on the server counts; before it, it is in its grace, and may say yes.
        self.aged_at = float("-inf")
        self._unanswered = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._askers = ThreadPoolExecutor(_UNANSWERED)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join(5)
        self._askers.shutdown()

    def samples(self) -> list[Sample]:
        """All of its answers while it counts, in the order of their sending."""
        return sorted(
            (one for one in list(self._samples) if one.sent >= self.aged_at), key=lambda one: (one.sent, one.received)
        )

    def yes(self) -> list[Sample]:
        """Those that are 200."""
        return [one for one in self.samples() if one.status == 200]

    def _run(self) -> None:
        asked = float("-inf")
        while not self._stop.wait(_PAUSE_SECONDS):
            again = time.monotonic() - asked > _AGAIN_SECONDS
            if self._unanswered < (_UNANSWERED if again else 2):
                asked = time.monotonic()
                self._add(1)
                self._askers.submit(self._ask)

    def _ask(self) -> None:
        sent = time.monotonic()
        status, body = get(self._port, "/readyz", timeout=_WAIT_SECONDS, host=self._host)
        self._samples.append(Sample(sent, time.monotonic(), status, body))
        self._add(-1)

    def _add(self, number: int) -> None:
        with self._lock:
            self._unanswered += number


def spans(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Spans in which the server was ready for certain: from a yes to the last one before another answer."""
    found = []
    run: list[Sample] = []
    for one in [*samples, None]:
        if one is not None and one.status == 200:
            run.append(one)
            continue
        if run:
            start, end = min(yes.received for yes in run), max(yes.sent for yes in run)
            if start < end:
                found.append((start, end))
        run = []
    return found


def overlaps(witnesses: Mapping[str, Witness]) -> list[tuple[str, str, float]]:
    """Which two were ready at once, and for how many seconds at least."""
    known = {name: spans(witness.samples()) for name, witness in witnesses.items()}
    return [
        (one, other, min(a[1], b[1]) - max(a[0], b[0]))
        for one in known
        for other in known
        if one < other
        for a in known[one]
        for b in known[other]
        if max(a[0], b[0]) < min(a[1], b[1])
    ]


def gap(before: Witness, after: Witness) -> tuple[float, float]:
    """The least and the most that can have passed between the last yes of one and the first yes of the next.

    The least may be negative, as a yes that was long under way (through a pause, say) may have been true at its end.
    """
    last, first = before.yes()[-1], after.yes()[0]
    return first.sent - max(one.received for one in before.yes()), first.received - last.sent


def tell_of_a_broken_guarantee(what: object) -> None:
    """Leave a note for .ci/run, which tries once more what failed: this is no noise, and must not pass with luck."""
    BROKEN.parent.mkdir(exist_ok=True)
    with BROKEN.open("a") as note:
        note.write(f"{what}\n")
