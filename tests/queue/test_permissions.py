"""The permissions that the documents name are enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from support import Server
from support.rights import rights, rights_of_a_check, rights_of_another_database

from torrelque import TorrelqueRedisError, TorrelqueStorageError, TorrelqueTaskStatus, TorrelqueTimeoutError

pytestmark = pytest.mark.anyio


@pytest.fixture
def user(admin: Redis, server: Server, name: str) -> Iterator[str]:
    """A user who may do what the document says, on the queue of the test."""
    admin.execute_command("ACL", "SETUSER", name, "reset", "on", ">secret", *rights(name, server.kind))
    yield name
    admin.acl_deluser(name)


async def test_a_state_that_may_not_be_read_is_none_unknown(open_queue: Any, admin: Redis, user: str) -> None:
    """Who may not read states is told so, not that there is no such task."""
    async with open_queue() as queue:
        task_id = await queue.enqueue("t")
    admin.execute_command("ACL", "SETUSER", user, "-hmget")
    async with open_queue(client_options={"username": user, "password": "secret"}) as queue:
        with pytest.raises(TorrelqueStorageError):
            await queue.get_task_state(task_id)


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


async def test_another_database(open_queue: Any, admin: Redis, user: str) -> None:
    """A database other than 0 takes the permission that the document names for it, and no other."""
    options = {"username": user, "password": "secret", "db": 1}
    async with open_queue(client_options=options) as queue:
        with pytest.raises(TorrelqueRedisError, match="select"):
            await queue.enqueue("refused")
    admin.execute_command("ACL", "SETUSER", user, *rights_of_another_database())
    async with open_queue(client_options=options) as queue:
        known = await queue.enqueue("taken")
        task_id, _ = await queue.dequeue(5)
        await queue.release(task_id, result="r", result_ttl=0.001, strict=True)
        assert task_id == known


async def test_those_of_a_check_are_enough(open_queue: Any, admin: Redis, user: str, name: str) -> None:
    """With those that the document names for it a check finds, and repairs, what is wrong."""
    admin.execute_command("ACL", "SETUSER", user, *rights_of_a_check())
    admin.acl_log_reset()
    async with open_queue(client_options={"username": user, "password": "secret"}) as queue:
        ids = await queue.enqueue_many(range(6), task_ids=list("abcdef"))
        keys = queue.keys
        taken, _ = await queue.dequeue(5)
        damaged = {taken, *ids[1:]}
        admin.zadd(keys["working"], {taken: 10**12})
        admin.lrem(keys["pending"], 1, ids[1])
        admin.lpush(keys["pending"], ids[2], "ghost")
        admin.delete(f"{keys['task']}:{ids[3]}")
        admin.pexpire(f"{keys['task']}:{ids[4]}", 100_000)
        admin.hset(f"{keys['task']}:{ids[5]}", "status", 1)
        report = await queue.check(repair=True, grace=0)
        assert {finding.task_id for finding in report.findings} == {*damaged, "ghost"}
        assert report.left == []
        assert (await queue.check(grace=0)).findings == []
    refused = {entry["object"] for entry in admin.acl_log() if entry["username"] == user}
    assert refused <= {"config|get", "info", "select"}, "what the document says is not needed"
