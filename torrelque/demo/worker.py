"""A worker process of the demo: ``python -m torrelque.demo.worker LOOP QUEUE``, with the URL in TORRELQUE_URL.

It stops at SIGTERM, and when the producer is gone: the producer holds the other end of its standard input.
On its standard output it says ``ready``, and what it is asked for over its standard input.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from anyio import (
    CancelScope,
    create_task_group,
    from_thread,
    get_cancelled_exc_class,
    move_on_after,
    open_signal_receiver,
    run,
    to_thread,
    wait_readable,
)

from torrelque.errors import TorrelqueLookupError, TorrelqueRedisError
from torrelque.model import TorrelqueTaskId, TorrelqueTaskStatus
from torrelque.queue import Torrelque

from .files import PIECE, Digest, digest

#: So many tasks are in hand at the same time.
SLOTS = 8
#: What was taken and cannot be finished is given back, which may take so many seconds.
GRACE = 1.0
#: Seconds for which a result can be read; after that nothing of it is left on the server.
RESULT_TTL = 300.0
#: The producer asks for this: stand still with the next task in hand.
FREEZE = b"freeze\n"


class Worker:
    """Takes tasks and digests the files that they name."""

    def __init__(self, queue: Torrelque) -> None:
        self._queue = queue
        self._freezes = False

    async def run(self) -> None:
        """Work until told to stop."""
        async with create_task_group() as group:
            group.start_soon(self._listen, group.cancel_scope)
            group.start_soon(_stop_at_signal, group.cancel_scope)
            await self._queue.get_queue_stats()  # ready means ready: the server has answered
            for _ in range(SLOTS):
                group.start_soon(self._take_tasks)
            _say("ready")

    async def _take_tasks(self) -> None:
        while True:
            task_id, path = await self._queue.dequeue()
            if self._freezes:
                _stand_still()
            await self._do(task_id, path)

    async def _do(self, task_id: TorrelqueTaskId, path: str) -> None:
        try:
            found = await self._digest(task_id, path)
        except OSError as error:
            await self._release(task_id, TorrelqueTaskStatus.REJECTED, {"error": str(error)})
        except TorrelqueLookupError:
            pass  # it took longer than the lease, somebody else has the task by now
        except get_cancelled_exc_class():
            # Without this it would come back as well: when its lease ends.
            with move_on_after(GRACE, shield=True):
                await self._queue.requeue(task_id)
            raise
        else:
            await self._release(task_id, TorrelqueTaskStatus.COMPLETED, found._asdict())

    async def _digest(self, task_id: TorrelqueTaskId, path: str) -> Digest:
        # Digesting a small file takes less time than going to a thread for it.
        if _is_small(path):
            return digest(path)
        # A big one may take longer than the lease, which is extended until it is done.
        async with self._queue.lease(task_id):
            return await to_thread.run_sync(digest, path, from_thread.check_cancelled)

    async def _release(self, task_id: TorrelqueTaskId, status: TorrelqueTaskStatus, result: dict[str, Any]) -> None:
        await self._queue.release(task_id, status=status, result=result | {"worker": os.getpid()})

    async def _listen(self, scope: CancelScope) -> None:
        while True:
            await wait_readable(sys.stdin.fileno())
            if os.read(sys.stdin.fileno(), len(FREEZE)) != FREEZE:
                break
            self._freezes = True
            _say("listening")
        scope.cancel()


def _is_small(path: str) -> bool:
    return os.stat(path).st_size <= PIECE


async def _stop_at_signal(scope: CancelScope) -> None:
    with open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def _stand_still() -> None:
    """Block the whole process with a task in hand until it is killed, or the producer is gone."""
    _say("holding")
    while os.read(sys.stdin.fileno(), 1):
        pass


def _say(word: str) -> None:
    os.write(sys.stdout.fileno(), word.encode() + b"\n")


async def _main(queue_name: str) -> str | None:
    failure = None
    try:
        async with Torrelque.from_url(os.environ["TORRELQUE_URL"], queue=queue_name) as queue:
            queue.result_ttl = RESULT_TTL
            await Worker(queue).run()
    except* TorrelqueRedisError as errors:
        failure = f"worker {os.getpid()}: Redis failed: {errors.exceptions[0]}"
    return failure  # which `sys.exit` prints, and makes the exit code 1


if __name__ == "__main__":
    loop, name = sys.argv[1:]
    sys.exit(run(_main, name, backend=loop))
