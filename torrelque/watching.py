"""Follows the state of a task: subscribes first and reads second, so that no change falls between."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from anyio import Lock, current_time, fail_after, move_on_after

from .background import Background
from .batching import Coalescer
from .calls import Calls, Fields
from .drivers import Driver
from .errors import (
    TorrelqueClosedError,
    TorrelqueLookupError,
    TorrelqueNotificationsError,
    TorrelqueRedisError,
    TorrelqueTimeoutError,
    fresh,
)
from .keys import Keys
from .listening import Ear, Hub

#: Notifications can be lost, so the state is read anyway after this many seconds without one.
REREAD = 30.0
#: After a read that failed so many seconds are enough: the hint that it followed may have been the last.
AGAIN = 1.0
#: Nor does the first read wait longer for the subscription to stand: a user may not be allowed to subscribe.
SUBSCRIBED = 5.0


class Watches:
    """Makes watchers, and checks once that the server sends what they need."""

    def __init__(
        self, driver: Driver, background: Background, coalescer: Coalescer, hub: Hub, keys: Keys, calls: Calls
    ) -> None:
        self._driver = driver
        self._background = background
        self._coalescer = coalescer
        self._hub = hub
        self._keys = keys
        self._calls = calls
        self._checked = False
        self._checking = Lock()

    async def open(self, task_id: bytes, timeout: float | None) -> Watcher:
        """Make the watcher of one task; it must be closed.

        :raises TorrelqueNotificationsError: keyspace notifications are off. A server that does not tell is trusted
        :raises TorrelqueTimeoutError: the time has passed
        """
        deadline = math.inf if timeout is None else current_time() + timeout
        with expiring(task_id, deadline):
            async with self._checking:
                if not self._checked:
                    await self._check_server()
        ear = self._hub.attach(self._keys.state_events(task_id, self._driver.db))
        return Watcher(task_id, ear, self._hub, self._coalescer, self._calls, deadline)

    async def _check_server(self) -> None:
        flags = await self._background.call(lambda: self._driver.config_get("notify-keyspace-events"))
        if flags is not None and not ("K" in flags and ("A" in flags or {"g", "h"} <= set(flags))):
            raise TorrelqueNotificationsError("Redis notify-keyspace-events must include KA or Kgh")
        self._checked = True


def shown(task_id: bytes) -> str:
    """Show an id, which a foreign writer may have made of anything."""
    return task_id.decode(errors="replace")


@contextmanager
def expiring(task_id: bytes, deadline: float) -> Iterator[None]:
    """Bound one step of a watch by the deadline of the whole."""
    try:
        with fail_after(deadline - current_time()):
            yield
    except TimeoutError:
        raise TorrelqueTimeoutError(f"Task {shown(task_id)} did not end in time") from None


class Watcher:
    """One watch: an iterator whose steps open and close everything they need, so that a pause is harmless."""

    def __init__(self, task_id: bytes, ear: Ear, hub: Hub, coalescer: Coalescer, calls: Calls, deadline: float) -> None:
        self._task_id = task_id
        self._ear = ear
        self._hub = hub
        self._coalescer = coalescer
        self._calls = calls
        self._deadline = deadline
        self._last: Fields | None = None
        self._failed = False

    def close(self) -> None:
        """Stop listening; may be called from any task, and twice."""
        self._hub.detach(self._ear)

    async def next(self) -> Fields | None:
        """Wait for the next change of status; ``None`` when the task is gone.

        :raises TorrelqueLookupError: there is no such task, on the first call
        :raises TorrelqueTimeoutError: the time has passed
        """
        with expiring(self._task_id, self._deadline):
            return await self._next()

    async def _next(self) -> Fields | None:
        while True:
            await self._listen()
            fields = await self._read()
            if fields is None:
                continue
            if fields[0] is None:
                if self._last is None:
                    raise TorrelqueLookupError(f"Task {shown(self._task_id)} is unknown")
                return None
            if self._last is None or _revision(fields) != _revision(self._last):
                self._last = fields
                return fields

    async def _listen(self) -> None:
        """Wait for a hint; at first that is the word that the subscription stands."""
        patience = AGAIN if self._failed else REREAD
        with move_on_after(SUBSCRIBED if self._last is None else patience):
            await self._ear.heard()
        error = self._ear.error
        if error is not None and (self._last is None or isinstance(error, TorrelqueClosedError)):
            raise fresh(error)

    async def _read(self) -> Fields | None:
        """Read the state; ``None`` when Redis fails and there is a later time to read it again."""
        try:
            fields = await self._coalescer.run(self._calls.state(self._task_id))
        except TorrelqueRedisError:
            if self._last is None:
                raise
            self._failed = True
            return None
        self._failed = False
        return fields


def _revision(fields: Fields) -> tuple[bytes | None, bytes | None, bytes | None]:
    """What tells one status in the life of a task from another: status, dequeue count, requeue count."""
    return fields[0], fields[3], fields[4]
