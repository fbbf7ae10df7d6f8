"""Workers in a Trio nursery: leases that are kept, retries with a limit, and a clean stop in the middle of the work.

python examples/workers_trio.py
"""

from __future__ import annotations

import random
from contextlib import suppress

import trio

from torrelque import (
    Torrelque,
    TorrelqueLookupError,
    TorrelqueRedisError,
    TorrelqueTaskId,
    TorrelqueTaskStatus,
    open_server,
)

ATTEMPTS = 3


async def fetch(url: str) -> str:
    """Stand in for work that takes a while and fails at times."""
    await trio.sleep(random.uniform(0.01, 0.1))
    if "broken" in url or random.random() < 0.2:
        raise OSError(f"{url} does not answer")
    return f"{len(url)} bytes"


async def settle(name: str, queue: Torrelque, task_id: TorrelqueTaskId, url: str) -> None:
    """Do one task: release it with its result, or give it back for another attempt, or reject it in the end."""
    try:
        result = await fetch(url)
    except OSError as error:
        if task_id.dequeue_count < ATTEMPTS:
            await queue.requeue(task_id, delay=0.05 * 2**task_id.dequeue_count)
        else:
            await queue.release(task_id, status=TorrelqueTaskStatus.REJECTED, result=str(error))
    else:
        print(f"{name}: {url} has {result}")
        await queue.release(task_id, result=result)


async def worker(name: str, queue: Torrelque) -> None:
    """Take tasks until cancelled. A task in hand at that moment goes back to the queue at once."""
    while True:
        task_id, url = await queue.dequeue()
        try:
            async with queue.lease(task_id):
                await settle(name, queue, task_id, url)
        except TorrelqueLookupError:
            print(f"{name}: somebody else has {url} by now")
        except trio.Cancelled:
            # Shielded, for we are cancelled, and bounded, for the server may be away.
            with trio.move_on_after(1, shield=True), suppress(TorrelqueRedisError):
                await queue.requeue(task_id)
            raise


async def main() -> None:
    """Start a server, two workers and a sweep; wait for the results of all tasks; stop everything."""
    async with open_server() as url, Torrelque.from_url(url) as queue, trio.open_nursery() as nursery:
        await nursery.start(queue.run_sweep)
        for name in ("ada", "bob"):
            nursery.start_soon(worker, name, queue)
        ids = await queue.enqueue_many([f"https://example.org/{page}" for page in ("a", "b", "broken", "c", "d")])
        for task_id in ids:
            async for state in queue.watch(task_id, timeout=30):
                if state.status.isfinal():
                    print(f"{task_id}: {state.status.name}, {state.result!r}, deliveries: {state.dequeue_count}")
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
