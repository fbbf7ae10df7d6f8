"""What the jobs need from a library and its event loop.

Every job is written once, against this face, and runs unchanged on our library (``ours.py``: any client, any event
loop) and on the published one (``published.py``: asyncio, without AnyIO). So what is timed is the same on both sides.
Here, and in all that the jobs import, stands only what the published side has too: Python and redis-py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from probe import Probe


class Event(Protocol):
    """An event of the loop."""

    def set(self) -> None: ...
    async def wait(self) -> Any: ...


@dataclass(frozen=True)
class Opened:
    """A client of its own, and a queue on it."""

    client: Any
    queue: Any


class Side(Protocol):
    """A library, with a client, on an event loop."""

    probe: Probe

    def run(self, job: Callable[[], Awaitable[Any]]) -> Any:
        """Run a job on an event loop of its own, so that nothing is awake between two jobs."""

    def open(self) -> AbstractAsyncContextManager[Opened]:
        """Open a client and a queue."""

    async def sleep(self, seconds: float) -> None:
        """Sleep."""

    def event(self) -> Event:
        """Make an event."""

    async def together(self, job: Callable[[Any], Awaitable[Any]], arguments: Iterable[Any]) -> None:
        """Run the job on all arguments, each in a task of its own, to the end."""

    def background(self) -> AbstractAsyncContextManager[Callable[..., Any]]:
        """A scope with a function that starts tasks; they are cancelled at its end."""

    async def enqueue_bulk(self, opened: Opened, tasks: list[Any]) -> None:
        """Enqueue many in the library's fastest way. 0.9: on one pipeline; ours: ``enqueue_many``."""

    async def release_bulk(self, opened: Opened, task_ids: list[str]) -> None:
        """Release many in the library's fastest way. 0.9: on one pipeline; ours: ``release_many``."""

    def pipeline(self, opened: Opened) -> AbstractAsyncContextManager[Any]:
        """A pipeline of the client, in a transaction, executed at the end of the scope."""
