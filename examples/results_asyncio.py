"""Ask for work and wait for its result, on asyncio with a redis-py client that the program has anyway.

python examples/results_asyncio.py
"""

from __future__ import annotations

import asyncio

import redis.asyncio

from torrelque import Torrelque, TorrelqueTaskState, open_server


async def worker(queue: Torrelque) -> None:
    """Square numbers until cancelled."""
    while True:
        for task_id, number in await queue.dequeue(max_tasks=10):
            await queue.release(task_id, result=number**2, result_ttl=60)


async def call(queue: Torrelque, number: int) -> TorrelqueTaskState:
    """Enqueue one task and wait for its end. A repeat of the call with the same number is the same task."""
    task_id = await queue.enqueue(number, task_id=f"square-{number}")
    final = None
    async for state in queue.watch(task_id, timeout=10):  # to its end: a loop that is left before has to close it
        if state.status.isfinal():
            final = state
    if final is None:
        raise LookupError(f"the result of {task_id} was not kept")
    return final


async def main() -> None:
    """Run one worker and a hundred callers at once."""
    async with (
        open_server() as url,
        redis.asyncio.Redis.from_url(url) as client,
        Torrelque(client, queue="squares") as queue,
        asyncio.TaskGroup() as group,
    ):
        work = group.create_task(worker(queue))
        states = await asyncio.gather(*(call(queue, number) for number in range(100)))
        print(sum(state.result for state in states), "is the sum of the first hundred squares")
        work.cancel()


if __name__ == "__main__":
    asyncio.run(main())
