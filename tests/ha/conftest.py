"""Servers that fail over, and the clients of each library for them."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import coredis
import pytest
import redis.asyncio
from anyio import move_on_after
from coredis.connection import TCPLocation
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import Sentinel
from support import Pair
from support.clusters import SERVICE, Site, open_cluster, open_sentinel

from torrelque import Torrelque

KINDS = ["valkey"] + (["redis"] if shutil.which("redis-server") or os.environ.get("CI") else [])


@pytest.fixture(scope="module", params=KINDS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """What the module asks for with OPEN: a primary that sentinels look after, or a cluster."""
    opener = {"test_cluster": open_cluster}.get(request.module.__name__.rpartition(".")[2], open_sentinel)
    with opener(tmp_path_factory.mktemp("site"), request.param) as site:
        yield site


@pytest.fixture
def name() -> str:
    """A queue name that nobody else uses."""
    return f"t{secrets.token_hex(6)}"


@asynccontextmanager
async def _redispy(site: Site) -> AsyncGenerator[Any]:
    client: Any
    async with AsyncExitStack() as stack:
        if site.sentinels:
            sentinel = Sentinel([("127.0.0.1", node.port) for node in site.sentinels], socket_timeout=1)
            stack.push_async_callback(_close, *sentinel.sentinels)
            client = sentinel.master_for(SERVICE, socket_timeout=5)
        else:
            nodes = [ClusterNode("127.0.0.1", node.port) for node in site.nodes[:2]]
            client = redis.asyncio.RedisCluster(startup_nodes=nodes)
        stack.push_async_callback(_close, client)
        yield client


async def _close(*clients: Any) -> None:
    for client in clients:
        with move_on_after(5, shield=True):
            await client.aclose()


@asynccontextmanager
async def _coredis(site: Site) -> AsyncGenerator[Any]:
    if site.sentinels:
        sentinel = coredis.Sentinel([TCPLocation("127.0.0.1", node.port) for node in site.sentinels])
        async with sentinel, sentinel.primary_for(SERVICE) as primary:
            yield primary
    else:
        nodes = [TCPLocation("127.0.0.1", node.port) for node in site.nodes[:2]]
        async with coredis.RedisCluster(startup_nodes=nodes) as cluster:
            yield cluster


@pytest.fixture
def open_client(site: Site, pair: Pair) -> Callable[..., AbstractAsyncContextManager[Any]]:
    """Open a client of the tested library for the site."""
    return lambda: _redispy(site) if pair.client == "redispy" else _coredis(site)


@pytest.fixture
def open_queue(open_client: Any, name: str) -> Callable[..., AbstractAsyncContextManager[Torrelque]]:
    """Open a queue of the test's name with a client of its own."""

    @asynccontextmanager
    async def open_queue(queue: str = name, **options: Any) -> AsyncGenerator[Torrelque]:
        async with open_client() as client, Torrelque(client, queue=queue, **options) as made:
            yield made

    return open_queue
