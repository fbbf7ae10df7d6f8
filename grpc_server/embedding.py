"""A server inside of a program, on asyncio or on Trio: its life is that of the caller's task group.

grpc.aio knows asyncio only. On Trio it gets an event loop of its own in a thread of its own, with its own connections:
what both share is in Redis, so no call has to cross between the loops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.abc import TaskStatus

from .lifecycle import Running, opened
from .settings import Settings

logger = logging.getLogger("torrelque.server")


class _Stop:
    """Ends the server from another task, or another thread."""

    def __init__(self) -> None:
        self._asked = False
        self._wake: Callable[[], object] | None = None

    def ask(self) -> None:
        self._asked = True
        if self._wake is not None:
            with contextlib.suppress(RuntimeError):  # its event loop has ended
                self._wake()

    async def wait(self) -> None:
        """Wait until asked; called on the server's own event loop."""
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(asked.set)
        if not self._asked:
            await asked.wait()


async def serve(settings: Settings, *, task_status: TaskStatus[Running] = anyio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled, then drain: ``running = await group.start(serve, settings)``.

    Works in a task group of AnyIO or asyncio and in a Trio nursery. Take care to run one server for each process:
    several event loops that use grpc.aio disturb each other.

    :param settings: what to serve, and where
    :param task_status: given the :class:`Running` server once its ports are bound
    :raises SettingsError: it cannot listen, or a file cannot be used
    """
    stop, ready = _Stop(), anyio.Event()
    outcome: list[Running] = []

    def tell(running: Running) -> None:
        outcome.append(running)
        ready.set()

    async def host() -> None:
        # Cancelling is asking it to stop: it then drains, within its grace.
        with anyio.CancelScope(shield=True):
            if _on_asyncio():
                await _serve_here(settings, stop, tell)
            else:
                limiter = anyio.CapacityLimiter(1)
                await anyio.to_thread.run_sync(_serve_in_thread, settings, stop, tell, limiter=limiter)

    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(host)
            try:
                await ready.wait()
                task_status.started(outcome[0])
                await anyio.sleep_forever()
            finally:
                stop.ask()
    except BaseExceptionGroup as errors:
        failure = errors
        # One error leaves as it came, also out of the groups inside of the server.
        while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
    if failure is not None:
        raise failure


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _serve_here(settings: Settings, stop: _Stop, tell: Callable[[Running], None]) -> None:
    async with opened(settings) as running:
        tell(running)
        await stop.wait()


def _serve_in_thread(settings: Settings, stop: _Stop, tell: Callable[[Running], None]) -> None:
    def tell_across(running: Running) -> None:
        anyio.from_thread.run_sync(tell, running)

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve_here(settings, stop, tell_across))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Prefer uvloop, where it is installed: a fifth more unary calls, twice the messages of streams."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@asynccontextmanager
async def running(settings: Settings | None = None) -> AsyncGenerator[Running]:
    """Serve as long as the scope lasts: ``async with running(Settings(...)) as server: ...``.

    :param settings: what to serve, and where; the defaults of :class:`Settings` without
    :returns: the :class:`Running` server, with the addresses that were bound
    :raises SettingsError: it cannot listen, or a file cannot be used
    """
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            server = await group.start(serve, settings or Settings())
            try:
                yield server
            finally:
                group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        # The same; a group that the body has raised is one error here.
        failure = errors.exceptions[0] if len(errors.exceptions) == 1 else errors
    if failure is not None:
        raise failure
