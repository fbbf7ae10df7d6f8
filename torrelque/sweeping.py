"""Gives back what has ended: stale leases, due delays, and ids that were parked by consumers who are gone."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

from anyio import TASK_STATUS_IGNORED, current_time, move_on_after
from anyio.abc import TaskStatus

from .background import Outage
from .batching import Coalescer
from .calls import PAST_DUE, SWEEP_ALL, SWEEP_TIMED, Calls, seconds_of_wake
from .errors import TorrelqueClosedError, TorrelqueRedisError, fresh
from .keys import Keys
from .listening import Hub
from .model import SweepReport

logger = logging.getLogger("torrelque")


class Sweeper:
    """Sweeps once, or again and again.

    :param default_lease: tells the lease, in seconds, of tasks that have none stored
    :param look: looks at the server, when sweeps begin: who sweeps has taken on to care for the queue
    """

    def __init__(
        self,
        coalescer: Coalescer,
        hub: Hub,
        keys: Keys,
        calls: Calls,
        default_lease: Callable[[], float],
        look: Callable[[], Awaitable[None]],
    ) -> None:
        self._coalescer = coalescer
        self._hub = hub
        self._keys = keys
        self._calls = calls
        self._default_lease = default_lease
        self._look = look

    async def sweep_once(self, start: bytes = SWEEP_ALL) -> tuple[SweepReport, float]:
        """Sweep until nothing is left to give back, in bounded scripts.

        :returns: what went back, and seconds until the next due or stale time (infinite when there is none)
        :raises TorrelqueRedisError: Redis failed; what was given back until then stays so
        """
        stale, due, undequeued = 0, 0, 0
        cursor = start
        while True:
            step = await self._coalescer.run(self._calls.sweep(self._default_lease(), cursor))
            stale, due, undequeued = (
                stale + step.report.stale, due + step.report.due, undequeued + step.report.undequeued,
            )  # fmt: skip
            for task_id in step.dropped:
                logger.warning("Dropped task %r from the queue: it has no payload, or is final", task_id)
            if step.done:
                return SweepReport(stale, due, undequeued), step.until_next
            cursor = step.cursor

    async def run(self, interval: float, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Sweep every *interval* seconds, and leases and delays also at the moment when they end.

        Outlives every failure of Redis.

        :raises TorrelqueClosedError: the queue was left
        """
        outage = Outage("Sweep", "Sweep has failed with Redis error, continuing")
        ear = self._hub.attach(self._keys.wake)
        task_status.started()
        next_full = next_timed = -math.inf
        try:
            await self._look()
            while True:
                now = current_time()
                try:
                    if now >= min(next_full, next_timed):
                        report, until_next = await self.sweep_once(SWEEP_ALL if now >= next_full else SWEEP_TIMED)
                        outage.worked()
                        self._log(report)
                        next_full = now + interval if now >= next_full else next_full
                        next_timed = current_time() + until_next + PAST_DUE
                except TorrelqueRedisError as error:
                    next_timed = current_time() + outage.failed(error)
                    # A sweep of everything whose time has come waits for the next try as well.
                    next_full = max(next_full, next_timed)
                with move_on_after(min(next_full, next_timed) - current_time()):
                    await ear.heard()
                    if ear.error is None:
                        next_timed = min(next_timed, current_time() + seconds_of_wake(ear.message) + PAST_DUE)
                if isinstance(ear.error, TorrelqueClosedError):
                    raise fresh(ear.error)
        finally:
            self._hub.detach(ear)

    @staticmethod
    def _log(report: SweepReport) -> None:
        logger.debug("Sweep has requeued: stale=%d, delayed=%d, undequeued=%d", *report)
