"""release: end one task."""

from __future__ import annotations

from .client import CALL_TIMEOUT, Client
from .events import emit
from .options import Options
from .wire import pb


async def release(client: Client, options: Options) -> None:
    """Release the task as COMPLETED; a program that works on tasks would always send their dequeue_count."""
    request = pb.ReleaseRequest(queue=options.queue, task_id=options.target, dequeue_count=options.dequeue_count)
    if options.result is not None:
        request.result.data = options.result.encode()
    await client.stub.Release(request, timeout=CALL_TIMEOUT, metadata=client.metadata)
    emit("done", task_id=options.target)
