"""The way between a queue and the simulated server: a driver at the library's own seam, and all that can go wrong."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from torrelque import scripts
from torrelque.calls import Assurance, Call, Reply
from torrelque.drivers._errors import ErrorMap
from torrelque.drivers._scripts import arguments, run_scripts
from torrelque.drivers._topology import Place, Topology
from torrelque.drivers._trio import TrioSignal
from torrelque.drivers.base import ANSWER_TIMEOUT, LATE
from torrelque.errors import (
    TorrelqueError,
    TorrelqueFullError,
    TorrelqueStorageError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)

from .server import Block, SimServer, Subscription
from .store import CommandError

#: Seconds after which the server may still find a command whose sender has gone.
LATEST = 5.0

_ERRORS = ErrorMap(
    root=CommandError,
    reply=CommandError,
    ours={
        TorrelqueUnavailableError: TorrelqueUnavailableError,
        TorrelqueFullError: TorrelqueFullError,
        TorrelqueStorageError: TorrelqueStorageError,
    },
)


@dataclass
class Rates:
    """How likely each fault is, for one round trip, one connection or one message."""

    refused: float = 0.0
    """No connection can be made: surely not applied."""
    request_lost: float = 0.0
    reply_lost: float = 0.0
    late: float = 0.0
    """The answer is given up, and the server gets to the request after that."""
    slow: float = 0.0
    """A way takes up to two seconds."""
    block_lost: float = 0.0
    """What a blocked connection was handed does not arrive."""
    message_lost: float = 0.0
    message_twice: float = 0.0


class Network:
    """Decides by chance what becomes of each request; a healed one lets everything through.

    :param spawn: runs what happens on the server's side later on
    :param latency: seconds that a way takes at most
    """

    def __init__(
        self, server: SimServer, chance: random.Random, rates: Rates, spawn: Callable[..., None], latency: float
    ) -> None:
        self.server = server
        self.chance = chance
        self.rates = rates
        self.spawn = spawn
        self.latency = latency
        self.faults: dict[str, int] = {}
        self.trace: Callable[[str], None] = lambda line: None
        self.broken: Callable[[str], None] = lambda violation: None
        self.on_late_claim: Callable[[], None] = lambda: None
        self.on_their_way = 0
        """Requests under way, also those that nobody waits for and that the server will find."""
        self.blockers: list[SimBlocker] = []
        self.subscribers: list[SimSubscriber] = []
        server.lose = self._arrivals

    def heal(self) -> None:
        """Let nothing fail any more."""
        self.rates = Rates()

    def happens(self, name: str) -> bool:
        """Draw one fault."""
        rate: float = getattr(self.rates, name)
        if not rate or self.chance.random() >= rate:
            return False
        self.note(name)
        return True

    def note(self, name: str) -> None:
        """Count a fault."""
        self.faults[name] = self.faults.get(name, 0) + 1
        self.trace(f"fault {name}")

    def _arrivals(self) -> int:
        if self.happens("message_lost"):
            return 0
        return 2 if self.happens("message_twice") else 1

    async def travel(self) -> None:
        """Take one way."""
        if self.happens("slow"):
            await trio.sleep(self.chance.uniform(0, 2))
        elif self.chance.random() < 0.4:
            await trio.sleep(self.chance.uniform(0, self.latency))
        else:
            await trio.lowlevel.checkpoint()

    def apply_later(self, commands: Sequence[Sequence[bytes]], epoch: int) -> None:
        """Let the server find commands in its socket whose sender does not wait any more."""
        self.on_their_way += 1
        self.spawn(self._apply_later, commands, epoch, self.chance.uniform(0, LATEST))

    async def _apply_later(self, commands: Sequence[Sequence[bytes]], epoch: int, delay: float) -> None:
        await trio.sleep(delay)
        self.on_their_way -= 1
        if self.server.epoch == epoch and not self.server.down:
            self.note("late effect")
            for command in commands:
                self.server.apply(command)
                if len(command) > 1 and command[1] in (scripts.DEQUEUE.sha1, scripts.DEQUEUE.text):
                    self.on_late_claim()


class SimDriver:
    """Drives one process's queues over a network."""

    db = 0
    cluster = False

    def __init__(self, network: Network) -> None:
        self._network = network
        self._server = network.server
        self._topology = Topology(Place("simulated", 6379))
        #: The process was killed: nothing that it does from here on reaches anybody.
        self.dead = False
        #: Called with the time at which a claim was sent, when it has no answer.
        self.on_lost_claim: Callable[[float], None] = lambda began: None

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        yield

    def serve(self, key: bytes, assurance: Assurance | None = None) -> None:
        self._topology.key = key

    def signal(self) -> TrioSignal:
        return TrioSignal()

    def now(self) -> float:
        return trio.current_time()

    def spawn_detached(self, function: Callable[[], Awaitable[None]], forsaken: Callable[[], None]) -> None:
        raise TorrelqueError("enter the queue first")

    def stage(self, call: Call[Any], pipeline: Any) -> None:
        pipeline.append((b"EVAL", *arguments(b"EVAL", call)))

    async def execute(self, calls: Sequence[Call[Any]], *, apart: bool = False) -> list[Reply | Exception]:
        replies = await run_scripts(self._send, calls, self._topology)
        lost = TorrelqueUnknownOutcomeError
        return [_ERRORS.translate(reply, lost) if isinstance(reply, Exception) else reply for reply in replies]

    async def _send(self, name: bytes, calls: Sequence[Call[Any]], place: Place | None) -> list[Reply | Exception]:
        harmless = all(call.script.reads_only for call in calls)
        lost = TorrelqueUnavailableError if harmless else TorrelqueUnknownOutcomeError
        began = trio.current_time()
        claims = any(call.script.name == "dequeue" for call in calls)
        try:
            replies = await self._ask([(name, *arguments(name, call)) for call in calls], lost)
        except BaseException as error:
            if claims and not isinstance(error, TorrelqueUnavailableError):
                self.on_lost_claim(began)
            raise
        return replies

    async def _ask(self, commands: Sequence[Sequence[bytes]], lost: type[TorrelqueError]) -> list[Reply | Exception]:
        """Make one round trip; *lost* is what it means that no answer came."""
        network, server = self._network, self._server
        await self._connect()
        epoch = server.epoch
        sent = False
        network.on_their_way += 1
        try:
            await network.travel()
            self._check_connection(epoch, lost)
            if network.happens("request_lost"):
                raise lost("the connection was reset")
            if network.happens("late"):
                sent = True
                network.apply_later(commands, epoch)
                await trio.sleep(ANSWER_TIMEOUT)
                raise lost("no answer came in time")
            replies = []
            for command in commands:
                if replies and network.chance.random() < 0.2:
                    await trio.lowlevel.checkpoint()  # somebody else is served in between
                    self._check_connection(epoch, lost)
                replies.append(server.apply(command))
            sent = True
            await network.travel()
            self._check_connection(epoch, lost)
            if network.happens("reply_lost"):
                raise lost("the connection was reset")
        except trio.Cancelled:
            if not sent and not self.dead and network.chance.random() < 0.5:
                network.apply_later(commands, epoch)
            raise
        finally:
            network.on_their_way -= 1
        return replies

    async def _connect(self) -> None:
        self._server.count()
        if self.dead or self._server.down or self._network.happens("refused"):
            await trio.lowlevel.checkpoint()
            raise TorrelqueUnavailableError("connection refused")

    def _check_connection(self, epoch: int, lost: type[TorrelqueError]) -> None:
        if self.dead or self._server.epoch != epoch:
            raise lost("the connection was reset")

    async def config_get(self, name: str) -> str | None:
        await self._connect()
        await self._network.travel()
        if self._server.mood is not None and not self._server.mood.startswith("OOM"):
            raise TorrelqueUnavailableError(self._server.mood)
        return self._network.chance.choice(("KA", "AKE", "Kgh", None))

    async def info(self) -> str | None:
        await self._connect()
        await self._network.travel()
        return None

    @asynccontextmanager
    async def blocking(self) -> AsyncGenerator[SimBlocker]:
        await self._connect()
        await self._network.travel()
        blocker = SimBlocker(self, self._network, self._server.epoch)
        if any(other.driver is self for other in self._network.blockers):
            self._network.broken("I15: a queue has two blocked connections")
        self._network.blockers.append(blocker)
        try:
            yield blocker
        finally:
            self._network.blockers.remove(blocker)
            blocker.close()

    @asynccontextmanager
    async def subscribing(self) -> AsyncGenerator[SimSubscriber]:
        await self._connect()
        await self._network.travel()
        subscriber = SimSubscriber(self, self._network)
        self._network.subscribers.append(subscriber)
        self._server.subscriptions.append(subscriber.subscription)
        try:
            yield subscriber
        finally:
            self._network.subscribers.remove(subscriber)
            subscriber.close()


class SimBlocker:
    """Waits in the server for an id."""

    def __init__(self, driver: SimDriver, network: Network, epoch: int) -> None:
        self.driver = driver
        self._network = network
        self._server = network.server
        self._epoch = epoch
        self._block: Block | None = None
        self.lost = False

    async def move(self, source: bytes, destination: bytes, timeout: float) -> bytes | None:
        await self._network.travel()
        self._check()
        block = self._block = Block(source, destination, trio.current_time() + timeout)
        self._network.spawn(self._end_in_time, block, timeout)
        self._server.block(block)
        with trio.move_on_after(timeout + LATE):
            await block.done.wait()
        if not block.done.is_set():
            raise TorrelqueUnavailableError("no answer came in time")
        await self._network.travel()
        self._check()
        if block.error is not None:
            raise _ERRORS.translate(CommandError(block.error), TorrelqueUnavailableError)
        if block.reply is not None and self._network.happens("block_lost"):
            self.lost = True
            self._check()
        self._block = None
        return block.reply

    async def _end_in_time(self, block: Block, timeout: float) -> None:
        with trio.move_on_after(timeout):
            await block.done.wait()
        self._server.serve_blocked()

    def _check(self) -> None:
        if self.lost or self.driver.dead or self._server.epoch != self._epoch:
            raise TorrelqueUnavailableError("the connection was reset")

    def cut(self, noticed: bool) -> None:
        """Let the connection die. The server may not notice, and go on serving it for a while."""
        self.lost = True
        block = self._block
        if block is None or block not in self._server.blocked:
            return
        if noticed:
            self._server.forget(block)
            block.end(error="connection closed")
        else:
            ghost = Block(block.source, block.destination, block.until, orphaned=True)
            self._server.blocked[self._server.blocked.index(block)] = ghost
            self._network.spawn(self._end_in_time, ghost, max(block.until - trio.current_time(), 0))
            block.end(error="connection closed")

    async def unblock(self) -> None:
        await self.driver._connect()
        await self._network.travel()
        block = self._block
        if block is not None:
            self._server.unblock(block)
        await self._network.travel()
        if self._network.happens("reply_lost"):
            raise TorrelqueUnavailableError("the connection was reset")

    def close(self) -> None:
        if self._block is not None:
            self._server.forget(self._block)


class SimSubscriber:
    """Receives messages."""

    def __init__(self, driver: SimDriver, network: Network) -> None:
        self._driver = driver
        self._network = network
        self._sender, self._receiver = trio.open_memory_channel[tuple[bytes, bytes, bytes | None]](math.inf)
        self.subscription = Subscription(self._tell, self._sender.close)
        #: The other end is gone without a word.
        self.silent = False

    def _tell(self, message: tuple[bytes, bytes, bytes | None]) -> None:
        if not self.silent:
            self._sender.send_nowait(message)

    async def subscribe(self, *channels: bytes) -> None:
        # Sorted, for they come out of a set, whose order differs from process to process.
        for channel in sorted(channels):
            self.subscription.channels.add(channel)
            self._answer((b"subscribe", channel, None))

    async def unsubscribe(self, *channels: bytes) -> None:
        for channel in sorted(channels):
            self.subscription.channels.discard(channel)
            self._answer((b"unsubscribe", channel, None))

    def _answer(self, message: tuple[bytes, bytes, bytes | None]) -> None:
        try:
            self._tell(message)
        except trio.ClosedResourceError:
            raise TorrelqueUnavailableError("the connection was reset") from None

    async def ping(self) -> None:
        await self._driver._connect()
        await self._network.travel()
        if self.silent:
            raise TorrelqueUnavailableError("no answer came in time")
        self._answer((b"pong", b"", None))

    async def receive(self) -> tuple[bytes, bytes, bytes | None]:
        try:
            return await self._receiver.receive()
        except trio.EndOfChannel:
            raise TorrelqueUnavailableError("the connection was reset") from None

    def cut(self, noticed: bool) -> None:
        """Let the connection die, with a word or without."""
        if noticed:
            self._forget()
            self._sender.close()
        else:
            self.silent = True

    def _forget(self) -> None:
        if self.subscription in self._network.server.subscriptions:
            self._network.server.subscriptions.remove(self.subscription)

    def close(self) -> None:
        self._forget()
        self._sender.close()
        self._receiver.close()
