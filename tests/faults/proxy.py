"""A proxy that breaks what passes through it, where it is told to: for every fault of a network between two programs.

It stands before a TCP or unix address and runs in a thread of its own, so that tests of any kind can use it::

    with faulty(("127.0.0.1", 6379)) as proxy:
        rule = proxy.set(Rule(Cut(), DOWN, 7))  # seven more bytes of answers pass, then the connection is cut
        ...  # connect to proxy.port
        assert rule.hits == 1
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

#: Directions: what clients ask, and what the server answers.
UP, DOWN = "up", "down"

#: Host and port, or the path of a unix socket.
Address: TypeAlias = tuple[str, int] | Path

_CHUNK = 1 << 16


class Finder(Protocol):
    """Looks through the bytes of a direction for the place where something is to happen."""

    def find(self, data: bytes) -> int | None:
        """Tell how many of these bytes come before it; ``None``: not here, and what follows is asked about next."""
        ...


class Offset:
    """The place after so many bytes."""

    def __init__(self, left: int) -> None:
        self._left = left

    def find(self, data: bytes) -> int | None:
        if self._left < len(data):
            return self._left
        self._left -= len(data)
        return None


class Http2Frame:
    """The beginning of the first HTTP/2 frame of a kind, in what a server says; 1 are the headers of an answer."""

    def __init__(self, kind: int = 1) -> None:
        self._kind = kind
        self._header = b""
        self._body = 0

    def find(self, data: bytes) -> int | None:
        at = 0
        while at < len(data):
            if self._body:
                passed = min(self._body, len(data) - at)
                self._body -= passed
                at += passed
                continue
            # A header that came in two pieces is found at the beginning of the second.
            begun = at if not self._header else 0
            part = data[at : at + 9 - len(self._header)]
            self._header += part
            at += len(part)
            if len(self._header) == 9:
                if self._header[3] == self._kind:
                    return begun
                self._body = int.from_bytes(self._header[:3])
                self._header = b""
        return None


class Link:
    """One connection through the proxy: the client's socket and the server's."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends = {UP: (client, server), DOWN: (server, client)}
        self._hung_up = select.poll()
        self.tasks: list[asyncio.Task[None]] = []
        for end in self._ends[UP]:
            end.setblocking(False)
            if end.family == socket.AF_INET:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def connect(self, server: Address) -> None:
        end = self._ends[UP][1]
        await self._loop.sock_connect(end, str(server) if isinstance(server, Path) else server)
        for each in self._ends[UP]:
            self._hung_up.register(each, select.POLLRDHUP)

    async def receive(self, direction: str) -> bytes:
        return await self._loop.sock_recv(self._ends[direction][0], _CHUNK)

    async def send(self, direction: str, data: bytes) -> None:
        await self._loop.sock_sendall(self._ends[direction][1], data)

    @property
    def left(self) -> bool:
        """Whether one of the two has hung up, read or not."""
        return bool(self._hung_up.poll(0))

    def end(self, direction: str) -> None:
        """Say that nothing more comes in this direction."""
        with contextlib.suppress(OSError):
            self._ends[direction][1].shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        for end in self._ends[UP]:
            if end.fileno() < 0:
                continue
            # The loop must not go on with a number that soon is another socket's.
            self._loop.remove_reader(end)
            self._loop.remove_writer(end)
            with contextlib.suppress(OSError):
                if reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    end.shutdown(socket.SHUT_RDWR)
            end.close()
        for task in self.tasks:
            if task is not asyncio.current_task(self._loop):
                task.cancel()


class Ended(Exception):
    """Nothing more passes in this direction."""


class Fault(Protocol):
    """What happens at a place; *rest* are the bytes at hand from there on, of which it returns what passes normally."""

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes: ...


@dataclass(frozen=True)
class Cut:
    """Both connections are closed; bytes that were received before are still delivered."""

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes:
        link.close()
        raise Ended


@dataclass(frozen=True)
class Reset:
    """Both connections are closed with RST."""

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes:
        link.close(reset=True)
        raise Ended


@dataclass(frozen=True)
class HalfClose:
    """This direction ends; the other one goes on."""

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes:
        link.end(direction)
        return await Swallow().strike(link, direction, rest)


@dataclass(frozen=True)
class Stall:
    """Nothing moves any more in this direction: not even received, so that the sender's buffers fill up.

    After *seconds*, if given, all of it passes after all; else it lasts until one of the two hangs up.
    """

    seconds: float | None = None

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes:
        until = math.inf if self.seconds is None else time.monotonic() + self.seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.02))
            if link.left:
                link.close()
                raise Ended
        return rest


@dataclass(frozen=True)
class Swallow:
    """What comes in this direction disappears, from here on."""

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes:
        while await link.receive(direction):
            pass
        raise Ended


@dataclass(frozen=True)
class Delay:
    """Each piece takes so many seconds longer, from here on."""

    seconds: float

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes:
        while rest:
            await asyncio.sleep(self.seconds)
            await link.send(direction, rest)
            rest = await link.receive(direction)
        raise Ended


@dataclass(frozen=True)
class Trickle:
    """Bytes come one by one, so many seconds apart, from here on."""

    seconds: float = 0.0

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes:
        while rest:
            for i in range(len(rest)):
                await link.send(direction, rest[i : i + 1])
                await asyncio.sleep(self.seconds)
            rest = await link.receive(direction)
        raise Ended


@dataclass(frozen=True)
class Duplicate:
    """The bytes at hand come twice."""

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes:
        await link.send(direction, rest)
        return rest


@dataclass(frozen=True)
class Flip:
    """One bit of one byte is wrong."""

    bit: int = 0

    async def strike(self, link: Link, direction: str, rest: bytes) -> bytes:
        return bytes([rest[0] ^ (1 << self.bit)]) + rest[1:]


@dataclass(eq=False)
class Rule:
    """What happens where.

    :ivar at: after how many bytes of this direction, or a maker of finders
    :ivar span: the place is drawn anew each time, up to so many bytes later
    :ivar each: counted on each new connection from its beginning; else over all connections, from when it was set
    :ivar times: how often at most; without limit if ``None``
    :ivar hits: how often it happened
    """

    fault: Fault
    direction: str
    at: int | Callable[[], Finder] = 0
    span: int = 0
    each: bool = False
    times: int | None = 1
    hits: int = 0
    _finders: dict[Link | None, Finder | None] = field(default_factory=dict)

    def finder(self, link: Link, rng: random.Random) -> Finder | None:
        """Find the finder; ``None`` when nothing is to happen (any more)."""
        if self.times is not None and self.hits >= self.times:
            return None
        key = link if self.each else None
        if key not in self._finders:
            self._finders[key] = Offset(self.at + rng.randint(0, self.span)) if isinstance(self.at, int) else self.at()
        return self._finders[key]

    def hit(self, link: Link) -> None:
        """Note that it has happened; on this connection it does not again, unless it counts over all of them."""
        self.hits += 1
        if self.each:
            self._finders[link] = None
        else:
            self._finders.clear()


class FaultProxy:
    """See :func:`faulty`.

    :ivar counts: faults by name, connections made, and bytes that have come by direction
    :ivar deaf: connections are taken and nothing is ever said or heard on them
    """

    def __init__(self, server: Address, seed: int = 0, listen: Path | None = None) -> None:
        self._server = server
        self._listener = socket.socket(socket.AF_INET if listen is None else socket.AF_UNIX)
        self._listener.bind(("127.0.0.1", 0) if listen is None else str(listen))
        self._listener.listen(1024)
        self._listener.setblocking(False)
        self._rng = random.Random(seed)
        self._rules: list[Rule] = []
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._mute: list[socket.socket] = []
        self.counts: Counter[str] = Counter()
        self.deaf = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def set(self, rule: Rule, *more: Rule) -> Rule:
        """Have these happen, and none that were set before; returns the first."""
        self._rules = [rule, *more]
        return rule

    def clear(self) -> None:
        """Let everything pass from now on, but for what has been stalled or swallowed; then no rule is hit any more."""
        self._call(self._rules.clear)

    def reset(self) -> None:
        """Close all connections with RST, those that stand still too."""
        self._call(self._reset)

    def close(self) -> None:
        self._call(self._stop)
        self._thread.join()

    def _call(self, function: Callable[[], None]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (function(), done.set()))
        done.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        self._listener.close()
        self._loop.close()

    def _stop(self) -> None:
        self._accepting.cancel()
        self._reset()
        self._loop.call_later(0.01 if self._links else 0, self._loop.stop)  # what was cancelled ends first

    def _reset(self) -> None:
        for link, serving in list(self._links.items()):
            link.close(reset=True)
            serving.cancel()
        for each in self._mute:
            each.close()
        self._mute.clear()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            self.counts["connections"] += 1
            if self.deaf:
                self._mute.append(client)
                continue
            link = Link(client, socket.socket(socket.AF_UNIX if isinstance(self._server, Path) else socket.AF_INET))
            self._links[link] = self._loop.create_task(self._serve(link))

    async def _serve(self, link: Link) -> None:
        try:
            await link.connect(self._server)
            link.tasks = [self._loop.create_task(self._pump(link, direction)) for direction in (UP, DOWN)]
            await asyncio.wait(link.tasks)
        except OSError:
            self.counts["refused"] += 1
        finally:
            link.close()
            self._links.pop(link, None)

    async def _pump(self, link: Link, direction: str) -> None:
        with contextlib.suppress(OSError, Ended):
            while data := await link.receive(direction):
                self.counts[direction] += len(data)
                await self._pass(link, direction, data)
            link.end(direction)

    async def _pass(self, link: Link, direction: str, data: bytes) -> None:
        passed = 0
        for at, rule in self._places(link, direction, data):
            rule.hit(link)  # before anything else can happen: who clears the rules then knows
            await link.send(direction, data[passed:at])
            self.counts[type(rule.fault).__name__] += 1
            data, passed = data[:at] + await rule.fault.strike(link, direction, data[at:]), at
        await link.send(direction, data[passed:])

    def _places(self, link: Link, direction: str, data: bytes) -> list[tuple[int, Rule]]:
        """Find where in these bytes something is to happen; each rule sees every piece once."""
        finders = [(rule, rule.finder(link, self._rng)) for rule in self._rules if rule.direction == direction]
        places = [(finder.find(data), rule) for rule, finder in finders if finder is not None]
        return sorted([(at, rule) for at, rule in places if at is not None], key=lambda place: place[0])


@contextlib.contextmanager
def faulty(server: Address, *rules: Rule, seed: int = 0, listen: Path | None = None) -> Iterator[FaultProxy]:
    """Run a proxy before *server*.

    :param rules: what happens from the beginning
    :param seed: decides what rules draw by chance
    :param listen: path of a unix socket to listen on; else a free TCP port of 127.0.0.1
    """
    proxy = FaultProxy(server, seed, listen)
    if rules:
        proxy.set(*rules)
    try:
        yield proxy
    finally:
        proxy.close()
