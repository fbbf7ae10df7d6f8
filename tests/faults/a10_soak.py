"""The same small load for minutes on end against a real server: nothing grows, in the process or in the server."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import coredis
import redis
from anyio.from_thread import start_blocking_portal
from faults.figures import Options, Report

from torrelque import Torrelque, TorrelqueLookupError, TorrelqueTimeoutError, open_server

TITLE = "8 minutes of tasks, cancelled waits, watches and sweeps on both loops: memory, files and keys stay flat"
SHORT = 0.03

SECONDS = 480
#: Memory may grow by so much in a minute. A short run is mostly warming up, and may grow by so much in all.
MIB_PER_MINUTE, WARMING_UP = 1.0, 8.0
#: Producers wait while so many tasks do: what is measured is leaks, not who is faster.
BACKLOG = 50
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Sample:
    """What a process and a server hold at one moment."""

    at: float
    resident: float
    files: int
    keys: int


@dataclass
class Soak:
    """One event loop's run."""

    seconds: float
    admin: redis.Redis
    done: int = 0
    cancelled: int = 0
    watched: int = 0
    samples: list[Sample] = field(default_factory=list)

    async def run(self, url: str, name: str) -> None:
        """Load the queue until the time is over."""
        async with coredis.Redis.from_url(url) as client, Torrelque(client, queue=name) as queue:
            queue.schedule_sweep(1)
            with anyio.move_on_after(self.seconds):
                async with anyio.create_task_group() as group:
                    for actor in (self._produce, self._consume, self._consume, self._give_up, self._watch):
                        group.start_soon(actor, queue)
                    group.start_soon(self._measure)
            await self._drain(queue)

    async def _produce(self, queue: Torrelque) -> None:
        while True:
            await queue.enqueue_many([b"x".hex() * 100] * 10)
            await anyio.sleep(0.02)
            while (await queue.get_queue_stats()).pending > BACKLOG:
                await anyio.sleep(0.02)

    async def _consume(self, queue: Torrelque) -> None:
        while True:
            pairs = await queue.dequeue(max_tasks=10)
            with anyio.CancelScope(shield=True):
                for task_id, _ in pairs:
                    result = "r" * 100 if self.done % 20 == 0 else None
                    await queue.release(task_id, result=result, result_ttl=1)
                    self.done += 1

    async def _give_up(self, queue: Torrelque) -> None:
        """Calls that are cancelled leave nothing behind."""
        while True:
            with anyio.move_on_after(0.003):
                task_id, _ = await queue.dequeue()
                with anyio.CancelScope(shield=True):
                    await queue.release(task_id)
            self.cancelled += 1
            await anyio.sleep(0.01)

    async def _watch(self, queue: Torrelque) -> None:
        while True:
            task_id = await queue.enqueue("watched")
            with contextlib.suppress(TorrelqueLookupError):  # it may be done before the watch begins
                async for _ in queue.watch(task_id, timeout=30):
                    pass
            self.watched += 1

    async def _measure(self) -> None:
        while True:
            await anyio.sleep(max(self.seconds / 100, 0.2))
            gc.collect()
            self.samples.append(Sample(time.monotonic(), _resident(), _files(), self.admin.dbsize()))

    @staticmethod
    async def _drain(queue: Torrelque) -> None:
        with anyio.move_on_after(30):
            while True:
                try:
                    pairs = await queue.dequeue(1, max_tasks=100)
                except TorrelqueTimeoutError:
                    return
                await queue.release_many([task_id for task_id, _ in pairs])

    def growth(self, value: Callable[[Sample], float]) -> tuple[float, float]:
        """Per minute, by a straight line through the second half; and from the first quarter to the last, in all."""
        half = self.samples[len(self.samples) // 2 :]
        slope, _ = statistics.linear_regression([each.at / 60 for each in half], [value(each) for each in half])
        quarter = max(len(self.samples) // 4, 1)
        first, last = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        return slope, statistics.median(map(value, last)) - statistics.median(map(value, first))


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / (1 << 20)


def _files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _soak(url: str, admin: redis.Redis, backend: str, seconds: float) -> Soak:
    soak = Soak(seconds, admin)
    with start_blocking_portal(backend) as portal:
        portal.call(soak.run, url, f"soak-{backend}")
    return soak


def run(options: Options) -> Report:
    """Soak each event loop for half of the time."""
    report = Report()
    seconds = SECONDS * options.scale / 2
    config = {"notify-keyspace-events": "KA"}
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_server(fsync="no", options=config)) as url,
        redis.Redis.from_url(url) as admin,
    ):
        for backend in ("asyncio", "trio"):
            _judge(report, backend, _soak(url, admin, backend, seconds), seconds)
        time.sleep(1.5)  # results are kept for a second
        left = sorted(key.decode() for key in admin.scan_iter())
        if left:
            report.violations.append(f"I14: {len(left)} keys are left, {left[:3]}")
    return report


def _judge(report: Report, backend: str, soak: Soak, seconds: float) -> None:
    per_minute, in_all = soak.growth(lambda each: each.resident)
    limit = MIB_PER_MINUTE * seconds / 60
    if per_minute > MIB_PER_MINUTE and in_all > max(limit, WARMING_UP if seconds < 60 else 0):
        report.violations.append(f"{backend}: memory grows by {per_minute:.2f} MiB a minute, {in_all:.2f} MiB in all")
    for what, value, room in (
        ("open files", lambda each: each.files, 2),
        ("keys", lambda each: each.keys, 2 * BACKLOG),
    ):
        _, grown = soak.growth(value)
        if grown > room:
            report.violations.append(f"{backend}: {what} grow by {grown:.0f}")
        report.measured[f"{backend}: {what}, growth"] = grown
    report.measured[f"{backend}: memory, MiB a minute"] = per_minute
    report.measured[f"{backend}: memory, MiB in all"] = in_all
    report.minimums |= {
        f"{backend}: tasks": (soak.done, seconds * 15),
        f"{backend}: waits given up": (soak.cancelled, seconds * 3),
        f"{backend}: watches": (soak.watched, seconds / 2),
        f"{backend}: samples": (len(soak.samples), min(50, seconds / 2)),
    }
