"""The queues in use: how they are entered, kept and left."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from grpc_server.errors import Refused
from grpc_server.queues import Queues, open_storage
from grpc_server.settings import Settings
from torrelque import TorrelqueTimeoutError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The server is a program on asyncio."""
    return "asyncio"


@asynccontextmanager
async def opened(storage: str, **settings: Any) -> AsyncGenerator[Queues]:
    async with open_storage(storage, Settings()) as store, anyio.create_task_group() as group:
        queues = Queues(store, Settings(sweep=False, **settings), group)
        yield queues
        queues.close()


async def test_one_that_is_being_entered_is_not_left(storage: str, queue: str) -> None:
    """Where there is room for one, the second is refused while the first is on its way in, or in use."""
    async with opened(storage, max_queues=1) as queues:
        told: list[str] = []

        async def use(name: str) -> None:
            try:
                with await queues.entry(name) as entry:
                    await anyio.sleep(0.05)
                    await entry.queue.get_queue_stats()
                    told.append("used")
            except Refused as refused:
                told.append(refused.reason)

        async with anyio.create_task_group() as group:
            group.start_soon(use, f"{queue}.a")
            group.start_soon(use, f"{queue}.b")
        assert sorted(told) == ["TOO_MANY_STREAMS", "used"]
        # Now the first is idle, and makes room.
        with await queues.entry(f"{queue}.b") as entry:
            await entry.queue.get_queue_stats()
        assert queues.names == [f"{queue}.b"]


async def test_the_default_queue_makes_no_room(storage: str, queue: str) -> None:
    """However idle it is, it is not left for another, as nobody would sweep it then; and it takes no other's room."""
    async with opened(storage, max_queues=1, default_queue=queue) as queues:
        for name in (queue, f"{queue}.a", f"{queue}.b"):
            with await queues.entry(name) as entry:
                await entry.queue.get_queue_stats()
        assert queues.names == [queue, f"{queue}.b"]
        with await queues.entry(f"{queue}.b"):
            await queues.entry(queue)
            with pytest.raises(Refused):
                await queues.entry(f"{queue}.c")
        assert queues.names == [queue, f"{queue}.b"]
    async with opened(storage, max_queues=1, default_queue=queue) as queues:
        with await queues.entry(f"{queue}.a"):
            await queues.entry(queue)  # also when it comes later
            assert queues.names == [f"{queue}.a", queue]


async def test_who_makes_room(storage: str, queue: str) -> None:
    """The queue that was used least lately is left, but none that is in use, or whose sweep somebody has scheduled."""
    names = [f"{queue}.{letter}" for letter in "cab"]
    async with opened(storage, max_queues=3) as queues:
        entries = []
        for name in names:
            with await queues.entry(name) as entry:
                entries.append(entry)
        with await queues.entry(f"{queue}.d"):
            assert queues.names == [*names[1:], f"{queue}.d"]
            entries[1].pinned = True
            with await queues.entry(f"{queue}.e"):
                assert queues.names == [names[1], f"{queue}.d", f"{queue}.e"]
                with pytest.raises(Refused):
                    await queues.entry(f"{queue}.f")


async def test_one_that_fails_ends_no_other(storage: str, queue: str) -> None:
    """A queue whose own work fails is left, and who asks for it next gets a fresh one."""
    async with opened(storage) as queues:
        first = await queues.entry(f"{queue}.a")
        other = await queues.entry(f"{queue}.b")

        async def fail() -> None:
            raise ZeroDivisionError

        first.queue._background.start_soon(fail)
        with anyio.fail_after(10):
            while f"{queue}.a" in queues.names:
                await anyio.sleep(0.01)
        with other:
            await other.queue.get_queue_stats()
        with await queues.entry(f"{queue}.a") as again:
            await again.queue.get_queue_stats()
        assert again is not first


async def test_what_was_given_up_stays_counted(storage: str, queue: str) -> None:
    """Tasks that were given up are counted over all queues, and go on counting when their queue is left."""
    async with opened(storage, max_queues=1, max_attempts=1) as queues:
        for number, name in enumerate((f"{queue}.a", f"{queue}.b", f"{queue}.a"), 1):
            with await queues.entry(name) as entry:
                await entry.queue.enqueue(b"fails")
                task_id, _body = await entry.queue.dequeue(5)
                await entry.queue.requeue(task_id, strict=True)
                assert queues.given_up == number - 1
                with pytest.raises(TorrelqueTimeoutError):
                    await entry.queue.dequeue(0)
            assert queues.given_up == number
