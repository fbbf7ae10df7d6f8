"""Calls of all kinds, many at a time, cancelled at random; each answer can be told from every other one's."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
import redis
from support import snapshot
from support.checkpoints import Act, Cut, deadline_after, scope_after, task_after, timeout_after, until

from torrelque import Torrelque, TorrelqueLeaseLostError, TorrelqueLookupError, TorrelqueTaskId, TorrelqueTimeoutError

#: So many calls are under way at a time.
CALLERS = 200
#: Tasks that are there from the beginning to the end, to be read and watched.
ANCHORS = 50
#: No lease ends before the run does. What is added to these seconds tells tasks and extensions from each other.
LEASE, EXTENSION, APART = 10_000.0, 1_000_000.0, 1_000.0
#: When to cancel, on the average.
TURNS, SECONDS = 4.0, 0.006


def nonce(task_id: str) -> str:
    """What a task of this id holds, and no other."""
    return f"payload of {task_id}"


class Storm:
    """Callers of one queue, and what each of them may say of the answers.

    :param native: whether tasks may also be cancelled as asyncio does
    :param quota: how many calls are to be cancelled
    """

    queue: Torrelque

    def __init__(self, seed: str, native: bool, quota: int) -> None:
        self.violations: list[str] = []
        self.calls = self.cancelled = 0
        self.slowest = 0.0
        self._seed = seed
        self._native = native
        self._quota = quota
        self._issued = 0
        self._acked: set[str] = set()
        self._ended: set[str] = set()
        self._seen: Counter[str] = Counter()
        self._held: dict[str, TorrelqueTaskId] = {}
        #: Deliveries of which a settlement is under way or was cancelled: the call, and the id.
        self._doubtful: dict[str, tuple[str, TorrelqueTaskId]] = {}
        self._kept: list[str] = []
        self._anchors: list[str] = []

    def _broken(self, promise: str) -> None:
        self.violations.append(promise)

    def _expect(self, holds: bool, promise: str, *facts: object) -> None:
        if not holds:
            self._broken(f"{promise}: {facts}")

    async def run(self, queue: Torrelque) -> None:
        """Call and cancel until as many calls as wanted have been cancelled."""
        self.queue = queue
        self._anchors = [f"a{n}" for n in range(ANCHORS)]
        for anchor in self._anchors:
            await self.queue.enqueue(nonce(anchor), task_id=anchor, task_timeout=self._lease(anchor), delay=36_000)
        self.queue.schedule_sweep(0.05)
        async with anyio.create_task_group() as group:
            for number in range(CALLERS):
                group.start_soon(self._call, random.Random(f"{self._seed} {number}"))

    async def _call(self, rng: random.Random) -> None:
        kinds = [kind for kind, weight in self._KINDS for _ in range(weight)]
        while self.cancelled < self._quota:
            kind = rng.choice(kinds)
            await kind(self, rng, self._canceller(rng))

    def _canceller(self, rng: random.Random) -> Callable[[Act], Awaitable[Cut]]:
        ways = [
            (scope_after, int(rng.expovariate(1 / TURNS))),
            (deadline_after, rng.expovariate(1 / SECONDS)),
        ]
        if self._native:
            ways += [(task_after, ways[0][1]), (timeout_after, ways[1][1])]
        way, moment = rng.choice(ways)

        async def cancel(act: Act) -> Cut:
            cut = await way(act, moment)
            self.calls += 1
            self.cancelled += cut.cancelled
            self.slowest = max(self.slowest, cut.left)
            return cut

        return cancel

    # What is called, and what its answer must be

    def _new(self) -> str:
        self._issued += 1
        return f"t{self._issued}"

    @staticmethod
    def _lease(task_id: str) -> float:
        return LEASE + int(task_id[1:])

    async def _enqueue(self, _: random.Random, cancel: Any) -> None:
        task_id = self._new()
        cut = await cancel(
            lambda: self.queue.enqueue(nonce(task_id), task_id=task_id, task_timeout=self._lease(task_id))
        )
        if not cut.cancelled:
            self._acked.add(task_id)
            self._expect(cut.value.deduplicated is False, "a new task was said to be known", task_id)

    async def _enqueue_known(self, rng: random.Random, cancel: Any) -> None:
        anchor = rng.choice(self._anchors)
        cut = await cancel(lambda: self.queue.enqueue("other", task_id=anchor))
        self._expect(cut.cancelled or cut.value.deduplicated is True, "a known task was said to be new", anchor)

    async def _enqueue_many(self, _: random.Random, cancel: Any) -> None:
        ids = [self._new() for _ in range(3)]
        cut = await cancel(lambda: self.queue.enqueue_many([nonce(task_id) for task_id in ids], task_ids=ids))
        if not cut.cancelled:
            self._acked |= set(ids)
            self._expect(cut.value == ids, "other ids were returned", ids, cut.value)

    async def _dequeue(self, rng: random.Random, cancel: Any) -> None:
        timeout, most = rng.choice((None, None, 0, 0.005, 5)), rng.choice((1, 1, 3))

        async def act() -> Any:
            try:
                got = await self.queue.dequeue(timeout, max_tasks=most)
            except TorrelqueTimeoutError:
                return []
            return got if most > 1 else [got]

        cut = await cancel(act)
        for task_id, payload in [] if cut.cancelled else cut.value:
            self._delivered(task_id, payload)

    def _delivered(self, task_id: TorrelqueTaskId, payload: Any) -> None:
        self._seen[task_id] += 1
        self._expect(payload == nonce(task_id), "the payload is another task's", task_id, payload)
        self._expect(
            task_id.dequeue_count == self._seen[task_id],
            "a delivery that nobody saw was counted", task_id, task_id.dequeue_count, self._seen[task_id],
        )  # fmt: skip
        self._expect(task_id not in self._held, "delivered while held", task_id)
        self._expect(task_id not in self._ended, "delivered after its end", task_id)
        said, _ = self._doubtful.pop(task_id, ("requeue", None))
        self._expect(said == "requeue", "delivered after a release", task_id)
        self._held[task_id] = task_id

    def _take(self, rng: random.Random, said: str) -> TorrelqueTaskId | None:
        """Choose a task that is held, for a settlement: its outcome is in doubt until it is known."""
        if not self._held:
            return None
        task_id = self._held.pop(rng.choice(list(self._held)[:20]))
        self._doubtful[task_id] = (said, task_id)
        return task_id

    def _known(self, task_id: TorrelqueTaskId) -> None:
        """The outcome is known; unless the task has been delivered again since."""
        if self._doubtful.get(task_id, ("", None))[1] is task_id:
            del self._doubtful[task_id]

    async def _release(self, rng: random.Random, cancel: Any) -> None:
        if (task_id := self._take(rng, "release")) is None:
            return
        result = f"result of {task_id}" if rng.random() < 0.3 else None
        cut = await cancel(lambda: self.queue.release(task_id, result=result, strict=True))
        if not cut.cancelled:
            self._known(task_id)
            self._ended.add(task_id)
            if result is not None:
                self._kept.append(task_id)

    async def _release_many(self, rng: random.Random, cancel: Any) -> None:
        ids = [task_id for _ in range(3) if (task_id := self._take(rng, "release")) is not None]
        cut = await cancel(lambda: self.queue.release_many(ids))
        if cut.cancelled:
            return
        for task_id, error in zip(ids, cut.value, strict=True):
            self._expect(error is None, "a task that is held cannot be released", error)
            self._known(task_id)
            self._ended.add(task_id)

    async def _requeue(self, rng: random.Random, cancel: Any) -> None:
        if (task_id := self._take(rng, "requeue")) is None:
            return
        delay = rng.choice((None, None, 0.02))
        cut = await cancel(lambda: self.queue.requeue(task_id, delay, strict=True))
        if not cut.cancelled:
            self._known(task_id)

    async def _extend(self, rng: random.Random, cancel: Any) -> None:
        if not self._held:
            return
        task_id = self._held[rng.choice(list(self._held)[-20:])]
        lease = EXTENSION + APART * rng.randrange(100_000)

        async def act() -> float | None:
            try:
                return await self.queue.extend(task_id, lease)
            except TorrelqueLookupError:
                return None

        cut = await cancel(act)
        if cut.cancelled:
            return
        if cut.value is None:  # somebody else has settled it meanwhile
            self._expect(self._held.get(task_id) is not task_id, "a task that is held cannot be extended", task_id)
        else:
            self._expect(abs(cut.value - time.time() - lease) < APART / 2, "another extension's answer", task_id, lease)

    async def _hold(self, rng: random.Random, cancel: Any) -> None:
        if (task_id := self._take(rng, "requeue")) is None:
            return

        async def act() -> None:
            async with self.queue.lease(task_id):
                await anyio.sleep(0.001)
                await self.queue.requeue(task_id, strict=True)

        if not (await cancel(act)).cancelled:
            self._known(task_id)

    async def _state(self, rng: random.Random, cancel: Any) -> None:
        anchor = rng.choice(self._anchors)
        cut = await cancel(lambda: self.queue.get_task_state(anchor))
        self._expect(cut.cancelled or cut.value.timeout == self._lease(anchor), "another task's state", anchor, cut)

    async def _result(self, rng: random.Random, cancel: Any) -> None:
        if self._kept:
            task_id = rng.choice(self._kept)
            cut = await cancel(lambda: self.queue.get_task_state(task_id))
            same = cut.cancelled or cut.value.result == f"result of {task_id}"
            self._expect(same, "another task's result", task_id, cut.value)

    async def _watch(self, rng: random.Random, cancel: Any) -> None:
        anchor = rng.choice(self._anchors)

        async def act() -> Any:
            async with aclosing(self.queue.watch(anchor)) as states:
                return await anext(states)

        cut = await cancel(act)
        self._expect(cut.cancelled or cut.value.timeout == self._lease(anchor), "another task watched", anchor, cut)

    async def _stats(self, _: random.Random, cancel: Any) -> None:
        cut = await cancel(self.queue.get_queue_stats)
        self._expect(cut.cancelled or cut.value.delayed >= ANCHORS, "stats of something else", cut.value)

    async def _sweep(self, _: random.Random, cancel: Any) -> None:
        cut = await cancel(self.queue.sweep)
        self._expect(cut.cancelled or cut.value[0] == 0, "a lease has ended too early", cut.value)

    _KINDS = (
        (_enqueue, 3), (_enqueue_many, 1), (_enqueue_known, 1), (_dequeue, 12), (_release, 4), (_release_many, 1),
        (_requeue, 6), (_extend, 2), (_hold, 2), (_state, 2), (_result, 2), (_watch, 1), (_stats, 1), (_sweep, 1),
    )  # fmt: skip

    # What must be left

    async def settle(self, admin: redis.Redis, name: str) -> None:
        """After the storm: nothing parked or leased that nobody holds; then end every task, and miss none."""
        self.queue.unschedule_sweep()
        with anyio.move_on_after(1):
            await until(lambda: not self._astray(admin, name), 5)
        for place, ids in self._astray(admin, name).items():
            self._broken(f"{place} in nobody's hands: {len(ids)}, {sorted(ids)[:5]}")
        snapshot(admin, name).check()
        await self._end_held()
        await self._drain()
        if lost := self._acked - self._ended:
            self._broken(f"lost: {len(lost)} of {len(self._acked)}, {sorted(lost)[:5]}")
        left = snapshot(admin, name)
        self._expect(set(left.tasks) == set(left.delayed) == set(self._anchors), "not drained", len(left.tasks))

    def _astray(self, admin: redis.Redis, name: str) -> dict[str, set[str]]:
        snap = snapshot(admin, name)
        found = {
            "parked": set(snap.dequeueing),
            "leased": set(snap.working) - set(self._held) - set(self._doubtful),
            "held but not leased": set(self._held) - set(snap.working),
        }
        return {place: ids for place, ids in found.items() if ids}

    async def _end_held(self) -> None:
        held, doubtful = list(self._held.values()), [task_id for _, task_id in self._doubtful.values()]
        for task_id, error in zip(held, await self.queue.release_many(held), strict=True):
            self._expect(error is None, "a task that is held cannot be released", error)
            self._ended.add(task_id)
        for task_id, error in zip(doubtful, await self.queue.release_many(doubtful), strict=True):
            self._expect(not isinstance(error, TorrelqueLeaseLostError), "somebody else has it", error)
            if error is None or self._doubtful[task_id][0] == "release":
                self._ended.add(task_id)
        self._held.clear()
        self._doubtful.clear()

    async def _drain(self) -> None:
        while True:
            try:
                got = await self.queue.dequeue(0.1, max_tasks=500)
            except TorrelqueTimeoutError:
                return
            for task_id, payload in got:
                self._delivered(task_id, payload)
            self._held.clear()
            for error in await self.queue.release_many([task_id for task_id, _ in got]):
                self._expect(error is None, "a task that is held cannot be released", error)
            self._ended |= {str(task_id) for task_id, _ in got}
