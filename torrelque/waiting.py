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
from contextlib import suppress
from itertools import islice

from .background import Background, Outage, Runner
from .batching import CROWD
from .calls import HORIZON, PAST_DUE, Call, Calls, Claim, Delivery, GivingUp, R
from .catching import Catcher
from .drivers import Driver, Signal
from .errors import TorrelqueClosedError, TorrelqueRedisError, TorrelqueUnknownOutcomeError, fresh
from .keys import Keys
from .listening import Hub

logger = logging.getLogger("torrelque")

#: One claim takes no more, so that the script stays short (it may have as many due tasks to move), nor does one
#: hand-back.
CLAIM = 75
#: A claim whose answer takes so many seconds has come too late for tasks whose leases are no longer than that: somebody
#: else may be at work on them. When it is quicker it is for those who asked: a way as long as a lease may be the rule.
OVERDUE = 1.0
TOO_LATE = "Tasks were asked for %.1f s ago: the leases of %d of them have ended meanwhile"
#: So many of a crowd are worth a claim of their own.
HALF = CROWD // 2


class Seat:
    """A caller that waits for tasks until *deadline*, by the clock of the event loop.

    :param polls: it does not wait: one look is enough
    """

    __slots__ = ("deadline", "done", "error", "got", "looked", "polls", "room", "wanted")

    def __init__(self, wanted: int, room: float, deadline: float, polls: bool, done: Signal) -> None:
        self.wanted = wanted
        #: How many bytes of payloads it still takes; the first task comes whatever its size.
        self.room = room
        self.deadline = deadline
        self.polls = polls
        #: A claim was made while the seat was taken.
        self.looked = False
        self.got: list[Delivery] = []
        self.error: Exception | None = None
        self.done = done

    def take(self, delivery: Delivery) -> bool:
        """Take a task if it fits; when it does not, the seat has what it wants."""
        size = len(delivery.body)
        if self.got and size > self.room:
            self.wanted = len(self.got)
            return False
        self.got.append(delivery)
        self.room -= size
        return True


class Room:
    """Where dequeues wait.

    :param default_lease: tells the lease, in seconds, of tasks that have none stored
    :param giving_up: tells when a task is not delivered again; ``None`` is never
    """

    def __init__(
        self,
        driver: Driver,
        background: Background,
        hub: Hub,
        keys: Keys,
        calls: Calls,
        default_lease: Callable[[], float],
        giving_up: Callable[[], GivingUp | None] = lambda: None,
    ) -> None:
        self._driver = driver
        self._background = background
        self._calls = calls
        self._default_lease = default_lease
        self._giving_up = giving_up
        self._hub = hub
        self._catcher = Catcher(driver, background, hub, keys, lambda: self.taken, self.look_within)
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
        #: How many tasks the claims have ended because they had been delivered as often as they may be.
        self.given_up = 0

    @property
    def taken(self) -> bool:
        """Whether anybody waits."""
        return bool(self._seats)

    async def dequeue(self, wanted: int, timeout: float | None, room: float = math.inf) -> list[Delivery]:
        """Wait for 1 to *wanted* tasks of *room* bytes; empty when *timeout* seconds have passed (0 looks once).

        :raises TorrelqueRedisError: the driver's word on a claim
        """
        deadline = self._driver.now() + timeout if timeout else math.inf
        seat = Seat(wanted, room, deadline, timeout == 0, self._driver.signal())
        self._seats[seat] = None
        if not self._background.entered:
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
            self.hand_back(seat.got)
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
        # The queue may have been left meanwhile: nobody waits any more, and what was caught last two sweeps put back.
        with suppress(TorrelqueClosedError):
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
        again = math.inf
        while self._returns and again == math.inf:
            again = await self._give_back()
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
        """Ask Redis for tasks, the caught ones first; when that fails, everybody leaves: with some, or is told."""
        asked = self._driver.now()
        self._asked_for += wanted
        if self._unasked_for >= HALF and self._plenty:
            self._second.wake()
        try:
            claim = await self._run(self._calls.dequeue(wanted, self._default_lease(), caught, self._giving_up()))
        except TorrelqueRedisError as error:
            # Handing back what was caught is right in each case: it does nothing where the claim took effect.
            self._returns += [(task_id, None) for task_id in caught]
            for seat in [seat for seat in self._seats if seat.got]:
                seat.got = self._without_ended(seat.got)
                if seat.got:
                    self._dismiss(seat)
            self._dismiss_all(error)
            return None
        finally:
            self._asked_for -= wanted
        self._plenty = len(claim.deliveries) >= wanted
        for task_id in claim.dropped:
            logger.warning("Dropped task %r from the queue: it has no payload, or is delivered or final", task_id)
        for task_id in claim.given_up:
            logger.warning("Gave up task %r: it was delivered as often as max_attempts allows", task_id)
            self.given_up += 1
        for delivery in claim.deliveries:
            delivery.asked = asked
        in_time = self._without_ended(claim.deliveries)
        claim.more = claim.more or len(in_time) < len(claim.deliveries)
        claim.deliveries = in_time
        return claim

    def _without_ended(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Hand back what has come too late, for the process or the link stood still, and what has ended while a caller
        waited for more; where somebody else has it by now that does nothing, and what nobody has is claimed again."""
        if not deliveries or (now := self._driver.now()) - deliveries[0].asked < OVERDUE:
            return deliveries
        in_time = [delivery for delivery in deliveries if delivery.lease > now - delivery.asked]
        if len(in_time) < len(deliveries):
            logger.warning(TOO_LATE, now - deliveries[0].asked, len(deliveries) - len(in_time))
            ended = [delivery for delivery in deliveries if delivery.lease <= now - delivery.asked]
            self._returns += [(delivery.task_id, delivery.count) for delivery in ended]
        return in_time

    async def _run(self, call: Call[R]) -> R:
        (reply,) = await self._driver.execute([call])
        if isinstance(reply, Exception):
            raise reply
        return call.read(reply)

    def _deal(self, claim: Claim, short: bool) -> None:
        """Give out what was claimed: one for each seat first, then to each what it wants.

        :param short: more is not there
        """
        deliveries = deque(claim.deliveries)
        for seat in self._seats:
            if seat.got:  # it waits for more
                seat.got = self._without_ended(seat.got)
        for seat in self._seats:
            if not deliveries:
                break
            if not seat.got:
                seat.take(deliveries.popleft())
        for seat in self._seats if deliveries else ():
            while deliveries and len(seat.got) < seat.wanted and seat.take(deliveries[0]):
                deliveries.popleft()
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
            self._next_look = min(self._next_look, self._driver.now() + claim.until_next + PAST_DUE)
            self._catcher.ask()
        else:
            self._next_look = -math.inf

    async def _give_back(self) -> float:
        """Hand back some of what nobody waits for, the last ones; returns seconds until the next try."""
        returns = self._returns[-CLAIM:]
        del self._returns[-CLAIM:]
        place = len(self._returns)
        # The last one first, so that the first one delivered stands at the very head again.
        call = self._calls.hand_back(reversed(returns))
        try:
            (reply,) = await self._driver.execute([call])
            if isinstance(reply, Exception):
                raise reply
        except TorrelqueRedisError as error:
            if isinstance(error, TorrelqueUnknownOutcomeError):
                # It may be done, and the task delivered to somebody else since, with the same number: to do it again
                # would take the task from its holder. What was not done after all comes back when its lease ends.
                returns = [(task_id, count) for task_id, count in returns if count is None]
            self._returns[place:place] = returns  # others may have come behind them
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
        """Let someone go before all came that it wants; the last one to leave ends the waiting."""
        seat.got = self._without_ended(seat.got)
        self._dismiss(seat)
        if not self._seats:
            self._server.nudge()
