"""poll: ask for tasks once."""

from __future__ import annotations

import hashlib

from .client import Client
from .events import emit
from .options import Options
from .wire import duration, pb

#: Seconds of the call beyond those that the server shall wait: so it is the server that ends the wait.
MARGIN = 5.0


async def poll(client: Client, options: Options) -> None:
    """Dequeue, and leave the tasks leased."""
    assert options.timeout is not None
    request = pb.DequeueRequest(queue=options.queue, max_tasks=options.max, timeout=duration(options.timeout))
    deadline = options.timeout + MARGIN if options.deadline is None else options.deadline
    response = await client.stub.Dequeue(request, timeout=deadline, metadata=client.metadata)
    emit("polled", tasks=[_describe(task) for task in response.tasks])


def _describe(task: pb.Task) -> dict[str, object]:
    return {
        "task_id": task.task_id,
        "dequeue_count": task.dequeue_count,
        "bytes": len(task.payload.data),
        "sha256": hashlib.sha256(task.payload.data).hexdigest(),
    }
