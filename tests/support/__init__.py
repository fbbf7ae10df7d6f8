"""What tests share: the pairs, the servers, and the invariants that a queue's data must keep."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coredis
import redis
import redis.asyncio
from anyio import move_on_after
from anyio.from_thread import start_blocking_portal

from torrelque import open_server


@dataclass(frozen=True)
class Pair:
    """A client library and an event loop."""

    client: str
    backend: tuple[str, dict[str, Any]]
    name: str
    #: Whether its queues are entered. With redis-py on asyncio the documented calls also work without.
    entered: bool = True

    def __str__(self) -> str:
        return self.name


PAIRS = [
    Pair("redispy", ("asyncio", {}), "redispy-asyncio"),
    Pair("redispy", ("asyncio", {"use_uvloop": True}), "redispy-uvloop"),
    Pair("coredis", ("asyncio", {}), "coredis-asyncio"),
    Pair("coredis", ("trio", {}), "coredis-trio"),
]

UNENTERED = [
    Pair("redispy", ("asyncio", {}), "redispy-asyncio-unentered", entered=False),
    Pair("redispy", ("asyncio", {"use_uvloop": True}), "redispy-uvloop-unentered", entered=False),
]


@asynccontextmanager
async def open_client(pair: Pair, url: str, **options: Any) -> AsyncGenerator[Any]:
    """Open a client of a pair's library, on its event loop."""
    if pair.client == "redispy":
        client = redis.asyncio.Redis.from_url(url, **options)
        try:
            yield client
        finally:
            with move_on_after(5, shield=True):
                await client.aclose()
    else:
        async with coredis.Redis.from_url(url, **options) as client:
            yield client


@dataclass(frozen=True)
class Server:
    """A running server."""

    kind: str
    url: str
    admin: redis.Redis


#: A server of the distribution is tried beside the embedded one. Where it must be there, its absence is an error.
REDIS = shutil.which("redis-server")
SERVERS = ["valkey"] + (["redis"] if REDIS or os.environ.get("CI") else [])


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Make a folder for data that is not about the disk: one that stands still for seconds holds up no test.

    Where the machine has no room for it in its memory it is on the disk.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    with tempfile.TemporaryDirectory(prefix="torrelque-", dir=memory if roomy else None) as folder:
        yield Path(folder)


@contextmanager
def running_server(kind: str = "valkey", **options: Any) -> Iterator[Server]:
    """Run a real server of a kind; *options* are those of ``open_server``."""
    if kind == "redis":
        assert REDIS, "CI tests against a redis-server too: it must be installed"
        options["server"] = REDIS
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_server(**options)) as url,
        # What it prepares is not what is judged: a disk that stands still for longer than a client's five seconds
        # is waited for.
        redis.Redis.from_url(url, socket_timeout=60) as admin,
    ):
        yield Server(kind, url, admin)


#: Reads everything about a queue in one moment.
_DUMP = """
local q = ARGV[1]
local states = {}
for _, id in ipairs(redis.call('HKEYS', q .. ':tasks')) do
  local key = q .. ':task:' .. id
  states[#states + 1] = {id, redis.call('HGETALL', key), redis.call('PTTL', key)}
end
return {
  redis.call('LRANGE', q .. ':pending', 0, -1), redis.call('LRANGE', q .. ':dequeueing', 0, -1),
  redis.call('ZRANGE', q .. ':working', 0, -1, 'WITHSCORES'),
  redis.call('ZRANGE', q .. ':delayed', 0, -1, 'WITHSCORES'), redis.call('HGETALL', q .. ':tasks'), states,
  redis.call('TIME'), redis.call('ZRANGE', q .. ':dead', 0, -1, 'WITHSCORES'),
  redis.call('HGETALL', q .. ':dead:payloads')
}
"""

STATUS_OF_PLACE = {"pending": b"0", "dequeueing": b"0", "working": b"1", "delayed": b"2"}


@dataclass
class Snapshot:
    """Everything about the live tasks of a queue, and what is dead, at one moment."""

    pending: list[str]
    dequeueing: list[str]
    working: dict[str, float]
    delayed: dict[str, float]
    tasks: dict[str, bytes]
    states: dict[str, dict[str, bytes]]
    ttls: dict[str, int]
    now: float
    dead: dict[str, float]
    dead_payloads: dict[str, bytes]

    def places(self) -> dict[str, list[str]]:
        """Where each id stands, by place."""
        return {
            "pending": self.pending,
            "dequeueing": self.dequeueing,
            "working": list(self.working),
            "delayed": list(self.delayed),
        }

    def check(self) -> None:
        """Assert the partition: a live id is in one place, once, with its payload, its state and the right status."""
        counts = Counter(task_id for ids in self.places().values() for task_id in ids)
        assert {task_id: n for task_id, n in counts.items() if n > 1} == {}, "an id stands in two places"
        assert set(counts) == set(self.tasks), "ids and payloads differ"
        for place, ids in self.places().items():
            for task_id in ids:
                assert self.states[task_id].get("status") == STATUS_OF_PLACE[place], f"{task_id} in {place}"
                assert "enqueue_time" in self.states[task_id]
                assert self.ttls[task_id] == -1, "a live task's state would expire"
        assert set(self.dead) == set(self.dead_payloads), "dead letters and their payloads differ"
        assert not set(self.dead) & set(self.tasks), "a task is alive and dead"


def _pairs(flat: list[bytes]) -> list[tuple[str, bytes]]:
    return [(flat[i].decode(), flat[i + 1]) for i in range(0, len(flat), 2)]


def snapshot(admin: redis.Redis, queue: str) -> Snapshot:
    """Read a queue in one script."""
    pending, dequeueing, working, delayed, tasks, states, now, dead, dead_payloads = admin.eval(_DUMP, 0, queue)
    return Snapshot(
        pending=[task_id.decode() for task_id in pending],
        dequeueing=[task_id.decode() for task_id in dequeueing],
        working={task_id: float(score) for task_id, score in _pairs(working)},
        delayed={task_id: float(score) for task_id, score in _pairs(delayed)},
        tasks=dict(_pairs(tasks)),
        states={task_id.decode(): dict(_pairs(fields)) for task_id, fields, _ in states},
        ttls={task_id.decode(): ttl for task_id, _, ttl in states},
        now=int(now[0]) + int(now[1]) / 1e6,
        dead={task_id: float(score) for task_id, score in _pairs(dead)},
        dead_payloads=dict(_pairs(dead_payloads)),
    )


def keyspace(admin: redis.Redis) -> dict[bytes, bytes | None]:
    """Everything the server holds, to compare before and after a call that must change nothing."""
    return {key: admin.dump(key) for key in admin.scan_iter("*")}


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll, in a thread or a test without an event loop, until *condition* holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)
