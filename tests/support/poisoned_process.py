"""A worker process that a task may kill: ``python -m support.poisoned_process URL QUEUE PAIR``.

It gives a task up after three deliveries. The task "poison" ends the process with SIGKILL, others are released with
themselves as their results; the process ends well when nothing has come for a second.
"""

from __future__ import annotations

import os
import signal
import sys

import anyio

from support import PAIRS, Pair, open_client
from torrelque import Torrelque, TorrelqueTimeoutError


class Patient(Torrelque):
    """A queue for tasks that have three attempts."""

    max_attempts = 3
    dead_letter = True


async def main(url: str, name: str, pair: Pair) -> None:
    async with open_client(pair, url) as client, Patient(client, queue=name) as queue:
        while True:
            try:
                task_id, task = await queue.dequeue(1)
            except TorrelqueTimeoutError:
                return
            if task == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            await queue.release(task_id, result=task, strict=True)


if __name__ == "__main__":
    url, name, pair_name = sys.argv[1:]
    pair = next(pair for pair in PAIRS if str(pair) == pair_name)
    anyio.run(main, url, name, pair, backend=pair.backend[0], backend_options=pair.backend[1])
