"""Cancels a coroutine at a chosen moment, and sees that nothing is left behind."""

from __future__ import annotations

import asyncio
import math
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import redis
from anyio.lowlevel import checkpoint

Act = Callable[[], Awaitable[Any]]


@dataclass
class Cut:
    """What became of a coroutine that was to be cancelled."""

    #: It lived to the moment at which it was cancelled.
    reached: bool = False
    #: It ended by the cancellation; otherwise it has returned *value*.
    cancelled: bool = False
    value: Any = None
    #: When the cancellation was asked for, where it is after a number of turns.
    asked: float = math.nan


@types.coroutine
def _drive(awaitable: Awaitable[Any], at: int, cancel: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Await something, and call *cancel* when it is suspended for the *at*-th time, before the event loop knows."""
    steps = awaitable.__await__()
    resume: Callable[[], Any] = lambda: next(steps)  # noqa: E731  a name for the next step, not a function of its own
    count = 0
    while True:
        try:
            trap = resume()
        except StopIteration as end:
            return end.value
        count += 1
        if count == at:
            cancel()
        try:
            sent = yield trap
        except BaseException as error:
            resume = lambda error=error: steps.throw(error)  # noqa: E731  a name for the next step, not a function of its own
        else:
            resume = lambda sent=sent: steps.send(sent)  # noqa: E731  a name for the next step, not a function of its own


async def scope_at(act: Act, at: int) -> Cut:
    """Cancel the scope round a coroutine at its *at*-th suspension."""
    cut = Cut()
    with anyio.CancelScope() as scope:
        cut.value = await _drive(act(), at, scope.cancel)
    cut.reached, cut.cancelled = scope.cancel_called, scope.cancelled_caught
    return cut


async def scope_after(act: Act, turns: int) -> Cut:
    """Cancel the scope round a coroutine after so many turns of the event loop."""
    cut = Cut()

    async def cancel() -> None:
        for _ in range(turns):
            await checkpoint()
        cut.asked = anyio.current_time()
        scope.cancel()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(cancel)
            cut.value = await act()
        cut.reached, cut.cancelled = scope.cancel_called, scope.cancelled_caught
        group.cancel_scope.cancel()
    return cut


async def task_at(act: Act, at: int) -> Cut:
    """Cancel an asyncio task natively at the *at*-th suspension of its coroutine."""
    cut = Cut()

    def cancel() -> None:
        cut.reached = True
        task.cancel()

    async def run() -> Any:
        return await _drive(act(), at, cancel)

    task = asyncio.ensure_future(run())
    return await _outcome(task, cut)


async def task_after(act: Act, turns: int) -> Cut:
    """Cancel an asyncio task natively after so many turns of the event loop."""

    async def run() -> Any:
        return await act()

    task = asyncio.ensure_future(run())
    for _ in range(turns):
        await asyncio.sleep(0)
    return await _outcome(task, Cut(reached=task.cancel(), asked=anyio.current_time()))


async def _outcome(task: asyncio.Task[Any], cut: Cut) -> Cut:
    await asyncio.wait([task])
    cut.cancelled = task.cancelled()
    # A native cancellation is said once only: who swallows it, has lost it.
    assert cut.cancelled == cut.reached, "a cancellation was swallowed"
    cut.value = None if cut.cancelled else task.result()
    return cut


#: The turns after which to cancel: each of the first ones, then some of the many for which a call waits for Redis.
TURNS = (*range(12), 16, 24, 36, 54, 81)


def cutters(backend: str) -> list[tuple[Callable[[Act, int], Awaitable[Cut]], tuple[int, ...]]]:
    """All ways to cancel on an event loop, each with the moments to try, until one comes too late."""
    scoped = [(scope_at, tuple(range(1, 100))), (scope_after, TURNS)]
    native = [(task_at, tuple(range(1, 100))), (task_after, TURNS)]
    return scoped + (native if backend == "asyncio" else [])


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Poll until *condition* gives something true, and return that."""
    with anyio.fail_after(seconds):
        while not (found := condition()):
            await anyio.sleep(0.002)
        return found


@asynccontextmanager
async def no_leaks(admin: redis.Redis, backend: str) -> AsyncGenerator[None]:
    """See that after the body there are as many connections, and on asyncio tasks, as there were before."""

    def count() -> tuple[int, int]:
        tasks = len(asyncio.all_tasks()) if backend == "asyncio" else 0
        return len(admin.client_list()), tasks

    before = count()
    yield
    await until(lambda: count() == before, 5)
