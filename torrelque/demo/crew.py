"""The worker processes of the demo, seen from the producer: start them, kill one, stop the others."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    Event,
    create_task_group,
    fail_after,
    move_on_after,
    open_process,
)
from anyio.abc import ByteReceiveStream, ByteSendStream, Process

from torrelque.errors import TorrelqueError

from .worker import FREEZE

#: Seconds until a worker must be ready; Python starts slowly on a busy machine.
START_TIMEOUT = 30.0
#: Seconds for all workers to stop when they are asked to; then they are killed.
STOP_GRACE = 5.0


class Member:
    """One worker process."""

    def __init__(self, loop: str, process: Process, orders: ByteSendStream, words: ByteReceiveStream) -> None:
        self.loop = loop
        self.process = process
        self.ended = Event()
        #: Its end is our doing.
        self.expected = False
        self.killed = False
        self._orders = orders
        self._words = words
        self._said: dict[str, Event] = {word: Event() for word in ("ready", "listening", "holding")}

    @property
    def name(self) -> str:
        return f"worker {self.process.pid} ({self.loop})"

    async def follow(self) -> None:
        """Take what it says until its end."""
        heard = b""
        with suppress(BrokenResourceError, ClosedResourceError):
            async for piece in self._words:
                *words, heard = (heard + piece).split(b"\n")
                for word in words:
                    self._said[word.decode()].set()
        await self.process.wait()
        self.ended.set()
        for said in self._said.values():
            said.set()  # nobody shall wait for it any more

    async def says(self, word: str) -> None:
        """Wait until it has said something.

        :raises TorrelqueError: it has ended instead
        """
        await self._said[word].wait()
        if self.ended.is_set():
            raise TorrelqueError(f"{self.name} has ended with exit code {self.process.returncode}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def ask_to_freeze(self) -> None:
        """Make it stand still with the next task that it takes.

        :raises TorrelqueError: it has ended instead
        """
        with suppress(BrokenResourceError, ClosedResourceError):  # then it has ended, as is told below
            await self._orders.send(FREEZE)
        await self.says("listening")

    async def kill_with_task(self, patience: CancelScope) -> bool:
        """Kill it as soon as it stands still; returns whether it held a task.

        :param patience: cancelled when it is not to be waited for any longer
        :raises TorrelqueError: it has ended by itself
        """
        with patience:
            await self.says("holding")
        self.expected = self.killed = True
        self.process.kill()
        await self.ended.wait()
        return not patience.cancelled_caught


class Crew:
    """The worker processes."""

    def __init__(self, notice: Callable[[str], object]) -> None:
        self.members: list[Member] = []
        self._notice = notice

    @property
    def at_work(self) -> list[Member]:
        return [member for member in self.members if not member.ended.is_set()]

    @property
    def deserters(self) -> list[Member]:
        """Who has ended without our doing."""
        return [member for member in self.members if member.ended.is_set() and not member.expected]

    def choose_victim(self) -> Member:
        """Name the worker that is to be killed: the last one that is at work.

        :raises TorrelqueError: there is none
        """
        if not self.at_work:
            raise TorrelqueError("No worker is left")
        return self.at_work[-1]

    async def ready(self) -> None:
        """Wait until every worker is.

        :raises TorrelqueError: one has ended, or takes too long
        """
        try:
            with fail_after(START_TIMEOUT):
                for member in self.members:
                    await member.says("ready")
        except TimeoutError:
            raise TorrelqueError(f"The workers were not ready within {START_TIMEOUT:.0f} s") from None

    async def follow(self, member: Member) -> None:
        """Follow a worker to its end.

        :raises TorrelqueError: it was the last one, and was not to end
        """
        await member.follow()
        if not member.expected:
            self._notice(f"{member.name} has ended unexpectedly, with exit code {member.process.returncode}")
            if not self.at_work:
                raise TorrelqueError("No worker is left")

    async def stop(self) -> None:
        """Ask every worker to stop, kill who does not in time, and wait for all."""
        for member in self.members:
            member.expected = member.expected or member.process.returncode is None
            member.send_signal(signal.SIGTERM)
        with move_on_after(STOP_GRACE):
            for member in self.members:
                await member.process.wait()
        for member in self.members:
            member.send_signal(signal.SIGKILL)
            await member.process.aclose()


def loops(count: int) -> list[str]:
    """Name an event loop for each worker: asyncio and Trio in turn, if Trio is installed."""
    kinds = ["asyncio", "trio"] if importlib.util.find_spec("trio") else ["asyncio"]
    return [kinds[number % len(kinds)] for number in range(count)]


@asynccontextmanager
async def open_crew(url: str, queue_name: str, count: int, notice: Callable[[str], object]) -> AsyncGenerator[Crew]:
    """Run *count* worker processes as long as the scope lasts; they are ready when it begins.

    :param notice: is told when a worker ends that should not
    """
    crew = Crew(notice)
    async with create_task_group() as group:
        try:
            for loop in loops(count):
                member = await _start(url, queue_name, loop)
                crew.members.append(member)
                group.start_soon(crew.follow, member)
            await crew.ready()
            yield crew
        finally:
            with move_on_after(2 * STOP_GRACE, shield=True):
                await crew.stop()


async def _start(url: str, queue_name: str, loop: str) -> Member:
    process = await open_process(
        [sys.executable, "-m", "torrelque.demo.worker", loop, queue_name],
        # Not as an argument: those are there for everybody to read.
        env={**os.environ, "TORRELQUE_URL": url},
        stderr=None,
        # A Ctrl-C is for the producer, which stops the workers in order.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    return Member(loop, process, process.stdin, process.stdout)
