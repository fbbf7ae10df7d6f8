"""Sleeping loops, in no time: Trio's clock jumps whenever everyone sleeps. No Redis here, but a scripted driver."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from unit.scripted import NOTHING, ScriptedDriver, open_background

from torrelque import TorrelqueLeaseLostError, TorrelqueLookupError, TorrelqueUnavailableError
from torrelque.background import Outage
from torrelque.batching import Coalescer
from torrelque.calls import Call, Calls
from torrelque.drivers import Driver
from torrelque.keys import Keys
from torrelque.leasing import keep_lease
from torrelque.listening import Hub
from torrelque.sweeping import Sweeper
from torrelque.waiting import Room
from torrelque.watching import Watches

pytestmark = pytest.mark.trio

KEYS = Keys("q")
CALLS = Calls(KEYS)


def close_to(value: float) -> Any:
    return pytest.approx(value, abs=0.01)


# Waiting


async def test_each_leaves_when_its_own_time_has_passed(autojump_clock: trio.testing.MockClock) -> None:
    """Who came later with less patience leaves earlier, each at its time; one alarm serves all of them."""
    driver = ScriptedDriver(lambda _: NOTHING)
    left: list[tuple[float, float]] = []
    async with open_background(driver) as background:
        hub = Hub(driver, background)
        room = Room(driver, background, hub, KEYS, CALLS, lambda: 300)

        async def wait(after: float, seconds: float) -> None:
            await trio.sleep(after)
            started = trio.current_time()
            assert await room.dequeue(1, seconds) == []
            left.append((seconds, trio.current_time() - started))

        async with trio.open_nursery() as nursery:
            for after, seconds in ((0, 20), (0, 9), (1, 2), (2, 60), (4, 0.001), (5, 7)):
                nursery.start_soon(wait, after, seconds)
        room.close()
        hub.close()
    assert left == [(seconds, close_to(seconds)) for seconds in (2, 0.001, 9, 7, 20, 60)]


# Sweeping


class Sweeps:
    """Runs the sweeping loop on a scripted driver, and notes when it sweeps and from where."""

    def __init__(self) -> None:
        self.driver = ScriptedDriver(self.answer)
        self.started = trio.current_time()
        self.seen: list[tuple[float, str]] = []
        self.until: bytes | Callable[[], bytes] = b"inf"
        self.steps: list[list[Any]] = []

    def answer(self, call: Call[Any]) -> Any:
        if call.script.name != "sweep":
            raise AssertionError(call)
        self.seen.append((round(trio.current_time() - self.started, 2), call.head[2].decode()))
        if self.steps:
            return self.steps.pop(0)
        return [0, 0, 0, [], b"end", self.until() if callable(self.until) else self.until]

    async def run(self, interval: float, seconds: float, meanwhile: Any = None) -> None:
        async with open_background(self.driver) as background:
            hub = Hub(self.driver, background)
            sweeper = Sweeper(
                Coalescer(self.driver, background), hub, KEYS, CALLS, lambda: 300, trio.lowlevel.checkpoint
            )
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    if meanwhile is not None:
                        nursery.start_soon(meanwhile)
                    await nursery.start(sweeper.run, interval)
            hub.close()


async def test_sweeps_every_interval(autojump_clock: trio.testing.MockClock) -> None:
    """The first sweep is at once, and then one at each interval; a lookup when the subscription stands is no sweep."""
    sweeps = Sweeps()
    await sweeps.run(30, 100)
    full = [time for time, cursor in sweeps.seen if cursor == ""]
    assert full == [close_to(time) for time in (0, 30, 60, 90)]


async def test_sweeps_when_the_next_is_due(autojump_clock: trio.testing.MockClock) -> None:
    """Between two intervals leases and delays are looked at when the next one ends, and nothing else is."""
    sweeps = Sweeps()
    due = trio.current_time() + 7
    sweeps.until = lambda: b"%f" % (due - trio.current_time()) if trio.current_time() < due else b"inf"
    await sweeps.run(30, 29)
    assert sweeps.seen[0] == (0, "")
    assert sweeps.seen[-1] == (close_to(7), "timed")
    assert all(time < 0.1 for time, _ in sweeps.seen[:-1])


async def test_wake_message_brings_a_sweep_forward(autojump_clock: trio.testing.MockClock) -> None:
    """A message that something is due sooner is obeyed at its time; one that cannot be read means: look now."""
    sweeps = Sweeps()

    async def say() -> None:
        await trio.sleep(5)
        sweeps.driver.subscriber.say(KEYS.wake, b"2.5")
        await trio.sleep(10)
        sweeps.driver.subscriber.say(KEYS.wake, b"junk")

    await sweeps.run(100, 50, say)
    later = [sweep for sweep in sweeps.seen if sweep[0] > 1]
    assert later == [(close_to(7.5), "timed"), (close_to(15), "timed")]


async def test_a_later_wake_message_puts_nothing_off(autojump_clock: trio.testing.MockClock) -> None:
    """Of several times the nearest counts, whichever was told last."""
    sweeps = Sweeps()

    async def say() -> None:
        await trio.sleep(5)
        sweeps.driver.subscriber.say(KEYS.wake, b"5")
        await trio.sleep(1)
        sweeps.driver.subscriber.say(KEYS.wake, b"20")

    await sweeps.run(100, 15, say)
    assert [sweep for sweep in sweeps.seen if sweep[0] > 1] == [(close_to(10), "timed")]


async def test_sweeps_of_everything_are_not_put_off(autojump_clock: trio.testing.MockClock) -> None:
    """However often something is due in between, everything is looked at once in each interval."""
    sweeps = Sweeps()
    sweeps.until = b"7"
    await sweeps.run(30, 95)
    full = [time for time, cursor in sweeps.seen if cursor == ""]
    assert full == [pytest.approx(time, abs=0.1) for time in (0, 30, 60, 90)]
    assert len(sweeps.seen) > 12


async def test_a_sweep_that_ends_listens_no_more(autojump_clock: trio.testing.MockClock) -> None:
    """When it is cancelled nothing is left of it."""
    sweeps = Sweeps()

    async def look() -> None:
        await trio.sleep(3)
        assert sweeps.driver.subscriber.channels == {KEYS.wake}

    async with open_background(sweeps.driver) as background:
        hub = Hub(sweeps.driver, background)
        coalescer = Coalescer(sweeps.driver, background)
        sweeper = Sweeper(coalescer, hub, KEYS, CALLS, lambda: 300, trio.lowlevel.checkpoint)
        async with trio.open_nursery() as nursery:
            await nursery.start(sweeper.run, 30)
            await look()
            nursery.cancel_scope.cancel()
        await trio.sleep(60)
        assert sweeps.driver.subscriber.channels == set()
        hub.close()


async def test_sweep_goes_on_in_steps(autojump_clock: trio.testing.MockClock, caplog: Any) -> None:
    """One pass takes as many steps as there is to do, goes on from each cursor, and logs the sum once."""
    caplog.set_level(logging.DEBUG, "torrelque")
    sweeps = Sweeps()
    sweeps.steps = [
        [500, 0, 0, [], b"", b"0"],
        [1, 2, 0, [b"ghost"], b"497", b"inf"],
        [0, 0, 3, [], b"end", b"inf"],
    ]
    await sweeps.run(30, 1)
    assert [cursor for _, cursor in sweeps.seen][:3] == ["", "", "497"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("Sweep has requeued: stale=501, delayed=2, undequeued=3") == 1
    assert sum("ghost" in message for message in messages) == 1


async def test_outage_is_outlived(autojump_clock: trio.testing.MockClock, caplog: Any) -> None:
    """Redis away for ten minutes: tries get rarer, never rarer than 2 s, two lines in the log, and then it works."""
    caplog.set_level(logging.INFO, "torrelque")
    sweeps = Sweeps()

    async def outage() -> None:
        sweeps.driver.failure = TorrelqueUnavailableError("gone")
        await trio.sleep(600)
        sweeps.driver.failure = None

    await sweeps.run(30, 700, outage)
    tries = len(sweeps.driver.named("sweep")) - len(sweeps.seen)
    assert 300 <= tries <= 700
    assert sweeps.seen[0][0] <= 602.1, "it resumes by itself"
    told = [record.getMessage() for record in caplog.records]
    assert told.count("Sweep has failed with Redis error, continuing") == 1
    assert sum(message.startswith("Sweep works again after") for message in told) == 1


async def test_hub_hears_again_after_an_outage(autojump_clock: trio.testing.MockClock) -> None:
    """A lost subscription is made again, and every ear is told to look, for messages may have been missed."""
    driver = ScriptedDriver(lambda call: None)
    async with open_background(driver) as background:
        hub = Hub(driver, background)
        ear = hub.attach(b"channel")
        for _ in range(3):
            await ear.heard()
            assert (ear.error, ear.message) == (None, None)
            driver.subscriber.say(b"channel", b"message")
            await ear.heard()
            assert ear.message == b"message"
            driver.failure = TorrelqueUnavailableError("gone")
            driver.subscriber.sender.close()
            await ear.heard()
            assert isinstance(ear.error, TorrelqueUnavailableError)
            await trio.sleep(100)
            await ear.heard()
            driver.failure = None
        hub.close()


async def test_watch_of_which_all_notifications_are_lost(autojump_clock: trio.testing.MockClock) -> None:
    """The state is read anyway each half minute, so a watch that hears nothing is late, and not lost."""
    begun = trio.current_time()

    def state(_: Call[Any]) -> Any:
        passed = trio.current_time() - begun
        status = b"0" if passed < 40 else b"1" if passed < 70 else None
        return [[status, b"300", None, b"0", b"0", None, None, None, None]]

    driver = ScriptedDriver(state)
    async with open_background(driver) as background:
        hub = Hub(driver, background)
        watches = Watches(driver, background, Coalescer(driver, background), hub, KEYS, CALLS)
        watcher = await watches.open(b"t", None)
        told = []
        while (fields := await watcher.next()) is not None:
            told.append((fields[0], trio.current_time() - begun))
        watcher.close()
        hub.close()
    assert told == [(b"0", close_to(0)), (b"1", close_to(60))]
    assert trio.current_time() - begun == close_to(90)


async def test_backoff() -> None:
    """Delays double from 50 ms to 2 s, with jitter of a half, for ever, and begin anew after a success."""
    outage = Outage("Trying")
    limits = [min(2.0, 0.05 * 2**n) for n in range(40)]
    for _ in range(2):
        delays = [outage.failed(OSError()) for _ in limits]
        assert all(limit / 2 <= delay <= limit for delay, limit in zip(delays, limits, strict=True))
        outage.worked()


async def test_outage_says_it_once(caplog: Any) -> None:
    """One line when it begins, with what happened, and one when it is over."""
    caplog.set_level(logging.INFO, "torrelque")
    outage = Outage("Listening")
    outage.worked()
    for _ in range(5):
        outage.failed(OSError("gone"))
    outage.worked()
    outage.worked()
    assert [record.getMessage() for record in caplog.records] == [
        "Listening has failed, retrying until it works again",
        "Listening works again after 5 failures",
    ]
    assert caplog.records[0].exc_info[1].args == ("gone",)


# Leasing


class Lease:
    """Extends as the test scripts, and notes when."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.started = trio.current_time()
        self.times: list[float] = []
        self.apart: list[bool] = []

    @property
    def age(self) -> float:
        return trio.current_time() - self.started

    async def extend(self, *, apart: bool) -> float:
        self.times.append(self.age)
        self.apart.append(apart)
        await trio.lowlevel.checkpoint()
        step = self.script.pop(0) if self.script else None
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, int | float):
            await trio.sleep(step)
        return 0.0


async def test_extended_at_half_of_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """A lease of 300 s is extended each 150 s as long as the body runs, and not after."""
    lease = Lease()
    async with keep_lease(lease.extend, 300, 300):
        await trio.sleep(1000)
    await trio.sleep(1000)
    assert lease.times == [close_to(time) for time in (150, 300, 450, 600, 750, 900)]


async def test_extension_that_shortens_the_lease(autojump_clock: trio.testing.MockClock) -> None:
    """The first extension may bring the end closer, answered or not: from its request on, the short length counts."""
    lease = Lease()
    async with keep_lease(lease.extend, 10, 300):
        await trio.sleep(166)
    assert lease.times == [close_to(time) for time in (150, 155, 160, 165)]
    lease = Lease(*[10**6] * 1000)
    with pytest.raises(TorrelqueLookupError, match="had not answered"):
        async with keep_lease(lease.extend, 10, 300):
            await trio.sleep_forever()
    assert lease.age == close_to(159.5)


async def test_late_body_is_extended_first(autojump_clock: trio.testing.MockClock) -> None:
    """With half of the lease gone, or nobody knows how much, the body begins with a whole one."""
    for left in (150, 10, 0, -5, None):
        lease = Lease()
        async with keep_lease(lease.extend, 300, left):
            assert lease.times == [0]
            await trio.sleep(200)
        assert lease.times == [0, close_to(150)]


async def test_body_does_not_begin_when_the_lease_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    """The first extension says so before anything is done."""
    with pytest.raises(TorrelqueLeaseLostError):
        async with keep_lease(Lease(TorrelqueLeaseLostError("id")).extend, 300, None):
            pytest.fail("has begun")


async def test_body_is_cancelled_when_the_lease_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    """The extension that is refused ends the body at once, with the reason."""
    lease = Lease(None, TorrelqueLeaseLostError("id"))
    with pytest.raises(TorrelqueLeaseLostError):
        async with keep_lease(lease.extend, 300, 300):
            await trio.sleep_forever()
    assert lease.age == close_to(300)


async def test_slow_answer_does_not_shorten_the_lease(autojump_clock: trio.testing.MockClock) -> None:
    """An answer that took long still counts from when it was asked: the bound on the safe side."""
    lease = Lease(50, 50, 50)
    async with keep_lease(lease.extend, 300, 300):
        await trio.sleep(1000)
    # Asked at 150, answered at 200, ends at 450: asked again half-way between 200 and 450.
    assert lease.times[:2] == [close_to(150), close_to(325)]


async def test_answer_that_never_comes(autojump_clock: trio.testing.MockClock) -> None:
    """A try that hangs holds nothing up: another one goes by another way meanwhile, and its answer keeps the lease."""
    lease = Lease(10**6)
    async with keep_lease(lease.extend, 300, 300):
        await trio.sleep(500)
    # Asked at 150 and, half of what was left later, at 225; that one is answered, so the lease ends at 525.
    assert lease.times == [close_to(time) for time in (150, 225, 375)]
    assert lease.apart == [False, True, False]


async def test_answers_that_never_come(autojump_clock: trio.testing.MockClock) -> None:
    """The body is cancelled a second before its lease ends, whoever may still answer."""
    lease = Lease(*[10**6] * 1000)
    with pytest.raises(TorrelqueLookupError, match="had not answered"):
        async with keep_lease(lease.extend, 300, 300):
            await trio.sleep_forever()
    assert lease.age == close_to(299)
    assert lease.times[:4] == [close_to(time) for time in (150, 225, 262.5, 281.25)]
    assert len(lease.times) == 8


async def test_late_answer_counts(autojump_clock: trio.testing.MockClock) -> None:
    """The first try may be answered after the next has begun: each counts from the moment when it was asked."""
    lease = Lease(100, 10**6)
    async with keep_lease(lease.extend, 300, 300):
        await trio.sleep(1000)
    # Asked at 150 and at 225, answered at 250, ends at 450.
    assert lease.times[:3] == [close_to(time) for time in (150, 225, 350)]
    lease = Lease(100, 10)
    async with keep_lease(lease.extend, 300, 300):
        await trio.sleep(500)
    # Asked at 225, answered at 235, ends at 525, whatever is answered at 250 to what was asked at 150.
    assert lease.times[:3] == [close_to(time) for time in (150, 225, 387.5)]


async def test_body_does_not_begin_under_a_lease_that_has_ended(autojump_clock: trio.testing.MockClock) -> None:
    """A first extension that takes as long as the lease is none."""
    lease = Lease(310)
    with pytest.raises(TorrelqueLookupError, match="had not answered"):
        async with keep_lease(lease.extend, 300, None):
            pytest.fail("has begun")
    assert lease.age == close_to(299)


async def test_slow_first_extension(autojump_clock: trio.testing.MockClock) -> None:
    """What a first extension took is not there for the body."""
    lease = Lease(100)
    async with keep_lease(lease.extend, 300, None):
        await trio.sleep(150)
    # Asked at 0, answered at 100, ends at 300.
    assert lease.times == [0, close_to(200)]


async def test_margin(autojump_clock: trio.testing.MockClock) -> None:
    """A body has a twentieth of its lease to clean up, and at most a second, before somebody else may have the task."""
    for seconds, margin in ((0.2, 0.01), (2, 0.1), (20, 1), (3600, 1)):
        lease = Lease(*[TorrelqueUnavailableError("gone")] * 1000)
        with pytest.raises(TorrelqueLookupError):
            async with keep_lease(lease.extend, seconds, seconds):
                await trio.sleep_forever()
        assert lease.age == pytest.approx(seconds - margin, abs=0.001)


@pytest.mark.parametrize("seconds", [299.5, 1000])
async def test_everything_stood_still(autojump_clock: trio.testing.MockClock, seconds: float) -> None:
    """A body whose process wakes up at the end of its lease, or past it, is cancelled before anybody is asked."""
    lease = Lease()
    with pytest.raises(TorrelqueLookupError):
        async with keep_lease(lease.extend, 300, 300):
            await trio.testing.wait_all_tasks_blocked()
            autojump_clock.jump(seconds)
            await trio.sleep_forever()
    assert (lease.age, lease.times) == (close_to(seconds), [])


async def test_everything_stood_still_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    """A process that wakes up in time asks at once, and its body goes on."""
    lease = Lease()
    async with keep_lease(lease.extend, 300, 300):
        await trio.testing.wait_all_tasks_blocked()
        autojump_clock.jump(290)
        await trio.sleep(100)
    assert lease.times == [close_to(290)]


async def test_redis_away_for_a_while(autojump_clock: trio.testing.MockClock, caplog: Any) -> None:
    """A failed extension is tried again while the lease lasts, and what works in time is enough."""
    lease = Lease(TorrelqueUnavailableError("gone"), TorrelqueUnavailableError("gone"))
    async with keep_lease(lease.extend, 300, 300):
        await trio.sleep(400)
    assert lease.times[:3] == [close_to(time) for time in (150, 225, 262.5)]
    assert caplog.text.count("could not be extended") == 2


async def test_redis_away_for_too_long(autojump_clock: trio.testing.MockClock) -> None:
    """When nothing works until the end, the body ends just before its lease does, after a handful of tries."""
    lease = Lease(*[TorrelqueUnavailableError("gone")] * 1000)
    with pytest.raises(TorrelqueLookupError, match="could not be reached") as caught:
        async with keep_lease(lease.extend, 300, 300):
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, TorrelqueUnavailableError)
    assert lease.age == close_to(299)
    assert len(lease.times) == 8


async def test_a_failure_that_is_over_is_no_reason(autojump_clock: trio.testing.MockClock) -> None:
    """What is said of the end of a lease is why the last tries have not worked, not those before an answer."""
    lease = Lease(TorrelqueUnavailableError("gone"), None, *[10**6] * 1000)
    with pytest.raises(TorrelqueLookupError, match="had not answered") as caught:
        async with keep_lease(lease.extend, 300, 300):
            await trio.sleep_forever()
    assert caught.value.__cause__ is None


async def test_a_body_that_is_done_when_its_lease_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    """Who could not be cancelled any more, and has done all, hears of no loss."""
    lease = Lease(TorrelqueLeaseLostError("id"))
    async with keep_lease(lease.extend, 300, 300) as scope:
        with trio.CancelScope(shield=True):
            await trio.sleep(200)
    assert scope.cancel_called


async def test_settled_by_the_body(autojump_clock: trio.testing.MockClock) -> None:
    """When the body itself has settled the task, the next refusal is its end, and the body runs on."""
    lease = Lease(TorrelqueLookupError("gone"))
    lost = True
    async with keep_lease(lease.extend, 300, 300, lambda _: lost):
        lost = False
        await trio.sleep(1000)
    assert lease.times == [close_to(150)]


async def test_settled_by_the_body_or_not(autojump_clock: trio.testing.MockClock) -> None:
    """As long as nobody knows whether the body has settled the task it runs on, and is asked for again."""
    verdicts = [None, None, True]
    lease = Lease(*[TorrelqueLeaseLostError("id")] * 3)
    with pytest.raises(TorrelqueLeaseLostError):
        async with keep_lease(lease.extend, 300, 300, lambda _: verdicts.pop(0)):
            await trio.sleep_forever()
    assert lease.times == [close_to(time) for time in (150, 300, 450)]


async def test_errors_leave_alone(autojump_clock: trio.testing.MockClock) -> None:
    """What the body raises is not wrapped, and neither is a bug in the extension."""
    with pytest.raises(KeyError):
        async with keep_lease(Lease().extend, 300, 300):
            raise KeyError
    with pytest.raises(ZeroDivisionError):
        async with keep_lease(Lease(ZeroDivisionError()).extend, 300, 300):
            await trio.sleep_forever()


async def test_cancelled_by_the_caller(autojump_clock: trio.testing.MockClock) -> None:
    """The scope that the body is given cancels it without an error, and so does one around it."""
    async with keep_lease(Lease().extend, 300, 300) as scope:
        scope.cancel()
        await trio.sleep_forever()
    with trio.move_on_after(10) as outer:
        async with keep_lease(Lease().extend, 300, 300):
            await trio.sleep_forever()
    assert outer.cancelled_caught


async def test_the_double_is_a_driver() -> None:
    """The scripted driver keeps to the seam."""
    driver: Driver = ScriptedDriver(lambda call: None)
    assert driver.db == 0
