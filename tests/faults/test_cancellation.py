"""Cancelled at any moment, in either way, a call has its whole effect or none, and the queue goes on."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from redis import Redis
from support import PAIRS, Pair, Snapshot, snapshot
from support.checkpoints import Cut, cutters, no_leaks, scope_after, scope_at, task_after, task_at, until

from torrelque import Torrelque, TorrelqueTaskId, TorrelqueTimeoutError

pytestmark = pytest.mark.anyio

on_redispy = pytest.mark.parametrize("pair", [p for p in PAIRS if p.client == "redispy"], indirect=True, ids=str)


@dataclass
class Trial:
    """A call to cancel, and how the queue must look soon after."""

    act: Callable[[], Awaitable[Any]]
    whole: Callable[[Cut, Snapshot], bool]
    #: It would go on for ever: so many suspensions are tried.
    suspensions: int = 100


@dataclass
class Stage:
    """Where a trial takes place."""

    client: Any
    queue: Torrelque
    name: str
    admin: Redis
    group: Any

    async def working(self, **options: Any) -> Any:
        """Have one task, and hold it."""
        await self.queue.enqueue("t", task_id="t", **options)
        task_id, _ = await self.queue.dequeue(5)
        return task_id


def untouched(snap: Snapshot, *ids: str) -> bool:
    """Tell whether these tasks, and no others, are pending in this order, as if never dequeued."""
    fresh = all("dequeue_count" not in snap.states[task_id] for task_id in snap.pending)
    return snap.pending[::-1] == list(ids) and len(snap.tasks) == len(ids) and fresh


async def enqueue(stage: Stage) -> Trial:
    return Trial(
        lambda: stage.queue.enqueue("t", task_id="t"),
        lambda cut, snap: untouched(snap, "t") or (cut.cancelled and untouched(snap)),
    )


async def enqueue_delayed(stage: Stage) -> Trial:
    return Trial(
        lambda: stage.queue.enqueue("t", task_id="t", delay=60),
        lambda cut, snap: list(snap.delayed) == ["t"] or (cut.cancelled and untouched(snap)),
    )


async def enqueue_many(stage: Stage) -> Trial:
    ids = [str(i) for i in range(1100)]
    return Trial(
        lambda: stage.queue.enqueue_many(ids, task_ids=ids),
        lambda cut, snap: any(untouched(snap, *ids[:n]) for n in ((0, 500, 1000, 1100) if cut.cancelled else (1100,))),
    )


def dequeues(*arguments: Any, takes: int = 1, **options: Any) -> Callable[[Stage], Awaitable[Trial]]:
    async def dequeue(stage: Stage) -> Trial:
        ids = ["a", "b", "c"]
        await stage.queue.enqueue_many(ids, task_ids=ids)
        return Trial(
            lambda: stage.queue.dequeue(*arguments, **options),
            lambda cut, snap: (
                untouched(snap, *ids)
                if cut.cancelled
                else sorted(snap.working) == ids[:takes] and snap.pending[::-1] == ids[takes:]
            ),
        )

    return dequeue


def dequeues_nothing(*arguments: Any, **options: Any) -> Callable[[Stage], Awaitable[Trial]]:
    async def dequeue(stage: Stage) -> Trial:
        async def act() -> None:
            with pytest.raises(TorrelqueTimeoutError):
                await stage.queue.dequeue(*arguments, **options)

        return Trial(act, lambda cut, snap: untouched(snap))

    return dequeue


async def dequeue_what_comes(stage: Stage) -> Trial:
    stage.group.start_soon(lambda: stage.queue.enqueue("t", task_id="t"))
    return Trial(
        lambda: stage.queue.dequeue(),
        lambda cut, snap: untouched(snap, "t") if cut.cancelled else list(snap.working) == ["t"],
    )


async def requeue(stage: Stage) -> Trial:
    task_id = await stage.working()
    return Trial(
        lambda: stage.queue.requeue(task_id, strict=True),
        lambda cut, snap: snap.pending == ["t"] or (cut.cancelled and list(snap.working) == ["t"]),
    )


async def requeue_delayed(stage: Stage) -> Trial:
    task_id = await stage.working()
    return Trial(
        lambda: stage.queue.requeue(task_id, 60, strict=True),
        lambda cut, snap: list(snap.delayed) == ["t"] or (cut.cancelled and list(snap.working) == ["t"]),
    )


async def release(stage: Stage) -> Trial:
    task_id = await stage.working()
    return Trial(
        lambda: stage.queue.release(task_id, strict=True),
        lambda cut, snap: (
            not (snap.tasks or stage.admin.exists(f"{stage.name}:task:t"))
            or (cut.cancelled and list(snap.working) == ["t"])
        ),
    )


async def release_with_result(stage: Stage) -> Trial:
    task_id = await stage.working()

    def whole(cut: Cut, snap: Snapshot) -> bool:
        status, result = stage.admin.hmget(f"{stage.name}:task:t", "status", "result")
        kept = (status, result) == (b"3", b'"done"') and not snap.tasks
        return kept or (cut.cancelled and result is None and list(snap.working) == ["t"])

    return Trial(lambda: stage.queue.release(task_id, result="done", strict=True), whole)


async def release_many(stage: Stage) -> Trial:
    ids = [f"{i:04}" for i in range(900)]
    await stage.queue.enqueue_many(ids, task_ids=ids)
    held = [task_id for task_id, _ in await stage.queue.dequeue(0, max_tasks=900)]

    def whole(cut: Cut, snap: Snapshot) -> bool:
        left = [ids, ids[500:], []] if cut.cancelled else [[]]
        return sorted(snap.working) in left and sorted(snap.tasks) == sorted(snap.working)

    return Trial(lambda: stage.queue.release_many(held), whole)


async def extend(stage: Stage) -> Trial:
    task_id = await stage.working(task_timeout=100)
    return Trial(
        lambda: stage.queue.extend(task_id, 1000),
        lambda cut, snap: list(snap.working) == ["t"] and (cut.cancelled or snap.working["t"] > snap.now + 900),
    )


async def get_task_state(stage: Stage) -> Trial:
    await stage.queue.enqueue("t", task_id="t")
    return Trial(lambda: stage.queue.get_task_state("t"), lambda cut, snap: untouched(snap, "t"))


async def get_queue_stats(stage: Stage) -> Trial:
    await stage.queue.enqueue("t", task_id="t")
    return Trial(lambda: stage.queue.get_queue_stats(), lambda cut, snap: untouched(snap, "t"))


async def watch(stage: Stage) -> Trial:
    task_id = await stage.working()

    async def act() -> None:
        async with aclosing(stage.queue.watch("t")) as states:
            await anext(states)
            stage.group.start_soon(lambda: stage.queue.requeue(task_id))
            await anext(states)

    return Trial(act, lambda cut, snap: snap.pending == ["t"] or (cut.cancelled and list(snap.working) == ["t"]))


async def sweep(stage: Stage) -> Trial:
    ids = ["due", "stale"]
    await stage.queue.enqueue_many(ids, task_ids=ids)
    await stage.queue.dequeue(max_tasks=2)
    stage.admin.zadd(f"{stage.name}:working", dict.fromkeys(ids, 1))
    return Trial(
        lambda: stage.queue.sweep(),
        lambda cut, snap: sorted(snap.pending) == ids or (cut.cancelled and sorted(snap.working) == ids),
    )


async def run_sweep(stage: Stage) -> Trial:
    await stage.queue.enqueue("t", task_id="t")
    return Trial(lambda: stage.queue.run_sweep(0.005), lambda cut, snap: untouched(snap, "t"), suspensions=6)


async def lease(stage: Stage) -> Trial:
    task_id = await stage.working()

    async def act() -> None:
        # As if it had 0.2 s: it is extended after half of them.
        async with stage.queue.lease(TorrelqueTaskId(task_id, 1, 0.2), 1000):
            await anyio.sleep(0.12)

    return Trial(
        act, lambda cut, snap: list(snap.working) == ["t"] and (cut.cancelled or snap.working["t"] > snap.now + 900)
    )


async def session(stage: Stage) -> Trial:
    async def act() -> None:
        async with Torrelque(stage.client, queue=stage.name) as queue:
            await queue.enqueue("t", task_id="t")
            task_id, _ = await queue.dequeue()
            await queue.release(task_id)

    def whole(cut: Cut, snap: Snapshot) -> bool:
        held = list(snap.working) == ["t"]
        return untouched(snap) or (cut.cancelled and (held or untouched(snap, "t")))

    return Trial(act, whole)


async def session_busy(stage: Stage) -> Trial:
    async def act() -> None:
        async with Torrelque(stage.client, queue=stage.name) as queue, anyio.create_task_group() as group:
            queue.schedule_sweep()
            group.start_soon(queue.dequeue)
            async with aclosing(queue.watch(await queue.enqueue("t", delay=60))) as states:
                await anext(states)
            group.cancel_scope.cancel()

    return Trial(act, lambda cut, snap: len(snap.delayed) == 1 or (cut.cancelled and untouched(snap)))


CASES: dict[str, Callable[[Stage], Awaitable[Trial]]] = {
    **{
        case.__name__: case
        for case in (
            enqueue, enqueue_delayed, enqueue_many, dequeue_what_comes, requeue, requeue_delayed, release,
            release_with_result, release_many, extend, get_task_state, get_queue_stats, watch, sweep, run_sweep, lease,
            session, session_busy,
        )
    },
    "dequeue": dequeues(),
    "dequeue_in_time": dequeues(5),
    "dequeue_many": dequeues(5, takes=2, max_tasks=2),
    "dequeue_now": dequeues(0),
    "dequeue_nothing": dequeues_nothing(0.02),
    "dequeue_nothing_many": dequeues_nothing(0.02, max_tasks=9),
    "dequeue_nothing_now": dequeues_nothing(0),
}  # fmt: skip


def wipe(admin: Redis, name: str) -> None:
    if keys := admin.keys(f"{name}:*"):
        admin.delete(*keys)


async def goes_on(queue: Torrelque) -> None:
    """See that the queue still does what it is for."""
    again = await queue.enqueue("again")
    ids: list[Any] = []
    while again not in ids:
        ids = [task_id for task_id, _ in await queue.dequeue(5, max_tasks=2000)]
    for task_id in ids[-3:]:
        await queue.release(task_id, strict=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_cancelled_at_every_checkpoint(
    case: Any, open_client: Any, admin: Redis, name: str, pair: Pair, record_property: Any
) -> None:
    """At each suspension, and after each number of turns: all or nothing, nothing parked, and the queue goes on."""
    backend, cuts = pair.backend[0], 0
    async with no_leaks(admin, backend), open_client() as client, anyio.create_task_group() as group:
        async with Torrelque(client, queue=name) as queue:
            stage = Stage(client, queue, name, admin, group)
            for cutter, moments in cutters(backend):
                for moment in moments:
                    trial = await case(stage)
                    if moment > trial.suspensions and cutter in (scope_at, task_at):
                        break
                    cut = await cutter(trial.act, moment)
                    cuts += cut.cancelled

                    def settled(trial: Trial = trial, cut: Cut = cut) -> bool:
                        snap = snapshot(admin, name)
                        snap.check()
                        return not snap.dequeueing and trial.whole(cut, snap)

                    await until(settled)
                    await goes_on(queue)
                    wipe(admin, name)
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
        for cutter, moments in cutters(pair.backend[0]):
            for moment in moments[:4]:
                async with Torrelque(client, queue=name) as queue:
                    # What a trial does beside the call is done before the queue is left.
                    async with anyio.create_task_group() as group:
                        trial = await case(Stage(client, queue, name, admin, group))
                        cut = await cutter(trial.act, moment)
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


@on_redispy
@pytest.mark.parametrize("seed", range(3))
async def test_storm_without_entering(open_client: Any, admin: Redis, name: str, seed: int) -> None:
    """A queue that was not entered leaves nothing parked by cancelled dequeues, and no task or warning behind."""
    rng = random.Random(seed)
    async with no_leaks(admin, "asyncio"), open_client() as client:
        ledger = Ledger(Torrelque(client, queue=name))
        await storm(ledger, task_after, rng)
        await ledger.check(admin, name)


@on_redispy
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
