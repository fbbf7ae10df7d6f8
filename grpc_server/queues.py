"""The queues in use: each is entered when it is first asked for, in a task of its own, and left when it is idle."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, Protocol, Self

import anyio
from anyio.abc import TaskGroup

from torrelque import Torrelque, TorrelqueDurability, TorrelqueTaskSerialiser

from .errors import Refused, StatusCode, too_many
from .settings import SEVERAL, Settings

logger = logging.getLogger("torrelque.server")

#: A queue that nobody has used for so many seconds is left.
IDLE = 300.0
#: So many connections a queue takes at the most, and so many are for everything else.
_EACH, _OTHERS = 8, 16


def _as_it_is(body: bytes | str) -> bytes:
    return json.dumps(body).encode() if isinstance(body, str) else body


#: Bytes stay as they are: what a payload is, is for clients to know. The library's own words, why it gave a task up,
#: become JSON.
AS_THEY_ARE = TorrelqueTaskSerialiser(_as_it_is, lambda body: body)


class Entry:
    """A queue in use."""

    __slots__ = ("_end", "pinned", "queue", "ready", "used_at", "users")

    def __init__(self, queue: Torrelque) -> None:
        self.queue = queue
        self.ready = anyio.Event()
        self.users = 0
        self.used_at = 0.0
        #: Somebody has scheduled its sweep.
        self.pinned = False
        self._end = anyio.Event()

    def __enter__(self) -> Self:
        """Hold the queue in use."""
        self.users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.users -= 1
        self.used_at = time.monotonic()

    def end(self) -> None:
        self._end.set()

    async def ended(self) -> None:
        await self._end.wait()

    @property
    def idle_since(self) -> float | None:
        return None if self.users or self.pinned or not self.ready.is_set() else self.used_at


class Queues:
    """Hands out entered queues by name. Whether the caller may use one is not for this to say.

    The default queue is never left, and holds none of the places that there are for others.
    """

    def __init__(self, storage: Storage, settings: Settings, group: TaskGroup) -> None:
        self._storage = storage
        self._settings = settings
        self._group = group
        self._entries: dict[str, Entry] = {}
        #: How many tasks the queues that were left have given up, and the queues that may give up more. Replaced as a
        #: whole, for the thread that counts must see a queue on one side.
        self._tally: tuple[int, tuple[Torrelque, ...]] = (0, ())

    @property
    def given_up(self) -> int:
        """How many tasks were delivered as often as they may be, and ended when they were asked for once more here."""
        before, counting = self._tally
        return before + sum(queue.given_up for queue in counting)

    @property
    def names(self) -> list[str]:
        """Which queues are in use."""
        return list(self._entries)

    def check_served(self, name: str) -> None:
        """Refuse a queue that this server does not serve."""
        if name not in self._entries and not self._settings.serves(name):  # what is in use was seen to be served
            raise Refused(StatusCode.NOT_FOUND, "QUEUE_UNKNOWN", "this queue is not served here", {"queue": name})

    async def entry(self, name: str) -> Entry:
        """Find a queue, or enter it now."""
        entry = self._entries.get(name)
        if entry is None:
            if name != self._settings.default_queue:
                self._make_room()
            entry = self._entries[name] = Entry(self._build(name))
            self._group.start_soon(self._keep, name, entry)
        if not entry.ready.is_set():
            with entry:
                await entry.ready.wait()
        return entry

    def _build(self, name: str) -> Torrelque:
        queue = self._storage.queue(name)
        queue.task_timeout = self._settings.task_timeout
        queue.result_ttl = self._settings.result_ttl
        queue.sweep_interval = self._settings.sweep_interval
        queue.linger = self._settings.linger
        queue.max_attempts = self._settings.max_attempts or None
        queue.dead_letter = self._settings.dead_letter
        return queue

    async def _keep(self, name: str, entry: Entry) -> None:
        before, counting = self._tally
        self._tally = before, (*counting, entry.queue)
        try:
            async with entry.queue as queue:
                if self._settings.sweep:
                    queue.schedule_sweep()
                entry.used_at = time.monotonic()
                entry.ready.set()
                await entry.ended()
        except Exception:
            # One queue that fails is no reason to end the others: who asks for it next gets a fresh one.
            logger.exception("A queue has failed and is left")
        finally:
            before, counting = self._tally
            self._tally = before + entry.queue.given_up, tuple(queue for queue in counting if queue is not entry.queue)
            entry.ready.set()
            if self._entries.get(name) is entry:
                del self._entries[name]

    def _make_room(self) -> None:
        others = [(name, entry) for name, entry in self._entries.items() if name != self._settings.default_queue]
        if len(others) < self._settings.max_queues:
            return
        idle = [(since, name) for name, entry in others if (since := entry.idle_since) is not None]
        if not idle:
            raise too_many("queues in use")
        self._leave(min(idle)[1])

    def _leave(self, name: str) -> None:
        self._entries.pop(name).end()

    async def run_leaving(self) -> None:
        """Leave queues that are idle, until cancelled."""
        while True:
            await anyio.sleep(IDLE / 4)
            before = time.monotonic() - IDLE
            for name, entry in list(self._entries.items()):
                since = entry.idle_since
                if since is not None and since < before and name != self._settings.default_queue:
                    self._leave(name)

    def close(self) -> None:
        """Leave all queues; the group ends when that is done."""
        for name in list(self._entries):
            self._leave(name)


class Storage(Protocol):
    """Where all queues of a server are."""

    def queue(self, name: str) -> Torrelque:
        """Make a queue, not entered yet."""
        ...

    async def ping(self) -> object:
        """Ask whether it serves."""
        ...


class _One:
    """One Redis, over connections of one client that all queues share."""

    def __init__(self, client: Any, durability: TorrelqueDurability) -> None:
        self._client = client
        self._durability = durability
        self.ping = client.ping

    def queue(self, name: str) -> Torrelque:
        return Torrelque(self._client, queue=name, serialiser=AS_THEY_ARE, durability=self._durability)


class _Several:
    """A Redis that moves: each queue finds its primary, and has connections of its own."""

    def __init__(self, url: str, durability: TorrelqueDurability, probe: Torrelque) -> None:
        self._url = url
        self._durability = durability
        self.ping = probe.get_queue_stats

    def queue(self, name: str) -> Torrelque:
        return Torrelque.from_url(self._url, queue=name, serialiser=AS_THEY_ARE, durability=self._durability)


@contextlib.asynccontextmanager
async def open_storage(url: str, settings: Settings) -> AsyncIterator[Storage]:
    """Open what all queues share; a number of connections in the URL goes before ours."""
    if url.startswith(SEVERAL):
        async with Torrelque.from_url(url, queue=settings.default_queue) as probe:
            yield _Several(url, settings.durable, probe)
        return
    from redis.asyncio import Redis

    connections = _OTHERS + _EACH * (1 + settings.max_queues)
    client = Redis.from_url(url, socket_connect_timeout=5, max_connections=connections)
    try:
        yield _One(client, settings.durable)
    finally:
        await client.aclose()
