"""Cancelled at any moment, in either way, a call has its whole effect or none, and the queue goes on."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from faults.trials import CASES, Stage, attempt, wipe
from redis import Redis
from support import Pair, snapshot
from support.checkpoints import Cut, Way, no_leaks, scope_after, task_after, until, ways
from support.marks import ON_REDISPY

from torrelque import Torrelque

pytestmark = pytest.mark.anyio


def tried(backend: str) -> list[Way]:
    """The ways that are tried here: deadlines are left to the fault bench."""
    return [way for way in ways(backend) if way.kind != "deadline"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_cancelled_at_every_checkpoint(
    case: Any, open_client: Any, admin: Redis, name: str, pair: Pair, record_property: Any
) -> None:
    """At each suspension, and after each number of turns: all or nothing, nothing parked, and the queue goes on."""
    backend, cuts = pair.backend[0], 0
    async with no_leaks(admin, backend), open_client() as client, anyio.create_task_group() as group:
        async with Torrelque(client, queue=name) as queue:
            stage = Stage(client, queue, name, admin, group)
            for way in tried(backend):
                for moment in way.moments:
                    cut = await attempt(stage, case, way, moment)
                    if cut is None:
                        break
                    cuts += cut.cancelled
                    if not cut.reached:
                        break
            left = anyio.current_time()
        left = anyio.current_time() - left
    record_property("cancelled", cuts)
    record_property("leaving", left)
    assert cuts
    assert left < 1


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_leaving_right_after_a_cancelled_call(
    case: Any, open_client: Any, admin: Redis, name: str, pair: Pair, record_property: Any
) -> None:
    """A queue that is left with the rest of a cancelled call under way ends that first, and takes no second."""
    slowest = 0.0
    async with no_leaks(admin, pair.backend[0]), open_client() as client:
        for way in tried(pair.backend[0]):
            for moment in way.moments[:4]:
                async with Torrelque(client, queue=name) as queue:
                    # What a trial does beside the call is done before the queue is left.
                    async with anyio.create_task_group() as group:
                        trial = await case(Stage(client, queue, name, admin, group))
                        cut = await way.cut(trial.act, moment)
                    left = anyio.current_time()
                slowest = max(slowest, anyio.current_time() - left)
                snap = snapshot(admin, name)
                snap.check()
                assert snap.dequeueing == []
                assert trial.whole(cut, snap)
                wipe(admin, name)
    record_property("leaving", slowest)
    assert slowest < 1


class Ledger:
    """What producers have put in, and what dequeues have brought."""

    def __init__(self, queue: Torrelque) -> None:
        self.queue = queue
        self.enqueued: list[str] = []
        self.delivered: list[str] = []

    async def produce(self, number: int, rng: random.Random) -> None:
        for i in range(number):
            self.enqueued.append(await self.queue.enqueue(i))
            for _ in range(rng.randrange(6)):
                await checkpoint()

    def add(self, cut: Cut) -> None:
        if not cut.cancelled:
            got = cut.value if isinstance(cut.value, list) else [cut.value]
            self.delivered += [task_id for task_id, _ in got]

    async def check(self, admin: Redis, name: str) -> None:
        """Assert that each task was delivered once, or is pending as if it had never been dequeued."""
        assert self.delivered
        assert len(set(self.delivered)) == len(self.delivered)

        await until(lambda: set((snap := snapshot(admin, name)).working) == set(self.delivered) and not snap.dequeueing)
        snap = snapshot(admin, name)
        snap.check()
        assert set(snap.tasks) == set(self.enqueued)
        assert all("dequeue_count" not in snap.states[task_id] for task_id in snap.pending)


async def storm(ledger: Ledger, cutter: Any, rng: random.Random, number: int = 300) -> None:
    """Make that many dequeues, twenty at a time, each cancelled after 0 to 11 turns, amid traffic."""

    async def attempts() -> None:
        for _ in range(number // 20):
            many = rng.choice((1, 1, 3))
            ledger.add(await cutter(lambda many=many: ledger.queue.dequeue(max_tasks=many), rng.randrange(12)))

    async with anyio.create_task_group() as group:
        group.start_soon(ledger.produce, number, rng)
        for _ in range(20):
            group.start_soon(attempts)
    # Patient ones are served as ever.
    for _ in range(5):
        ledger.enqueued.append(await ledger.queue.enqueue("more"))
        ledger.add(Cut(value=await ledger.queue.dequeue(5)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cutter", [scope_after, task_after])
async def test_storm_of_cancelled_dequeues(
    open_client: Any, admin: Redis, name: str, pair: Pair, cutter: Any, seed: int
) -> None:
    """300 dequeues cancelled at random amid traffic: each task delivered once, or pending as if never dequeued."""
    if pair.backend[0] == "trio":
        cutter = scope_after  # the tasks of Trio cannot be cancelled in another way
    async with no_leaks(admin, pair.backend[0]), open_client() as client:
        async with Torrelque(client, queue=name) as queue:
            ledger = Ledger(queue)
            await storm(ledger, cutter, random.Random(seed))
            await ledger.check(admin, name)
        assert snapshot(admin, name).dequeueing == []


class Traffic:
    """A queue with all kinds of calls under way, until it is cancelled."""

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name
        self.enqueued: list[str] = []
        self.released: list[str] = []
        self.ended = math.nan

    async def run(self) -> None:
        try:
            async with Torrelque(self.client, queue=self.name) as queue, anyio.create_task_group() as group:
                queue.schedule_sweep(0.01)
                group.start_soon(self._produce, queue)
                group.start_soon(self._watch, queue)
                for _ in range(5):
                    group.start_soon(self._consume, queue)
        finally:
            self.ended = anyio.current_time()

    async def _produce(self, queue: Torrelque) -> None:
        while True:
            self.enqueued.append(await queue.enqueue("t"))

    async def _consume(self, queue: Torrelque) -> None:
        while True:
            task_id, _ = await queue.dequeue()
            await queue.release(task_id, result="r")
            self.released.append(task_id)

    async def _watch(self, queue: Torrelque) -> None:
        async for _ in queue.watch(await queue.enqueue("w", delay=60)):
            pass


@pytest.mark.parametrize("cutter", [scope_after, task_after])
async def test_whole_queue_cancelled_amid_calls(
    open_client: Any, admin: Redis, name: str, pair: Pair, cutter: Any, record_property: Any
) -> None:
    """Cancelling all that is round a busy queue ends it within a second: nothing parked, what was said to be is."""
    if pair.backend[0] == "trio":
        cutter = scope_after
    slowest = 0.0
    async with no_leaks(admin, pair.backend[0]), open_client() as client:
        for turns in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610):
            traffic = Traffic(client, name)
            cut = await cutter(traffic.run, turns)
            assert cut.cancelled
            slowest = max(slowest, traffic.ended - cut.asked)
            snap = snapshot(admin, name)
            snap.check()
            assert snap.dequeueing == []
            finals = {key.decode().rpartition(":")[2] for key in admin.scan_iter(f"{name}:task:*")} - set(snap.tasks)
            assert set(traffic.released) <= finals
            assert set(traffic.enqueued) <= finals | set(snap.tasks)
            wipe(admin, name)
    record_property("leaving", slowest)
    assert slowest < 1


async def test_error_of_the_body_comes_out_as_it_is(open_client: Any, admin: Redis, name: str, pair: Pair) -> None:
    """One error leaves a queue unwrapped whatever goes on in it; those of two tasks stay a group."""

    async def fail(error: Exception) -> None:
        raise error

    async def fail_once(error: Exception) -> None:
        async with Torrelque(client, queue=name) as queue:
            queue.schedule_sweep(0.01)
            await queue.enqueue("t")
            raise error

    async def fail_twice() -> None:
        async with Torrelque(client, queue=name) as queue, anyio.create_task_group() as group:
            group.start_soon(lambda: queue.dequeue())
            group.start_soon(fail, ValueError(1))
            group.start_soon(fail, KeyError(2))

    async with no_leaks(admin, pair.backend[0]), open_client() as client:
        error = ValueError("mine")
        with pytest.raises(ValueError, match="mine") as caught:
            await fail_once(error)
        assert caught.value is error
        with pytest.raises(ExceptionGroup) as group:
            await fail_twice()
        assert sorted(map(repr, group.value.exceptions)) == ["KeyError(2)", "ValueError(1)"]


@ON_REDISPY
@pytest.mark.parametrize("seed", range(3))
async def test_storm_without_entering(open_client: Any, admin: Redis, name: str, seed: int) -> None:
    """A queue that was not entered leaves nothing parked by cancelled dequeues, and no task or warning behind."""
    rng = random.Random(seed)
    async with no_leaks(admin, "asyncio"), open_client() as client:
        ledger = Ledger(Torrelque(client, queue=name))
        await storm(ledger, task_after, rng)
        await ledger.check(admin, name)


@ON_REDISPY
@pytest.mark.parametrize("seed", range(3))
async def test_wait_for_without_entering(open_client: Any, admin: Redis, name: str, seed: int) -> None:
    """asyncio.wait_for round a dequeue of a queue that was not entered loses nothing when it runs out."""
    rng = random.Random(seed)

    async def cutter(act: Any, turns: int) -> Cut:
        try:
            return Cut(value=await asyncio.wait_for(act(), turns * 0.0003))
        except TimeoutError:
            return Cut(reached=True, cancelled=True)

    async with no_leaks(admin, "asyncio"), open_client() as client:
        ledger = Ledger(Torrelque(client, queue=name))
        await storm(ledger, cutter, rng)
        await ledger.check(admin, name)
