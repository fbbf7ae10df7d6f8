"""What can be cancelled: a call of each public coroutine, and how the queue must look soon after."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from redis import Redis
from support import Snapshot, snapshot
from support.checkpoints import Cut, Way, until

from torrelque import Torrelque, TorrelqueTaskId, TorrelqueTaskStatus, TorrelqueTimeoutError


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


async def dequeue_giving_up(stage: Stage) -> Trial:
    ids = ["a", "b"]
    stage.queue.max_attempts, stage.queue.dead_letter = 2, True
    await stage.queue.enqueue_many(ids, task_ids=ids)
    stage.admin.hset(f"{stage.name}:task:a", "dequeue_count", 2)

    def whole(cut: Cut, snap: Snapshot) -> bool:
        before = cut.cancelled and not snap.dead and snap.pending[::-1] == ids
        given_up = list(snap.dead) == ["a"] and snap.dead_payloads == {"a": b'"a"'}
        after = given_up and (untouched(snap, "b") if cut.cancelled else list(snap.working) == ["b"])
        return before or after

    return Trial(lambda: stage.queue.dequeue(5), whole)


async def release_as_a_dead_letter(stage: Stage) -> Trial:
    task_id = await stage.working()
    rejected = TorrelqueTaskStatus.REJECTED
    return Trial(
        lambda: stage.queue.release(task_id, status=rejected, dead_letter=True, strict=True),
        lambda cut, snap: (
            (list(snap.dead) == ["t"] and not snap.tasks)
            or (cut.cancelled and not snap.dead and list(snap.working) == ["t"])
        ),
    )


#: More than two scripts take.
LETTERS = [f"{i:04}" for i in range(400)]


def with_dead_letters(call: Callable[[Stage], Awaitable[Any]], moves: str = "") -> Callable[[Stage], Awaitable[Trial]]:
    """Try a call on a queue of dead letters, which it leaves there, or some of them where it is cancelled.

    :param moves: the place where they go
    """

    async def case(stage: Stage) -> Trial:
        for task_id in LETTERS:
            stage.admin.hset(f"{stage.name}:task:{task_id}", mapping={"status": 4, "enqueue_time": 1})
        stage.admin.hset(f"{stage.name}:dead:payloads", mapping=dict.fromkeys(LETTERS, '"t"'))
        stage.admin.zadd(f"{stage.name}:dead", {task_id: i for i, task_id in enumerate(LETTERS)})

        def whole(cut: Cut, snap: Snapshot) -> bool:
            left = list(snap.dead)
            gone = snap.pending[::-1] if moves == "pending" else LETTERS[: len(LETTERS) - len(left)]
            complete = len(left) == (0 if moves else len(LETTERS))
            return gone + left == LETTERS and (cut.cancelled or complete)

        return Trial(lambda: call(stage), whole)

    return case


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


async def check(stage: Stage) -> Trial:
    await stage.queue.enqueue("t", task_id="t")
    return Trial(lambda: stage.queue.check(repair=True, grace=0), lambda cut, snap: untouched(snap, "t"))


async def inspect_server(stage: Stage) -> Trial:
    await stage.queue.enqueue("t", task_id="t")
    return Trial(lambda: stage.queue.inspect_server(), lambda cut, snap: untouched(snap, "t"))


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


#: By a name that begins with that of the method.
CASES: dict[str, Callable[[Stage], Awaitable[Trial]]] = {
    **{
        case.__name__: case
        for case in (
            enqueue, enqueue_delayed, enqueue_many, dequeue_what_comes, requeue, requeue_delayed, release,
            release_with_result, release_as_a_dead_letter, release_many, dequeue_giving_up, extend, get_task_state,
            get_queue_stats, check, inspect_server, watch, sweep, run_sweep, lease,
            session, session_busy,
        )
    },
    "dead_letters": with_dead_letters(lambda stage: stage.queue.dead_letters(1000)),
    "count_dead_letters": with_dead_letters(lambda stage: stage.queue.count_dead_letters()),
    "requeue_dead_letters": with_dead_letters(lambda stage: stage.queue.requeue_dead_letters(), "pending"),
    "requeue_dead_letters_by_id": with_dead_letters(lambda stage: stage.queue.requeue_dead_letters(LETTERS), "pending"),
    "purge_dead_letters": with_dead_letters(lambda stage: stage.queue.purge_dead_letters(), "nowhere"),
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


async def attempt(stage: Stage, case: Callable[[Stage], Awaitable[Trial]], way: Way, moment: int) -> Cut | None:
    """Cancel a call at a moment: all or nothing, nothing parked, and the queue goes on.

    :returns: what came of it; ``None`` when the call would go on for ever, and was cancelled often enough
    """
    trial = await case(stage)
    if way.suspends and moment > trial.suspensions:
        wipe(stage.admin, stage.name)
        return None
    cut = await way.cut(trial.act, moment)

    def settled() -> bool:
        snap = snapshot(stage.admin, stage.name)
        snap.check()
        return not snap.dequeueing and trial.whole(cut, snap)

    await until(settled)
    await goes_on(stage.queue)
    wipe(stage.admin, stage.name)
    return cut
