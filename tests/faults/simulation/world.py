"""One simulated history: a server, a network, programs, disasters; then everything heals and must drain."""

from __future__ import annotations

import hashlib
import logging
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing
from faults.checker import Allowances

from torrelque import scripts

from .ledger import ENOUGH, Ledger
from .seeding import seeded
from .server import SimServer, Spinning
from .transport import LATEST, Network, Rates
from .verdicts import Record
from .workload import Program

#: Seconds of computing after which a history is interrupted.
REAL = 30
#: Virtual seconds of faults.
ACTIVE = 12.0
#: Virtual seconds within which a healed queue has nothing left to do, and its watchers know.
DRAINED = 90.0
#: Virtual seconds after which what has ended is back when nothing fails; a few ways over the network come to it.
LATE = 0.05
#: Virtual seconds by which times that the checker compares may differ: they are rounded.
EXACT = 1e-5
#: Virtual seconds after which a silent peer has been noticed.
NOTICED = 40.0
#: Virtual seconds after which a history that has not ended hangs.
ENDED = 600.0


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    operations: int
    scripts: int
    violations: list[str]
    faults: dict[str, int]
    outcomes: dict[str, int]
    digest: str
    """Of everything that happened, in order."""
    trace: list[str] = field(default_factory=list)
    virtual: float = 0.0
    drained: float = 0.0
    lateness: float = 0.0


class World:
    """Everything that one seed decides."""

    queue = "q"

    def __init__(self, seed: int, spawn: Callable[..., None], *, keep_trace: bool) -> None:
        self.seed = seed
        chance = self.chance = random.Random(f"{seed} world")
        #: A fifth of all histories are without faults; there everything has to be on time.
        self.on_time = seed % 5 == 0
        self.impatience = chance.choice((0, 0.2, 0.5))
        #: Seconds that a way takes at most: on one machine, in one house, or over a continent.
        self.latency = chance.choice((0.001, 0.02, 0.1))
        self.tasks, self.gap = chance.choice(((3, 1.0), (6, 1.0), (12, 0.1)))
        self.busy = chance.choice((1, 2, 4))
        #: How often a task is delivered at most, in a third of all histories, and whether it is a dead letter then.
        letters = random.Random(f"{seed} letters")
        self.attempts = letters.choice((None, None, None, None, 2, 4))
        self.buries = letters.choice((False, True, True))
        #: Whether each program checks the queue, in a quarter of all histories.
        self.checks = letters.random() < 0.25
        self.server = SimServer([(script.sha1, script.text, script.name) for script in scripts.ALL])
        self.network = Network(self.server, random.Random(f"{seed} network"), self._rates(), spawn, self.latency)
        self.ledger = Ledger(self.server, self.queue, on_time=self.on_time, late=LATE + 6 * self.latency)
        #: Forward jumps of the server's clock: when, and by how many seconds.
        self._jumps: list[tuple[float, float]] = []
        self.record = Record(self.moment, Allowances(lease=LATEST, tolerance=EXACT))
        self.server.observer = self.ledger
        self.ledger.did = self.record.served
        self.healed = False
        self.operations = 0
        self.watching = 0
        self.known: list[str] = []
        self.programs: list[Program] = []
        self.turned_back = 0.0
        self._digest = hashlib.blake2b(digest_size=16)
        self._lines: list[str] | None = [] if keep_trace else None
        self.network.trace = self.ledger.trace = self.trace
        self.network.broken = self.broken
        self.network.on_late_claim = self._note_late_claim

    def _note_late_claim(self) -> None:
        """Note a claim that nobody waits for when it is made: the clock may have jumped by hours since it was sent."""
        self.record.end(self.record.begin("the network", "dequeue", 1), "cancelled", None)

    def _rates(self) -> Rates:
        if self.on_time:
            return Rates()
        worst = self.chance.choice((0.02, 0.05, 0.15))
        return Rates(**{name: self.chance.choice((0, worst / 3, worst)) for name in vars(Rates())})

    def trace(self, line: str) -> None:
        """Note what happens, with its time."""
        line = f"{trio.current_time():.6f} {line}"
        self._digest.update(line.encode())
        if self._lines is not None:
            self._lines.append(line)

    def broken(self, violation: str) -> None:
        """Note a broken promise."""
        self.record.violations.append(violation)
        self.trace(f"BROKEN {violation}")
        if len(self.record.violations) > ENOUGH:
            raise Spinning("too much is broken to go on")

    async def live(self, nursery: trio.Nursery) -> None:
        """Run the programs among faults."""
        for _ in range(self.chance.choice((2, 3))):
            self._start(nursery)
        if self.on_time:
            self._start(nursery, calm=True)
        with trio.move_on_after(ACTIVE):
            if self.on_time:
                await trio.sleep_forever()
            await self._disasters(nursery)

    def _start(self, nursery: trio.Nursery, *, calm: bool = False) -> None:
        program = Program(self, len(self.programs), calm=calm)
        self.programs.append(program)
        nursery.start_soon(program.run)

    async def _disasters(self, nursery: trio.Nursery) -> None:
        disasters: list[Callable[[trio.Nursery], Any]] = [
            self._restart, self._cut_block, self._cut_block, self._cut_subscription, self._mood, self._fill,
            self._flush, self._jump, self._kill,
        ]  # fmt: skip
        chosen = self.chance.sample(disasters, self.chance.randrange(2, len(disasters)))
        while True:
            await trio.sleep(self.chance.expovariate(0.7))
            await self.chance.choice(chosen)(nursery)

    async def _restart(self, nursery: trio.Nursery) -> None:
        self.network.note("restart")
        self.server.crash()
        await trio.sleep(self.chance.choice((0, 0.5, 3)))
        self.server.down = False
        await self._under("LOADING Redis is loading the dataset in memory", self.chance.choice((0, 0.3)))

    async def _under(self, mood: str, seconds: float) -> None:
        self.server.mood = mood
        await trio.sleep(seconds)
        self.server.mood = None

    async def _cut_block(self, nursery: trio.Nursery) -> None:
        if self.network.blockers:
            self.network.note("blocked connection cut")
            self.chance.choice(self.network.blockers).cut(noticed=self.chance.random() < 0.5)

    async def _cut_subscription(self, nursery: trio.Nursery) -> None:
        subscribers = self.network.subscribers
        if subscribers:
            self.network.note("subscription cut")
            self.chance.choice(subscribers).cut(noticed=self.chance.random() < 0.5)

    async def _mood(self, nursery: trio.Nursery) -> None:
        code = self.chance.choice(("READONLY", "MISCONF", "BUSY", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN"))
        self.network.note(code)
        if code == "READONLY":
            for block in list(self.server.blocked):
                self.server.forget(block)
                block.end(error="UNBLOCKED force unblock from blocking operation, instance state changed")
        await self._under(f"{code} no", self.chance.uniform(0, 2))

    async def _fill(self, nursery: trio.Nursery) -> None:
        self.network.note("memory full")
        self.server.store.full = True
        await trio.sleep(self.chance.uniform(0, 2))
        self.server.store.full = False

    async def _flush(self, nursery: trio.Nursery) -> None:
        self.network.note("scripts gone")
        self.server.flush_scripts()

    async def _jump(self, nursery: trio.Nursery) -> None:
        self.network.note("clock jumps")
        # Less than a minute back: beyond it a sweep moves times that are too far, which is not in the oracle.
        by = self.chance.choice((-20, -1, 1, 20, 3600) if self.turned_back < 20 else (1, 20, 3600))
        self.server.shift += by
        self.turned_back += max(-by, 0)
        if by > 0:
            self._jumps.append((trio.current_time(), by))

    def moment(self, at: float | None = None) -> int:
        """Tell the time for the checker, nanoseconds; of the virtual clock's *at* if that is given.

        It jumps ahead with the server's clock, by which leases end early, and not back with it, by which none do.
        """
        at = trio.current_time() if at is None else at
        return round((at + sum(by for when, by in self._jumps if when <= at)) * 1e9)

    async def _kill(self, nursery: trio.Nursery) -> None:
        living = [program for program in self.programs if not program.driver.dead]
        if living:
            self.network.note("program killed")
            self.chance.choice(living).kill()
            if self.chance.random() < 0.7:
                self._start(nursery)

    async def drain(self, nursery: trio.Nursery) -> float:
        """Heal everything, and wait until nothing is left to do; returns how many seconds that took."""
        self.healed = True
        self.network.heal()
        self.server.down, self.server.mood, self.server.store.full = False, None, False
        self.trace("healed")
        self._start(nursery, calm=True)
        began = trio.current_time()
        while self._left():
            if trio.current_time() - began > DRAINED + self.turned_back:
                self.broken(f"I1: {DRAINED} s after all faults there is left: {self._left()}")
                break
            await trio.sleep(0.25)
        return trio.current_time() - began

    def _left(self) -> str:
        view = self.ledger.view()
        if view.live or view.parked or self.network.on_their_way:
            return f"{view}"
        return f"{self.watching} watches" if self.watching else ""

    async def close(self) -> None:
        """End all programs, and see that nothing is left of them."""
        if any(each.silent for each in self.network.subscribers):
            await trio.sleep(NOTICED)
        if any(each.silent for each in self.network.subscribers):
            self.broken(f"I12: after {NOTICED} s a subscription is kept whose other end has gone without a word")
        for program in self.programs:
            program.work.cancel()
        with trio.move_on_after(20):
            while self.network.blockers or self.network.subscribers or self.server.blocked:
                await trio.sleep(0.5)
        if self.network.blockers or self.server.subscriptions or self.server.blocked:
            self.broken("I15: connections are left when all queues have been left")
        self.server.store.expire()
        keys, view = self.ledger.keys, self.ledger.view()
        allowed = {keys.state(task_id.encode()) for task_id in (*view.final, *view.dead)} | {keys.undequeued}
        if view.dead:
            allowed |= {keys.dead, keys.dead_payloads}
        foreign = set(self.server.store.keys) - allowed
        if foreign:
            self.broken(f"I13, I14: keys are left: {sorted(foreign)}")

    def outcome(self, drained: float) -> Outcome:
        """Judge."""
        return Outcome(
            seed=self.seed,
            operations=self.operations,
            scripts=self.ledger.scripts,
            violations=self.record.judge(self.ledger),
            faults=dict(self.network.faults),
            outcomes=dict(self.record.outcomes),
            digest=self._digest.hexdigest(),
            trace=self._lines or [],
            drained=drained,
            virtual=trio.current_time(),
            lateness=self.ledger.lateness,
        )


async def _main(seed: int, keep_trace: bool) -> Outcome:
    worlds: list[World] = []
    drained = 0.0
    try:
        async with trio.open_nursery() as nursery:
            worlds.append(World(seed, nursery.start_soon, keep_trace=keep_trace))
            with trio.move_on_after(ENDED) as limit:
                drained = await _life(worlds[0])
            if limit.cancelled_caught:
                worlds[0].broken(f"I15: it hangs: not at its end after {ENDED} s")
            nursery.cancel_scope.cancel()
    except* (Exception, Spinning) as errors:
        worlds[0].record.violations.append(f"I15, I20: it ended with {_first(errors)!r}")
    return worlds[0].outcome(drained)


async def _life(world: World) -> float:
    async with trio.open_nursery() as programs:
        await world.live(programs)
        drained = await world.drain(programs)
        await world.close()
    return drained


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _alarm(number: int, frame: object) -> None:
    raise Spinning(f"it has computed for {REAL} s: some task does not let others run")


@contextmanager
def _alarmed() -> Iterator[None]:
    """Interrupt a loop in which no time passes; an ordinary history computes for a tenth of a second."""
    before = signal.signal(signal.SIGVTALRM, _alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, REAL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def simulate(seed: int, *, keep_trace: bool = False) -> Outcome:
    """Run the history of one seed, in no time."""
    logger = logging.getLogger("torrelque")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with seeded(seed), _alarmed():
            clock = trio.testing.MockClock(autojump_threshold=0)
            outcome: Outcome = trio.run(_main, seed, keep_trace, clock=clock)
            return outcome
    finally:
        logger.setLevel(level)
