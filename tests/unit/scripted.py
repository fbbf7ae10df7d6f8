"""A driver whose answers the test scripts: the double stands at the seam beneath everything that awaits."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anyio import EndOfStream, Event, create_memory_object_stream, create_task_group, current_time, move_on_after
from anyio.lowlevel import checkpoint

from torrelque import TorrelqueError, TorrelqueUnavailableError
from torrelque.background import Background
from torrelque.calls import Assurance, Call, Reply

#: What the dequeue script says when there is nothing.
NOTHING = b"inf 0 0 0\n"


def claim(
    *task_ids: str, until: str = "inf", more: int = 0, count: int = 1, body: str = '"t"', lease: float = 300
) -> bytes:
    """Write the answer of the dequeue script."""
    sheet = "".join(f" {count} {lease} {len(task_id)} {len(body)}" for task_id in task_ids)
    return f"{until} {more} 0 0{sheet}\n{''.join(task_id + body for task_id in task_ids)}".encode()


class ScriptedDriver:
    """Answers each call with ``answer(call)``; waits while ``gate`` is set; fails while ``failure`` is."""

    db = 0
    cluster = False

    def __init__(self, answer: Callable[[Call[Any]], Reply | Exception]) -> None:
        self.answer = answer
        self.runs: list[list[Call[Any]]] = []
        self.gate: Event | None = None
        self.failure: BaseException | None = None
        self.blocker = ScriptedBlocker()
        self.subscriber = ScriptedSubscriber()

    def serve(self, key: bytes, assurance: Assurance | None = None) -> None:
        pass

    def signal(self) -> Event:
        return Event()

    def now(self) -> float:
        return current_time()

    async def execute(self, calls: Sequence[Call[Any]]) -> list[Reply | Exception]:
        self.runs.append(list(calls))
        await checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [self.answer(call) for call in calls]

    def named(self, name: str) -> list[Call[Any]]:
        """The calls of one script, in order."""
        return [call for run in self.runs for call in run if call.script.name == name]

    async def info(self) -> str | None:
        return None

    async def config_get(self, name: str) -> str | None:
        return None

    def stage(self, call: Call[Any], pipeline: Any) -> None:
        pipeline.append(call)

    @asynccontextmanager
    async def blocking(self) -> AsyncGenerator[ScriptedBlocker]:
        self.blocker.opened += 1
        yield self.blocker

    @asynccontextmanager
    async def subscribing(self) -> AsyncGenerator[ScriptedSubscriber]:
        self.subscriber = ScriptedSubscriber()
        if self.failure is not None:
            raise self.failure
        with self.subscriber.sender, self.subscriber.receiver:
            yield self.subscriber

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        yield

    def spawn_detached(self, function: Callable[[], Awaitable[None]], forsaken: Callable[[], None]) -> None:
        raise TorrelqueError("enter the queue first")


class ScriptedBlocker:
    """Hands out what the test puts into ``ids``."""

    def __init__(self) -> None:
        self.ids: deque[bytes] = deque()
        self.changed = Event()
        self.blocked = False
        self.unblocked = 0
        self.opened = 0

    def put(self, task_id: bytes) -> None:
        self.ids.append(task_id)
        self.changed.set()

    async def move(self, source: bytes, destination: bytes, timeout: float) -> bytes | None:
        assert (source, destination) == (b"q:pending", b"q:dequeueing")
        self.changed = Event()
        self.blocked = True
        try:
            if not self.ids:
                with move_on_after(timeout):
                    await self.changed.wait()
            else:
                await checkpoint()
        finally:
            self.blocked = False
        return self.ids.popleft() if self.ids else None

    async def unblock(self) -> None:
        await checkpoint()
        self.unblocked += 1
        self.changed.set()


class ScriptedSubscriber:
    """Confirms what is asked, and hands on what the test says."""

    def __init__(self) -> None:
        self.sender, self.receiver = create_memory_object_stream[Any](1000)
        self.channels: set[bytes] = set()

    async def subscribe(self, *channels: bytes) -> None:
        self.channels |= set(channels)
        for channel in channels:
            self.sender.send_nowait((b"subscribe", channel, None))

    async def unsubscribe(self, *channels: bytes) -> None:
        self.channels -= set(channels)
        for channel in channels:
            self.sender.send_nowait((b"unsubscribe", channel, None))

    async def ping(self) -> None:
        self.sender.send_nowait((b"pong", b"", None))

    async def receive(self) -> tuple[bytes, bytes, bytes | None]:
        try:
            return await self.receiver.receive()
        except EndOfStream:
            raise TorrelqueUnavailableError("the test has closed it") from None

    def say(self, channel: bytes, message: bytes) -> None:
        self.sender.send_nowait((b"message", channel, message))


@asynccontextmanager
async def open_background(driver: ScriptedDriver) -> AsyncGenerator[Background]:
    """Run background work in a task group, and end it like a queue does."""
    background = Background(driver)
    async with create_task_group() as group:
        background.enter(group)
        try:
            yield background
        finally:
            background.drain(1)
