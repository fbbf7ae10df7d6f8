"""What is spelled for asyncio because AnyIO's own is too slow for every call of a queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


class AsyncioSignal(asyncio.Future[None]):
    """A future that its waiter awaits directly, where an event makes one and wraps it in two coroutines."""

    def set(self) -> None:
        if not self.done():
            self.set_result(None)

    def wait(self) -> Awaitable[None]:
        return self
