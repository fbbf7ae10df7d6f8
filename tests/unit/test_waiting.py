"""The room where dequeues wait, on a scripted driver: who gets what, and what goes back."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from unit.scripted import NOTHING, ScriptedDriver, claim, open_background

from torrelque.calls import Call, Calls, Delivery
from torrelque.errors import (
    TorrelqueClosedError,
    TorrelqueStorageError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)
from torrelque.keys import Keys
from torrelque.listening import Hub
from torrelque.waiting import CLAIM, HALF, Room

pytestmark = pytest.mark.anyio

KEYS = Keys("q")
CALLS = Calls(KEYS)


class Script:
    """Answers dequeues from a list of claims, then with nothing; hands back whatever is handed back."""

    def __init__(self, *claims: Any) -> None:
        self.claims = list(claims)

    def __call__(self, call: Call[Any]) -> Any:
        if call.script.name == "dequeue":
            return self.claims.pop(0) if self.claims else NOTHING
        return b" ".join([b"1"] * call.count)


class TwoClaims(ScriptedDriver):
    """The first two claims wait, each until it is let through its gate, and then have these answers."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(Script())
        self.gates = [anyio.Event(), anyio.Event()]
        self._answers = answers

    async def execute(self, calls: Sequence[Call[Any]]) -> list[Any]:
        turn = len(self.named("dequeue"))
        if turn >= 2 or calls[0].script.name != "dequeue":
            return await super().execute(calls)
        self.runs.append(list(calls))
        await self.gates[turn].wait()
        if isinstance(self._answers[turn], Exception):
            raise self._answers[turn]
        return [self._answers[turn]]


class Standstill(ScriptedDriver):
    """The process stands still amid the next claim, or one after that, for as long as the test says."""

    stands = 0.0
    before = 0
    _stood = 0.0

    def now(self) -> float:
        return super().now() + self._stood

    async def execute(self, calls: Sequence[Call[Any]]) -> list[Any]:
        replies = await super().execute(calls)
        if self.before:
            self.before -= 1
        else:
            self._stood, self.stands = self._stood + self.stands, 0.0
        return replies


class GatedClaims(ScriptedDriver):
    """Each claim whose number has a gate waits for it."""

    def __init__(self, answer: Callable[[Call[Any]], Any], *numbers: int) -> None:
        super().__init__(answer)
        self.gates = {number: anyio.Event() for number in numbers}

    async def execute(self, calls: Sequence[Call[Any]]) -> list[Any]:
        gate = self.gates.get(len(self.named("dequeue"))) if calls[0].script.name == "dequeue" else None
        if gate is None:
            return await super().execute(calls)
        self.runs.append(list(calls))
        await gate.wait()
        return [self.answer(call) for call in calls]


@asynccontextmanager
async def open_room(driver: ScriptedDriver) -> AsyncGenerator[Room]:
    """Open a room, and close it as a queue does."""
    async with open_background(driver) as background:
        hub = Hub(driver, background)
        room = Room(driver, background, hub, KEYS, CALLS, lambda: 300)
        try:
            yield room
        finally:
            room.close()
            hub.close()


def returned(driver: ScriptedDriver) -> list[tuple[bytes, bytes]]:
    """What was handed back: id and delivery number, the last one first."""
    return [
        (call.items[i], call.items[i + 1]) for call in driver.named("handback") for i in range(0, len(call.items), 2)
    ]


def wanted(driver: ScriptedDriver) -> list[int]:
    """How many tasks each claim asked for."""
    return [int(call.head[2]) for call in driver.named("dequeue")]


async def take(room: Room, count: int, timeout: float | None, got: list[Any]) -> None:
    """Dequeue, and keep the ids or the error."""
    try:
        got.append([delivery.task_id.decode() for delivery in await room.dequeue(count, timeout)])
    except Exception as error:
        got.append(error)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.001)


async def waits(driver: ScriptedDriver) -> None:
    """Let somebody wait in earnest: the connection is blocked, and the look that follows the subscription is done."""
    await until(lambda: driver.blocker.blocked and len(driver.named("dequeue")) == 2)
    await anyio.wait_all_tasks_blocked()


async def test_what_is_there_comes_at_once() -> None:
    """One claim serves a dequeue when there is something."""
    driver = ScriptedDriver(Script(claim("a")))
    async with open_room(driver) as room:
        (got,) = await room.dequeue(1, None)
    assert (got.task_id, got.count, got.lease, got.body) == (b"a", 1, 300.0, b'"t"')
    assert wanted(driver) == [1]
    assert driver.blocker.opened == 0
    assert returned(driver) == []


async def test_nothing_to_look_for_after_the_end() -> None:
    """A connection that waits and is lost while the queue is left makes no error of leaving it."""
    async with open_room(ScriptedDriver(Script())) as room:
        pass
    room.look_within(0)


async def test_a_damaged_claim() -> None:
    """An answer that cannot be read ends the wait of those who asked, and of nobody after them."""
    driver = ScriptedDriver(Script(b"inf 0 0 1 300 1 9\nab", claim("a")))
    async with open_room(driver) as room:
        with pytest.raises(TorrelqueUnknownOutcomeError):
            await room.dequeue(1, 5)
        (delivery,) = await room.dequeue(1, 5)
    assert delivery.task_id == b"a"


async def test_a_lease_counts_from_the_request() -> None:
    """A delivery knows when it was asked for, however late the answer comes; its lease is counted from there."""
    driver = ScriptedDriver(Script(claim("a")))
    driver.gate = anyio.Event()
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:

        async def dequeue() -> None:
            got.extend(await room.dequeue(1, None))

        group.start_soon(dequeue)
        await until(lambda: bool(driver.runs))
        answered = anyio.current_time()
        driver.gate.set()
    assert 0 < got[0].asked <= answered


async def test_an_answer_after_the_end_of_the_lease(caplog: pytest.LogCaptureFixture) -> None:
    """Who stood still until a lease had ended is not given that task, which its next holder may have; it goes back."""
    driver = Standstill(Script(claim("a", count=1), claim("b", "a", count=2)))
    async with open_room(driver) as room:
        driver.stands = 300.0
        got = await room.dequeue(2, 5)
    assert [(delivery.task_id, delivery.count) for delivery in got] == [(b"b", 2), (b"a", 2)]
    assert [record.getMessage() for record in caplog.records] == [
        "Tasks were asked for 300.0 s ago: the leases of 1 of them have ended meanwhile"
    ]
    assert returned(driver) == [(b"a", b"1")]


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_in_hand_when_an_answer_comes_too_late(fails: bool) -> None:
    """Nor is that given to him which he had in hand while he waited for more, whether that came or failed."""
    lost = TorrelqueUnavailableError("gone")
    driver = Standstill(Script(claim("a", more=1), lost if fails else claim("b", "a", count=2, lease=900)))
    async with open_room(driver) as room:
        driver.before, driver.stands = 1, 300.0
        if fails:
            with pytest.raises(TorrelqueUnavailableError):
                await room.dequeue(3, None)
        else:
            got = await room.dequeue(3, None)
            assert [(delivery.task_id, delivery.count) for delivery in got] == [(b"b", 2), (b"a", 2)]
    assert returned(driver) == [(b"a", b"1")]


@pytest.mark.parametrize("stands", [299.0, 0.5])
async def test_a_late_answer_within_the_lease(stands: float) -> None:
    """As long as its lease lasts a task comes, however late; and one whose lease is shorter than any way comes too."""
    driver = Standstill(Script(claim("a", lease=300 if stands > 1 else 0.4)))
    async with open_room(driver) as room:
        driver.stands = stands
        (got,) = await room.dequeue(1, None)
    assert got.task_id == b"a"


async def test_a_look_without_waiting() -> None:
    """With timeout 0 there is one claim, and no connection waits."""
    driver = ScriptedDriver(Script())
    async with open_room(driver) as room:
        assert await room.dequeue(3, 0) == []
    assert wanted(driver) == [3]
    assert driver.blocker.opened == 0


async def test_a_look_of_ones_own() -> None:
    """Who looks while a claim for others is under way is not sent away by its answer: that may be older."""
    driver = GatedClaims(Script(NOTHING, claim("a")), 0)
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        group.start_soon(take, room, 1, 0, got)
        await until(lambda: bool(driver.runs))
        group.start_soon(take, room, 1, 0, got)
        await anyio.wait_all_tasks_blocked()
        driver.gates[0].set()
    assert got == [[], ["a"]]


async def test_as_many_bytes_as_are_wanted() -> None:
    """What fills the room to the byte is taken."""
    driver = ScriptedDriver(Script(claim("a", "b", "c")))
    async with open_room(driver) as room:
        assert [delivery.task_id for delivery in await room.dequeue(3, None, room=6)] == [b"a", b"b"]
        await until(lambda: bool(returned(driver)))
    assert returned(driver) == [(b"c", b"1")]


async def test_a_look_goes_on_while_the_bound_was_met() -> None:
    """A claim that met its bound has not seen all, so the look goes on."""
    driver = ScriptedDriver(Script(claim(more=1), claim(more=1), claim("a")))
    async with open_room(driver) as room:
        assert len(await room.dequeue(1, 0)) == 1
    assert wanted(driver) == [1, 1, 1]


async def test_one_claim_for_everyone() -> None:
    """Those who wait are served by one claim: one task for each first, then as many as each wants."""
    driver = ScriptedDriver(Script(NOTHING, NOTHING, claim("a", "b", "c", "d")))
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        group.start_soon(take, room, 1, None, got)
        await waits(driver)
        group.start_soon(take, room, 3, None, got)
    assert sorted(got) == [["a"], ["b", "c", "d"]]
    assert wanted(driver) == [1, 1, 4]


@pytest.mark.parametrize(("callers", "claims"), [(32, [16, 16]), (15, [15])])
async def test_a_crowd_is_served_in_two_halves(callers: int, claims: list[int]) -> None:
    """Many callers stay out of step, so that Redis serves one half while the other works; a few share one claim."""
    ids = deque(f"t{i}" for i in range(callers))

    def answer(call: Call[Any]) -> Any:
        return claim(*[ids.popleft() for _ in range(int(call.head[2]))])

    driver = ScriptedDriver(answer)
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        for _ in range(callers):
            group.start_soon(take, room, 1, None, got)
    assert sorted(got) == sorted([f"t{i}"] for i in range(callers))
    assert wanted(driver) == claims


async def test_both_halves_are_claimed_for_at_once() -> None:
    """The claims for the two halves of a crowd are under way together; nobody is claimed for twice, and a few who come
    meanwhile wait for their turn."""
    ids = deque(f"t{i}" for i in range(32))

    def answer(call: Call[Any]) -> Any:
        return claim(*[ids.popleft() for _ in range(min(len(ids), int(call.head[2])))])

    driver = ScriptedDriver(answer)
    driver.gate = anyio.Event()
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        for _ in range(32):
            group.start_soon(take, room, 1, None, got)
        await until(lambda: len(driver.named("dequeue")) == 2)
        for _ in range(HALF - 1):
            group.start_soon(take, room, 1, 0, got)
        await anyio.wait_all_tasks_blocked()
        assert wanted(driver) == [16, 16]
        driver.gate.set()
    assert sorted(ids for ids in got if ids) == sorted([f"t{i}"] for i in range(32))
    assert got.count([]) == HALF - 1
    assert returned(driver) == []


@pytest.mark.parametrize("empty", [0, 1])
async def test_a_poll_is_not_sent_away_while_tasks_for_it_are_on_their_way(empty: int) -> None:
    """That one half found nothing more does not mean that nothing is there: the other half's claim may bring it."""
    answers = [claim(*[f"a{i}" for i in range(16)])] * 2
    answers[empty] = NOTHING
    driver = TwoClaims(*answers)
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        for _ in range(32):
            group.start_soon(take, room, 1, 0, got)
        await until(lambda: len(driver.named("dequeue")) == 2)
        driver.gates[empty].set()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert got == [], "16 of them will be served"
        driver.gates[1 - empty].set()
    assert sorted(filter(None, got)) == sorted([f"a{i}"] for i in range(16))
    assert got.count([]) == 16
    assert returned(driver) == []


async def test_a_crowd_at_an_empty_queue() -> None:
    """Two halves that both find nothing do not keep each other asking."""
    driver = ScriptedDriver(Script())
    async with open_room(driver) as room, anyio.create_task_group() as group:
        for _ in range(64):
            group.start_soon(take, room, 1, None, [])
        await until(lambda: driver.blocker.blocked)
        await anyio.wait_all_tasks_blocked()
        assert len(driver.named("dequeue")) <= 6
        group.cancel_scope.cancel()


@pytest.mark.parametrize("failing", [0, 1])
async def test_the_claim_for_one_half_fails(failing: int) -> None:
    """Everybody is told; what the other claim then brings is handed back."""
    answers: list[Any] = [claim(*[f"a{i}" for i in range(16)])] * 2
    answers[failing] = TorrelqueUnavailableError("gone")
    driver = TwoClaims(*answers)
    got: list[Any] = []
    async with open_room(driver) as room:
        async with anyio.create_task_group() as group:
            for _ in range(32):
                group.start_soon(take, room, 1, None, got)
            await until(lambda: len(driver.named("dequeue")) == 2)
            driver.gates[failing].set()
        assert [type(error) for error in got] == [TorrelqueUnavailableError] * 32
        driver.gates[1 - failing].set()
        await until(lambda: len(returned(driver)) == 16)


async def test_nobody_starves_beside_a_large_wish() -> None:
    """When there is less than is wanted, each who waits gets one before anybody gets a second."""
    driver = ScriptedDriver(Script(NOTHING, NOTHING, claim("a", "b", "c")))
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        group.start_soon(take, room, 5, None, got)
        await waits(driver)
        group.start_soon(take, room, 1, None, got)
    assert sorted(got) == [["a", "c"], ["b"]]
    assert wanted(driver) == [5, 5, 6]


async def test_large_wishes_are_served_in_portions() -> None:
    """One claim takes no more than its bound, and the next goes on."""
    first = [f"a{i}" for i in range(CLAIM)]
    driver = ScriptedDriver(Script(claim(*first), claim("last")))
    async with open_room(driver) as room:
        got = await room.dequeue(CLAIM + 50, None)
    assert [delivery.task_id.decode() for delivery in got] == [*first, "last"]
    assert wanted(driver) == [CLAIM, 50]


async def test_who_left_while_a_claim_was_under_way() -> None:
    """A task that comes for a seat whose owner has gone is handed back, with its delivery number."""
    driver = ScriptedDriver(Script(claim("a", count=7)))
    driver.gate = anyio.Event()
    async with open_room(driver) as room:
        with anyio.move_on_after(0.01):
            await room.dequeue(1, None)
        driver.gate.set()
        await until(lambda: returned(driver) == [(b"a", b"7")])


async def test_who_left_with_some_of_what_was_wanted() -> None:
    """A dequeue that is cancelled between two portions gives back the first, the last task first."""
    first = [f"a{i}" for i in range(CLAIM)]
    script = Script(claim(*first))
    driver = ScriptedDriver(script)
    async with open_room(driver) as room, anyio.create_task_group() as group:

        def answer(call: Call[Any]) -> Any:
            if not script.claims and call.script.name == "dequeue":
                group.cancel_scope.cancel()  # when the second portion is asked for
            return script(call)

        driver.answer = answer
        await room.dequeue(CLAIM + 1, None)
    assert [task_id.decode() for task_id, _ in returned(driver)] == first[::-1]


async def test_blocked_connection_wakes_who_waits() -> None:
    """With nothing there, one connection waits for everyone; what it is handed the next claim adopts."""
    driver = ScriptedDriver(Script(NOTHING, claim("caught")))
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(take, room, 1, 0.2, got)
        await until(lambda: driver.blocker.blocked)
        driver.blocker.put(b"caught")
    assert sorted(got) == [[], [], ["caught"]]
    assert driver.blocker.opened == 1
    adopting = [call.items for call in driver.named("dequeue") if call.items]
    assert adopting == [(b"caught",)]


async def test_unblocking_that_is_refused() -> None:
    """Who may not unblock the connection does not ask for it again and again; what that still catches goes back."""
    driver = ScriptedDriver(Script())
    tries = 0

    async def refuse() -> None:
        nonlocal tries
        tries += 1
        raise TorrelqueStorageError("NOPERM")

    driver.blocker.unblock = refuse  # type: ignore[method-assign]  # of this one driver
    async with open_room(driver) as room:
        with anyio.move_on_after(0.02):
            await room.dequeue(1, None)
        await until(lambda: tries > 0)
        await anyio.sleep(0.05)
        assert tries <= 3
        driver.blocker.put(b"caught")
        await until(lambda: returned(driver) == [(b"caught", b"")])


async def test_unblocked_when_nobody_waits() -> None:
    """When the last one has left, the connection is unblocked, so that it takes nothing for nobody."""
    driver = ScriptedDriver(Script())
    async with open_room(driver) as room:
        with anyio.move_on_after(0.02):
            await room.dequeue(1, None)
        await until(lambda: not driver.blocker.blocked)
        assert driver.blocker.unblocked >= 1


async def test_caught_for_nobody() -> None:
    """An id that is caught while the last one leaves goes back, whether it was adopted just before or not."""
    script = Script()

    def answer(call: Call[Any]) -> Any:
        adopts = call.script.name == "dequeue" and call.items
        return claim(*[task_id.decode() for task_id in call.items]) if adopts else script(call)

    driver = ScriptedDriver(answer)
    async with open_room(driver) as room, anyio.create_task_group() as group:
        group.start_soon(room.dequeue, 1, None)
        await waits(driver)
        driver.blocker.put(b"caught")
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await until(lambda: bool(returned(driver)))
    adopted = any(call.items for call in driver.named("dequeue"))
    assert returned(driver) == [(b"caught", b"1" if adopted else b"")]


async def test_failed_claim() -> None:
    """Everyone who waits hears of a failed claim, each with an error of its own; the next dequeue works."""
    driver = ScriptedDriver(Script(claim("a")))
    driver.failure = TorrelqueUnavailableError("gone")
    got: list[Any] = []
    async with open_room(driver) as room:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(take, room, 1, None, got)
        assert [type(error) for error in got] == [TorrelqueUnavailableError] * 3
        assert len({id(error) for error in got}) == 3
        driver.failure = None
        assert len(await room.dequeue(1, None)) == 1


async def test_a_failed_claim_takes_nothing_away() -> None:
    """Who has some of what was wanted when the next claim fails gets that: else it would be leased to nobody."""
    driver = ScriptedDriver(Script(claim("a", "b", more=1), TorrelqueUnavailableError("gone")))
    async with open_room(driver) as room:
        assert [delivery.task_id for delivery in await room.dequeue(3, 5)] == [b"a", b"b"]
    assert wanted(driver) == [3, 1]
    assert returned(driver) == []


async def test_failed_adoption_hands_back() -> None:
    """When the claim that should adopt an id fails, the id is handed back: harmless if it was adopted after all."""
    driver = ScriptedDriver(Script())
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        group.start_soon(take, room, 1, None, got)
        await waits(driver)
        driver.failure = TorrelqueUnavailableError("gone")
        driver.blocker.put(b"caught")
        await until(lambda: bool(got))
        driver.failure = None
        await until(lambda: returned(driver)[-1:] == [(b"caught", b"")])
    assert isinstance(got[0], TorrelqueUnavailableError)


async def test_handing_back_is_repeated() -> None:
    """What cannot be handed back now is handed back later: nothing is forgotten, and nothing done twice."""
    script = Script(claim("a"))
    handed: list[Any] = []

    def answer(call: Call[Any]) -> Any:
        if call.script.name == "handback":
            handed.append(call.items)
        return script(call)

    driver = ScriptedDriver(answer)
    async with open_room(driver) as room:
        deliveries = await room.dequeue(1, None)
        driver.failure = TorrelqueUnavailableError("gone")
        room.hand_back(deliveries)
        await until(lambda: len(driver.named("handback")) >= 2)
        driver.failure = None
        await until(lambda: bool(handed))
    assert handed == [(b"a", b"1")]


async def test_handing_back_is_not_repeated_blindly() -> None:
    """An unknown outcome is not tried again: done twice it would take the task from whoever was delivered it since."""
    deliveries = [Delivery(b"a", 1, 300, b'"t"')]
    driver = ScriptedDriver(Script())
    driver.failure = TorrelqueUnknownOutcomeError("the answer was lost")
    async with open_room(driver) as room:
        room.hand_back(deliveries)
        await until(lambda: len(driver.named("handback")) == 1)
        driver.failure = None
        await room.dequeue(1, 0.2)
    assert len(driver.named("handback")) == 1


async def test_handing_back_is_bounded() -> None:
    """Many tasks go back in several scripts, the last ones first, also where one fails and others come meanwhile."""
    deliveries = [Delivery(b"%d" % i, 1, 300, b'"t"') for i in range(2 * CLAIM + 10)]
    late = Delivery(b"late", 1, 300, b'"t"')
    handed: list[list[bytes]] = []

    def answer(call: Call[Any]) -> Any:
        if call.script.name == "handback":
            if len(driver.named("handback")) == 2:
                room.hand_back([late])
                return TorrelqueUnavailableError("gone")
            handed.append(list(call.items[::2]))
        return Script()(call)

    driver = ScriptedDriver(answer)
    async with open_room(driver) as room:
        room.hand_back(deliveries)
        await until(lambda: sum(map(len, handed)) == len(deliveries) + 1)
    ids = [delivery.task_id for delivery in deliveries]
    assert [task_id for some in handed for task_id in some] == [*ids[-CLAIM:][::-1], b"late", *ids[:-CLAIM][::-1]]
    assert [len(some) for some in handed] == [CLAIM, CLAIM, 11]


async def test_handing_back_comes_before_the_next_look() -> None:
    """Who waits is served when all is back: else what was delivered last would be delivered first."""
    deliveries = [Delivery(b"%d" % i, 1, 300, b'"t"') for i in range(2 * CLAIM)]
    driver = ScriptedDriver(Script(claim("a")))
    async with open_room(driver) as room:
        room.hand_back(deliveries)
        await room.dequeue(1, None)
    assert [run[0].script.name for run in driver.runs] == ["handback", "handback", "dequeue"]


async def test_surplus_goes_back() -> None:
    """Tasks that were claimed for someone who left meanwhile are not given to someone who wants no more."""
    driver = ScriptedDriver(Script(claim("a", "b")))
    driver.gate = anyio.Event()
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(take, room, 1, None, [])
                group.start_soon(take, room, 1, None, got)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        driver.gate.set()
        await until(lambda: bool(returned(driver)))
    assert got == [["a"]]
    assert returned(driver) == [(b"b", b"1")]


async def test_next_time_that_the_script_tells() -> None:
    """A claim that found nothing says when to look again, and then it is looked again."""
    due = anyio.current_time() + 0.05

    def answer(call: Call[Any]) -> Any:
        left = due - anyio.current_time()
        return claim(until=f"{left:f}") if left > 0 else claim("due")

    driver = ScriptedDriver(answer)
    async with open_room(driver) as room:
        assert len(await room.dequeue(1, 5)) == 1
        assert due <= anyio.current_time() < due + 2
    assert len(wanted(driver)) <= 4


async def test_wake_message() -> None:
    """A message that something is due sooner makes the room look then."""
    driver = ScriptedDriver(Script(NOTHING, NOTHING, claim("due")))
    got: list[Any] = []
    async with open_room(driver) as room, anyio.create_task_group() as group:
        group.start_soon(take, room, 1, 20, got)
        await waits(driver)
        assert got == []
        driver.subscriber.say(KEYS.wake, b"0.02")
    assert got == [["due"]]


async def test_closed_while_somebody_waits() -> None:
    """A queue that is left sends everyone away with an error that says so."""
    driver = ScriptedDriver(Script())
    got: list[Any] = []
    async with anyio.create_task_group() as group:
        async with open_room(driver) as room:
            group.start_soon(take, room, 1, None, got)
            group.start_soon(take, room, 5, 60, got)
            await until(lambda: driver.blocker.blocked)
    assert [type(error) for error in got] == [TorrelqueClosedError] * 2


async def test_closed_while_somebody_has_some() -> None:
    """Leaving the queue hands back what somebody has got who waits for more."""
    driver = TwoClaims(claim("a", "b", more=1), NOTHING)
    driver.gates[0].set()
    got: list[Any] = []
    async with anyio.create_task_group() as group:
        async with open_room(driver) as room:
            group.start_soon(take, room, 3, None, got)
            await until(lambda: len(driver.named("dequeue")) == 2)
            room.close()
            driver.gates[1].set()
            await until(lambda: bool(returned(driver)))
    assert isinstance(got[0], TorrelqueClosedError)
    assert sorted(returned(driver)) == [(b"a", b"1"), (b"b", b"1")]
