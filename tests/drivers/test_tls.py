"""Over TLS everything works as without it: connecting, scripts, blocking, subscribing."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import coredis
import pytest
import redis.asyncio
import trustme
from anyio.abc import SocketStream
from anyio.from_thread import start_blocking_portal
from anyio.streams.tls import TLSStream
from support import Pair, Server

from torrelque import Torrelque, TorrelqueTimeoutError, TorrelqueUnavailableError
from torrelque.drivers import _lines, _redispy

pytestmark = pytest.mark.anyio


@dataclass
class Door:
    """Where TLS is spoken in front of a server, and how many connections came through."""

    url: str = ""
    authority: str = ""
    connections: list[TLSStream] = field(default_factory=list)
    #: Whoever comes now is sent away before a word was said.
    shut: bool = False


async def relay(source: Any, target: Any) -> None:
    """Pass on what comes, until an end."""
    try:
        async for chunk in source:
            await target.send(chunk)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    await anyio.aclose_forcefully(target)


@asynccontextmanager
async def open_door(path: str, authority: trustme.CA, folder: Path) -> AsyncGenerator[Door]:
    """Speak TLS on a free port of this machine, and pass on what is said to a server's socket."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    door = Door(authority=str(folder / "authority.pem"))

    async def serve(caller: SocketStream) -> None:
        if door.shut:
            await anyio.aclose_forcefully(caller)
            return
        try:
            client = await TLSStream.wrap(caller, server_side=True, ssl_context=context, standard_compatible=False)
        except (anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError):  # who does not trust the authority
            await anyio.aclose_forcefully(caller)
            return
        door.connections.append(client)
        server: SocketStream = await anyio.connect_unix(path)
        async with client, server, anyio.create_task_group() as group:
            group.start_soon(relay, client, server)
            group.start_soon(relay, server, client)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    door.url = f"rediss://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}/0"
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield door
        group.cancel_scope.cancel()


@pytest.fixture
def door(server: Server, tmp_path: Path) -> Iterator[Door]:
    """A door in front of the server, kept by a thread of its own."""
    path = server.admin.connection_pool.connection_kwargs["path"]
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_door(path, trustme.CA(), tmp_path)) as door,
    ):
        yield door


@asynccontextmanager
async def open_secure_queue(door: Door, pair: Pair, name: str) -> AsyncGenerator[Torrelque]:
    """Open a queue with a client of the pair that trusts the door's authority."""
    client: AbstractAsyncContextManager[Any]
    if pair.client == "redispy":
        client = redis.asyncio.Redis.from_url(door.url, ssl_ca_certs=door.authority)
    else:
        client = coredis.Redis.from_url(door.url, ssl_context=ssl.create_default_context(cafile=door.authority))
    async with client as entered, Torrelque(entered, queue=name) as queue:
        yield queue


async def test_everything_over_tls(door: Door, pair: Pair, name: str) -> None:
    """A task is enqueued, waited for, watched and released, with a payload larger than a record of TLS."""
    body = "x" * 100_000
    async with open_secure_queue(door, pair, name) as queue, anyio.create_task_group() as group:
        got: list[Any] = []

        async def consume() -> None:
            got.append(await queue.dequeue(10))

        group.start_soon(consume)
        await anyio.wait_all_tasks_blocked()
        task_id = await queue.enqueue(body)
        with anyio.fail_after(10):
            while not got:
                await anyio.sleep(0.005)
        ((held, task),) = got
        assert (held, task) == (task_id, body)
        statuses: list[str] = []
        async for state in queue.watch(task_id, timeout=10):
            if not statuses:
                group.start_soon(lambda: queue.release(held, result=body))
            statuses.append(state.status.name)
        assert statuses == ["WORKING", "COMPLETED"]


async def test_a_connection_is_kept(door: Door, pair: Pair, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TLS sends of its own after the handshake is not taken for the end of the connection."""
    monkeypatch.setattr(_lines, "HOT", 0.0)
    monkeypatch.setattr(_redispy, "HOT", 0.0)
    async with open_secure_queue(door, pair, name) as queue:
        for _ in range(10):
            await queue.enqueue("t")
        assert len(door.connections) == 1


async def test_an_unknown_authority(door: Door, pair: Pair, name: str, tmp_path: Path) -> None:
    """Who cannot prove to be the server is not spoken to."""
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    async with open_secure_queue(Door(door.url, str(other)), pair, name) as queue:
        with anyio.fail_after(10), pytest.raises(TorrelqueUnavailableError):
            await queue.enqueue("t")


async def test_a_server_that_hangs_up_at_once(door: Door, pair: Pair, name: str) -> None:
    """Who is sent away before TLS stands, as by a server that just ends, cannot reach it: the queue goes on later."""
    async with open_secure_queue(door, pair, name) as queue:
        door.shut = True
        with anyio.fail_after(10), pytest.raises(TorrelqueUnavailableError):
            await queue.enqueue("t")
        door.shut = False
        # The connections that block and subscribe are made later than those of the calls.
        task_id = await queue.enqueue("watched", delay=3600)
        door.shut = True
        with anyio.fail_after(10):
            with pytest.raises((TorrelqueUnavailableError, TorrelqueTimeoutError)):
                await queue.dequeue(0.5)
            with pytest.raises((TorrelqueUnavailableError, TorrelqueTimeoutError)):
                async for _ in queue.watch(task_id, timeout=0.5):
                    pass
            door.shut = False
            await queue.enqueue("later")
            assert (await queue.dequeue(5))[1] == "later"
