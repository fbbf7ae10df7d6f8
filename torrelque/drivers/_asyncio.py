"""What is spelled for asyncio because AnyIO's own is too slow for every call of a queue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import TracebackType


class AsyncioSignal(asyncio.Future[None]):
    """A future that its waiter awaits directly, where an event makes one and wraps it in two coroutines."""

    def set(self) -> None:
        if not self.done():
            self.set_result(None)

    def wait(self) -> Awaitable[None]:
        return self


class Deadlines:
    """Ends what takes too long, all of it with one timer: a timeout of asyncio's own costs as much as a request.

    The timer is not moved when something ends, or begins that ends later. When it goes off it sees what is late and
    what comes next.
    """

    def __init__(self) -> None:
        self._running: set[Deadline] = set()
        self._timed: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: When the timer goes off. uvloop's does not tell, where that had passed already.
        self._at = 0.0

    def within(self, seconds: float) -> Deadline:
        """Give the body of a ``with`` so many seconds; late, it is cancelled and leaves with a TimeoutError."""
        return Deadline(self, seconds)

    def begin(self, deadline: Deadline, loop: asyncio.AbstractEventLoop) -> None:
        if self._timed is not loop:
            # There is no timer, or its event loop has ended, and all that ran there with it.
            self._running.clear()
            self._timed = loop
            self._set(deadline.at, loop)
        elif self._timer is not None and deadline.at < self._at:
            self._timer.cancel()
            self._set(deadline.at, loop)
        self._running.add(deadline)

    def end(self, deadline: Deadline) -> None:
        self._running.discard(deadline)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timed is not loop:
            return
        now = loop.time()
        for deadline in [each for each in self._running if each.at <= now]:
            self._running.discard(deadline)
            deadline.pass_by()
        if self._running:
            self._set(min(each.at for each in self._running), loop)
        else:
            self._timed = self._timer = None

    def _set(self, at: float, loop: asyncio.AbstractEventLoop) -> None:
        self._at = at
        self._timer = loop.call_at(at, self._look, loop)


class Deadline:
    """See :meth:`Deadlines.within`. It does what :func:`asyncio.timeout` does."""

    __slots__ = ("_all", "_cancelling", "_passed", "_seconds", "_task", "at")

    def __init__(self, everything: Deadlines, seconds: float) -> None:
        self._all = everything
        self._seconds = seconds
        self._passed = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        loop = task.get_loop()
        self.at = loop.time() + self._seconds
        self._all.begin(self, loop)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._all.end(self)
        # Cancelled by somebody else as well, it is not ours to say that it was late.
        if self._passed and self._task.uncancel() <= self._cancelling and exc_type is asyncio.CancelledError:
            raise TimeoutError(f"no answer within {self._seconds:g} s") from exc

    def pass_by(self) -> None:
        """Cancel the body, once."""
        if not self._passed:
            self._passed = True
            self._task.cancel()
