"""Concurrent calls share a script run, and nothing else: on a scripted driver."""

from __future__ import annotations

import traceback
from typing import Any

import anyio
import pytest
from unit.scripted import ScriptedDriver, open_background

from torrelque.batching import CROWD, Coalescer
from torrelque.calls import BOUND, MAX_BYTES, Call, Calls
from torrelque.drivers import Driver
from torrelque.errors import (
    TorrelqueClosedError,
    TorrelqueRedisError,
    TorrelqueStorageError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)
from torrelque.keys import Keys
from torrelque.model import TorrelqueQueueStats

pytestmark = pytest.mark.anyio

CALLS = Calls(Keys("q"))


def echo(call: Call[Any]) -> Any:
    """Answer a state with its own id, a count with zeros, an enqueue with ones."""
    if call.script.name == "state":
        return [[task_id] * 9 for task_id in call.items]
    if call.script.name == "stats":
        return [0, 0, 0, 0]
    return b" ".join([b"1"] * call.count)


def state(i: int) -> Call[Any]:
    return CALLS.state(b"%d" % i)


async def ask(coalescer: Coalescer, i: int, answers: dict[int, Any]) -> None:
    """Keep what a call got: its answer or its error."""
    try:
        answers[i] = (await coalescer.run(state(i)))[0]
    except Exception as error:
        answers[i] = error


async def test_the_double_is_a_driver() -> None:
    """The scripted driver keeps to the seam."""
    driver: Driver = ScriptedDriver(echo)
    assert await driver.execute([state(1)]) == [[[b"1"] * 9]]


async def test_lone_call_is_sent_at_once() -> None:
    """Nobody waits for company."""
    driver = ScriptedDriver(echo)
    async with open_background(driver) as background:
        coalescer = Coalescer(driver, background)
        assert (await coalescer.run(state(7)))[0] == b"7"
        assert await coalescer.run(CALLS.stats()) == TorrelqueQueueStats(0, 0, 0, 0)
        assert await coalescer.run_many(CALLS.enqueue([("a", b"1"), ("b", b"2")], 1, 0)) == [True, True]
    assert [len(run) for run in driver.runs] == [1, 1, 1]


@pytest.mark.parametrize("answer", [b"1", b"1 1 1", b"", None, 7, [b"1"], b"1 x"], ids=repr)
async def test_damaged_answer(answer: Any) -> None:
    """An answer that is none tells its callers so, and the next call is served."""
    driver = ScriptedDriver(lambda call: answer)
    async with open_background(driver) as background:
        coalescer = Coalescer(driver, background)
        with pytest.raises(TorrelqueUnknownOutcomeError):
            await coalescer.run_many(CALLS.enqueue([("a", b"1"), ("b", b"2")], 1, 0))
        driver.answer = echo
        assert await coalescer.run_many(CALLS.enqueue([("a", b"1"), ("b", b"2")], 1, 0)) == [True, True]


async def test_crowd_shares_a_run() -> None:
    """What arrives while a run is under way goes out together, and each caller gets its own answer."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}
    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        group.start_soon(ask, coalescer, 0, answers)
        await anyio.wait_all_tasks_blocked()
        for i in range(1, CROWD):
            group.start_soon(ask, coalescer, i, answers)
        await anyio.wait_all_tasks_blocked()
        assert len(driver.runs) == 1
        driver.gate.set()
    assert answers == {i: b"%d" % i for i in range(CROWD)}
    assert [[call.count for call in run] for run in driver.runs] == [[1], [CROWD - 1]]


async def test_company_may_wait_for_more() -> None:
    """With a wait set, a lone call still goes at once; after a shared run the next call waits for others, and after a
    run of its own it does so no more."""
    driver = ScriptedDriver(echo)
    answers: dict[int, Any] = {}
    async with open_background(driver) as background:
        coalescer = Coalescer(driver, background, lambda: 0.5)  # longer than this machine stands still
        begun = driver.now()
        for i in (1, 2):
            await ask(coalescer, i, answers)
        assert driver.now() - begun < 0.5
        async with anyio.create_task_group() as group:
            for i in (3, 4):
                group.start_soon(ask, coalescer, i, answers)
        assert [run[0].count for run in driver.runs] == [1, 1, 2]
        async with anyio.create_task_group() as group:
            for i in (5, 6, 7):  # each in a turn of the event loop of its own
                group.start_soon(ask, coalescer, i, answers)
                await anyio.wait_all_tasks_blocked()
        assert [run[0].count for run in driver.runs] == [1, 1, 2, 3]
        for i in (8, 9):
            await ask(coalescer, i, answers)
        assert [run[0].count for run in driver.runs] == [1, 1, 2, 3, 1, 1]
    assert answers == {i: b"%d" % i for i in range(1, 10)}


async def test_each_batch_waits_for_its_own_time() -> None:
    """What comes after a crowd that went out early waits as long as any other call in company."""
    driver = ScriptedDriver(echo)
    answers: dict[int, Any] = {}
    linger = 0.7  # longer than this machine stands still
    async with open_background(driver) as background:
        coalescer = Coalescer(driver, background, lambda: linger)
        async with anyio.create_task_group() as group:
            for i in (1, 2):
                group.start_soon(ask, coalescer, i, answers)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, coalescer, 3, answers)
            await anyio.sleep(0.1)  # it waits for more, and the crowd is complete before that is over
            for i in range(4, 3 + CROWD):
                group.start_soon(ask, coalescer, i, answers)
        begun = driver.now()
        await ask(coalescer, 3 + CROWD, answers)
        assert driver.now() - begun >= linger
    assert [run[0].count for run in driver.runs] == [2, CROWD, 1]
    assert answers == {i: b"%d" % i for i in range(1, 4 + CROWD)}


async def test_a_crowd_is_served_in_two_halves() -> None:
    """Many callers are halved, so that Redis serves one half while this process works for the other; and no more runs
    than two are under way."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}
    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        for i in range(100):
            group.start_soon(ask, coalescer, i, answers)
        await anyio.wait_all_tasks_blocked()
        assert [[call.count for call in run] for run in driver.runs] == [[50], [50]]
        for i in range(100, 300):
            group.start_soon(ask, coalescer, i, answers)
        await anyio.wait_all_tasks_blocked()
        assert len(driver.runs) == 2
        driver.gate.set()
    assert answers == {i: b"%d" % i for i in range(300)}
    assert sum(call.count for run in driver.runs for call in run) == 300


async def test_each_crowd_is_halved() -> None:
    """A crowd that comes when the one before is served is halved as well."""
    driver = ScriptedDriver(echo)
    answers: dict[int, Any] = {}
    async with open_background(driver) as background:
        coalescer = Coalescer(driver, background)
        for _ in range(2):
            async with anyio.create_task_group() as group:
                for i in range(100):
                    group.start_soon(ask, coalescer, i, answers)
    assert [[call.count for call in run] for run in driver.runs] == [[50]] * 4


@pytest.mark.parametrize(("callers", "runs"), [(CROWD, [CROWD]), (BOUND + 1, [BOUND, 1])])
async def test_a_crowd_does_not_wait_for_the_run_under_way(callers: int, runs: list[int]) -> None:
    """Few wait for the run before theirs to end; a crowd has its own meanwhile, and one more beyond the bound."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}
    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        group.start_soon(ask, coalescer, 0, answers)
        await anyio.wait_all_tasks_blocked()
        for i in range(1, callers + 1):
            group.start_soon(ask, coalescer, i, answers)
        await anyio.wait_all_tasks_blocked()
        assert [[call.count for call in run] for run in driver.runs] == [[1], runs]
        driver.gate.set()
    assert answers == {i: b"%d" % i for i in range(callers + 1)}


async def test_one_bad_call_fails_alone() -> None:
    """An error that is the answer to one call is no business of the others in its batch."""

    def answer(call: Call[Any]) -> Any:
        return TorrelqueStorageError("bad") if call.script.name == "stats" else echo(call)

    driver = ScriptedDriver(answer)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}

    async def count() -> None:
        with pytest.raises(TorrelqueStorageError):
            await coalescer.run(CALLS.stats())
        answers[-1] = "failed"

    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        for i in range(3):
            group.start_soon(ask, coalescer, i, answers)
        group.start_soon(count)
        await anyio.wait_all_tasks_blocked()
        driver.gate.set()
    assert answers == {-1: "failed", 0: b"0", 1: b"1", 2: b"2"}


async def test_lost_connection_fails_everyone_in_the_run() -> None:
    """Each caller gets an error of its own, with a traceback of its own and the same cause; then it works again."""
    driver = ScriptedDriver(echo)
    cause = OSError("gone")
    driver.failure = TorrelqueUnavailableError("gone")
    driver.failure.__cause__ = cause
    answers: dict[int, Any] = {}
    async with open_background(driver) as background:
        coalescer = Coalescer(driver, background)
        async with anyio.create_task_group() as group:
            for i in range(5):
                group.start_soon(ask, coalescer, i, answers)
        driver.failure = None
        assert (await coalescer.run(state(9)))[0] == b"9"
    errors = list(answers.values())
    assert len({id(error) for error in errors}) == 5
    for error in errors:
        assert type(error) is TorrelqueUnavailableError
        assert error.args == ("gone",)
        assert error.__cause__ is cause
        assert sum("in ask" in line for line in traceback.format_exception(error)) == 1


async def test_cancelled_before_it_is_sent() -> None:
    """A caller that leaves while the batch collects takes its call with it, whole; the others stay."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}
    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        group.start_soon(ask, coalescer, 0, answers)
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(ask, coalescer, 1, answers)
                group.start_soon(ask, coalescer, 2, answers)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        driver.gate.set()
    assert answers == {0: b"0", 2: b"2"}
    assert [call.items for run in driver.runs for call in run] == [(b"0",), (b"2",)]


async def test_batch_that_everyone_left() -> None:
    """When all callers of a batch have left nothing is sent for it, and the next call works."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}
    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        group.start_soon(ask, coalescer, 0, answers)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.001):
            await ask(coalescer, 1, answers)
        driver.gate.set()
        await anyio.wait_all_tasks_blocked()
        await ask(coalescer, 2, answers)
    assert answers == {0: b"0", 2: b"2"}
    assert len(driver.runs) == 2


async def test_cancelled_after_it_was_sent() -> None:
    """What was sent takes effect whole: the run is not cancelled, and its other callers get their answers."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}
    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(ask, coalescer, 1, answers)
                group.start_soon(ask, coalescer, 2, answers)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert answers == {}
        driver.gate.set()
    assert answers == {2: b"2"}
    assert [[sorted(call.items) for call in run] for run in driver.runs] == [[[b"1", b"2"]]]


async def test_runs_are_bounded() -> None:
    """However many wait, no run has more items or bytes than the bounds say, and order is kept."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}
    big = b"x" * (MAX_BYTES // 3)

    async def enqueue(i: int) -> None:
        assert await coalescer.run(CALLS.enqueue([(f"id{i}", big)], 1, 0))

    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        group.start_soon(ask, coalescer, 0, answers)
        await anyio.wait_all_tasks_blocked()
        for i in range(1, 2 * BOUND + 2):
            group.start_soon(ask, coalescer, i, answers)
        for i in range(7):
            group.start_soon(enqueue, i)
        await anyio.wait_all_tasks_blocked()
        driver.gate.set()
    assert answers == {i: b"%d" % i for i in range(2 * BOUND + 2)}
    sent = driver.runs[1]
    for call in sent:
        assert call.count <= BOUND
        assert sum(map(len, call.items)) <= MAX_BYTES
    # AnyIO starts tasks in any order on Trio, but each run is filled before the next is begun.
    assert sorted(call.count for call in sent if call.script.name == "state") == [1, BOUND, BOUND]
    assert sum(call.count for call in sent if call.script.name == "enqueue") == 7


async def test_whole_answers_are_not_shared() -> None:
    """Calls without items have a run each, and an answer each, in one round trip."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    counts: list[TorrelqueQueueStats] = []

    async def count() -> None:
        counts.append(await coalescer.run(CALLS.stats()))

    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        for _ in range(3):
            group.start_soon(count)
            await anyio.wait_all_tasks_blocked()
        driver.gate.set()
    assert counts == [TorrelqueQueueStats(0, 0, 0, 0)] * 3
    assert [len(run) for run in driver.runs] == [1, 2]


async def test_one_item_may_be_larger_than_a_run() -> None:
    """A payload beyond the bound goes alone rather than nowhere."""
    driver = ScriptedDriver(echo)
    async with open_background(driver) as background:
        coalescer = Coalescer(driver, background)
        assert await coalescer.run(CALLS.enqueue([("id", b"x" * (2 * MAX_BYTES))], 1, 0))


async def test_calls_of_other_kinds_are_not_joined() -> None:
    """Only the same script with the same head is one run; all of them are still one round trip."""
    driver = ScriptedDriver(
        lambda call: b" ".join([b"1.5"] * call.count) if call.script.name == "extend" else echo(call)
    )
    driver.gate = anyio.Event()
    async with open_background(driver) as background, anyio.create_task_group() as group:
        coalescer = Coalescer(driver, background)
        group.start_soon(coalescer.run, state(0))
        await anyio.wait_all_tasks_blocked()
        for default in (300, 300, 7):
            group.start_soon(coalescer.run, CALLS.extend("a", None, default))
        group.start_soon(coalescer.run, state(1))
        await anyio.wait_all_tasks_blocked()
        driver.gate.set()
    assert len(driver.runs) == 2
    assert sorted((call.script.name, call.count) for call in driver.runs[1]) == [
        ("extend", 1), ("extend", 2), ("state", 1),
    ]  # fmt: skip


async def test_drained_on_close() -> None:
    """What is under way when a queue is left gets its answer, what was waiting for its turn as well."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}
    async with anyio.create_task_group() as group:
        async with open_background(driver) as background:
            coalescer = Coalescer(driver, background)
            group.start_soon(ask, coalescer, 0, answers)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(ask, coalescer, 1, answers)
            await anyio.wait_all_tasks_blocked()
            driver.gate.set()
    assert answers == {0: b"0", 1: b"1"}


async def test_closed_with_calls_under_way() -> None:
    """When the grace is over whoever still waits is told so, sent or not."""
    driver = ScriptedDriver(echo)
    driver.gate = anyio.Event()
    answers: dict[int, Any] = {}
    async with anyio.create_task_group() as group:
        async with open_background(driver) as background:
            coalescer = Coalescer(driver, background)
            group.start_soon(ask, coalescer, 0, answers)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(ask, coalescer, 1, answers)
            await anyio.wait_all_tasks_blocked()
            background.drain(0.01)
    assert {type(answer) for answer in answers.values()} == {TorrelqueClosedError}
    assert set(answers) == {0, 1}


async def test_error_of_ours_is_not_hidden() -> None:
    """A bug ends the queue: callers hear that it was closed, and the error leaves through its group."""
    driver = ScriptedDriver(echo)
    driver.failure = ZeroDivisionError("bug")
    answers: dict[int, Any] = {}

    async def use() -> None:
        async with open_background(driver) as background:
            coalescer = Coalescer(driver, background)
            with anyio.CancelScope(shield=True):
                await ask(coalescer, 0, answers)

    with pytest.raises(ExceptionGroup) as caught:
        await use()
    assert caught.group_contains(ZeroDivisionError)
    assert isinstance(answers[0], TorrelqueClosedError)
    assert not isinstance(answers[0], TorrelqueRedisError)
