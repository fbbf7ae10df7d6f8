"""Keeps the lease of a task while it is worked on, and ends the work in time when that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NoReturn

#: The work is stopped before the lease ends, by this part of it and at most by so many seconds: it needs time to stop,
#: and two clocks do not run at quite the same rate.
MARGIN = 0.05
LONGEST_MARGIN = 1.0


class LeaseEnds(Exception):
    """The lease is about to end and could not be extended: somebody else may have the task soon."""


class NotExtended(Exception):
    """A try has failed; another one may not."""


class Lease:
    """What is known of a lease: until when it lasts for sure, by the monotonic clock of this process.

    :param seconds: its length
    :param asked: when the task was asked for: before the call of a Dequeue; of a stream, when the delivery came, which
        is as near as one can know
    """

    def __init__(self, seconds: float, asked: float) -> None:
        self._seconds = seconds
        self._ends = asked + seconds
        self._margin = min(MARGIN * seconds, LONGEST_MARGIN)

    async def keep(self, extend: Callable[[bool], Awaitable[None]]) -> NoReturn:
        """Extend the lease at half of what is left, again and again, until it cannot be; run it beside the work.

        :param extend: asks once; raises NotExtended when another try may help, anything else when it is lost. It is
            told whether the last try had failed: then a new connection is worth its price.
        :raises LeaseEnds: nothing helped, and the time is over
        """
        failed = False
        due = self._ends - self._seconds / 2
        while True:
            await asyncio.sleep(due - _now())
            asked = _now()
            left = self._ends - asked
            if left <= self._margin:
                raise LeaseEnds
            # A try that hangs must not take all the time: the next one begins when half of what is left has passed.
            due = asked + min(left / 2, left - self._margin)
            try:
                async with asyncio.timeout_at(due):
                    await extend(failed)
            except (TimeoutError, NotExtended):
                failed = True
            else:
                # The server counts from some moment after it was asked, so this is on the safe side.
                self._ends = asked + self._seconds
                due = asked + self._seconds / 2
                failed = False


def _now() -> float:
    return asyncio.get_running_loop().time()
