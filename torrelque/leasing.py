"""Keeps a lease while a handler runs, and stops the handler when the lease is lost."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from anyio import CancelScope, Event, create_task_group, current_time, fail_after, move_on_after
from anyio.abc import TaskGroup

from .errors import TorrelqueLookupError, TorrelqueRedisError, alone

logger = logging.getLogger("torrelque")

#: The body is cancelled before its lease ends, by this part of the lease: it needs time to clean up, the event loop may
#: be late, and two clocks do not run at quite the same rate.
MARGIN = 0.05
#: The same in seconds, at most.
LONGEST_MARGIN = 1.0

_SILENT = "The lease was about to end and Redis had not answered"
_AWAY = "The lease was about to end and Redis could not be reached"


class Extend(Protocol):
    """Extends a lease by its whole length from now."""

    async def __call__(self, *, apart: bool) -> float:
        """Ask once.

        :param apart: by another connection than that of the other calls, whose answers are missing
        """
        ...


@asynccontextmanager
async def keep_lease(
    extend: Extend,
    seconds: float,
    ends_in: float | None,
    is_loss: Callable[[TorrelqueLookupError], bool | None] = lambda refusal: True,
) -> AsyncGenerator[CancelScope]:
    """Extend a lease at half of its time as long as the body runs; cancel the body shortly before it ends.

    :param extend: extends the lease by *seconds*
    :param seconds: length of the lease
    :param ends_in: seconds until the lease as it is now ends; ``None`` if that is not known
    :param is_loss: judges an extension that is refused: when the body itself has released or requeued the task, its
        lease has ended, and is not lost; ``None`` if that is not known yet
    :raises TorrelqueLookupError: the lease was lost, and the body was cancelled for it or did not begin
    """
    failure: BaseException | None = None
    keeper = _Keeper(extend, seconds, is_loss)
    await keeper.begin(ends_in)
    scope = CancelScope()
    try:
        async with create_task_group() as group:
            with scope:
                group.start_soon(keeper.keep, group, scope)
                yield scope
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        failure = alone(errors)
    if failure is not None:
        raise failure
    if keeper.lost is not None and scope.cancelled_caught:
        raise keeper.lost


class _Keeper:
    """What is known of one lease: until when it lasts for sure, by the clock of the event loop."""

    def __init__(self, extend: Extend, seconds: float, is_loss: Callable[[TorrelqueLookupError], bool | None]) -> None:
        self._extend = extend
        self._seconds = seconds
        self._is_loss = is_loss
        self._margin = min(MARGIN * seconds, LONGEST_MARGIN)
        self._ends = -math.inf
        #: Tries since the last answer.
        self._tries = 0
        self._failure: TorrelqueRedisError | None = None
        self._news = Event()
        self._over = False
        #: Why the body must not go on.
        self.lost: TorrelqueLookupError | None = None

    async def begin(self, ends_in: float | None) -> None:
        """Let the body begin with more than half of a lease, or not at all."""
        asked = current_time()
        if ends_in is not None and ends_in > self._seconds / 2:
            self._ends = asked + ends_in
            return
        # The task has waited since its delivery.
        try:
            with fail_after(self._seconds - self._margin):
                await self._extend(apart=False)
        except TimeoutError:
            raise TorrelqueLookupError(_SILENT) from None
        self._ends = asked + self._seconds

    async def keep(self, group: TaskGroup, scope: CancelScope) -> None:
        """Ask at half of what is left, again and again. A missing answer does not hold the next try back."""
        while not self._over:
            rest = self._ends - current_time()
            spare = rest - self._margin
            with move_on_after(min(rest / 2, spare)):
                await self._news.wait()
            if self._news.is_set():
                self._news = Event()
            elif spare <= rest / 2:
                self.lost = TorrelqueLookupError(_SILENT if self._failure is None else _AWAY)
                self.lost.__cause__ = self._failure
                self._over = True
            elif self._ends - current_time() > self._margin:  # not if everything stood still meanwhile
                # From here on the request may be applied, answered or not, and bring a later end closer.
                self._ends = min(self._ends, current_time() + self._seconds)
                group.start_soon(self._try, self._tries > 0, rest / 4)
                self._tries += 1
        if self.lost is not None:
            scope.cancel()

    async def _try(self, apart: bool, patience: float) -> None:
        asked = current_time()
        try:
            # A connection that others share is theirs to give up; one of our own is let go when the next try begins.
            with move_on_after(patience if apart else math.inf) as waiting:
                await self._extend(apart=apart)
        except TorrelqueRedisError as error:
            logger.warning("The lease could not be extended, trying again until it ends: %r", error)
            self._failure = error
            return
        except TorrelqueLookupError as error:
            loss = self._is_loss(error)
            if loss is not None:
                self.lost = error if loss else None
                self._over = True
        else:
            if waiting.cancelled_caught:
                return
        # Redis counts from some moment after the request was sent, so this is a safe bound. Where it is not known
        # whether the lease was lost, it is asked again as if it had been extended.
        self._ends = max(self._ends, asked + self._seconds)
        self._tries, self._failure = 0, None
        self._news.set()
