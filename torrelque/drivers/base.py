"""What the rest of the library asks of a client; the queue's words are not known here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from torrelque.calls import Assurance, Call, Reply

#: Seconds after which an answer that has not come is given up, and the connection with it: the peer is gone, or
#: stands still for so long that leases end.
ANSWER_TIMEOUT = 15.0
#: The same for a connection that waits in Redis, counted from the end of the wait.
LATE = 5.0
#: So many connections are kept for what does not block: two for claims, and two for everything else.
LANES = 4
#: A connection used this recently, in seconds, needs no check before it is used again.
HOT = 1.0


class Signal(Protocol):
    """Lets one task wait for one thing, once: what an event does for many tasks, and several times as cheap."""

    def set(self) -> None:
        """Say that it has happened; harmless when said before, or when nobody waits."""
        ...

    def wait(self) -> Awaitable[Any]:
        """Wait until it has happened; awaited at most once. It may be no checkpoint if that is so already."""
        ...


class Blocker(Protocol):
    """A connection of its own that waits in Redis for an id."""

    async def move(self, source: bytes, destination: bytes, timeout: float) -> bytes | None:
        """Move the next id from one list to the other, waiting up to *timeout* seconds; ``None`` if none came."""
        ...

    async def unblock(self) -> None:
        """End a :meth:`move` under way, from another connection; harmless when there is none."""
        ...


class Subscriber(Protocol):
    """A connection of its own that receives messages."""

    async def subscribe(self, *channels: bytes) -> None:
        """Ask for the messages of *channels*; each is confirmed by ``receive``."""
        ...

    async def unsubscribe(self, *channels: bytes) -> None: ...

    async def ping(self) -> None:
        """Make sure that the other end is there, while ``receive`` waits in another task.

        :raises TorrelqueUnavailableError: no answer came in time
        """
        ...

    async def receive(self) -> tuple[bytes, bytes, bytes | None]:
        """Wait for the next message: kind (``subscribe``, ``message``, ...), channel, data."""
        ...


class Driver(Protocol):
    """One client library. Its errors leave as this library's own, the original kept as the cause."""

    #: Number of the database, for the names of keyspace channels.
    db: int
    #: A client of a cluster keeps a queue in one slot.
    cluster: bool

    def serve(self, key: bytes, assurance: Assurance | None = None) -> None:
        """Be told a key of the queue (in a cluster all of them are where this one is), and what its writes wait for."""
        ...

    def signal(self) -> Signal:
        """Make a signal for a task of the running event loop."""
        ...

    def now(self) -> float:
        """Read the clock of the running event loop, seconds."""
        ...

    async def execute(self, calls: Sequence[Call[Any]], *, apart: bool = False) -> list[Reply | Exception]:
        """Run each call's script, all in one round trip; one answer or error for each call.

        What was applied, but lacks what the writes of the queue wait for, is a :exc:`TorrelqueNotDurableError`.

        :param apart: over a new connection, whatever became of those that there are, and of their answers
        :raises TorrelqueUnavailableError: nothing was applied
        :raises TorrelqueUnknownOutcomeError: the connection was lost, each may have been applied or not
        """
        ...

    async def config_get(self, name: str) -> str | None:
        """Read a setting of the server; ``None`` where the server does not tell."""
        ...

    async def info(self) -> str | None:
        """Read what the server tells of itself; ``None`` where it does not."""
        ...

    def stage(self, call: Call[Any], pipeline: Any) -> None:
        """Queue the call's script on the user's own pipeline; nothing is sent."""
        ...

    def blocking(self) -> AbstractAsyncContextManager[Blocker]: ...

    def subscribing(self) -> AbstractAsyncContextManager[Subscriber]: ...

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Check that the client can be used here and open what the driver itself owns."""
        ...

    def spawn_detached(self, function: Callable[[], Awaitable[None]], forsaken: Callable[[], None]) -> None:
        """Run *function* in a task that nobody but the event loop owns, for a queue that was not entered.

        It begins later, never at once: who asks for it may not have said yet what there is to do.

        :param forsaken: called in its place when the task is cancelled before it begins
        :raises TorrelqueError: this client or event loop cannot
        """
        ...
