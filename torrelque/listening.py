"""The one pub/sub connection of a queue: for its watchers, and for whoever sleeps until a task is due."""

from __future__ import annotations

from collections import defaultdict

from anyio import Event, create_task_group, move_on_after, sleep

from .background import Background, Outage
from .drivers import Driver, Subscriber
from .errors import TorrelqueClosedError, TorrelqueError, TorrelqueRedisError, first_error

#: Seconds between two looks whether the server is still there.
PING = 30.0
#: Seconds to wait for the last answers before a connection is closed.
HUSH = 0.5


class Ear:
    """Someone who listens to one channel. A message is only a hint: look, and then wait again."""

    def __init__(self, channel: bytes) -> None:
        self.channel = channel
        #: Why there is no subscription at present.
        self.error: TorrelqueError | None = None
        #: What was said last; ``None`` when messages may have been missed.
        self.message: bytes | None = None
        self._heard = Event()

    def tell(self, message: bytes | None = None) -> None:
        """Say that something has happened, or (without a message) may have."""
        self.message = message
        self._heard.set()

    async def heard(self) -> None:
        """Wait until something has been said since the last call."""
        await self._heard.wait()
        self._heard = Event()


class Hub:
    """Keeps a connection subscribed to what the ears listen to, as long as there are any.

    After a lost connection it subscribes again and tells every ear, for messages may have been missed meanwhile.
    """

    def __init__(self, driver: Driver, background: Background) -> None:
        self._driver = driver
        self._background = background
        self._ears: defaultdict[bytes, set[Ear]] = defaultdict(set)
        self._subscribed: set[bytes] = set()
        self._running = False
        self._changed = Event()
        self._silent = Event()
        self._outage = Outage("The subscription to Redis")

    @property
    def settled(self) -> bool:
        """Whether others listen, or the connection is closed."""
        return bool(self._ears) or not self._running

    def attach(self, channel: bytes) -> Ear:
        """Listen to *channel*. The ear hears as soon as the subscription stands, and then each message."""
        ear = Ear(channel)
        self._ears[channel].add(ear)
        self._background.move()
        if channel in self._subscribed:
            ear.tell()
        self._changed.set()
        if not self._running:
            self._running = True
            try:
                self._background.start_soon(self._run, self._forsake)
            except BaseException:
                self._running = False
                self.detach(ear)
                raise
        return ear

    def _forsake(self) -> None:
        self._running = False

    def detach(self, ear: Ear) -> None:
        """Stop listening; may be called twice."""
        if ear.channel in self._ears:
            ears = self._ears[ear.channel]
            ears.discard(ear)
            if not ears:
                del self._ears[ear.channel]
        self._changed.set()

    def close(self) -> None:
        """Send everyone away; the connection is closed at once."""
        for ears in self._ears.values():
            for ear in ears:
                ear.error = TorrelqueClosedError("The queue was closed")
                ear.tell()
        self._ears.clear()
        self._changed.set()

    async def _run(self) -> None:
        try:
            while self._ears:
                error = await self._connect()
                if error is not None:
                    self._fail(error)
                    await sleep(self._outage.failed(error))
        finally:
            self._running = False

    async def _connect(self) -> TorrelqueError | None:
        """Serve the ears over one connection until there are none, or it is lost."""
        self._subscribed.clear()
        error: TorrelqueError | None = None
        try:
            async with self._driver.subscribing() as subscriber, create_task_group() as group:
                group.start_soon(self._receive, subscriber)
                group.start_soon(self._keep_alive, subscriber)
                await self._ask(subscriber)
                group.cancel_scope.cancel()
        except* TorrelqueRedisError as lost:
            error = first_error(lost)
        self._subscribed.clear()
        return error

    def _fail(self, error: TorrelqueError) -> None:
        """Tell everyone; who has no subscription yet may want to give up."""
        for ears in self._ears.values():
            for ear in ears:
                ear.error = error
                ear.tell()

    async def _ask(self, subscriber: Subscriber) -> None:
        """Subscribe to what is wanted and unsubscribe from what is not, until nothing is wanted any more."""
        asked: set[bytes] = set()
        while True:
            self._changed = Event()
            wanted = set(self._ears)
            if not wanted:
                with move_on_after(self._background.linger):
                    await self._changed.wait()
                if not self._ears:
                    await self._hush(subscriber, asked)
                    return
                continue
            if gone := asked - wanted:
                await subscriber.unsubscribe(*gone)
            if new := wanted - asked:
                await subscriber.subscribe(*new)
            asked = wanted
            await self._changed.wait()

    async def _keep_alive(self, subscriber: Subscriber) -> None:
        """Notice a peer that is gone without a word: a subscription alone would wait for it for ever."""
        while True:
            await sleep(PING)
            await subscriber.ping()

    async def _hush(self, subscriber: Subscriber, asked: set[bytes]) -> None:
        """Unsubscribe and wait for the answers, so that nothing is on its way when the connection is closed.

        A read that is cancelled in the very moment of a message makes asyncio complain of AnyIO's unix sockets.
        """
        self._silent = Event()
        await subscriber.unsubscribe(*asked)
        with move_on_after(HUSH):
            await self._silent.wait()

    async def _receive(self, subscriber: Subscriber) -> None:
        while True:
            kind, channel, data = await subscriber.receive()
            if kind == b"subscribe":
                self._outage.worked()
                self._subscribed.add(channel)
                for ear in self._ears.get(channel, ()):
                    ear.error = None
                    ear.tell()
            elif kind == b"unsubscribe":
                self._subscribed.discard(channel)
                if not self._subscribed:
                    self._silent.set()
            elif kind == b"message":
                for ear in self._ears.get(channel, ()):
                    ear.tell(data)
