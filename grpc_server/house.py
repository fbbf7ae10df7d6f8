"""What all calls share while a server runs, and what one call is given of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from anyio.abc import TaskGroup

from torrelque import Torrelque

from .auth import Authority
from .limits import Limits
from .metrics import Metrics
from .queues import Entry, Queues
from .settings import Settings

logger = logging.getLogger("torrelque.server")


class Drain:
    """Tells everybody who waits or streams that the server stops."""

    def __init__(self) -> None:
        self.begun = False
        self._listeners: set[Callable[[], None]] = set()

    @contextmanager
    def told(self, listener: Callable[[], None]) -> Iterator[None]:
        """Have *listener* called when the server stops, also when that was before."""
        self._listeners.add(listener)
        try:
            if self.begun:
                listener()
            yield
        finally:
            self._listeners.discard(listener)

    def begin(self) -> None:
        """Tell all."""
        self.begun = True
        for listener in list(self._listeners):
            listener()


@dataclass(frozen=True, slots=True)
class House:
    """The parts of a running server."""

    settings: Settings
    queues: Queues
    limits: Limits
    authority: Authority
    metrics: Metrics
    drain: Drain
    group: TaskGroup
    instance: str
    """Names this process to clients."""

    def own(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        """Finish *work* whatever becomes of the call that asked for it; the server's end waits for it."""

        async def run() -> None:
            try:
                await work()
            except Exception:
                logger.warning("%s has failed: tasks come back when their leases end", what, exc_info=True)

        self.group.start_soon(run)


@dataclass(frozen=True, slots=True)
class Visit:
    """One call that was let in."""

    house: House
    context: Any
    """The ServicerContext of grpc.aio."""
    entry: Entry
    queue_name: str

    @property
    def queue(self) -> Torrelque:
        return self.entry.queue

    @property
    def settings(self) -> Settings:
        return self.house.settings
