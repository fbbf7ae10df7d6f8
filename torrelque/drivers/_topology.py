"""Where the primary of a queue is: always at one place, where Sentinel says, or at the owner of a slot of a cluster.

All keys of a queue are in one slot, so there is one such place at a time, and a driver has to know nothing else.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from anyio import Event, create_task_group, current_time, fail_after, move_on_after, sleep
from anyio.abc import TaskGroup

from torrelque.errors import TorrelqueRedisError

from ._wire import ReplyError

T = TypeVar("T")

#: Seconds that a sentinel or a node is given to tell where the primary is, TLS and passwords included: that many
#: handshakes at once have taken more than a second of a busy machine.
PATIENCE = 2.0
#: Those who are asked when the queue is left have so many seconds: nobody waits for their answer any more.
LEAVING = 0.5
#: An answer that has not come after so many seconds may never come: is the primary still there?
LATE_CALL = 1.0
#: The same question for a connection that waits for its own sake. The end of a peer is heard at once, its silence not.
LATE_WAIT = 3.0
#: Of a large cluster so many nodes are asked.
ASKED = 5
SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server listens: a TCP address, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


#: Connects to a place, sends commands and returns their answers, some of which may be a :exc:`ReplyError`.
Ask: TypeAlias = Callable[[Place, Sequence[tuple[bytes, ...]]], Awaitable[list[Any]]]


class Topology:
    """A primary that stays at one place.

    :ivar generation: another number as soon as the primary is known to be elsewhere; connections of an older one are
        stale, even if they work
    """

    moves = False
    cluster = False

    def __init__(self, place: Place | None = None) -> None:
        self.place = place
        self.generation = 0
        #: A key of the queue: all of them are at the same place.
        self.key = b""

    async def locate(self) -> Place:
        """Tell where the primary is, as far as is known.

        :raises ConnectionError: nobody can tell
        """
        assert self.place is not None
        return self.place

    async def reach(self, connect: Callable[[Place], Awaitable[T]]) -> T:
        """Connect to the primary.

        :raises ConnectionError: nobody can tell where it is; what *connect* raises passes through
        """
        return await connect(await self.locate())

    def forget(self) -> None:
        """Ask again before the next use: something was wrong there."""

    def learn(self, place: Place) -> None:
        """Take the word of the server itself: the primary is there."""

    async def left(self, generation: int) -> None:
        """Wait until the primary is known to be elsewhere."""
        raise NotImplementedError


class _Enquiry:
    """What those have said who were asked where the primary is.

    :ivar settled: enough of them have, or all
    """

    def __init__(self, asked: int) -> None:
        self.told: list[tuple[tuple[int, ...], Place]] = []
        self.silent: list[str] = []
        self.settled = Event()
        self.asked = asked
        self.answers = 0
        self._done = 0
        if not asked:
            self.settled.set()

    @property
    def by_most(self) -> bool:
        """Whether more than half of all have answered."""
        return 2 * self.answers > self.asked

    def note_answer(
        self, place: Place, found: tuple[tuple[int, ...], Place] | None, refusals: Sequence[ReplyError]
    ) -> None:
        """Note who has answered: what it knows, or why it may not tell."""
        self.answers += 1
        if found is not None:
            self.told.append(found)
        elif refusals:
            self.silent.append(f"{place}: {refusals[0]}")
        self._note()

    def note_silence(self, place: Place, why: str) -> None:
        """Note who has not answered, or not in words that can be read."""
        self.silent.append(f"{place}: {why}")
        self._note()

    def _note(self) -> None:
        self._done += 1
        if self._done == self.asked or (self.told and self.by_most):
            self.settled.set()


class Searched(Topology):
    """A primary that others know of."""

    moves = True
    question: Sequence[tuple[bytes, ...]]

    def __init__(self, ask: Ask, seeds: Sequence[Place]) -> None:
        super().__init__()
        self._ask = ask
        self._seeds = list(dict.fromkeys(seeds))
        self._sure = False
        #: How recent the knowledge was that was believed last.
        self._rank: tuple[int, ...] = ()
        self._looked = -LATE_WAIT
        self._changed: Event | None = None
        self._asks: TaskGroup | None = None

    async def locate(self) -> Place:
        if self._sure and self.place is not None:
            return self.place
        return await self.look()

    async def reach(self, connect: Callable[[Place], Awaitable[T]]) -> T:
        before = self.generation
        try:
            return await connect(await self.locate())
        except Exception:
            # What was known may have been old: where the primary is elsewhere by now, that is no failure.
            self.forget()
            place = await self.locate()
            if self.generation == before:
                raise
        return await connect(place)

    def forget(self) -> None:
        self._sure = False

    def learn(self, place: Place) -> None:
        self._sure = True
        if place == self.place:
            return
        self.place = place
        self.generation += 1
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()

    async def left(self, generation: int) -> None:
        while self.generation == generation:
            self._changed = self._changed or Event()
            with move_on_after(LATE_WAIT):
                await self._changed.wait()
            if self.generation == generation and current_time() - self._looked >= LATE_WAIT:
                with suppress(ConnectionError):
                    await self.look()

    async def look(self) -> Place:
        """Ask those who know, all at once.

        More than half of them are enough: a new primary is there only after as many have agreed. Who knows of the
        latest change is believed; but where only a few answer, who may be cut off with an earlier primary, not in what
        is older than what was known.

        :raises ConnectionError: nobody can tell
        """
        self._looked = current_time()
        asked = self._whom()
        enquiry = _Enquiry(len(asked))
        async with self._group_of_asks() as group:
            for place in asked:
                group.start_soon(self._inquire, place, enquiry)
            await enquiry.settled.wait()
        if not enquiry.told:
            why = "; ".join(enquiry.silent) or "it is not known"
            raise ConnectionError(f"nobody tells where the primary is ({why})")
        rank, place = max(enquiry.told, key=lambda each: each[0])
        if rank < self._rank and place != self.place and not enquiry.by_most:
            few = f"{enquiry.answers} of {enquiry.asked}"
            raise ConnectionError(f"the primary was elsewhere after it was {place}, of which only {few} tell")
        self._rank = rank if enquiry.by_most else max(rank, self._rank)
        self.learn(place)
        return place

    async def _inquire(self, place: Place, enquiry: _Enquiry) -> None:
        try:
            with fail_after(PATIENCE):
                replies = await self._ask(place, self.question)
            if enquiry.settled.is_set():
                return
            found = self.read(place, replies)
        except (TorrelqueRedisError, OSError, TimeoutError) as error:
            enquiry.note_silence(place, str(error) or type(error).__name__)
        except (ValueError, TypeError, LookupError, AttributeError):
            enquiry.note_silence(place, "its answer cannot be read")
        else:
            refusals = [reply for reply in replies if isinstance(reply, ReplyError)]
            enquiry.note_answer(place, found, refusals)

    @asynccontextmanager
    async def asking(self) -> AsyncGenerator[None]:
        """Let asks run to their end during the body, and a little longer, though nobody waits for the slowest."""
        async with create_task_group() as group:
            self._asks = group
            try:
                yield
            finally:
                self._asks = None
                group.cancel_scope.deadline = current_time() + LEAVING

    @asynccontextmanager
    async def _group_of_asks(self) -> AsyncGenerator[TaskGroup]:
        if self._asks is not None:
            yield self._asks
            return
        async with create_task_group() as group:
            yield group
            group.cancel_scope.cancel()

    def _whom(self) -> list[Place]:
        return self._seeds

    def read(self, asked: Place, replies: list[Any]) -> tuple[tuple[int, ...], Place] | None:
        """Read what was answered to the question: how recent the knowledge is, and the place."""
        raise NotImplementedError


class Sentinel(Searched):
    """The primary that Sentinel looks after under the name of a service."""

    def __init__(self, ask: Ask, sentinels: Sequence[Place], service: str) -> None:
        super().__init__(ask, sentinels)
        name = service.encode()
        # Only the first tells of a failover that is not finished yet, and only the second how recent that is.
        self.question = (
            (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name),
            (b"SENTINEL", b"MASTER", name),
        )

    def read(self, asked: Place, replies: list[Any]) -> tuple[tuple[int, ...], Place] | None:
        address, details = replies
        if not isinstance(address, list) or len(address) != 2:
            return None
        known = dict(zip(details[::2], details[1::2], strict=False)) if isinstance(details, list) else {}
        return (int(known.get(b"config-epoch", 0)),), Place(address[0].decode(), int(address[1]))


class Cluster(Searched):
    """The node of a cluster that owns the slot of a queue."""

    cluster = True
    question = ((b"CLUSTER", b"SLOTS"), (b"CLUSTER", b"INFO"))

    def __init__(self, ask: Ask, seeds: Sequence[Place]) -> None:
        super().__init__(ask, seeds)
        self._nodes: list[Place] = []

    def _whom(self) -> list[Place]:
        # A node that is cut off goes on saying that it is the primary, so that one is asked last.
        nodes = [node for node in self._nodes if node != self.place]
        seeds = [seed for seed in self._seeds if seed not in self._nodes]
        return [*nodes[:ASKED], *seeds[:ASKED]] or [*self._nodes, *self._seeds]

    def read(self, asked: Place, replies: list[Any]) -> tuple[tuple[int, ...], Place] | None:
        ranges, info = replies
        if not isinstance(ranges, list) or not isinstance(info, bytes):
            return None
        facts = dict(line.split(b":", 1) for line in info.split() if b":" in line)
        slot, owner = slot_of(self.key), None
        nodes: list[Place] = []
        for first, last, *servers in ranges:
            # A host that the node does not know of itself is the one under which it was asked.
            places = [Place((host or b"").decode() or asked.host, port) for host, port, *_ in servers if host != b"?"]
            nodes += places
            if first <= slot <= last and places:
                owner = places[0]
        if owner is None:
            return None
        self._nodes = list(dict.fromkeys(nodes))
        return (int(facts.get(b"cluster_state") == b"ok"), int(facts.get(b"cluster_current_epoch", 0))), owner


def slot_of(key: bytes) -> int:
    """Compute the slot of a key, which its part in braces decides if there is one."""
    begin = key.find(b"{")
    end = key.find(b"}", begin + 1) if begin >= 0 else -1
    return crc_hqx(key[begin + 1 : end] if end > begin + 1 else key, 0) % SLOTS


def redirected(error: Exception | ReplyError, asked: Place) -> Place | None:
    """Read where a MOVED or an ASK points to; a node that does not know its own name means the one that was *asked*."""
    words = str(error).split()
    if len(words) < 2:
        return None
    host, colon, port = words[-1].rpartition(":")
    if not colon or not port.isdecimal():
        return None
    return Place(host.strip("[]") if host not in {"", "?"} else asked.host, int(port))


class Watchman:
    """Gives up what waits for a server that is not the primary any more: its peer may be silent, not gone."""

    def __init__(self, topology: Searched) -> None:
        self.topology = topology
        self._waiting: dict[object, tuple[float, int, Callable[[], None]]] = {}
        self._awaited = Event()

    def begin(self, waiting: object, generation: int, give_up: Callable[[], None]) -> None:
        """Watch over something that waits since now, on a connection of *generation*."""
        self._waiting[waiting] = (current_time(), generation, give_up)
        self._awaited.set()

    def end(self, waiting: object) -> None:
        """Let it be."""
        self._waiting.pop(waiting, None)

    async def run(self) -> None:
        """Watch until cancelled; sleeps when nothing waits."""
        while True:
            await self._awaited.wait()
            await sleep(LATE_CALL)
            before = current_time() - LATE_CALL
            if any(since <= before for since, _, _ in self._waiting.values()):
                with suppress(ConnectionError):
                    await self.topology.look()
            # Those who wait now: others have had their answers meanwhile, and must be left alone.
            for waiting, (since, generation, give_up) in list(self._waiting.items()):
                if since <= before and generation != self.topology.generation:
                    self.end(waiting)
                    give_up()
            if not self._waiting:
                self._awaited = Event()


@asynccontextmanager
async def on_watch(watchman: Watchman | None) -> AsyncGenerator[None]:
    """Have a watchman at work during the body, if there is one."""
    if watchman is None:
        yield
        return
    async with watchman.topology.asking(), create_task_group() as group:
        group.start_soon(watchman.run)
        try:
            yield
        finally:
            group.cancel_scope.cancel()
