"""Where a queue's own tasks run: in its task group when entered, else in tasks that the event loop owns.

Work starts when there is some. In an entered queue its task then stays, asleep, until the queue is left; a queue
that was not entered leaves nothing behind once its calls are done.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import CancelScope, Event, move_on_after
from anyio.abc import TaskGroup

from .drivers import Driver, Signal
from .errors import TorrelqueClosedError

R = TypeVar("R")

logger = logging.getLogger("torrelque")

#: Seconds for which the connections of an entered queue are kept when nobody uses them.
LINGER = 10.0
#: Seconds for which the last call on a queue that was not entered waits for the connections it needed to be closed.
SETTLE = 1.0


class Background:
    """Starts work that must finish whatever its caller does, and can wait for all of it to be done."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._group: TaskGroup | None = None
        self._scopes: set[CancelScope] = set()
        self._idle: Event | None = None
        self._closed = False
        self._moved = Event()
        self._runners: list[Runner] = []

    @property
    def keeps(self) -> bool:
        """Whether what is not used at present may wait for the next one who needs it."""
        return self._group is not None and self._idle is None

    @property
    def linger(self) -> float:
        """How many seconds an unused connection is kept."""
        return LINGER if self.keeps else 0.0

    @property
    def entered(self) -> bool:
        """Whether there is a task group for the queue's tasks."""
        return self._group is not None

    def signal(self) -> Signal:
        """Make a signal for a task of the running event loop."""
        return self._driver.signal()

    def enter(self, group: TaskGroup) -> None:
        """Run everything from here on in *group*."""
        self._group = group

    def register(self, runner: Runner) -> None:
        """Have *runner* told when the queue closes."""
        self._runners.append(runner)

    def start_soon(self, function: Callable[[], Awaitable[None]], forsaken: Callable[[], None] = lambda: None) -> None:
        """Run *function* in a task of its own, out of reach of the caller's cancellation.

        :param forsaken: called in its place when the event loop of a queue that was not entered ends before it begins
        :raises TorrelqueClosedError: the task group has ended
        :raises TorrelqueError: the queue was not entered, and its client needs that
        """
        if self._closed:
            raise TorrelqueClosedError("The queue is closed: call it inside its `async with`")
        if self._group is None:
            self._detach(function, forsaken)
            return
        # The group may stand in a scope that is cancelled while a script is under way; only `drain` ends this.
        scope = CancelScope(shield=True)
        self._scopes.add(scope)
        self._group.start_soon(self._keep, scope, function)

    async def call(self, function: Callable[[], Awaitable[R]]) -> R:
        """Await *function* in a task of its own: a client may swallow the caller's cancellation, this does not.

        (``asyncio.wait_for``, with which redis-py sends, does so in Python 3.11.)

        :raises TorrelqueClosedError: the queue was closed meanwhile
        """
        done = Event()
        outcome: list[R] = []
        error: Exception = TorrelqueClosedError("The queue was closed with the call under way")

        async def run() -> None:
            nonlocal error
            try:
                outcome.append(await function())
            except Exception as caught:
                error = caught
            finally:
                done.set()

        self.start_soon(run, done.set)
        await done.wait()
        if not outcome:
            raise error
        return outcome[0]

    def _detach(self, function: Callable[[], Awaitable[None]], forsaken: Callable[[], None]) -> None:
        async def run() -> None:
            try:
                await function()
            finally:
                self.move()

        def leave() -> None:
            forsaken()
            self.move()

        self._driver.spawn_detached(run, leave)

    def move(self) -> None:
        """Let those look again who wait in :meth:`settle`."""
        if self._group is None:
            self._moved.set()
            self._moved = Event()

    async def settle(self, settled: Callable[[], bool]) -> None:
        """For a queue that was not entered: wait until the connections that a call needed are given back.

        Its caller may close the client next, and nothing of ours must then take a connection from it again.
        """
        if self.entered:
            return
        with move_on_after(SETTLE, shield=True):
            while not settled():
                await self._moved.wait()

    async def _keep(self, scope: CancelScope, function: Callable[[], Awaitable[None]]) -> None:
        try:
            with scope:
                await function()
        finally:
            self._scopes.discard(scope)
            if self._idle is not None and not self._scopes:
                self._idle.set()

    def drain(self, grace: float) -> None:
        """Have the task group end: after up to *grace* seconds for what is under way, with what is left cancelled.

        The one who leaves the group waits for it there. It is not waited for here: on asyncio a native cancel would end
        that wait, and with it the bound.
        """
        assert self._group is not None
        self._idle = Event()
        for runner in self._runners:
            runner.nudge()
        self._group.start_soon(self._drain, self._idle, grace)

    async def _drain(self, idle: Event, grace: float) -> None:
        try:
            with move_on_after(grace, shield=True):
                while self._scopes:
                    await idle.wait()
                    idle = self._idle = Event()
        finally:
            self._closed = True
            if self._scopes:
                logger.warning("Background work of the queue did not end within %.1f s, cancelling it", grace)
            for scope in self._scopes:
                scope.cancel()


class Runner:
    """One task that works whenever it is woken.

    In an entered queue it sleeps in between, for starting a task costs more than most of its work. In a queue that was
    not entered it ends when there is nothing to do.

    :param step: does what there is to do; tells after how many seconds to call it again, infinite: when woken
    :param abandon: told of the error, or of the end of the queue, that ended the task while work may be left
    """

    def __init__(
        self,
        background: Background,
        step: Callable[[], Awaitable[float]],
        abandon: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._background = background
        self._step = step
        self._abandon = abandon
        self._woken = False
        self._asleep: Signal | None = None
        self.running = False
        background.register(self)

    def wake(self) -> None:
        """Have the step called, now or as soon as it returns.

        :raises TorrelqueClosedError: the queue has ended
        """
        if self._woken and self.running:
            return  # others have woken it since its last step: of a crowd all but one come here
        self.nudge()
        if not self.running:
            self.running = True
            try:
                self._background.start_soon(self._run, self._forsake)
            except BaseException:
                self.running = False
                raise

    def _forsake(self) -> None:
        self.running = False
        self._abandon(TorrelqueClosedError("The event loop has ended"))

    def nudge(self) -> None:
        """Wake the task if there is one: it may have to end."""
        self._woken = True
        if self._asleep is not None:
            self._asleep.set()

    async def _run(self) -> None:
        try:
            while True:
                self._woken = False
                pause = await self._step()
                if pause <= 0 or self._woken:
                    continue
                if pause == math.inf and not self._background.keeps:
                    return
                await self._sleep(pause)
        except BaseException as error:
            self._abandon(error)
            raise
        finally:
            self.running = False

    async def _sleep(self, seconds: float) -> None:
        """Sleep until woken, or for so long."""
        self._asleep = asleep = self._background.signal()
        try:
            if seconds < math.inf:
                with move_on_after(seconds):
                    await asleep.wait()
            else:
                await asleep.wait()
        finally:
            self._asleep = None


class Outage:
    """Says once that something fails, once that it works again, and how long to wait before the next try."""

    FIRST, LAST = 0.05, 2.0

    def __init__(self, what: str, failing: str | None = None) -> None:
        self._what = what
        self._failing = failing or f"{what} has failed, retrying until it works again"
        self._failures = 0

    def failed(self, error: Exception) -> float:
        """Note a failure; returns seconds to wait, growing, with jitter so that processes do not march in step."""
        if self._failures == 0:
            logger.warning("%s", self._failing, exc_info=error)
        delay = min(self.LAST, self.FIRST * (1 << min(self._failures, 10)))
        self._failures += 1
        return delay * (0.5 + random.random() / 2)

    def worked(self) -> None:
        """Note a success."""
        if self._failures:
            logger.info("%s works again after %d failures", self._what, self._failures)
            self._failures = 0
