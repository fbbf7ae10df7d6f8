"""Connections of redis-py's are closed when who asked for them has gone, not later."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis.asyncio
import trustme
from anyio.from_thread import start_blocking_portal
from drivers.test_tls import open_door
from redis import exceptions
from support import Server

from torrelque import Torrelque, TorrelqueUnavailableError
from torrelque.calls import Calls
from torrelque.drivers import _redispy_connections as connections
from torrelque.drivers import driver_for
from torrelque.keys import Keys

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


class Making:
    """What takes until it is told to end."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.ended = anyio.Event(), anyio.Event(), False

    async def __call__(self) -> None:
        self.begun.set()
        await self.go_on.wait()
        self.ended = True


@pytest.mark.parametrize("native", [False, True], ids=["scope", "native"])
async def test_who_is_cancelled_waits_for_its_end(native: bool) -> None:
    """However the caller is cancelled, it leaves when the connection is made, so that it can be closed."""
    making = Making()
    with anyio.CancelScope() as scope:
        task = asyncio.create_task(connections._to_its_end(making))
        await making.begun.wait()
        task.cancel()
        if not native:
            scope.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    making.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert making.ended


async def test_an_end_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for without an end."""
    monkeypatch.setattr(connections, "CLOSE_TIMEOUT", 0.05)
    making = Making()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(connections._to_its_end, making)
            await making.begun.wait()
            group.cancel_scope.cancel()
    assert not making.ended


async def test_an_error_is_that_of_the_making() -> None:
    """It is raised as it is, not in a group."""

    async def fail() -> None:
        raise exceptions.ConnectionError("no")

    with pytest.raises(exceptions.ConnectionError, match="no"):
        await connections._to_its_end(fail)


async def test_who_is_not_let_in_hangs_up(server: Server, tmp_path: Path) -> None:
    """A wrong password over TLS leaves nothing open, though the peer has not said good-bye."""
    path = server.admin.connection_pool.connection_kwargs["path"]
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_door(path, trustme.CA(), tmp_path)) as door,
    ):
        pool: Any = redis.asyncio.ConnectionPool.from_url(
            door.url.replace("://", "://nobody:wrong@"), ssl_ca_certs=door.authority
        )
        transports: list[asyncio.Transport] = []
        maker = connections.Maker(pool.connection_class, pool.connection_kwargs)
        abort = connections._abort

        def aborting(connection: Any) -> None:
            if connection._writer is not None:
                transports.append(connection._writer.transport)
            abort(connection)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(connections, "_abort", aborting)
            with pytest.raises(exceptions.AuthenticationError):
                await maker.connect()
    assert transports
    assert all(transport.is_closing() for transport in transports)


async def test_a_pool_that_others_have_emptied(server: Server, name: str) -> None:
    """Calls of ours take turns; where all connections are in the hands of others, nobody gives one back to wait for."""
    client = redis.asyncio.Redis.from_url(server.url, max_connections=2)
    queue = Torrelque(client, queue=name)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(queue.enqueue, 1)
    lent = [await client.connection_pool.get_connection() for _ in range(2)]
    with anyio.fail_after(5), pytest.raises(TorrelqueUnavailableError):
        await queue.enqueue(1)
    for connection in lent:
        await client.connection_pool.release(connection)
    assert (await queue.get_queue_stats()).pending == 5
    await client.aclose()


async def test_what_is_lent_comes_back_as_it_was(server: Server, name: str) -> None:
    """A connection has its own timeout again, and of a pool of two one is always there for commands of others."""
    client = redis.asyncio.Redis.from_url(server.url, max_connections=2, socket_timeout=7)
    async with Torrelque(client, queue=name) as queue:
        async with anyio.create_task_group() as group:
            for _ in range(64):
                group.start_soon(queue.enqueue, 1)
        assert await client.ping()
    for _ in range(2):
        connection = await client.connection_pool.get_connection()
        assert connection.socket_timeout == 7
    await client.aclose()


async def test_a_connection_that_ended_meanwhile_is_not_used(server: Server, name: str) -> None:
    """A connection that is known to have ended since its last use, however short ago that was, costs no call."""
    calls = Calls(Keys(name))
    client = redis.asyncio.Redis.from_url(server.url, client_name=name)
    driver: Any = driver_for(client)
    async with driver.opened():
        for _ in range(3):
            assert await driver.execute([calls.state(b"unknown")]) == [[[None] * 9]]
            (spare,) = driver._spares
            (ours,) = [each["id"] for each in server.admin.client_list() if each["name"] == name]
            server.admin.client_kill_filter(_id=ours)
            with anyio.fail_after(5):
                while not spare.streams.ended:
                    await anyio.sleep(0.001)
        assert await driver.execute([calls.state(b"unknown")]) == [[[None] * 9]]
    await client.aclose()
