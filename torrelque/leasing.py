"""Keeps a lease while a handler runs, and stops the handler when the lease is lost."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from anyio import CancelScope, create_task_group, current_time, fail_after, sleep

from .errors import TorrelqueLookupError, TorrelqueRedisError

logger = logging.getLogger("torrelque")

#: With less than this left, in seconds, no further try can succeed.
GIVE_UP = 0.01


@asynccontextmanager
async def keep_lease(
    extend: Callable[[], Awaitable[float]],
    seconds: float,
    ends_in: float | None,
    settled: Callable[[], bool] = lambda: False,
) -> AsyncGenerator[CancelScope]:
    """Extend a lease at half of its time as long as the body runs; cancel the body when it is lost.

    :param extend: extends the lease by *seconds*
    :param seconds: length of the lease
    :param ends_in: seconds until the lease as it is now ends; ``None`` if that is not known
    :param settled: tells that the body itself has released or requeued the task: then its lease has ended, not lost
    :raises TorrelqueLookupError: the lease was lost, and the body was cancelled for it or did not begin
    """
    lost: TorrelqueLookupError | None = None
    failure: BaseException | None = None
    asked = current_time()
    ends = asked + (ends_in or 0)
    if ends_in is None or ends_in <= seconds / 2:
        # The task has waited since its delivery: the body begins with a whole lease, or not at all.
        await extend()
        ends = asked + seconds

    async def renew() -> None:
        nonlocal lost, ends
        while lost is None:
            await sleep(max(ends - current_time(), 0) / 2)
            asked = current_time()
            try:
                with fail_after(ends - asked):
                    await extend()
                # Redis counts from some moment after the request was sent, so this is a safe bound.
                ends = asked + seconds
            except TorrelqueLookupError as error:
                if settled():
                    return
                lost = error
            except TimeoutError:
                lost = TorrelqueLookupError("The lease ended before Redis answered")
            except TorrelqueRedisError as error:
                logger.warning("The lease could not be extended, trying again until it ends: %r", error)
                if ends - current_time() < GIVE_UP:
                    lost = TorrelqueLookupError("The lease ended while Redis could not be reached")
        scope.cancel()

    try:
        async with create_task_group() as group:
            with CancelScope() as scope:
                group.start_soon(renew)
                yield scope
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        # A task group wraps whatever passes it; one error leaves as it came.
        failure = errors.exceptions[0] if len(errors.exceptions) == 1 else errors
    if failure is not None:
        raise failure
    if lost is not None and scope.cancelled_caught:
        raise lost
