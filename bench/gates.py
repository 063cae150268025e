"""What a host app's question to the entitlements costs, alone and from 16 threads at once.

    .venv/bin/python bench/gates.py             (two minutes; writes docs/figures/gates.json)
    .venv/bin/python bench/gates.py --quick     (prints only)

Beside a function that returns False, since calls and threads cost Python something whatever they ask. One thread and
sixteen take turns, round by round, and answer the same number of questions in all: a lock would show as a ratio above
that of the function. Python is told to switch between them every microsecond, or each would be done before the
next one runs; and a function that does take a lock is measured too, to show that one is seen.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import ratios, record, spread

# isort: split
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import schema
from app import Replica
from entitlements import signing
from settings import Settings

THREADS = 16
_SWITCH_SECONDS = 1e-6


def main() -> None:
    """Measure, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer questions; writes nothing")
    quick = parser.parse_args().quick
    found = record(
        "gates", lambda: measure(rounds=3 if quick else 15, calls=160_000 if quick else 800_000), file=not quick
    )
    print(json.dumps(found["questions"], indent=1))


def measure(*, rounds: int, calls: int) -> dict[str, Any]:
    """Nanoseconds per call of each question."""
    with tempfile.TemporaryDirectory() as folder:
        service = licensed(Path(folder)).entitlements
        assert service.enabled("audit_log")
        assert not service.has_blocking_errors()
        lock = threading.Lock()

        def locked() -> bool:
            # Python switches at a call, so a lock is seen only where something is called while it is held.
            with lock:
                return nothing()

        def nothing() -> bool:
            return False

        questions: dict[str, Callable[[], Any]] = {
            "a function that returns False": lambda: False,
            "one that takes a lock": locked,
            "has_blocking_errors()": service.has_blocking_errors,
            'enabled("audit_log")': lambda: service.enabled("audit_log"),
            'limit("seats")': lambda: service.limit("seats"),
        }
        one: dict[str, list[float]] = {name: [] for name in questions}
        many: dict[str, list[float]] = {name: [] for name in questions}
        usual = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        for _ in range(rounds):
            for name, question in questions.items():
                one[name].append(nanoseconds(question, threads=1, calls=calls))
                many[name].append(nanoseconds(question, threads=THREADS, calls=calls))
        sys.setswitchinterval(usual)
    return {
        "threads": THREADS,
        "rounds": rounds,
        "calls": calls,
        "switch_us": round(_SWITCH_SECONDS * 1e6),
        "questions": {
            name: {
                "ns": spread(one[name], 0),
                "ns_from_all_threads": spread(many[name], 0),
                "all_threads_to_one": ratios(many[name], one[name]),
            }
            for name in questions
        },
    }


def licensed(folder: Path) -> Replica:
    """A worker without its server, which has read a license."""
    key = Ed25519PrivateKey.generate()
    keys = json.dumps({"keys": [signing.jwk(key.public_key())]})
    replica = Replica(Settings(database_url=f"sqlite:///{folder}/gates.db", license_keys=keys))
    schema.upgrade(replica.engine)
    now = int(time.time())
    text = signing.issue(
        key,
        now=now,
        not_before=now - 60,
        license_expires=now + 86400,
        expires=now + 86400,
        account_type="company",
        account_id="bench",
        features={"audit_log": 1, "seats": 50},
    )
    with replica.engine.connect() as connection:
        replica.entitlements.add(connection, text)
    replica.sync()
    replica.link.close()
    return replica


def nanoseconds(question: Callable[[], Any], *, threads: int, calls: int) -> float:
    """Per call, of `calls` in all, by the clock on the wall."""
    barrier = threading.Barrier(threads + 1)

    def ask() -> None:
        barrier.wait(10)
        for _ in range(calls // threads):
            question()
        barrier.wait(300)

    crowd = [threading.Thread(target=ask) for _ in range(threads)]
    for one in crowd:
        one.start()
    barrier.wait(10)
    started = time.perf_counter()
    barrier.wait(300)
    elapsed = time.perf_counter() - started
    for one in crowd:
        one.join(10)
    return elapsed / calls * 1e9


if __name__ == "__main__":
    main()
