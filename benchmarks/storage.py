"""Jobs: what pending tasks cost the server, and what a large backlog costs the sweep."""

from __future__ import annotations

import time
from typing import Any

from probe import Probe
from side import Side

_BODY = 200
_PORTION = 500


async def memory(side: Side, *, tasks: int) -> float:
    """Bytes of the server's memory for each pending task with a payload of 200 bytes."""
    payload = "x" * (_BODY - 2)  # JSON adds the quotes
    async with side.open() as opened:
        await side.enqueue_bulk(opened, [payload])  # scripts stay loaded, and are no cost of a task
    side.probe.flush()
    before = side.probe.used_memory()
    async with side.open() as opened:
        for start in range(0, tasks, _PORTION):
            await side.enqueue_bulk(opened, [payload] * min(_PORTION, tasks - start))
    side.probe.forget_scripts()  # the slow log keeps their arguments
    return (side.probe.used_memory() - before) / tasks


async def sweep_backlog(side: Side, *, due: int, stale: int) -> dict[str, Any]:
    """Sweep once over delayed tasks that are all due and leases that have all ended."""
    _seed(side.probe, "delayed", due, status=2)
    _seed(side.probe, "working", stale, status=1)
    side.probe.forget_scripts()
    async with side.open() as opened:
        started = time.perf_counter()
        report = await opened.queue.sweep()
        return {"report": list(report), "seconds": time.perf_counter() - started}


def _seed(probe: Probe, place: str, count: int, status: int) -> None:
    for start in range(0, count, 1000):
        pipeline = probe.admin.pipeline(transaction=False)
        for i in range(start, min(start + 1000, count)):
            task_id = f"{place}{i}"
            pipeline.zadd(f"bench:{place}", {task_id: 1 + i / 1000})
            pipeline.hset("bench:tasks", task_id, b"{}")
            pipeline.hset(f"bench:task:{task_id}", mapping={"status": status, "enqueue_time": 1, "timeout": 300})
        pipeline.execute()
