"""The one connection of a process that blocks: it waits in BLMOVE for the next id, for everybody who waits here."""

from __future__ import annotations

import logging
from collections.abc import Callable

from anyio import Event, create_task_group, move_on_after

from .background import Background, Outage
from .calls import PAST_DUE, seconds_of_wake
from .drivers import Blocker, Driver
from .errors import TorrelqueRedisError, first_error
from .keys import Keys
from .listening import Ear, Hub

logger = logging.getLogger("torrelque")

#: An unblocking that arrives before the blocking does nothing, so it is repeated: soon, as who comes now waits too.
_UNBLOCK_AGAIN = 0.005
#: A wait that lasted this many seconds was no failure to wait.
_STEADY = 1.0
#: A dead connection is noticed after this many seconds, and an idle one speaks as rarely.
BLOCK = 15.0


class Catcher:
    """The connection that waits in Redis for the next id, for all seats of a room.

    :param wanted: tells whether anybody waits
    :param look_within: makes the room look for tasks within some seconds
    """

    def __init__(
        self,
        driver: Driver,
        background: Background,
        hub: Hub,
        keys: Keys,
        wanted: Callable[[], bool],
        look_within: Callable[[float], None],
    ) -> None:
        self.caught: list[bytes] = []
        self._wanted = wanted
        self._look_within = look_within
        self._driver = driver
        self._background = background
        self._hub = hub
        self._keys = keys
        self.running = False
        self._asked = False
        self._blocker: Blocker | None = None
        self._changed = Event()
        #: Ends the pause after a failure. Being asked again does not, or a refused wait would be tried on and on.
        self._unasked = Event()
        self._outage = Outage("Waiting for tasks")

    def take(self) -> list[bytes]:
        """Hand over the ids that were caught; they stand in dequeueing."""
        caught, self.caught = self.caught, []
        return caught

    def ask(self) -> None:
        """Wait for the next id, unless that is under way."""
        self._asked = True
        self._changed.set()
        if not self.running:
            self.running = True
            self._background.start_soon(self._run, self._forsake)

    def _forsake(self) -> None:
        self.running = False

    async def rest(self) -> None:
        """Stop waiting in Redis because nobody waits here."""
        self._asked = False
        self._unasked.set()
        while self._blocker is not None and not self._wanted():
            self._changed = Event()
            try:
                await self._blocker.unblock()
            except TorrelqueRedisError as error:
                # Not allowed, or no connection: the wait ends by itself, and what it catches is handed back.
                logger.info("The connection that waits for tasks cannot be unblocked: %r", error)
                return
            with move_on_after(_UNBLOCK_AGAIN):
                await self._changed.wait()

    def close(self) -> None:
        """Let the connection go."""
        self._asked = False
        self._unasked.set()
        self._changed.set()

    async def _run(self) -> None:
        ear = self._hub.attach(self._keys.wake)
        try:
            while self._asked:
                error = await self._connect(ear)
                if error is not None:
                    # A claim tells those who wait whether Redis is away, or only this connection was.
                    self._look_within(0)
                    pause = self._outage.failed(error)
                    if self._asked:
                        self._unasked = Event()
                        with move_on_after(pause):
                            await self._unasked.wait()
        finally:
            self.running = False
            self._hub.detach(ear)

    async def _connect(self, ear: Ear) -> Exception | None:
        """Catch ids over one connection until none is asked for any more, or it is lost."""
        error: Exception | None = None
        try:
            async with self._driver.blocking() as blocker, create_task_group() as group:
                group.start_soon(self._listen, ear)
                await self._catch(blocker)
                group.cancel_scope.cancel()
        except* TorrelqueRedisError as lost:
            error = first_error(lost)
        return error

    async def _catch(self, blocker: Blocker) -> None:
        while True:
            if not self._asked:
                self._changed = Event()
                with move_on_after(self._background.linger):
                    await self._changed.wait()
                if not self._asked:
                    return
            self._blocker = blocker
            since = self._driver.now()
            try:
                task_id = await blocker.move(self._keys.pending, self._keys.dequeueing, BLOCK)
            except TorrelqueRedisError:
                if self._driver.now() - since > _STEADY:
                    self._outage.worked()  # it did wait: a new failure, tried again soon
                raise
            finally:
                self._blocker = None
                self._changed.set()
            self._outage.worked()
            if task_id is not None:
                self._asked = False
                self.caught.append(task_id)
                self._look_within(0)
            elif not self._wanted():
                self._asked = False

    async def _listen(self, ear: Ear) -> None:
        """Pass on when a task is due earlier than the room knows."""
        while True:
            await ear.heard()
            if ear.error is None:
                self._look_within(seconds_of_wake(ear.message) + PAST_DUE)
