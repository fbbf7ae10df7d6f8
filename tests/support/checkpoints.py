"""Cancels a coroutine at a chosen moment, and sees that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import redis
import trio
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
    #: When the cancellation was asked for, and when the coroutine had ended.
    asked: float = math.nan
    ended: float = math.nan

    def ask(self) -> None:
        """Note the moment."""
        self.reached = True
        self.asked = anyio.current_time()

    @property
    def left(self) -> float:
        """Seconds from the cancellation to the end; 0 when there was none."""
        return self.ended - self.asked if self.reached else 0.0


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

    def cancel() -> None:
        cut.ask()
        scope.cancel()

    with anyio.CancelScope() as scope:
        cut.value = await _drive(act(), at, cancel)
    return _left(cut, scope)


async def deadline_at(act: Act, at: int) -> Cut:
    """Let the deadline of the scope round a coroutine pass at its *at*-th suspension."""
    cut = Cut()

    def pass_() -> None:
        cut.ask()
        # Not over yet: so it is the event loop that finds it so.
        scope.deadline = anyio.current_time() + 1e-5

    with anyio.CancelScope() as scope:
        cut.value = await _drive(act(), at, pass_)
    return _left(cut, scope)


async def scope_after(act: Act, turns: int) -> Cut:
    """Cancel the scope round a coroutine after so many turns of the event loop."""
    cut = Cut()

    async def cancel() -> None:
        for _ in range(turns):
            await checkpoint()
        cut.ask()
        scope.cancel()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(cancel)
            cut.value = await act()
        _left(cut, scope)
        group.cancel_scope.cancel()
    return cut


async def deadline_after(act: Act, seconds: float) -> Cut:
    """Give a coroutine a scope that ends after so many seconds."""
    cut = Cut()
    with anyio.move_on_after(seconds) as scope:
        cut.value = await act()
    cut.reached, cut.asked = scope.cancel_called, scope.deadline
    return _left(cut, scope)


def _left(cut: Cut, scope: anyio.CancelScope | trio.CancelScope) -> Cut:
    cut.ended = anyio.current_time()
    cut.reached, cut.cancelled = scope.cancel_called, scope.cancelled_caught
    return cut


# What AnyIO does not stand between


async def trio_at(act: Act, at: int) -> Cut:
    """Cancel a scope of Trio's own at the *at*-th suspension of a coroutine."""
    cut = Cut()

    def cancel() -> None:
        cut.ask()
        scope.cancel()

    with trio.CancelScope() as scope:
        cut.value = await _drive(act(), at, cancel)
    return _left(cut, scope)


async def task_at(act: Act, at: int) -> Cut:
    """Cancel an asyncio task natively at the *at*-th suspension of its coroutine."""
    cut = Cut()

    def cancel() -> None:
        cut.ask()
        task.cancel()

    async def run() -> Any:
        return await _drive(act(), at, cancel)

    task = asyncio.ensure_future(run())
    return await _outcome(task, cut)


async def task_after(act: Act, turns: int) -> Cut:
    """Cancel an asyncio task natively after so many turns of the event loop."""

    async def run() -> Any:
        return await act()

    cut = Cut()
    task = asyncio.ensure_future(run())
    for _ in range(turns):
        await asyncio.sleep(0)
    cut.asked = anyio.current_time()
    cut.reached = task.cancel()
    return await _outcome(task, cut)


async def _outcome(task: asyncio.Task[Any], cut: Cut) -> Cut:
    await asyncio.wait([task])
    cut.ended = anyio.current_time()
    cut.cancelled = task.cancelled()
    # A native cancellation is said once only: who swallows it, has lost it.
    assert cut.cancelled == cut.reached, "a cancellation was swallowed"
    cut.value = None if cut.cancelled else task.result()
    return cut


async def timeout_at(act: Act, at: int) -> Cut:
    """Let an ``asyncio.timeout()`` round a coroutine run out at its *at*-th suspension."""
    cut = Cut()

    def pass_() -> None:
        cut.ask()
        limit.reschedule(anyio.current_time())

    limit = asyncio.timeout(None)
    return await _limited(_drive(act(), at, pass_), limit, cut)


async def timeout_after(act: Act, seconds: float) -> Cut:
    """Give a coroutine an ``asyncio.timeout()`` of so many seconds."""
    cut = Cut(asked=anyio.current_time() + seconds)
    return await _limited(act(), asyncio.timeout(seconds), cut)


async def _limited(awaitable: Awaitable[Any], limit: asyncio.Timeout, cut: Cut) -> Cut:
    try:
        async with limit:
            cut.value = await awaitable
    except TimeoutError:
        cut.cancelled = True
    cut.ended = anyio.current_time()
    cut.reached = limit.expired()
    assert cut.cancelled == cut.reached, "a cancellation was swallowed"
    return cut


@dataclass(frozen=True)
class Way:
    """A way to cancel on an event loop."""

    #: ``scope``, ``native`` or ``deadline``
    kind: str
    cut: Callable[[Act, int], Awaitable[Cut]]
    #: The moments to try, until one comes too late.
    moments: tuple[int, ...]
    #: Whether a moment is a suspension of the coroutine, or else a turn of the event loop.
    suspends: bool


#: Each suspension: more than any call has, but for those that go on for ever.
SUSPENSIONS = tuple(range(1, 100))
#: The turns after which to cancel: each of the first ones, then some of the many for which a call waits for Redis.
TURNS = (*range(12), 16, 24, 36, 54, 81)


def ways(backend: str) -> list[Way]:
    """All ways to cancel on an event loop."""
    common = [
        Way("scope", scope_at, SUSPENSIONS, True),
        Way("scope", scope_after, TURNS, False),
        Way("deadline", deadline_at, SUSPENSIONS, True),
    ]
    if backend == "trio":
        return [*common, Way("native", trio_at, SUSPENSIONS, True)]
    return [
        *common,
        Way("native", task_at, SUSPENSIONS, True),
        Way("native", task_after, TURNS, False),
        Way("deadline", timeout_at, SUSPENSIONS, True),
    ]


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Poll until *condition* gives something true, and return that."""
    with anyio.fail_after(seconds):
        while not (found := condition()):
            await anyio.sleep(0.002)
        return found


def _files() -> int:
    """Count open files, pipes and sockets; uvloop opens one /dev/null for itself when it pleases."""
    count = 0
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the listing itself
            count += os.readlink(f"/dev/fd/{name}") != os.devnull
    return count


@asynccontextmanager
async def no_leaks(admin: redis.Redis, backend: str) -> AsyncGenerator[None]:
    """See that after the body there are as many connections, tasks and open files as there were before."""

    def tasks() -> int:
        return len(asyncio.all_tasks()) if backend == "asyncio" else trio.lowlevel.current_statistics().tasks_living

    def count() -> tuple[int, int, int]:
        return len(admin.client_list()), tasks(), _files()

    before = count()
    yield
    with anyio.move_on_after(5):
        await until(lambda: count() == before, math.inf)
    assert count() == before, "(connections, tasks, files) were left behind"
