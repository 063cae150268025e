"""A fleet on virtual time: the project's own registry, judgement, lease and loop, driven through faults by a seed.

    pytest tests/test_simulation.py --simulate-steps 1000000
    pytest tests/test_simulation.py --simulate-seed 17

Every step checks that no more aged replicas answer 200 than are allowed, and every quiet time, that as many do.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from greenlet import getcurrent, greenlet
from simulated_database import CLOCKS, Database, Pending, Result, Rewrite

from entitlements import EntitlementsService
from entitlements.keys import KeySet, key_set
from entitlements.license import License, read
from entitlements.signing import issue, jwk
from entitlements.verdict import allowed
from replicas import Heartbeat, Lease, Registry, ReplicaNotFound

HEARTBEAT, STALE, TIMEOUT = 5.0, 15.0, 5.0
#: How far any clock's rate is from true time, at most (spec, section 5).
DRIFT = 0.1
START = 1_800_000_000
#: What the slowest honest clocks make of an interval, and a second for messages.
SLACK = (1 + DRIFT) / (1 - DRIFT)


#: What the scheduler chooses from; twice is twice as often.
FAULTS = (
    "_crash",
    "_leave",
    "_pause",
    "_pause",
    "_stall",
    "_partition_worker",
    "_partition_replica",
    "_congest",
    "_partition_database",
    "_restart_database",
    "_recycle",
    "_lose_master",
    "_new_server",
    "_drift",
    "_drift",
    "_license",
    "_license",
    "_drain",
    "_drain",
    "_undrain",
    "_drain_again",
)


class Counterexample(AssertionError):
    """The guarantee failed; the message holds the seed that shows it again."""


class Lost(Exception):
    """The simulated database did not answer in time, or the connection is gone."""


@dataclass
class Clock:
    """A clock whose rate changes, within the drift that the guarantee allows."""

    true: Callable[[], float]
    at: float = 0.0
    rate: float = 1.0
    shown: float = 0.0

    def now(self) -> float:
        return self.shown + (self.true() - self.at) * self.rate

    def set_rate(self, rate: float) -> None:
        self.shown, self.at, self.rate = self.now(), self.true(), rate


@dataclass(eq=False)
class Worker:
    """One worker process: its thread is a greenlet, its answers are questions to its lease and its entitlements."""

    replica: Server
    clock: Clock
    registry: Registry
    service: EntitlementsService
    lease: Lease
    heartbeat: Heartbeat
    thread: greenlet
    alive: bool = True
    #: Whether its thread is not run, while its requests are answered.
    stalled: bool = False
    cut: bool = False
    #: The database's instant at which it last read the licenses.
    stored_at: int = 0
    #: Whether it touches, reads and judges inside one transaction, and commits by a message of its own.
    transactions: bool = False
    held: Pending | None = None
    #: What its thread will be told when it runs again.
    backlog: list[Callable[[], None]] = field(default_factory=list)

    @property
    def frozen(self) -> bool:
        return self.stalled or self.replica.paused

    def answers_ok(self) -> bool:
        """What /readyz asks, as app.py puts it together, less the database's own check, which only ever says no."""
        return self.alive and not self.replica.paused and self.lease.reason() is None and self.service.reason() is None


@dataclass(eq=False)
class Server:
    """One replica: a master and its workers."""

    id: str
    grace: float
    workers: list[Worker] = field(default_factory=list)
    paused: bool = False
    cut: bool = False
    #: How much longer answers take on their way to it than anything else does.
    answers_late: float = 0.0
    master_alive: bool = True
    leaving: bool = False
    #: Gave its place up at once, which the guarantee leaves out: its pod is out of the endpoints by then.
    drained_now: bool = False
    draining: bool = False

    def started_at(self) -> int | None:
        known = [worker.lease.facts.me.started_at for worker in self.workers if worker.lease.facts]
        return min(known) if known else None


class Connection:
    """What the project's code takes for a connection: each statement is a message, and its answer another."""

    class dialect:  # noqa: N801  # SQLAlchemy's name
        name = "sqlite"

    def __init__(self, world: World, worker: Worker) -> None:
        self._world, self._worker = world, worker

    def exec_driver_sql(self, statement: str) -> Result:
        return self._world.ask(self._worker, statement)


class World:
    """One run. `mutate` may change a worker's parts; `rewrite` its statements as they reach the database."""

    def __init__(
        self,
        seed: int,
        *,
        mutate: Callable[[Worker], None] | None = None,
        rewrite: Rewrite = str,
        faults: Sequence[str] = FAULTS,
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.true = 0.0
        self.steps = 0
        #: How many quiet times ended with all that may serve serving.
        self.settled = 0
        self.trace: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._faults = faults
        self._mutate = mutate or (lambda worker: None)
        #: The share of writes that become visible late.
        self._late = self.random.choice([0.02, 0.1, 0.4])
        #: The share of messages that are slow.
        self._slow = self.random.choice([0.02, 0.1, 0.3])
        self.database_clock = Clock(lambda: self.true)
        self.database = Database(now=self.database_now, later=self.later, rewrite=rewrite)
        self.database_down = False
        self.chaos = True
        self.servers: list[Server] = []
        #: Those that are stored, and verify.
        self._licenses: list[License] = []
        self._held: list[tuple[Worker, Callable[[], None]]] = []
        #: The guarantee holds while the licenses do not change: (database's instant, true instant, allowed before)
        #: of the changes by hand that some verdict may not know yet.
        self._changed: list[tuple[int, float, int | None]] = []
        self.grace = self.random.choice([0.0, 0.0, 3.0, 8.0, 20.0, 60.0])
        for _ in range(self.random.randint(2, 4)):
            self.start_server()
        self.later(self.random.uniform(20, 60), self._begin_quiet)
        self.later(0.5, self._fault)
        self.later(0.1, self._probe)

    # Time

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.true + max(0.0, seconds), next(self._number), action))

    def database_now(self) -> int:
        return START * 1_000_000 + round(self.database_clock.now() * 1_000_000)

    def run(self, steps: int) -> None:
        """Take `steps` steps; raises Counterexample at the first that breaks the guarantee."""
        while self.steps < steps:
            at, _, action = heapq.heappop(self._queue)
            self.true = at
            self.check()
            action()
            self.check()
            self.steps += 1

    def note(self, text: str) -> None:
        self.trace.append(f"{self.true:10.3f} {text}")

    # Invariants

    def serving(self) -> list[Server]:
        """The aged replicas of which a worker answers 200."""
        now = self.database_now()
        return [
            server
            for server in self.servers
            if not server.drained_now
            and (started := server.started_at()) is not None
            and started + server.grace * 1_000_000 <= now
            and any(worker.answers_ok() for worker in server.workers)
        ]

    def allowed(self) -> int | None:
        return allowed(self._licenses, self.database_now() / 1_000_000).number

    def check(self) -> None:
        number = self.allowed()
        self._changed = [change for change in self._changed if self._unknown(*change[:2])]
        numbers = [number, *(before for _, _, before in self._changed)]
        if None in numbers:
            return
        most = max(number for number in numbers if number is not None)
        serving = self.serving()
        if len(serving) > most:
            self.fail(f"{len(serving)} aged replicas serve, {most} are allowed: {[s.id[:4] for s in serving]}")

    def _unknown(self, at: int, true: float) -> bool:
        """Whether a verdict may stand that was reached before a change of the licenses."""
        if self.true < true + 2 * STALE:
            return True
        # Where nothing could replace a replica, no lease ends its verdict.
        workers = [worker for server in self.servers for worker in server.workers]
        return any(
            worker.stored_at < at and not worker.service.replaceable() for worker in workers if worker.lease.facts
        )

    def fail(self, what: str) -> None:
        tail = "\n".join(self.trace[-60:])
        again = f"again: pytest tests/test_simulation.py --simulate-seed {self.seed}"
        raise Counterexample(f"seed {self.seed}, step {self.steps}: {what}; {again}\n{tail}")

    # Messages

    def ask(self, worker: Worker, statement: str) -> Result:
        """Send a statement from a worker's thread, and wait for the answer on virtual time."""
        here = getcurrent()
        assert here is worker.thread
        done: list[Result | None] = []

        def settle(result: Result | None) -> None:
            if not done:
                done.append(result)
                self._resume(worker)

        touch, read = "SET updated_at" in statement, statement.startswith("WITH") and worker.held is not None
        within = worker.transactions and (touch or read)
        self._send(worker, partial(self._arrive_within if within else self._arrive, worker, statement, settle))
        self.later(TIMEOUT / worker.clock.rate, partial(settle, None))
        here.parent.switch()
        if done[0] is None:
            raise Lost("timeout")
        return done[0]

    def _send(self, worker: Worker, deliver: Callable[[], None], *, late: float = 0.0) -> None:
        def arrive() -> None:
            if worker.cut or worker.replica.cut or self.database_down:
                # Half of what a partition catches was lost, the other half is delivered once it ends.
                if self.random.random() < 0.5:
                    self._held.append((worker, deliver))
            else:
                deliver()

        self.later(self._delay() + late, arrive)

    def _answer(self, worker: Worker, settle: Callable[[Result | None], None], result: Result) -> None:
        self._send(worker, partial(settle, result), late=worker.replica.answers_late)

    def _arrive(self, worker: Worker, statement: str, settle: Callable[[Result | None], None]) -> None:
        commit = 0.0
        if self.chaos and self.random.random() < self._late:
            commit = self.random.choice([0.01, 0.3, 2.0, 6.0, 20.0]) * self.random.random()
        if statement != "SELECT 1":
            self.note(f"{worker.replica.id[:4]} {statement[:30]!r} evaluated, visible after {commit:.2f}")
        self.database.arrive(statement, commit, partial(self._answer, worker, settle))

    def _arrive_within(self, worker: Worker, statement: str, settle: Callable[[Result | None], None]) -> None:
        """The same in a client-driven transaction, which begins with the touch; only the commit is missing."""
        if statement.startswith("UPDATE"):
            result, worker.held = self.database.hold(statement)
            if worker.held is not None:
                # A connection that breaks before the commit loses it.
                self.later(self.random.uniform(0.1, 2), partial(self.database.abort, worker.held))
        else:
            result = self.database.within(statement, worker.held)
        self._answer(worker, settle, result)

    def _commit(self, worker: Worker) -> None:
        held, worker.held = worker.held, None
        # The message after a judgement is the one that nobody misses.
        if held is not None and not (self.chaos and self.random.random() < 0.5):
            self._send(worker, partial(self.database.commit, held))

    def _delay(self) -> float:
        if self.chaos and self.random.random() < self._slow:
            return self.random.choice([0.2, 1.0, 4.0, 12.0]) * self.random.random()
        return 0.001 + 0.004 * self.random.random()

    def _resume(self, worker: Worker) -> None:
        if not worker.alive:
            return
        if worker.frozen:
            worker.backlog.append(partial(self._resume, worker))
            return
        worker.thread.switch()

    def _thaw(self, worker: Worker) -> None:
        backlog, worker.backlog = worker.backlog, []
        for action in backlog:
            self.later(0.0, action)

    # Servers

    def start_server(self) -> None:
        grace = self.grace if self.random.random() < 0.8 else self.random.choice([0.0, 5.0, 30.0])
        server = Server(str(uuid.UUID(int=self.random.getrandbits(128), version=4)), grace)
        self.servers.append(server)
        for _ in range(self.random.choice([1, 1, 2, 3])):
            self.start_worker(server)
        self.note(f"{server.id[:4]} starts, grace {grace}")

    def start_worker(self, server: Server) -> None:
        clock = Clock(lambda: self.true, at=self.true, rate=self._rate(), shown=self.random.uniform(0, 1000))
        service = EntitlementsService(keys=_keys, exclude="surplus", clock=clock.now, clocks=CLOCKS)
        lease = Lease(
            stale_after_seconds=STALE,
            replaceable=service.replaceable,
            parent=lambda: 1 if server.master_alive else 0,
            clock=clock.now,
        )
        lease.follow_parent(1)
        registry = Registry(
            replica_id=server.id,
            hostname="simulated",
            version="1",
            heartbeat_seconds=HEARTBEAT,
            stale_after_seconds=STALE,
            grace_seconds=server.grace,
            exclude="surplus",
            clocks=CLOCKS,
            monotonic=clock.now,
        )

        def sync() -> float | None:
            connection: Any = Connection(self, worker)
            stored = service.read(connection)
            facts = registry.sync(connection, limit=service.to_read(stored))
            service.update(stored, facts, read_local=facts.read_local)
            lease.renew(facts)
            self._commit(worker)
            if server.answers_late and self.random.random() < 0.5:
                # The worst instant: the last answer was the one that took longest.
                self._decongest(server)
            worker.stored_at = stored.now
            self.note(f"{server.id[:4]} knows: blocked={service.has_blocking_errors()} line={_line(facts)}")
            return service.seconds_to_change()

        def ping() -> bool:
            try:
                self.ask(worker, "SELECT 1")
            except Lost:
                return False
            return True

        heartbeat = Heartbeat(
            ping=ping,
            sync=sync,
            heartbeat_seconds=HEARTBEAT,
            orphaned=lease.orphaned,
            clock=clock.now,
            early=self.random.random,
        )

        def loop() -> None:
            while worker.alive and not lease.orphaned():
                pause = heartbeat.step()
                self.later(pause / clock.rate, partial(self._resume, worker))
                getcurrent().parent.switch()

        worker = Worker(server, clock, registry, service, lease, heartbeat, greenlet(loop))
        self._mutate(worker)
        server.workers.append(worker)
        self.later(self.random.random(), partial(self._resume, worker))

    def _rate(self) -> float:
        return self.random.choice([1 - DRIFT, 1.0, 1 + DRIFT, self.random.uniform(1 - DRIFT, 1 + DRIFT)])

    def _kill(self, server: Server) -> None:
        for worker in server.workers:
            worker.alive = False
        server.master_alive = False
        self.servers.remove(server)

    # The scheduler

    def _probe(self) -> None:
        """A look between the messages, as a load balancer's."""
        self.later(self.random.expovariate(4), self._probe)

    def _fault(self) -> None:
        if self.chaos:
            getattr(self, self.random.choice(self._faults))()
        self.later(self.random.expovariate(0.4), self._fault)

    def _any(self) -> Server | None:
        servers = [server for server in self.servers if not server.leaving]
        return self.random.choice(servers) if servers else None

    def _crash(self) -> None:
        if (server := self._any()) and len(self.servers) > 1:
            self.note(f"{server.id[:4]} crashes")
            self._kill(server)

    def _leave(self) -> None:
        """SIGTERM: the workers end, then the master leaves."""
        if (server := self._any()) and len(self.servers) > 1 and not server.paused:
            self.note(f"{server.id[:4]} leaves")
            worker = server.workers[0]
            self._kill(server)
            leave: list[str] = []
            recorder: Any = type("Recorder", (Connection,), {"exec_driver_sql": lambda self, s: leave.append(s)})
            worker.registry.leave(recorder(self, worker))
            self._send(worker, partial(self._arrive, worker, leave[0], lambda result: None))

    def _pause(self) -> None:
        if (server := self._any()) and not server.paused:
            seconds = self.random.choice([1.0, 5.0, 9.0, 16.0, 40.0]) * self.random.uniform(0.5, 1.5)
            self.note(f"{server.id[:4]} is paused for {seconds:.1f}")
            server.paused = True
            self.later(seconds, partial(self._unpause, server))

    def _unpause(self, server: Server) -> None:
        if server.paused:
            self.note(f"{server.id[:4]} goes on")
            server.paused = False
            for worker in server.workers:
                self._thaw(worker)

    def _stall(self) -> None:
        if server := self._any():
            worker = self.random.choice(server.workers)
            worker.stalled = True
            seconds = self.random.choice([1.0, 5.0, 9.0, 16.0, 40.0]) * self.random.uniform(0.5, 1.5)
            self.note(f"{server.id[:4]} has a thread that does not run for {seconds:.1f}")
            self.later(seconds, partial(self._unstall, worker))

    def _unstall(self, worker: Worker) -> None:
        worker.stalled = False
        if not worker.frozen:
            self._thaw(worker)

    def _partition_worker(self) -> None:
        if server := self._any():
            worker = self.random.choice(server.workers)
            worker.cut = True
            self.note(f"{server.id[:4]} has a worker without the database")
            self.later(self._long(), partial(self._heal, worker))

    def _partition_replica(self) -> None:
        if server := self._any():
            server.cut = True
            self.note(f"{server.id[:4]} is without the database")
            self.later(self._long(), partial(self._heal, server))

    def _congest(self) -> None:
        """Answers come late, and then none."""
        if server := self._any():
            server.answers_late = self.random.uniform(1.0, TIMEOUT)
            self.note(f"{server.id[:4]} hears from the database {server.answers_late:.1f} late")
            self.later(self._long(), partial(self._decongest, server))

    def _decongest(self, server: Server) -> None:
        if server.answers_late:
            server.answers_late, server.cut = 0.0, self.chaos
            self.later(self._long(), partial(self._heal, server))

    def _partition_database(self) -> None:
        self.database_down = True
        self.note("the database is unreachable")
        self.later(self._long() / 2, self._database_up)

    def _database_up(self) -> None:
        self.database_down = False
        self._deliver()

    def _heal(self, what: Worker | Server) -> None:
        what.cut = False
        self._deliver()

    def _long(self) -> float:
        return self.random.choice([2.0, 8.0, 20.0, 50.0]) * self.random.uniform(0.5, 1.5)

    def _deliver(self) -> None:
        """What was held comes now, in whatever order."""
        held, self._held = self._held, []
        for worker, deliver in held:
            if worker.cut or worker.replica.cut or self.database_down:
                self._held.append((worker, deliver))
            else:
                self.later(self.random.random(), deliver)

    def _restart_database(self) -> None:
        self.note("the database restarts")
        self.database.restart()

    def _recycle(self) -> None:
        """A worker ends and the master makes another, as with max_requests."""
        if (server := self._any()) and server.master_alive:
            worker = self.random.choice(server.workers)
            worker.alive = False
            server.workers.remove(worker)
            self.start_worker(server)

    def _lose_master(self) -> None:
        if (server := self._any()) and len(self.servers) > 1:
            self.note(f"{server.id[:4]} loses its master")
            server.master_alive = False
            server.leaving = True
            self.later(20.0, lambda: self._kill(server) if server in self.servers else None)

    def _new_server(self) -> None:
        if len(self.servers) < 5:
            self.start_server()

    def _drift(self) -> None:
        for clock in [self.database_clock, *(worker.clock for server in self.servers for worker in server.workers)]:
            if self.random.random() < 0.5:
                clock.set_rate(self._rate())

    # Operators

    def _license(self) -> None:
        """A license is stored, or one is removed; those that are stored end by themselves."""
        before = self.allowed()
        if self.random.random() < 0.4:
            self.database.run("DELETE FROM readygate_licenses WHERE id = (SELECT min(id) FROM readygate_licenses)")
            del self._licenses[:1]
        elif len(self._licenses) < 3:
            text = self._signed()
            self._licenses.append(read(text, _keys()))
            self.database.run(
                "INSERT INTO readygate_licenses (uuid, jwt, uploaded_at)"
                f" VALUES ('{self._licenses[-1].uuid}', '{text}', virtual_now())"
            )
        after = self.allowed()
        self.note(f"licenses change: allowed {before} -> {after}")
        if before is None or (after is not None and after < before):
            # Until every verdict that was reached before has ended.
            self._changed.append((self.database_now(), self.true, before))

    def _signed(self) -> str:
        now = self.database_now() // 1_000_000
        begins = now + self.random.choice([0, 0, 0, 7, 25])
        term = self.random.choice([10, 30, 90, 600])
        features = self.random.choice(
            [{"high_availability": 1}, {"high_availability": 1, "replica_limit": 2}, {"x": 1}]
        )
        state = uuid.uuid4
        try:
            uuid.uuid4 = lambda: uuid.UUID(int=self.random.getrandbits(128), version=4)  # the seed's, for a replay
            return issue(
                _key(),
                now=now,
                not_before=begins,
                license_expires=begins + term,
                expires=begins + term + self.random.choice([0, 10, 40]),
                account_type="company",
                account_id="simulated",
                features=features,
            )
        finally:
            uuid.uuid4 = state

    def _operate(self, server: Server, what: str, **options: bool) -> None:
        """A command from outside: it reaches the database at once, but may become visible late."""
        recorded: list[str] = []

        def record(connection: Connection, statement: str) -> Result:
            recorded.append(statement)
            return Result([])

        recorder: Any = type("Recorder", (Connection,), {"exec_driver_sql": record})
        registry = server.workers[0].registry
        # No row is answered; the first statement is what counts here.
        with contextlib.suppress(ReplicaNotFound):
            getattr(registry, what)(recorder(self, server.workers[0]), server.id, **options)
        late = self.random.choice([0.0, 0.0, 1.0, 8.0, 20.0]) * self.random.random() if self.chaos else 0.0
        self.note(f"{server.id[:4]} {what} {options or ''}, visible after {late:.1f}")
        self.database.arrive(recorded[0], late, lambda result: None)

    def _drain(self) -> None:
        if server := self._any():
            now = self.random.random() < 0.15
            server.draining = True
            server.drained_now = server.drained_now or now
            self._operate(server, "drain", now=now)

    def _drain_again(self) -> None:
        draining = [server for server in self.servers if server.draining]
        if draining:
            self._operate(self.random.choice(draining), "drain")

    def _undrain(self) -> None:
        draining = [server for server in self.servers if server.draining]
        if draining:
            self._operate(self.random.choice(draining), "undrain")

    # Quiet times

    def _begin_quiet(self) -> None:
        """Faults stop; in time, all that may serve does."""
        self.note("quiet begins")
        self.chaos = self.database_down = False
        for server in list(self.servers):
            server.cut, server.answers_late = False, 0.0
            if not server.master_alive:
                self._kill(server)
            self._unpause(server)
            for worker in server.workers:
                worker.cut = worker.stalled = False
                self._thaw(worker)
        if not self.servers:
            self.start_server()
        self._deliver()
        # What was evaluated late commits late: the quiet begins when all of it has.
        if self.database.pending or self.database.waiting:
            self.later(1.0, self._begin_quiet)
            return
        self.later(STALE + 2 * HEARTBEAT, self._settled)

    def _settled(self) -> None:
        rows = {row.id: row for row in self.database.run("SELECT * FROM readygate_replicas").rows}
        now, number = self.database_now(), self.allowed()
        standing = sorted(
            (rows[server.id].created_at, server.id)
            for server in self.servers
            if server.id in rows
            and rows[server.id].stopped_at is None
            and rows[server.id].draining_at is None
            and rows[server.id].started_at + rows[server.id].grace <= now
        )
        expected = [name for _, name in standing][: len(standing) if number is None else number]
        if self._settles_now(rows, now):
            for server in self.servers:
                if server.id in expected and not all(worker.answers_ok() for worker in server.workers):
                    why = [(worker.lease.reason(), worker.service.reason()) for worker in server.workers]
                    self.fail(f"{server.id[:4]} does not serve again, {why}")
            self.settled += 1
            self._watch({server.id: [w.answers_ok() for w in server.workers] for server in self.servers}, 40)
        else:
            self._end_quiet()

    def _settles_now(self, rows: dict[str, Any], now: int) -> bool:
        """Whether nothing changes by the time alone about now: no grace, no appointment, no license begins or ends."""
        instants = [row.started_at + row.grace for row in rows.values()]
        instants += [row.draining_at for row in rows.values() if row.draining_at is not None and not row.stopped_at]
        for one in self._licenses:
            instants += [one.not_before * 1_000_000, one.license_expires * 1_000_000, one.expires * 1_000_000]
        near = (STALE + 2 * HEARTBEAT) * 1_000_000
        return not any(-near < instant - now < 2 * near for instant in instants)

    def _watch(self, before: dict[str, list[bool]], times: int) -> None:
        """Nothing flaps while nothing happens."""
        for server in self.servers:
            if before.get(server.id) != [worker.answers_ok() for worker in server.workers]:
                self.fail(f"{server.id[:4]} flaps: {before.get(server.id)}")
        if times:
            self.later(0.5, partial(self._watch, before, times - 1))
        else:
            self._end_quiet()

    def _end_quiet(self) -> None:
        self.note("quiet ends")
        self.chaos = True
        if len(self.servers) > 2:
            # Drained ones stay drained until they are restarted.
            for server in [server for server in self.servers if server.draining][:1]:
                self._kill(server)
        while len(self.servers) < 2:
            self.start_server()
        self.later(self.random.uniform(20, 90), self._begin_quiet)


@cache
def _key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(b"simulation".ljust(32))


@cache
def _keys() -> KeySet:
    return key_set(json.dumps({"keys": [jwk(_key().public_key())]}))


def _line(facts: Any) -> list[str]:
    return [row.id[:4] for row in sorted(facts.members, key=lambda row: (row.created_at, row.id))]
