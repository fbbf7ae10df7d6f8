"""What is spelled for Trio because AnyIO's own is too slow for every call of a queue."""

from __future__ import annotations

from collections.abc import Callable

from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled


class TrioSignal:
    """A parking place for one task."""

    __slots__ = ("_happened", "_waiter")

    def __init__(self) -> None:
        self._happened = False
        self._waiter: Task | None = None

    def set(self) -> None:
        self._happened = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            reschedule(waiter)

    async def wait(self) -> None:
        if not self._happened:
            self._waiter = current_task()
            await wait_task_rescheduled(self._leave)

    def _leave(self, _: Callable[[], None]) -> Abort:
        self._waiter = None
        return Abort.SUCCEEDED
