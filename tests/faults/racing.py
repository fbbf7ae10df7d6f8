"""Races for a task between its old owner and whoever comes next; run as a process, whose clock may be faked.

What the old owner must be told follows from what has happened to the task before: its lease runs, has ended, was swept,
was given to somebody else, who may have ended the task. Only Redis tells the time, as the clock here is not to be
trusted.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import anyio
import grpc
import redis
from faults.callers import Caller, Held, LibraryCaller, Refused, Uncertain, WireCaller
from faults.clients import AS_THEY_ARE
from support import PAIRS, open_client

from grpc_server._pb import torrelque_pb2_grpc as pb_grpc
from torrelque import Torrelque

LANES = 12
#: Seconds.
LEASE, LONG = 0.08, 600.0
#: By a clock that may run ten times too fast.
PATIENCE = 100.0
#: How often a race is begun.
TRIES = 5

ACTS = ("release", "requeue", "extend")
#: What has become of the task when its first owner acts, and what that owner is told; '' = it is done.
MOMENTS = {
    "before the end": "",
    "after the end": "",
    "swept": "TASK_NOT_WORKING",
    "claimed by another": "LEASE_LOST",
    "ended by another": "TASK_NOT_WORKING",
    "gone": "TASK_NOT_FOUND",
    "at the end": "",
}
_DIGEST = """
local keys, all = redis.call('KEYS', ARGV[1]), {}
table.sort(keys)
for i, key in ipairs(keys) do all[i] = key .. ' ' .. redis.call('DUMP', key) end
return redis.sha1hex(table.concat(all))
"""


class Lane:
    """A queue of its own, on which one race follows the other."""

    def __init__(self, name: str, old: Caller, other: Torrelque, admin: redis.Redis, rng: random.Random) -> None:
        self.name = name
        self.old = old
        self.other = other
        self.admin = admin
        self.rng = rng
        self.verdicts: Counter[str] = Counter()
        self.violations: list[str] = []
        #: Races in which a call was cut short: gRPC counts its deadlines by a clock that may jump.
        self.voided = 0

    def now(self) -> float:
        seconds, micros = self.admin.time()
        return float(seconds) + float(micros) / 1e6

    def expect(self, holds: bool, *facts: object) -> None:
        if not holds:
            self.violations.append(f"{self.name}: {facts}")

    async def race(self, number: int) -> None:
        """Run one; one whose call was cut short is void, and run again, but not for ever."""
        for attempt in range(TRIES):
            if await self._judged(f"t{number}-{attempt}"):
                return
            self.voided += 1
        self.violations.append(f"{self.name}: {number}: cut short each time")

    async def _judged(self, name: str) -> bool:
        judged = True
        try:
            await self._race(name)
        except* Uncertain:
            judged = False
        for key in self.admin.scan_iter(f"{self.name}:*", count=1000):
            self.admin.delete(key)
        return judged

    async def _race(self, name: str) -> None:
        moment, act = self.rng.choice(list(MOMENTS)), self.rng.choice(ACTS)
        lease = LONG if moment == "before the end" else LEASE
        task_id = await self.other.enqueue(name.encode(), task_timeout=lease, task_id=name)
        held = await self.old.dequeue(PATIENCE)
        assert held is not None
        self.expect(held.task_id == task_id and held.count == 1, "another task", held, task_id)
        ends = float(self.admin.zscore(f"{self.name}:working", task_id))
        if moment == "at the end":
            await self.at_the_end(held, act, ends)
        else:
            await self.settled(held, moment, act, ends)

    async def until(self, time: float) -> None:
        while self.now() < time:
            await anyio.sleep(0.001)

    async def settled(self, held: Held, moment: str, act: str, ends: float) -> None:
        """Bring the task to the moment, have the old owner act, and judge the answer."""
        if moment != "before the end":
            await self.until(ends)
        if moment == "swept":
            self.expect(await self.other.sweep() == (1, 0, 0), "not swept")
        if moment in {"claimed by another", "ended by another", "gone"}:
            task_id, _ = await self.other.dequeue(PATIENCE)
            self.expect(task_id.dequeue_count == 2, "token", task_id.dequeue_count)
            await self.other.extend(task_id, LONG)
            if moment != "claimed by another":
                result = b"of the second" if moment == "ended by another" else None
                await self.other.release(task_id, result=result, strict=True)
        before = self.digest()
        said = await self.act(held, act)
        self.verdicts[f"{moment}, {act}: {said or 'done'}"] += 1
        self.expect(said == MOMENTS[moment], "verdict", moment, act, said)
        self.expect((self.digest() == before) == bool(said), "changes", moment, act, said)

    def digest(self) -> Any:
        return self.admin.eval(_DIGEST, 0, f"{self.name}:*")

    async def act(self, held: Held, act: str) -> str:
        """Returns the verdict."""
        try:
            if act == "release":
                await self.old.release(held, b"of the first")
            elif act == "requeue":
                await self.old.requeue(held)
            else:
                await self.old.extend(held)
        except Refused as refused:
            return str(refused)
        return ""

    async def at_the_end(self, held: Held, act: str, ends: float) -> None:
        """Both at once: somebody waits for the task, whose old owner acts just when its lease ends."""
        claims: list[tuple[int, float]] = []

        async def wait() -> None:
            task_id, _ = await self.other.dequeue(PATIENCE)
            state = await self.other.get_task_state(task_id)
            claims.append((task_id.dequeue_count, state.last_dequeue_time or 0.0))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await self.until(ends + self.rng.uniform(-0.01, 0.01))
            said = await self.act(held, act)
            if act == "release" and not said:
                await anyio.sleep(LEASE)  # nothing comes any more
                group.cancel_scope.cancel()
        self.verdicts[f"at the end, {act}: {said or 'done'}"] += 1
        self.expect(said in {"", "LEASE_LOST", "TASK_NOT_WORKING"}, "verdict", act, said)
        if act == "release":
            self.expect(bool(claims) == bool(said), "released, and leased to another", said, claims)
        if act == "requeue" or said:
            self.expect([count for count, _ in claims] == [2], "leased to the next, once", act, said, claims)
        if act == "extend" and not said and claims:
            self.expect(claims[0][1] >= ends, "leased twice at a time", claims, ends)


async def lanes(stack: AsyncExitStack, url: str, way: str, place: str, name: str, seed: int) -> list[Lane]:
    """Open them: old owners by *way* (a pair, or gRPC at *place*), the others by the library."""
    pair = next((pair for pair in PAIRS if str(pair) == way), PAIRS[0])
    admin = stack.enter_context(redis.Redis.from_url(url))
    clients = [await stack.enter_async_context(open_client(pair, url)) for _ in range(2)]
    made: list[Lane] = []
    channel = None
    if way == "grpc":
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(place))
    for number in range(LANES):
        queue = f"{name}-{number}"
        first, second = [
            await stack.enter_async_context(Torrelque(client, queue=queue, serialiser=AS_THEY_ARE))
            for client in clients
        ]
        old: Caller = LibraryCaller(first)
        if channel is not None:
            stubs = pb_grpc.TorrelqueServiceStub(channel), pb_grpc.TorrelqueAdminServiceStub(channel)
            old = WireCaller(*stubs, queue, 300, 1)
        made.append(Lane(queue, old, second, admin, random.Random(f"{seed} {queue}")))
    return made


async def main(url: str, way: str, place: str, name: str, seed: int, races: int) -> None:
    """Run them all, and say what came of it."""
    numbers = list(range(races))

    async def work(lane: Lane) -> None:
        while numbers:
            await lane.race(numbers.pop())

    async with AsyncExitStack() as stack:
        opened = await lanes(stack, url, way, place, name, seed)
        async with anyio.create_task_group() as group:
            for lane in opened:
                group.start_soon(work, lane)
        verdicts = sum((lane.verdicts for lane in opened), Counter())
        violations = [each for lane in opened for each in lane.violations]
        voided = sum(lane.voided for lane in opened)
    print(json.dumps({"verdicts": verdicts, "violations": violations, "voided": voided}), flush=True)


if __name__ == "__main__":
    url, way, place, name, seed, races = sys.argv[1:]
    backend, options = next((pair.backend for pair in PAIRS if str(pair) == way), ("asyncio", {}))
    anyio.run(main, url, way, place, name, int(seed), int(races), backend=backend, backend_options=options)
