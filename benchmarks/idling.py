"""Jobs: what is sent while nothing happens, and how soon a crowd of watchers sees something happen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from side import Opened, Side

_FAR = 3600
#: Watched tasks end one by one, with so many seconds between two.
_PAUSE = 0.001


async def idle(side: Side, *, seconds: float) -> float:
    """Commands a second of one process with 50 waiting dequeues, 20 watches and a scheduled sweep."""
    async with side.open() as opened, side.background() as start:
        watching = [0]
        for _ in range(20):
            start(_watch, side, opened, await opened.queue.enqueue("far", delay=_FAR), watching)
        for _ in range(50):
            start(opened.queue.dequeue)
        opened.queue.schedule_sweep()
        await _until(side, lambda: watching[0] == 20)
        await side.sleep(2)
        with side.probe.commands() as commands:
            await side.sleep(seconds)
        opened.queue.unschedule_sweep()
        return commands.sent / seconds


async def _watch(side: Side, opened: Opened, task_id: str, watching: list[int]) -> None:
    async for _ in opened.queue.watch(task_id):
        watching[0] += 1


async def watchers(side: Side, *, count: int, idle_seconds: float) -> dict[str, Any]:
    """Watch many tasks in one process, sit idle, then end them one by one from a client of its own.

    Answers with the connections that subscribed, the commands a second while idle, and for each watcher the seconds
    from the call of release to the end of the watch.
    """
    async with side.open() as opened, side.open() as worker, side.background() as start:
        begun: set[str] = set()
        ended: dict[str, float] = {}

        async def watch(task_id: str) -> None:
            async for _ in opened.queue.watch(task_id):
                begun.add(task_id)
            ended[task_id] = time.perf_counter()

        await side.enqueue_bulk(worker, ["watched"] * count)
        task_ids = await _dequeue_all(worker, count)
        for task_id in task_ids:
            start(watch, task_id)
        await _until(side, lambda: len(begun) == count)
        await side.sleep(1)
        connections = side.probe.subscribed_connections()
        with side.probe.commands() as commands:
            await side.sleep(idle_seconds)
        released: dict[str, float] = {}
        for task_id in task_ids:
            released[task_id] = time.perf_counter()
            await worker.queue.release(task_id, result=1)
            await side.sleep(_PAUSE)
        await _until(side, lambda: len(ended) == count)
        soon = [ended[task_id] - released[task_id] for task_id in task_ids]
        return {"connections": connections, "idle": commands.sent / idle_seconds, "soon": soon}


async def _dequeue_all(worker: Opened, count: int) -> list[str]:
    task_ids: list[str] = []
    while len(task_ids) < count:
        task_ids += [task_id for task_id, _ in await worker.queue.dequeue(5, max_tasks=100)]
    return task_ids


async def _until(side: Side, reached: Callable[[], bool], patience: float = 30) -> None:
    ends = time.monotonic() + patience
    while not reached():
        if time.monotonic() > ends:
            raise TimeoutError(f"Not reached within {patience} s")
        await side.sleep(0.01)
