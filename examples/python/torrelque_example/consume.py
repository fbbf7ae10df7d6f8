"""consume: work on tasks as they come, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator

from .client import Client
from .events import emit, note
from .failures import Failure
from .hands import Hands
from .link import Link
from .options import Options
from .stream import CLOSE_GRACE

#: Seconds for the server to confirm what is settled last. What it does not confirm comes back after its lease.
SETTLE_GRACE = 10.0


async def consume(client: Client, options: Options) -> None:
    """Consume, and say how many tasks were released."""
    failure = None
    try:
        async with asyncio.TaskGroup() as group:
            link = Link(client, options)
            hands = Hands(options, link, group)
            streams = group.create_task(link.keep(hands))
            await _until_told(hands, options)
            await _stop(hands, link, streams)
    except* Failure as failures:
        failure = failures.exceptions[0]
    if failure:
        raise failure
    emit("consumed", tasks=hands.released)


async def _until_told(hands: Hands, options: Options) -> None:
    """Wait for the first reason to stop: a signal, enough tasks, or none for long enough."""
    with _signals() as told:
        reasons: list[Coroutine[None, None, object]] = [told.wait(), hands.enough.wait()]
        if options.idle is not None:
            reasons.append(_idleness(hands, options.idle))
        await _first_of(*reasons)


async def _first_of(*waits: Coroutine[None, None, object], timeout: float | None = None) -> bool:
    """Wait for one of them, and cancel the others. False: none came in time."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait) for wait in waits]
        done, _ = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
    return bool(done)


async def _idleness(hands: Hands, seconds: float) -> None:
    while True:
        await hands.empty.wait()
        try:
            async with asyncio.timeout(seconds):
                await hands.busy.wait()
        except TimeoutError:
            return


async def _stop(hands: Hands, link: Link, streams: asyncio.Task[None]) -> None:
    """Take no more, finish and settle what is in hand, then close the stream."""
    hands.stop()
    await _finish(hands, link)
    # What was on its way when we said stop is work like the rest.
    while (stream := link.stream) and not stream.quiet:
        if not await _first_of(stream.hush(), timeout=CLOSE_GRACE):
            break
        await _finish(hands, link)
    else:
        if link.close():
            await asyncio.wait([streams])
    streams.cancel()


async def _finish(hands: Hands, link: Link) -> None:
    """Wait until all is done and settled; the last settlements have a time limit."""
    while not hands.empty.is_set():
        await hands.resting.wait()
        if not await _first_of(hands.empty.wait(), hands.working.wait(), timeout=SETTLE_GRACE):
            raise link.failure or Failure("DEADLINE_EXCEEDED")


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Take SIGTERM and SIGINT, but only the first: another one ends the program at once."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def tell() -> None:
        note("stopping: what is in hand will be finished")
        told.set()

    for number in numbers:
        loop.add_signal_handler(number, tell)
    try:
        yield told
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
