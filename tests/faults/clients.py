"""What workers and producers of the fault bench have in common: how they reach the queue."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import coredis
import grpc
import redis.asyncio
from coredis.connection import TCPLocation
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.sentinel import Sentinel

from grpc_server._pb import torrelque_pb2_grpc as pb_grpc
from torrelque import Torrelque, TorrelqueDurability, TorrelqueTaskSerialiser, checks

#: Payloads are bytes, so that each byte of them is seen at both ends.
AS_THEY_ARE = TorrelqueTaskSerialiser(lambda body: body, lambda body: body)
#: Seconds after which a failed call is tried again.
PAUSE = 0.05

_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


@asynccontextmanager
async def open_queue(place: str | dict[str, Any], queue: str, client: str) -> AsyncGenerator[Torrelque]:
    """Open a queue by way of a client library; *place* is a URL, or tells the durability too."""
    if isinstance(place, dict):
        async with open_moving(place["url"], client) as opened:
            durability = TorrelqueDurability(replicas=place["replicas"])
            async with Torrelque(opened, queue=queue, serialiser=AS_THEY_ARE, durability=durability) as made:
                yield made
        return
    url = place
    if client == "redispy":
        opened = redis.asyncio.Redis.from_url(url)
        try:
            async with Torrelque(opened, queue=queue, serialiser=AS_THEY_ARE) as made:
                yield made
        finally:
            await opened.aclose()
    else:
        async with coredis.Redis.from_url(url) as connected:
            async with Torrelque(connected, queue=queue, serialiser=AS_THEY_ARE) as made:
                yield made


@asynccontextmanager
async def open_moving(url: str, client: str) -> AsyncGenerator[Any]:
    """Open a client of a library for a Redis that moves."""
    target = checks.url(url)
    nodes = [TCPLocation(*place) for place in target.places]
    async with AsyncExitStack() as stack:
        opened: Any
        if client == "redispy" and target.kind == "sentinel":
            sentinel = Sentinel(list(target.places), socket_timeout=1)
            for each in sentinel.sentinels:
                stack.push_async_callback(each.aclose)
            opened = sentinel.master_for(target.service)
            stack.push_async_callback(opened.aclose)
        elif client == "redispy":
            opened = redis.asyncio.RedisCluster(startup_nodes=[ClusterNode(*place) for place in target.places])
            stack.push_async_callback(opened.aclose)
        elif target.kind == "sentinel":
            sentinels = await stack.enter_async_context(coredis.Sentinel(nodes))
            opened = await stack.enter_async_context(sentinels.primary_for(target.service))
        else:
            opened = await stack.enter_async_context(coredis.RedisCluster(startup_nodes=nodes))
        yield opened


def dial(addresses: list[str]) -> tuple[grpc.Channel, Any]:
    """Open a channel over several servers, and the stub of the service."""
    channel = grpc.insecure_channel("ipv4:" + ",".join(addresses), options=_CHANNEL)
    return channel, pb_grpc.TorrelqueServiceStub(channel)


def payload(chance: random.Random, task_id: str) -> bytes:
    """Make bytes that are JSON, that no other task has, and that JSON in Python writes just so."""
    return f'{{"nonce": "{task_id}", "pad": "{"x" * chance.randrange(200)}"}}'.encode()
