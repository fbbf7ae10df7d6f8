"""What the simulated programs do with their queue: produce, consume well and badly, watch, look, sweep, see to dead
letters, die."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import trio
from faults.history import Call, digest, verdict

from torrelque import (
    Torrelque,
    TorrelqueDeadLetter,
    TorrelqueError,
    TorrelqueLookupError,
    TorrelqueTaskId,
    TorrelqueTaskStatus,
)
from torrelque.waiting import OVERDUE

from .transport import SimDriver
from .verdicts import Watch

if TYPE_CHECKING:
    from torrelque.calls import Delivery

    from .world import World

#: Seconds within which a cancelled call must have ended.
PROMPT = 1.0
#: Seconds within which leaving a queue must be done: its grace, and the last words of a connection.
LEFT = 2.0
LEASES = (0.3, 1.0, 3.0)
#: Seconds after which a look for a task is over: when nothing fails, and in any case.
LOOKED, LOOKED_AT_LAST = 2.0, 40.0
#: Errors after which nothing has happened.
_REFUSED = {"TorrelqueUnavailableError", "TorrelqueFullError", "TorrelqueStorageError"}
_LOST = {"TorrelqueUnknownOutcomeError", "TorrelqueClosedError", *_REFUSED}
#: What a settle raises that came too late.
_TOO_LATE = {"TorrelqueLeaseLostError", "TorrelqueNotWorkingError", "TorrelqueLookupError"}
#: How calls may go beside being done, cancelled, or failing with Redis.
ANSWERS = {
    "dequeue": {"TorrelqueTimeoutError"},
    "release": _TOO_LATE,
    "requeue": _TOO_LATE,
    "extend": _TOO_LATE,
    "state": {"TorrelqueLookupError"},
    "watch": {"TorrelqueLookupError", "TorrelqueTimeoutError"},
}


class Program:
    """One process: a driver and a queue of its own, and what runs on it.

    :param calm: it does its work well; what the others leave behind is its to finish
    """

    def __init__(self, world: World, number: int, *, calm: bool = False) -> None:
        self.world = world
        self.number = number
        self.name = f"program-{number}"
        self.chance = random.Random(f"{world.seed} program {number}")
        self.driver = SimDriver(world.network)
        self.driver.on_lost_claim = self._note_lost_claim
        # The library picks the driver that suits a client; this client is the driver itself.
        with mock.patch("torrelque.queue.driver_for", lambda client: client):
            self.queue = Torrelque(self.driver, queue=world.queue)
        room = self.queue._room
        self._without_ended, room._without_ended = room._without_ended, self._note_ended
        self.queue.task_timeout = 3.0
        self.queue.max_attempts, self.queue.dead_letter = world.attempts, world.buries
        # Other histories draw as if there were no dead letters and no checks.
        self._letters = random.Random(f"{world.seed} letters {number}")
        self.scope = trio.CancelScope()
        self.work = trio.CancelScope()
        self._calm = calm
        self._serial = 0

    @property
    def calm(self) -> bool:
        """Whether consumers behave."""
        return self._calm or self.world.healed

    def kill(self) -> None:
        """End like a process that is killed: nothing is said to anybody from here on."""
        self.world.record.event("kill", self.name)
        self.driver.dead = True
        self.scope.cancel()

    async def run(self) -> None:
        """Live, until killed or told to end."""
        left = 0.0
        try:
            with self.scope:
                async with self.queue:
                    with self.work:
                        async with trio.open_nursery() as nursery:
                            for actor in self._actors():
                                nursery.start_soon(actor)
                            await trio.sleep_forever()
                    left = trio.current_time()
                if trio.current_time() - left > LEFT:
                    self.world.broken(f"I15: program {self.number} took {trio.current_time() - left:.3f} s to leave")
        except BaseExceptionGroup as errors:
            if self.driver.dead:
                _, others = errors.split((trio.Cancelled, TorrelqueError))
                if others is None:
                    return
            raise
        except TorrelqueError:
            if not self.driver.dead:
                raise

    def _actors(self) -> list[Callable[[], Awaitable[None]]]:
        if self._calm:
            return [self._sweep_on, self._consume, self._consume]
        actors: list[Callable[[], Awaitable[None]]] = [self._consume, self._consume, self._produce, self._watch]
        extra = [self._produce, self._look, self._sweep_now, self._sweep_on, self._consume_many, self._poll]
        if self.world.attempts is not None:
            actors.append(self._see_to_letters)
        if self.world.checks:
            actors.append(self._check)
        return actors + self.chance.sample(extra, self.world.busy)

    # Calls

    async def _call(
        self, what: str, call: Callable[[], Awaitable[Any]], patience: float | None = None
    ) -> tuple[str, Any]:
        """Make a call, given up after *patience* seconds.

        Returns how it went (``ok``, ``cancelled`` or the name of an error), and its value or error.
        """
        world = self.world
        world.operations += 1
        asked = trio.current_time()
        outcome, value = "ok", None
        with trio.CancelScope() as scope:
            if patience is not None:
                scope.deadline = asked + patience
            try:
                value = await call()
            except TorrelqueError as error:
                outcome, value = type(error).__name__, error
            except Exception as error:
                world.broken(f"I19: {what} raised {error!r}")
                raise
        took = trio.current_time() - asked
        if scope.cancelled_caught:
            outcome = "cancelled"
        if patience is not None and took > patience + PROMPT:
            world.broken(f"I15: {what} ended {took - patience:.3f} s after it was cancelled")
        world.record.outcomes[f"{what.split()[0]} {outcome}"] += 1
        world.trace(f"{self.number} {what} {outcome} {_told(value)}")
        allowed = {"ok", "cancelled", *ANSWERS.get(what.split()[0], ())} | (set() if world.on_time else _LOST)
        if outcome not in allowed:
            world.broken(f"I19: {what} raised {value!r}")
        return outcome, value

    def _patience(self) -> float | None:
        """Most calls are waited for; some are cancelled, some of these at once."""
        draw = self.chance.random()
        if draw > self.world.impatience:
            return None
        way = self.world.latency
        return self.chance.choice((0, way / 4, way, way, 2 * way, self.chance.uniform(0, 1)))

    async def _pause(self, mean: float) -> None:
        await trio.sleep(self.chance.expovariate(1 / mean))

    # Producers

    async def _produce(self) -> None:
        for _ in range(self.world.tasks):
            await self._pause(self.world.gap)
            if self.world.healed:
                return
            delay = self.chance.choice((None, None, None, 0.2, 2.0))
            lease = self.chance.choice(LEASES)
            if self.chance.random() < 0.2:
                await self._produce_many(delay, lease)
            else:
                await self._produce_one(delay, lease)

    def _new_id(self) -> str:
        self._serial += 1
        return f"p{self.number}-{self._serial}"

    async def _produce_one(self, delay: float | None, lease: float) -> None:
        task_id = self._new_id() if self.chance.random() < 0.8 else None
        for attempt in range(4):
            body = {"of": task_id, "try": attempt, "nonce": self.chance.getrandbits(32)}
            noted = self._begin("enqueue", [(task_id, _digest(body))], lease=lease, delay=delay)
            outcome, value = await self._call(
                f"enqueue {task_id}",
                lambda body=body: self.queue.enqueue(body, task_id=task_id, delay=delay, task_timeout=lease),
                self._patience(),
            )
            self._enqueued(noted, outcome, [value] if outcome == "ok" else value)
            # A repeat is harmless for an id of one's own; some do it even after an acknowledgement.
            if task_id is None or (outcome == "ok" and not value.deduplicated and self.chance.random() < 0.9):
                return
            await self._pause(0.3)

    def _note_lost_claim(self, began: float) -> None:
        """Note a dequeue without an answer: a claim is for all who wait, and who has left since knows nothing of it."""
        noted = self._begin("dequeue", 1)
        noted.invoked = self.world.moment(began)
        self.world.record.end(noted, "cancelled", None)

    def _note_ended(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Note a claim of which something came too late to be given out: nobody has seen that."""
        in_time = self._without_ended(deliveries)
        if len(in_time) < len(deliveries):
            self._note_lost_claim(deliveries[0].asked)
        return in_time

    def _begin(self, op: str, args: Any, **more: Any) -> Call:
        return self.world.record.begin(self.name, op, args, **more)

    def _enqueued(self, noted: Call, outcome: str, value: Any) -> None:
        """Note how it went, which ids were told, and which of them were there before."""
        self.world.record.end(noted, outcome, value)
        if outcome == "ok":
            self.world.known += map(str, value)
            noted.args = [(str(task_id), said) for task_id, (_, said) in zip(value, noted.args, strict=True)]
            noted.value = [task_id.deduplicated for task_id in value]

    async def _produce_many(self, delay: float | None, lease: float) -> None:
        ids = [self._new_id() for _ in range(self.chance.randrange(2, 5))]
        bodies = [{"of": task_id, "nonce": self.chance.getrandbits(32)} for task_id in ids]
        sent = [(task_id, _digest(body)) for task_id, body in zip(ids, bodies, strict=True)]
        noted = self._begin("enqueue", sent, lease=lease, delay=delay)
        outcome, value = await self._call(
            f"enqueue_many {ids}",
            lambda: self.queue.enqueue_many(bodies, task_ids=ids, delay=delay, task_timeout=lease),
            self._patience(),
        )
        self._enqueued(noted, outcome, value)

    # Consumers

    async def _consume(self) -> None:
        while True:
            timeout = self.chance.choice((None, 0.5, 2.0, 30.0))
            patience = None if self.calm else self._patience()
            if timeout is None and patience is None:
                patience = 40.0
            outcome, value = await self._dequeue(timeout, 1, patience)
            if outcome == "ok":
                await self._handle(*value)
            elif outcome != "TorrelqueTimeoutError":
                await self._pause(0.5)

    async def _consume_many(self) -> None:
        while True:
            outcome, value = await self._dequeue(self.chance.uniform(0.1, 3), 3, self._patience())
            if outcome != "ok":
                await self._pause(0.5)
            elif self.chance.random() < 0.5:
                await self._release_many([task_id for task_id, _ in value])
            else:
                for pair in value:
                    await self._handle(*pair)
            await self._pause(0.5)

    async def _poll(self) -> None:
        while True:
            patience = self._patience()
            limit = LOOKED if self.world.on_time else LOOKED_AT_LAST
            outcome, value = await self._dequeue(0, 1, limit if patience is None else patience)
            if outcome == "cancelled" and patience is None:
                self.world.broken(f"I15: dequeue(0) took more than {limit} s")
            if outcome == "ok":
                await self._handle(*value)
            await self._pause(1.0)

    async def _dequeue(self, timeout: float | None, count: int, patience: float | None) -> tuple[str, Any]:
        asked = trio.current_time()
        noted = self._begin("dequeue", count, timeout=timeout)
        outcome, value = await self._call(
            f"dequeue {timeout}", lambda: self.queue.dequeue(timeout, max_tasks=count), patience
        )
        self.world.record.end(noted, outcome, value)
        if timeout and trio.current_time() - asked > timeout + PROMPT:
            self.world.broken(f"I15: dequeue({timeout}) took {trio.current_time() - asked:.3f} s")
        if outcome == "ok":
            pairs = [value] if count == 1 else value
            noted.value = [(str(task_id), task_id.dequeue_count, _digest(task)) for task_id, task in pairs]
            for task_id, _ in pairs:
                took = trio.current_time() - (task_id._delivered or 0)
                if took >= max(task_id.task_timeout, OVERDUE):
                    self.world.broken(f"I4: {task_id} was delivered {took:.3f} s after its claim was sent, too late")
            # It may have been claimed for somebody who has left since.
            noted.invoked = min(noted.invoked, *(self.world.moment(task_id._delivered) for task_id, _ in pairs))
        return outcome, value

    async def _handle(self, task_id: TorrelqueTaskId, task: Any) -> None:
        ways: list[tuple[float, Callable[[TorrelqueTaskId], Awaitable[Any]]]] = [
            (4, self._finish), (1, self._finish_slowly), (2, self._hang), (2, self._requeue), (1, self._extend),
            (1, self._hold), (1, self._forget), (0.5, self._settle_twice),
        ]  # fmt: skip
        if self.calm:
            await self._finish(task_id)
            return
        (way,) = self.chance.choices([way for _, way in ways], [weight for weight, _ in ways])
        await way(task_id)

    async def _settle(
        self,
        operation: str,
        task_id: TorrelqueTaskId,
        call: Callable[[], Awaitable[Any]],
        **more: Any,
    ) -> str:
        """Settle, again after an error of the network: repeating it is harmless."""
        outcome = ""
        for _ in range(5 if self.calm else self.chance.randrange(1, 4)):
            patience = None if self.calm else self._patience()
            noted = self._begin(operation, [(str(task_id), task_id.dequeue_count)], **more)
            outcome, value = await self._call(f"{operation} {task_id} {task_id.dequeue_count}", call, patience)
            self.world.record.end(noted, outcome, value)
            if outcome == "ok" and operation == "extend":
                noted.more["until"] = value
            if outcome not in {"TorrelqueUnknownOutcomeError", *_REFUSED}:
                break
            await self._pause(0.3)
        return outcome

    async def _finish(self, task_id: TorrelqueTaskId) -> str:
        status = self.chance.choice((TorrelqueTaskStatus.COMPLETED, TorrelqueTaskStatus.REJECTED))
        result = self.chance.choice((None, None, f"result {self.chance.getrandbits(32)}", 0))
        ttl = self.chance.choice((None, 0.5, 20))
        bury = self.world.attempts is not None and self._letters.random() < 0.2
        if bury:
            status = TorrelqueTaskStatus.REJECTED
        return await self._settle(
            "release",
            task_id,
            lambda: self.queue.release(
                task_id, result=result, result_ttl=ttl, status=status, dead_letter=bury, strict=True
            ),
            results=[(str(int(status)), _stored(result))],
            kept=[math.inf if bury else self._kept(result, ttl)],
        )

    def _kept(self, result: Any, ttl: float | None) -> float | None:
        """For how many seconds a result is kept, if at all."""
        return None if result is None else self.queue.result_ttl if ttl is None else ttl

    async def _finish_slowly(self, task_id: TorrelqueTaskId) -> None:
        await trio.sleep(self.chance.uniform(0, task_id.task_timeout))
        await self._finish(task_id)

    async def _hang(self, task_id: TorrelqueTaskId) -> None:
        await trio.sleep(task_id.task_timeout * self.chance.uniform(0.95, 3))
        await self.chance.choice((self._finish, self._requeue, self._extend))(task_id)

    async def _requeue(self, task_id: TorrelqueTaskId) -> None:
        delay = self.chance.choice((None, 0.1, 1.5))
        lease = self.chance.choice((None, None, 1.0))
        await self._settle(
            "requeue", task_id, lambda: self.queue.requeue(task_id, delay, task_timeout=lease, strict=True),
            lease=lease, delay=delay,
        )  # fmt: skip

    async def _extend(self, task_id: TorrelqueTaskId) -> None:
        for _ in range(self.chance.randrange(1, 3)):
            lease = self.chance.choice((None, self.chance.uniform(0.2, 2)))
            outcome = await self._settle(
                "extend", task_id, lambda lease=lease: self.queue.extend(task_id, lease), lease=lease
            )
            if outcome != "ok":
                return
            await self._pause(0.3)
        await self._finish(task_id)

    async def _hold(self, task_id: TorrelqueTaskId) -> None:
        """Work for longer than a lease, and keep it."""
        length = task_id.task_timeout * self.chance.uniform(0.2, 4)
        if task_id._delivered + task_id.task_timeout - trio.current_time() < 20 * self.world.latency:
            await self._finish(task_id)  # what is left of the lease is too short to be kept over such a distance
            return

        async def work() -> None:
            async with self.queue.lease(task_id):
                await trio.sleep(length)
                outcome = await self._finish(task_id)
            if self.world.on_time and outcome in _TOO_LATE and not self._lived_twice(task_id):
                self.world.broken(f"I10: nothing failed, and {task_id} was lost under a lease: {outcome}")

        try:
            await work()
        except TorrelqueLookupError as error:
            if self.world.on_time and not self._lived_twice(task_id):
                self.world.broken(f"I10: nothing failed, and the lease of {task_id} was lost: {error}")
        except TorrelqueError:
            if self.world.on_time:
                raise

    def _lived_twice(self, task_id: TorrelqueTaskId) -> bool:
        """Whether an earlier life of the id had a delivery of this number too, whose holder may have ended this one:
        no promise holds across two lives (docs/operating.md)."""
        claims = self.world.ledger.claims[task_id]
        return len({claim.life for claim in claims if claim.token == task_id.dequeue_count}) > 1

    async def _forget(self, task_id: TorrelqueTaskId) -> None:
        """Do nothing: its lease ends."""

    async def _settle_twice(self, task_id: TorrelqueTaskId) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._finish, task_id)
            nursery.start_soon(self.chance.choice((self._finish, self._requeue)), task_id)

    async def _release_many(self, ids: list[TorrelqueTaskId]) -> None:
        results = [self.chance.choice((None, f"result {self.chance.getrandbits(32)}")) for _ in ids]
        noted = self._begin(
            "release",
            [(str(task_id), task_id.dequeue_count) for task_id in ids],
            results=[("3", _stored(result)) for result in results],
            kept=[self._kept(result, None) for result in results],
        )
        outcome, value = await self._call(
            f"release_many {ids}", lambda: self.queue.release_many(ids, results=results), self._patience()
        )
        self.world.record.end(noted, outcome, value)
        if outcome == "ok":
            noted.value = [verdict(error) for error in value]

    # Others

    async def _watch(self) -> None:
        while not self.world.healed:
            await self._pause(1.0)
            if self.world.known:
                await self._watch_one(self.chance.choice(self.world.known[-6:]))

    async def _watch_one(self, task_id: str) -> None:
        timeout = self.chance.choice((None, None, 3.0, 20.0))
        limit = self.chance.choice((1, 2, 99, 99))
        seen = Watch(task_id, trio.current_time())
        self.world.record.watches.append(seen)

        async def watch() -> None:
            async with aclosing(self.queue.watch(task_id, timeout=timeout)) as following:
                async for state in following:
                    seen.states.append(state)
                    if len(seen.states) == limit:
                        return
                    if self.chance.random() < 0.3:
                        await trio.sleep(self.chance.uniform(0, PROMPT / 2))
            seen.ended = trio.current_time()

        self.world.watching += 1
        asked = trio.current_time()
        try:
            outcome, _ = await self._call(f"watch {task_id}", watch, self._patience())
        finally:
            self.world.watching -= 1
        if timeout and outcome == "TorrelqueTimeoutError" and trio.current_time() - asked > timeout + PROMPT:
            self.world.broken(f"I12: a watch for {timeout} s took {trio.current_time() - asked:.3f} s")

    async def _look(self) -> None:
        while not self.world.healed:
            await self._pause(1.0)
            outcome, value = await self._call("stats", self.queue.get_queue_stats, self._patience())
            if outcome == "ok":
                self.world.record.stats.append(tuple(value))
            if self.world.known:
                task_id = self.chance.choice(self.world.known)
                outcome, value = await self._call(
                    f"state {task_id}", lambda task_id=task_id: self.queue.get_task_state(task_id), self._patience()
                )
                if outcome == "ok":
                    self.world.record.states.append((task_id, value))

    async def _see_to_letters(self) -> None:
        while not self.world.healed:
            await self._pause(1.5)
            letters = await self._read_letters()
            some = self._letters.sample(letters, min(len(letters), self._letters.randrange(3)))
            ids = self._letters.choice((None, [*(letter.task_id for letter in some), "unknown"]))
            change = self._letters.choice((self.queue.requeue_dead_letters, self.queue.purge_dead_letters, None))
            if change is not None:
                await self._call(f"letters {change.__name__} {ids}", partial(change, ids), self._patience())

    async def _read_letters(self) -> list[TorrelqueDeadLetter]:
        """Read dead letters, a few at a time."""
        letters: list[TorrelqueDeadLetter] = []
        await self._call("letters count", self.queue.count_dead_letters, self._patience())
        while True:
            read = partial(self.queue.dead_letters, 2, after=letters[-1].cursor if letters else None)
            outcome, page = await self._call("letters read", read, self._patience())
            if outcome != "ok" or not page:
                return letters
            letters += page
            self.world.record.letters += [
                (str(each.task_id), _json(each.task), _stored(each.reason), each.dequeue_count, each.requeue_count)
                for each in page
            ]

    async def _check(self) -> None:
        """Check and repair what is not broken."""
        while not self.world.healed:
            await self._pause(2.0)
            repair, grace = self._letters.random() < 0.7, self._letters.choice((0, 0.05, 1.0))
            check = partial(self.queue.check, repair=repair, grace=grace)
            outcome, report = await self._call("check", check, self._patience())
            if outcome == "ok" and report.findings:
                self.world.broken(f"I3: a check has found {report.findings}")

    async def _sweep_now(self) -> None:
        while not self.world.healed:
            await self._pause(2.0)
            outcome, value = await self._call("sweep", self.queue.sweep, self._patience())
            if outcome == "ok":
                self.world.record.sweeps.append(tuple(value))

    async def _sweep_on(self) -> None:
        self.queue.schedule_sweep(2.0)
        if self._calm:
            return
        await self._pause(5.0)
        self.queue.schedule_sweep(self.chance.choice((1.0, 3.0)))
        await self._pause(20.0)
        self.queue.unschedule_sweep()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _digest(body: Any) -> str:
    return digest(_json(body))


def _stored(result: Any) -> bytes:
    return b"" if result is None else _json(result)


def _told(value: Any) -> str:
    """Show a value without what differs from process to process."""
    if isinstance(value, BaseException):
        return str(value)
    return repr(value)


__all__ = ["Program"]
