"""All waiting dequeues of a queue: one script claims for everyone, one connection blocks for everyone.

A dequeue takes a seat in the room. While anybody sits there, the room claims tasks with the dequeue script; when
nothing is pending, one connection waits in BLMOVE, and what it is handed the next claim adopts. A task that comes
for a seat whose owner has gone is handed back to the head of the queue at once, as if it had not been dequeued.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from anyio import Event, create_task_group, move_on_after

from .background import Background, Outage, Runner
from .calls import HORIZON, Call, Calls, Claim, Delivery, R, seconds_of_wake
from .drivers import Blocker, Driver, Signal
from .errors import TorrelqueClosedError, TorrelqueRedisError, first_error, fresh
from .keys import Keys
from .listening import Ear, Hub

logger = logging.getLogger("torrelque")

#: One claim takes no more, so that the script stays short (it may have as many due tasks to move).
CLAIM = 250
#: This many callers are a crowd: for fewer a second round trip costs more than is won.
CROWD = 16
HALF = CROWD // 2
#: Looking a moment after a task is due finds it in one look rather than two.
_PAST_DUE = 0.001
#: An unblocking that arrives before the blocking does nothing, so it is repeated: soon, as who comes now waits too.
_UNBLOCK_AGAIN = 0.005
#: A wait that lasted this many seconds was no failure to wait.
_STEADY = 1.0
#: A dead connection is noticed after this many seconds, and an idle one speaks as rarely.
BLOCK = 15.0


class Seat:
    """A caller that waits for tasks until *deadline*, by the clock of the event loop.

    :param polls: it does not wait: one look is enough
    """

    __slots__ = ("deadline", "done", "error", "got", "looked", "polls", "wanted")

    def __init__(self, wanted: int, deadline: float, polls: bool, done: Signal) -> None:
        self.wanted = wanted
        self.deadline = deadline
        self.polls = polls
        #: A claim was made while the seat was taken.
        self.looked = False
        self.got: list[Delivery] = []
        self.error: Exception | None = None
        self.done = done


class Room:
    """Where dequeues wait.

    :param default_lease: tells the lease, in seconds, of tasks that have none stored
    """

    def __init__(
        self,
        driver: Driver,
        background: Background,
        hub: Hub,
        keys: Keys,
        calls: Calls,
        default_lease: Callable[[], float],
    ) -> None:
        self._driver = driver
        self._background = background
        self._calls = calls
        self._default_lease = default_lease
        self._hub = hub
        self._catcher = Catcher(self, driver, background, hub, keys)
        self._seats: dict[Seat, None] = {}
        self._returns: list[tuple[bytes, int | None]] = []
        self._server = Runner(background, self._serve, self._abandon)
        self._second = Runner(background, self._serve_crowd, self._abandon)
        self._alarm = Runner(background, self._expire, self._silence)
        #: When the alarm goes off, and when to look for tasks, by the clock of the event loop.
        self._alarm_at = math.inf
        self._next_look = -math.inf
        #: How many tasks the claims under way ask for, and how many seats the last one has served.
        self._asked_for = 0
        self._served = 0
        #: The last claim got all that it asked for: a second one beside the next is likely to find something.
        self._plenty = True
        self._outage = Outage("Handing tasks back")

    @property
    def taken(self) -> bool:
        """Whether anybody waits."""
        return bool(self._seats)

    async def dequeue(self, wanted: int, timeout: float | None) -> list[Delivery]:
        """Wait for 1 to *wanted* tasks; empty when *timeout* seconds have passed (0 looks once).

        :raises TorrelqueRedisError: the driver's word on a claim
        """
        deadline = self._driver.now() + timeout if timeout else math.inf
        seat = Seat(wanted, deadline, timeout == 0, self._driver.signal())
        self._seats[seat] = None
        self._background.move()
        try:
            try:
                self._next_look = -math.inf
                self._server.wake()
                if self._asked_for and self._unasked_for == HALF and self._plenty:
                    self._second.wake()
                if deadline < self._alarm_at:
                    self._alarm_at = deadline
                    self._alarm.wake()
                await seat.done.wait()
            finally:
                if seat in self._seats:
                    self._leave(seat)
            if not self._background.entered:
                await self._settle()
        except BaseException:
            self.hand_back(seat.got)
            await self._settle()
            raise
        if seat.error is not None:
            raise fresh(seat.error)
        return seat.got

    async def _settle(self) -> None:
        await self._background.settle(lambda: self.taken or (self._at_rest and self._hub.settled))

    @property
    def _at_rest(self) -> bool:
        return not any(part.running for part in (self._server, self._second, self._alarm, self._catcher))

    def hand_back(self, deliveries: Iterable[Delivery]) -> None:
        """Undo deliveries that nobody saw, in a task of the queue's own."""
        self._returns += [(delivery.task_id, delivery.count) for delivery in deliveries]
        if self._returns:
            try:
                self._server.wake()
            except TorrelqueClosedError:
                logger.warning("The queue is closed: %d tasks come back when their leases end", len(self._returns))

    def look_within(self, seconds: float) -> None:
        """Make the room look for tasks after *seconds*, if it does not look earlier anyway."""
        self._next_look = min(self._next_look, self._driver.now() + seconds)
        self._server.wake()

    def close(self) -> None:
        """Send everyone away; what is under way is handed back."""
        self._dismiss_all(TorrelqueClosedError("The queue was closed while a dequeue was waiting"))
        self._catcher.close()

    @property
    def _busy(self) -> bool:
        return bool(self._seats or self._returns or self._catcher.caught)

    async def _serve(self) -> float:
        """Look for tasks, and give back what nobody takes; returns seconds until the next time."""
        again = await self._give_back() if self._returns else math.inf
        pause = min(again, await self._look())
        if not self._seats:
            await self._catcher.rest()
            if not self._background.keeps:
                self._alarm.nudge()
        if self._returns and again == math.inf:
            return 0.0
        return pause if self._busy else math.inf

    def _abandon(self, error: BaseException) -> None:
        self._dismiss_all(TorrelqueClosedError(f"The queue was closed while a dequeue was waiting: {error!r}"))

    async def _expire(self) -> float:
        """Send those away whose time has passed; returns seconds until the next one's."""
        now = self._driver.now()
        for seat in [seat for seat in self._seats if seat.deadline <= now]:
            self._leave(seat)
        self._alarm_at = min((seat.deadline for seat in self._seats), default=math.inf)
        return self._alarm_at - now

    def _silence(self, _: BaseException) -> None:
        # The task of the alarm has ended with its event loop: who comes next, on another one, must start it anew.
        self._alarm_at = math.inf

    async def _look(self) -> float:
        """Claim for everyone who waits, if it is time to; returns seconds until it will be."""
        caught = self._catcher.take()
        if not self._seats:
            self._returns += [(task_id, None) for task_id in caught]
            return math.inf
        wait = self._next_look - self._driver.now()
        if wait > 0 and not caught:
            return wait
        wanted = max(self._wanted(), len(caught))
        if not wanted:
            return math.inf  # the second server's claim is for everyone who sits here, and its end wakes this one
        self._next_look = self._driver.now() + HORIZON
        for seat in self._seats:
            seat.looked = True
        claim = await self._claim(wanted, caught)
        if claim is None:
            return math.inf
        # What the second server still asks for decides whether nothing is there.
        self._deal(claim, len(claim.deliveries) < wanted and not claim.more and not self._asked_for)
        return self._next_look - self._driver.now()

    def _wanted(self) -> int:
        """How many tasks to claim now.

        A crowd is served in two halves: while Redis works for one of them, this process works for the other. Served all
        at once they would stay in step, and Redis and the process would take turns.
        """
        crowd = len(self._seats) + self._served
        halves = 2 if crowd >= CROWD else 1
        served_now = islice(self._seats, math.ceil(crowd / halves))
        wanted = min(CLAIM, sum([seat.wanted - len(seat.got) for seat in served_now]))
        return max(0, min(wanted, self._unasked_for)) if self._asked_for else wanted

    async def _serve_crowd(self) -> float:
        """Claim for a half of a crowd while the claim for the other is under way."""
        if self._asked_for and self._unasked_for >= HALF and self._plenty:
            claim = await self._claim(min(CLAIM, self._unasked_for))
            if claim is not None:
                self._deal(claim, False)
            self._server.wake()
        return math.inf

    @property
    def _unasked_for(self) -> int:
        """How many seats no claim under way is for, if each wants one task."""
        return len(self._seats) - self._asked_for

    async def _claim(self, wanted: int, caught: Sequence[bytes] = ()) -> Claim | None:
        """Ask Redis for tasks, the caught ones first; when that fails, everybody is told and leaves."""
        asked = self._driver.now()
        self._asked_for += wanted
        if self._unasked_for >= HALF and self._plenty:
            self._second.wake()
        try:
            claim = await self._run(self._calls.dequeue(wanted, self._default_lease(), caught))
        except TorrelqueRedisError as error:
            # Handing back what was caught is right in each case: it does nothing where the claim took effect.
            self._returns += [(task_id, None) for task_id in caught]
            self._dismiss_all(error)
            return None
        finally:
            self._asked_for -= wanted
        self._plenty = len(claim.deliveries) >= wanted
        for task_id in claim.dropped:
            logger.warning("Dropped task %r from the queue: it has no payload, or is delivered or final", task_id)
        for delivery in claim.deliveries:
            delivery.asked = asked
        return claim

    async def _run(self, call: Call[R]) -> R:
        (reply,) = await self._driver.execute([call])
        if isinstance(reply, Exception):
            raise reply
        return call.parse(reply)

    def _deal(self, claim: Claim, short: bool) -> None:
        """Give out what was claimed: one for each seat first, then to each what it wants.

        :param short: more is not there
        """
        deliveries = deque(claim.deliveries)
        for seat in self._seats:
            if deliveries and not seat.got:
                seat.got.append(deliveries.popleft())
        for seat in self._seats:
            while deliveries and len(seat.got) < seat.wanted:
                seat.got.append(deliveries.popleft())
        self._returns += [(delivery.task_id, delivery.count) for delivery in deliveries]
        served = [
            seat
            for seat in self._seats
            if len(seat.got) == seat.wanted or (short and (seat.got or (seat.polls and seat.looked)))
        ]
        for seat in served:
            self._dismiss(seat)
        self._served = len(served)
        if not self._seats:
            return
        if short and all(seat.looked for seat in self._seats):
            self._next_look = min(self._next_look, self._driver.now() + claim.until_next + _PAST_DUE)
            self._catcher.ask()
        else:
            self._next_look = -math.inf

    async def _give_back(self) -> float:
        """Hand back what nobody waits for; returns seconds until the next try."""
        returns, self._returns = self._returns, []
        # The last one first, so that the first one delivered stands at the very head again.
        call = self._calls.hand_back(reversed(returns))
        try:
            (reply,) = await self._driver.execute([call])
            if isinstance(reply, Exception):
                raise reply
        except TorrelqueRedisError as error:
            self._returns = returns + self._returns
            return self._outage.failed(error)
        self._outage.worked()
        return math.inf

    def _dismiss(self, seat: Seat) -> None:
        """Send someone away with what there is."""
        del self._seats[seat]
        seat.done.set()

    def _dismiss_all(self, error: Exception) -> None:
        for seat in list(self._seats):
            seat.error = error
            self._dismiss(seat)

    def _leave(self, seat: Seat) -> None:
        """Let someone go before anything came; the last one to leave ends the waiting."""
        self._dismiss(seat)
        if not self._seats:
            self._server.nudge()


class Catcher:
    """The connection that waits in Redis for the next id, for all seats of a room."""

    def __init__(self, room: Room, driver: Driver, background: Background, hub: Hub, keys: Keys) -> None:
        self.caught: list[bytes] = []
        self._room = room
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
            self._background.start_soon(self._run)

    async def rest(self) -> None:
        """Stop waiting in Redis because nobody waits here."""
        self._asked = False
        self._unasked.set()
        while self._blocker is not None and not self._room.taken:
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
                    self._room.look_within(0)
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
                self._room.look_within(0)
            elif not self._room.taken:
                self._asked = False

    async def _listen(self, ear: Ear) -> None:
        """Pass on when a task is due earlier than the room knows."""
        while True:
            await ear.heard()
            if ear.error is None:
                self._room.look_within(seconds_of_wake(ear.message) + _PAST_DUE)
