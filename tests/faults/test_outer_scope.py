"""The scope around client and queue is cancelled: what the body does shielded still works, and so do hand-backs."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from redis import Redis
from support import Server, snapshot

from torrelque import Torrelque

pytestmark = pytest.mark.anyio


async def use(queue: Torrelque, scope: anyio.CancelScope, taken: list[str]) -> None:
    """Hold a task, have another on its way to a waiting dequeue, be cancelled, and give the first one back."""

    async def take() -> None:
        task_id, _ = await queue.dequeue()
        taken.append(task_id)

    await queue.enqueue("in hand")
    task_id, _ = await queue.dequeue(1)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(take)
            await anyio.wait_all_tasks_blocked()
            await queue.enqueue("on its way")
            scope.cancel()
            await anyio.sleep_forever()
    except BaseException:
        with anyio.move_on_after(5, shield=True):
            await queue.requeue(task_id, strict=True)
        raise


@pytest.mark.parametrize("owner", ["client", "url"])
async def test_cancelled_from_outside(owner: str, open_queue: Any, server: Server, admin: Redis, name: str) -> None:
    """A worker that is cancelled from outside gives its task back, and the queue what nobody took."""
    taken: list[str] = []
    with anyio.CancelScope() as scope:
        async with open_queue() if owner == "client" else Torrelque.from_url(server.url, queue=name) as queue:
            await use(queue, scope, taken)
    assert scope.cancelled_caught
    left = snapshot(admin, name)
    left.check()
    # The second one may have been in time, and is its taker's then.
    assert list(left.working) == taken
    assert len(left.pending) == 2 - len(taken)
    assert left.dequeueing == []
