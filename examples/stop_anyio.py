"""A worker that stops in order at SIGTERM: it takes nothing new, finishes what it can in time, and gives back the rest.

python examples/stop_anyio.py

The example sends the signal to itself, when it has two tasks in hand: one that ends in time, and one that does not.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import anyio
from anyio.abc import TaskGroup

from torrelque import Torrelque, TorrelqueLookupError, TorrelqueRedisError, TorrelqueTaskId, open_server

SLOTS = 2
#: Seconds that the work in hand may still take after the signal.
GRACE = 1.0

busy = anyio.Semaphore(0)
stopping = anyio.Event()


async def work(task: str) -> None:
    """Stand in for work: a short task ends soon after the signal, a long one does not end at all."""
    busy.release()
    await (stopping.wait() if task == "short" else anyio.sleep_forever())


async def handle(queue: Torrelque, task_id: TorrelqueTaskId, task: str, slots: anyio.Semaphore) -> None:
    """Do one task; cancelled, give it back."""
    try:
        async with queue.lease(task_id):
            await work(task)
            await queue.release(task_id)
            print("finished:", task)
    except TorrelqueLookupError:
        print("somebody else has it by now:", task)
    except anyio.get_cancelled_exc_class():
        # Shielded, for we are cancelled, and bounded, for the server may be away.
        with anyio.move_on_after(1, shield=True), suppress(TorrelqueRedisError):
            await queue.requeue(task_id)
            print("given back:", task)
        raise
    finally:
        slots.release()


async def take(queue: Torrelque, hands: TaskGroup) -> None:
    """Take tasks while there is a slot for one, until cancelled."""
    slots = anyio.Semaphore(SLOTS)
    while True:
        await slots.acquire()
        task_id, task = await queue.dequeue()
        hands.start_soon(handle, queue, task_id, task, slots)


async def run_worker(queue: Torrelque) -> None:
    """Work until the signal, and a while longer on what is in hand."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as hands:
            async with anyio.create_task_group() as intake:
                intake.start_soon(take, queue, hands)
                await anext(aiter(signals))
                intake.cancel_scope.cancel()
            stopping.set()
            hands.cancel_scope.deadline = anyio.current_time() + GRACE


async def stop_when_busy() -> None:
    """Play the part of whoever stops the process."""
    for _ in range(SLOTS):
        await busy.acquire()
    os.kill(os.getpid(), signal.SIGTERM)


async def main() -> None:
    """Start a server and a worker, with more tasks than it has slots."""
    async with open_server() as url, Torrelque.from_url(url) as queue:
        await queue.enqueue_many(["short", "long", "not begun"])
        async with anyio.create_task_group() as group:
            group.start_soon(stop_when_busy)
            await run_worker(queue)
        print("left for others:", (await queue.get_queue_stats()).pending)


if __name__ == "__main__":
    anyio.run(main)
