"""The permissions that the documents name are enough."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from support import Server

from torrelque import TorrelqueTaskStatus, TorrelqueTimeoutError

pytestmark = pytest.mark.anyio

OPERATING = Path(__file__).parent.parent.parent / "docs/operating.md"


@pytest.fixture
def user(admin: Redis, server: Server, name: str) -> Iterator[str]:
    """A user who may do what the document says, on the queue of the test."""
    (rules,) = re.findall(r"ACL SETUSER trq on #<[^>]*> (.*?)```", OPERATING.read_text(), re.DOTALL)
    granted = [rule.replace("trq:", f"{name}:") for rule in rules.split()]
    if server.kind == "redis":
        granted.remove("+client|setinfo")  # unknown before 7.2, as the document says
    admin.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *granted)
    yield name
    admin.acl_deluser(name)


async def test_the_documented_permissions_are_enough(open_queue: Any, admin: Redis, user: str) -> None:
    """A user with no more than these can do everything, and is never refused."""
    admin.acl_log_reset()
    async with open_queue(client_options={"username": user, "password": "secret"}) as queue:
        queue.schedule_sweep(0.05)
        await queue.enqueue_many([1, 2, 3], task_ids=["a", "b", "c"])
        await queue.enqueue("later", delay=0.05, task_id="d")
        taken = [await queue.dequeue(5) for _ in range(4)]
        assert {str(task_id) for task_id, _ in taken} == set("abcd")
        first, second, third, fourth = (task_id for task_id, _ in taken)
        await queue.extend(first, 0.05)
        await queue.requeue(second)
        await queue.requeue(third, 0.05)
        await queue.release(fourth, result="r", status=TorrelqueTaskStatus.REJECTED, strict=True)
        assert [state.result async for state in queue.watch(fourth)] == ["r"]
        for _ in range(2):
            task_id, _ = await queue.dequeue(5)
            await queue.release(task_id, strict=True)
        task_id, _ = await queue.dequeue(5)
        assert await queue.release_many([task_id]) == [None]
        await queue.sweep()
        queue.max_attempts = 1
        for buried in (True, False):
            queue.dead_letter = buried
            await queue.enqueue("fails")
            task_id, _ = await queue.dequeue(5)
            await queue.requeue(task_id, strict=True)
            with pytest.raises(TorrelqueTimeoutError):
                await queue.dequeue(0)
        await queue.enqueue("rejected")
        task_id, _ = await queue.dequeue(5)
        await queue.release(task_id, status=TorrelqueTaskStatus.REJECTED, dead_letter=True, strict=True)
        first, second = await queue.dead_letters()
        assert await queue.dead_letters(after=first.cursor) == [second]
        assert await queue.requeue_dead_letters([first.task_id]) == 1
        assert await queue.dead_letters(after=first.cursor) == [second]
        task_id, _ = await queue.dequeue(5)
        await queue.release(task_id, strict=True)
        assert await queue.purge_dead_letters() == 1
        assert await queue.count_dead_letters() == 0
        assert (await queue.get_task_state(fourth)).result == "r"
        assert (await queue.get_queue_stats()).tasks == 0
    refused = {entry["object"] for entry in admin.acl_log() if entry["username"] == user}
    assert refused <= {"config|get", "info", "select"}, "what the document says is not needed"
