"""A worker that goes on: over a restart of the server, work that fails, a payload that nobody can read, a lost lease.

python examples/going_on_anyio.py           # on asyncio
python examples/going_on_anyio.py trio
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import anyio

from torrelque import (
    Torrelque,
    TorrelqueDecodeError,
    TorrelqueLookupError,
    TorrelqueRedisError,
    TorrelqueTaskId,
    TorrelqueTaskSerialiser,
    TorrelqueTaskStatus,
    open_server,
)

ATTEMPTS = 3
LONGEST_PAUSE = 5.0

down = anyio.Event()


class Queue(Torrelque):
    """A queue whose consumers give up a task that has been delivered so often: also one that kills its workers."""

    max_attempts = ATTEMPTS


async def patiently(call: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """Repeat a call while Redis fails, with growing pauses."""
    pause = 0.1
    while True:
        try:
            return await call(*args, **options)
        except TorrelqueRedisError as error:
            if not down.is_set():
                print("Redis is away:", type(error).__name__)
            down.set()
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


async def handle(task: str) -> int:
    """Stand in for work."""
    if task == "broken":
        raise ValueError("it will not do")
    if task == "taken away":
        await anyio.sleep_forever()
    return len(task)


async def settle(queue: Torrelque, task_id: TorrelqueTaskId, task: str) -> None:
    """Do one task. If that raises, or its result cannot be stored, it comes again later, or is rejected in the end."""
    try:
        await patiently(queue.release, task_id, result=await handle(task))
    except Exception as error:
        if task_id.dequeue_count < ATTEMPTS:
            await patiently(queue.requeue, task_id, delay=0.05 * 2**task_id.dequeue_count)
        else:
            await patiently(queue.release, task_id, status=TorrelqueTaskStatus.REJECTED, result=repr(error))


async def work(queue: Torrelque) -> None:
    """Take tasks until cancelled."""
    while True:
        try:
            task_id, task = await patiently(queue.dequeue)
        except TorrelqueDecodeError as error:
            await patiently(queue.release, error.task_id, status=TorrelqueTaskStatus.REJECTED, result=str(error))
            continue
        try:
            async with queue.lease(task_id):
                await settle(queue, task_id, task)
        except (TorrelqueLookupError, TorrelqueRedisError) as error:
            print("not ours any more:", task, type(error).__name__)
        except anyio.get_cancelled_exc_class():
            # Shielded, for we are cancelled; bounded, for the server may be away, and then the lease ends by itself.
            with anyio.move_on_after(1, shield=True), suppress(TorrelqueRedisError):
                await queue.requeue(task_id)
            raise


async def show(queue: Torrelque, task_id: str, task: str) -> None:
    """Print how a task ends."""
    async for state in queue.watch(task_id, timeout=30):
        if state.status.isfinal():
            print(f"{task}: {state.status.name}, {state.result}, deliveries: {state.dequeue_count}")


async def main() -> None:
    """Put everything in a worker's way, one after the other."""
    with tempfile.TemporaryDirectory() as data_dir:
        async with AsyncExitStack() as servers:
            url = await servers.enter_async_context(open_server(data_dir, port=0, fsync="always"))
            as_it_is = TorrelqueTaskSerialiser(bytes, bytes)
            async with (
                Queue.from_url(url) as queue,
                Torrelque.from_url(url, serialiser=as_it_is) as careless,
                anyio.create_task_group() as workers,
            ):
                workers.start_soon(work, queue)
                await show(queue, await queue.enqueue("broken"), "broken")
                await show(queue, await careless.enqueue(b"{this is not JSON"), "unreadable")

                task_id = await queue.enqueue("taken away", task_timeout=0.5)
                async for state in queue.watch(task_id, timeout=30):
                    if state.status is TorrelqueTaskStatus.WORKING:
                        await queue.release(str(task_id))  # without the number of a delivery: whoever holds it

                await servers.aclose()
                await down.wait()
                await servers.enter_async_context(open_server(data_dir, port=urlsplit(url).port, fsync="always"))
                task_id = await patiently(queue.enqueue, "after the restart", task_id="after")
                await show(queue, task_id, "after the restart")
                workers.cancel_scope.cancel()


if __name__ == "__main__":
    logging.getLogger("torrelque").setLevel(logging.ERROR)  # it warns of the outage, at length
    anyio.run(main, backend=(sys.argv[1:] or ["asyncio"])[0])
