"""How fast could it be? What a dequeue and its release cost this process and Redis, part by part.

32 callers dequeue and release through redis-py on asyncio, as in the benchmark's row. Beside it: the same callers on a
queue whose driver answers at once (what is left is ours and the event loop's), and a bare asyncio protocol that sends
one command and reads its answer (the least that a round trip takes). All are microseconds of processor time for each
task; who waits for whom is what the whole takes beyond the larger of the two sides.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import redis
import redis.asyncio
from rich.console import Console
from rich.table import Table

from torrelque import Torrelque, TorrelqueDurability, open_server
from torrelque.calls import Call
from torrelque.codec import JSON
from torrelque.drivers._redispy import RedisPyDriver

CALLERS = 32
TASKS = 20_000
#: Of a crowd a half is claimed for, and released, with one round trip each.
ROUND_TRIPS = 2 / (CALLERS / 2)
ECHO = b"*2\r\n$4\r\nECHO\r\n$32\r\n" + b"x" * 32 + b"\r\n"


class AnswersAtOnce(RedisPyDriver):
    """Answers claims with made-up tasks, and everything else with success."""

    _ids = itertools.count()

    async def execute(self, calls: Sequence[Call[Any]]) -> list[Any]:
        await asyncio.sleep(0)
        return [self._claim(int(call.head[2])) if call.count == 0 else b" ".join([b"1"] * call.count) for call in calls]

    def _claim(self, wanted: int) -> bytes:
        bodies = b"".join([b'%032x{"a": 1}' % next(self._ids) for _ in range(wanted)])
        return b"inf 0 0 0" + b" 1 300 32 8" * wanted + b"\n" + bodies


async def work(queue: Torrelque) -> None:
    """Have all callers dequeue and release until all tasks are done."""
    left = itertools.count()

    async def call() -> None:
        while next(left) < TASKS:
            task_id, _ = await queue.dequeue(5)
            await queue.release(task_id)

    await asyncio.gather(*(call() for _ in range(CALLERS)))


class Bare(asyncio.Protocol):
    """Sends, and tells when something has come."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.came.set_result(None)

    async def ask(self) -> None:
        self.came = asyncio.get_running_loop().create_future()
        self.transport.write(ECHO)
        await self.came


async def round_trips(path: str) -> None:
    """Make as many bare round trips as there are tasks."""
    transport, bare = await asyncio.get_running_loop().create_unix_connection(Bare, path)
    for _ in range(TASKS):
        await bare.ask()
    transport.close()


async def timed(job: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Microseconds for each task: on the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    await job()
    return (time.perf_counter() - clock) / TASKS * 1e6, (time.process_time() - processor) / TASKS * 1e6


def server_time(admin: redis.Redis) -> float:
    """Seconds of the processor that the server has used."""
    used = admin.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


async def main() -> None:
    """Measure and print."""
    table = Table(title=f"dequeue + release, {CALLERS} callers, redis-py on asyncio: µs for each task")
    for column in ("", "µs"):
        table.add_column(column, justify="right" if column else "left")
    async with open_server(fsync="no") as url:
        client = redis.asyncio.Redis.from_url(url)
        with redis.Redis.from_url(url) as admin:
            async with Torrelque(client, queue="ceiling") as queue:
                await queue.enqueue_many([{"a": 1}] * (TASKS + CALLERS))
                server = server_time(admin)
                whole, ours = await timed(lambda: work(queue))
                server = (server_time(admin) - server) / TASKS * 1e6
        _, trip = await timed(lambda: round_trips(client.connection_pool.connection_kwargs["path"]))
        queue = Torrelque(client, queue="ceiling")
        queue._build(AnswersAtOnce(client), "ceiling", JSON, TorrelqueDurability())  # the same queue, on another driver
        async with queue:
            _, alone = await timed(lambda: work(queue))
        await client.aclose()
    table.add_row("the whole, on the clock", f"{whole:.1f}")
    table.add_row("processor: this process", f"{ours:.1f}")
    table.add_row("    the queue and the event loop, without a client", f"{alone:.1f}")
    table.add_row("    the least for its round trips: a bare protocol", f"{trip * ROUND_TRIPS:.1f}")
    table.add_row("    the client's and the driver's share", f"{ours - alone - trip * ROUND_TRIPS:.1f}")
    table.add_row("processor: the server", f"{server:.1f}")
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
