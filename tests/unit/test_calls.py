"""What is said to Redis, and how answers are read: pure functions, tried with whatever hypothesis finds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torrelque import TorrelqueTaskId, TorrelqueTaskStatus, scripts
from torrelque.calls import (
    BOUND,
    CLAIM_BOUND,
    HORIZON,
    LETTERS_BOUND,
    MAX_ANSWER,
    SWEEP_ALL,
    SWEEP_BOUND,
    SWEEP_TIMED,
    Calls,
    GivingUp,
    Letter,
    LettersStep,
    Verdict,
    outcomes,
    seconds_of_wake,
    text_of_seconds,
)
from torrelque.checks import MAX_SECONDS, MIN_SECONDS
from torrelque.errors import TorrelqueUnknownOutcomeError
from torrelque.keys import Keys
from torrelque.model import SweepReport, TorrelqueQueueStats

KEYS = Keys("q")
CALLS = Calls(KEYS)
seconds = st.floats(MIN_SECONDS, MAX_SECONDS) | st.integers(1, int(MAX_SECONDS)).map(float)
ids = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=40)


@given(st.floats(0, MAX_SECONDS) | st.integers(0, int(MAX_SECONDS)))
def test_lengths_survive_as_text(value: float) -> None:
    """A length of time is written so that it is read as the very same number, by Python and by Lua."""
    text = text_of_seconds(value)
    assert float(text) == value
    assert text.isascii()
    assert b"inf" not in text
    assert b"nan" not in text


def test_lengths_look_like_those_of_the_published_package() -> None:
    """A whole number has no point."""
    assert [text_of_seconds(value) for value in (300, 300.0, 1.5, 0, 0.001)] == [b"300", b"300", b"1.5", b"0", b"0.001"]


@given(st.binary(max_size=20) | st.none() | st.floats().map(lambda value: repr(value).encode()))
def test_wake_messages_are_hints(message: bytes | None) -> None:
    """Whatever somebody publishes, a sleeper looks between now and its horizon."""
    assert 0 <= seconds_of_wake(message) <= HORIZON


def test_wake_messages_that_can_be_read() -> None:
    """What scripts publish is taken at its word; anything else means: look now."""
    told = {b"2.5": 2.5, b"0.000000": 0, b"30": 30, b"30.1": 0, b"-1": 0, b"nan": 0, b"inf": 0, b"": 0, b"x": 0}
    assert {message: seconds_of_wake(message) for message in told} == told
    assert seconds_of_wake(None) == 0


@given(st.lists(st.tuples(ids, st.binary(max_size=40)), max_size=5), seconds, seconds)
def test_enqueue(items: list[tuple[str, bytes]], lease: float, delay: float) -> None:
    """Each task is four arguments, with the payload as it is."""
    call = CALLS.enqueue(items, lease, delay)
    assert (call.script, call.count, len(call.items)) == (scripts.ENQUEUE, len(items), 4 * len(items))
    for i, (task_id, body) in enumerate(items):
        assert call.items[4 * i : 4 * i + 2] == (task_id.encode(), body)
        assert [float(text) for text in call.items[4 * i + 2 : 4 * i + 4]] == [lease, delay]
    assert [call.parse(word) for word in outcomes(b"1 0 1")] == [True, False, True]


@given(st.lists(st.tuples(ids, st.integers(1, 10**6), seconds, st.binary(max_size=60)), max_size=5), st.booleans())
def test_claims_are_read_back(tasks: list[tuple[str, int, float, bytes]], more: bool) -> None:
    """Whatever bytes ids and payloads hold, lines and numbers included, a claim is read as it was written."""
    sheet = b"".join(
        b" %d %b %d %d" % (count, repr(lease).encode(), len(task_id.encode()), len(body))
        for task_id, count, lease, body in tasks
    )
    bodies = b"".join(task_id.encode() + body for task_id, _, _, body in tasks)
    claim = CALLS.dequeue(5, 300).parse(b"12.5 %d 2 1%b 7 4 5\n%bdroppedalsoended" % (more, sheet, bodies))
    assert [
        (delivery.task_id.decode(), delivery.count, delivery.lease, delivery.body) for delivery in claim.deliveries
    ] == tasks
    assert (claim.until_next, claim.more, claim.dropped) == (12.5, more, [b"dropped", b"also"])
    assert claim.given_up == [b"ended"]


def test_nothing_to_come_is_infinity() -> None:
    """Where a script knows of no next time, nobody waits for one."""
    assert CALLS.dequeue(1, 300).parse(b"inf 0 0 0\n").until_next == math.inf
    assert CALLS.sweep(300, SWEEP_ALL).parse([0, 0, 0, [], b"end", b"inf"]).until_next == math.inf


def test_dequeue() -> None:
    """A claim says how many it wants, the default lease, the bound, and what to adopt."""
    call = CALLS.dequeue(7, 1.5, [b"a", b"b"])
    assert call.head == (KEYS.wake, b"30", b"7", b"1.5", b"%d" % CLAIM_BOUND, b"", b"", b"")
    assert (call.items, call.count, len(call.keys)) == ((b"a", b"b"), 0, 7)


@pytest.mark.parametrize(("keep", "text", "keys"), [(1.5, b"1500", 7), (None, b"", 9)])
def test_dequeue_with_a_limit(keep: float | None, text: bytes, keys: int) -> None:
    """A claim says when to give a task up; the keys of dead letters go along where it becomes one."""
    call = CALLS.dequeue(7, 1.5, [b"a"], GivingUp(3, keep, b"why"))
    assert call.head[5:] == (b"3", text, b"why")
    assert (call.items, len(call.keys)) == ((b"a",), keys)


def test_dead_letters() -> None:
    """What is kept of the dead is read, requeued and purged by its own scripts, which know where it is."""
    done = TorrelqueTaskStatus.REJECTED
    assert CALLS.release([("a", b"r")], done, None).head == (b"4", b"")
    calls = [
        CALLS.release([("a", b"r")], done, None), CALLS.dead_letters(9, None), CALLS.count_dead_letters(),
        CALLS.requeue_dead_letters((), b"", 0), CALLS.purge_dead_letters((), b"", 0),
    ]  # fmt: skip
    assert {call.keys[7:] for call in calls} == {(KEYS.dead, KEYS.dead_payloads)}
    assert CALLS.dead_letters(10**6, (b"1.5", b"a")).head == (b"%d" % BOUND, b"%d" % MAX_ANSWER, b"1.5", b"a")
    assert CALLS.dead_letters(9, None).parse([[b"a", b"1.5", b"body", b"r"] + [None] * 5]) == [
        Letter(b"a", b"1.5", b"body", [b"r"] + [None] * 5)
    ]
    call = CALLS.requeue_dead_letters((b"a", b"b"), b"1.5", 7)
    assert (call.head, call.items, call.count) == ((b"1.5", b"7", b"%d" % LETTERS_BOUND), (b"a", b"b"), 0)
    assert call.parse([1, 3, 1, b"1.5"]) == LettersStep(1, 3, 1, b"1.5")


@pytest.mark.parametrize(("task_id", "token"), [("a", b""), (TorrelqueTaskId("a", 3, 300), b"3")])
def test_settles_carry_the_token(task_id: str, token: bytes) -> None:
    """An id that knows its delivery is fenced; a plain one is not."""
    done = TorrelqueTaskStatus.COMPLETED
    assert CALLS.release([(task_id, None)], done, 60).items == (b"a", token, b"")
    assert CALLS.release([(task_id, b"")], done, 1.5).items == (b"a", token, b"=")
    assert CALLS.release([(task_id, b"r")], done, 60).items == (b"a", token, b"=r")
    assert CALLS.requeue(task_id, 0, None).items == (b"a", token, b"0", b"")
    assert CALLS.requeue(task_id, 1.5, 7).items == (b"a", token, b"1.5", b"7")
    assert CALLS.extend(task_id, None, 300).items == (b"a", token, b"")
    assert CALLS.extend(task_id, 9, 300).items == (b"a", token, b"9")


@given(seconds)
def test_results_are_kept_for_whole_milliseconds(keep: float) -> None:
    """A time to keep is at least a millisecond, and never off by more than a half."""
    milliseconds = int(CALLS.release([("a", b"r")], TorrelqueTaskStatus.COMPLETED, keep).head[1])
    assert milliseconds >= 1
    assert abs(milliseconds - keep * 1000) <= 0.5


def test_verdicts_are_read() -> None:
    """Each word that a script may say is one verdict."""
    parse = CALLS.requeue("a", 0, None).parse
    assert [parse(word) for word in outcomes(b"1 0 -1 -2")] == list(Verdict)
    parse_end: Any = CALLS.extend("a", None, 300).parse
    assert [parse_end(word) for word in outcomes(b"1700000000.123456 0 -1 -2")] == [
        1700000000.123456,
        *list(Verdict)[1:],
    ]


def test_hand_back() -> None:
    """Two arguments each; an id that was not adopted has no number."""
    call = CALLS.hand_back([(b"a", 3), (b"b", None)])
    assert (call.items, call.count) == ((b"a", b"3", b"b", b""), 2)
    assert [call.parse(word) for word in outcomes(b"1 0")] == [True, False]


def test_sweep() -> None:
    """A sweep goes on from its cursor until the script says that it is at the end."""
    call = CALLS.sweep(300, SWEEP_TIMED)
    assert (call.head, call.count, call.keys[-1]) == ((b"%d" % SWEEP_BOUND, b"300", b"timed"), 0, KEYS.outgoing)
    step = call.parse([1, 2, 3, [b"ghost"], b"500", b"7.5"])
    assert (step.report, step.dropped, step.cursor, step.until_next, step.done) == (
        SweepReport(1, 2, 3), [b"ghost"], b"500", 7.5, False,
    )  # fmt: skip
    assert call.parse([0, 0, 0, [], b"end", b"inf"]).done


def test_stats_and_state() -> None:
    """Counts are numbers, a state is nine fields."""
    assert CALLS.stats().parse([4, 3, 2, 1]) == TorrelqueQueueStats(4, 3, 2, 1)
    call = CALLS.state(b"a")
    (fields,) = outcomes([[b"1", None] + [None] * 7])
    assert call.parse(fields) == [b"1", None] + [None] * 7


@pytest.mark.parametrize(
    ("call", "reply"),
    [(CALLS.dequeue(1, 300), reply) for reply in (
        None, [], 7, b"", b"\n", b"inf 0 0\n", b"nan 0 0 0\n", b"-1 0 0 0\n", b"inf 0 0 0 1 300 1\na",
        b"inf 0 0 0 x 300 1 1\nab", b"inf 0 0 0 1 300 1 2\nab", b"inf 0 0 0 1 300 1 1\nabc", b"inf 0 1 0\n",
        b"inf 0 0 1\n", b"inf 0 1 1 1\na", b"inf 0 -1 1 1\na", b"inf 0 1 -1 1\na", b"inf 0 0 0 1 300 1 1 1\nab",
    )]
    + [(CALLS.dead_letters(9, None), reply) for reply in (
        None, 7, [7], [[]], [[b"a", b"1.5", b"body"] + [None] * 5], [[b"a", b"1.5", b"body"] + [None] * 7],
        [[b"a", b"soon", b"body"] + [None] * 6], [[None, b"1.5", b"body"] + [None] * 6],
        [[b"a", None, b"body"] + [None] * 6], [[b"a", b"1.5", 7] + [None] * 6], [[b"a", b"1.5", b"body"] + [7] * 6],
    )]
    + [(CALLS.count_dead_letters(), reply) for reply in (None, b"", [], b"many")]
    + [(CALLS.requeue_dead_letters((), b"", 0), reply) for reply in (
        None, 7, [1, 2, 0], [2, 1, 0, b"1.5"], [-1, 1, 0, b"1.5"], [1, 2, 2, b"1.5"], [1, 2, -1, b"1.5"],
        [1, 2, 0, b"now"], [1, 2, 0, None], [[], 2, 0, b"1.5"],
    )]
    + [(CALLS.sweep(300, SWEEP_ALL), reply) for reply in (
        None, b"", [0] * 5, [0, 0, 0, [], b"end", b"x"], [[], 0, 0, [], b"end", b"inf"], [0, 0, 0, [], None, b"inf"],
    )]
    + [(CALLS.stats(), reply) for reply in (None, b"", [1, 2, 3], [1, 2, 3, b"x"])]
    + [(CALLS.state(b"a"), reply) for reply in (None, 7, [], [None] * 8, [[]] * 9, b"123456789")]
    + [(CALLS.enqueue([("a", b"b")], 1, 0), reply) for reply in (b"2", b"", None, [])]
    + [(CALLS.requeue("a", 0, None), b"9"), (CALLS.extend("a", None, 300), b"soon")]
    + [(CALLS.walk("pending", 0, 9, True), reply) for reply in ([], [[1], []], [b"a", []], [[], [b"a", b"ghos"]])]
    + [(CALLS.walk("pending", 0, 9, True), [[], [b"a"]])]
    + [(CALLS.scan("tasks", b"0", 9), [b"0", 9, 0, [], []]), (CALLS.scan("tasks", b"0", 9), [b"0", b"x", 9, [], []])]
    + [(CALLS.scan("tasks", b"0", 9), [None, 9, 9, [], []]), (CALLS.scan("tasks", b"0", 9), [b"0", 9, 9, [], [1]])]
    + [(CALLS.look([]), reply) for reply in ([], [b"ghost"], [b"gho", b""], [b"ghost", 1], b"ok")]
    + [(CALLS.mend([], 1, 1), reply) for reply in ([1, 1, []], [1, 1, [b"gho"]], [b"x", 1, [b""]], [-1, 1, [b""]])],
)  # fmt: skip
def test_damaged_answers(call: Any, reply: Any) -> None:
    """What cannot be an answer is none: what was asked for may or may not have been done."""
    with pytest.raises(TorrelqueUnknownOutcomeError):
        call.read(reply)


def test_reads_are_known_as_such() -> None:
    """Only what changes nothing may be sent again after a lost answer."""
    assert {script.name for script in scripts.ALL if script.reads_only} == {
        "stats", "state", "dead_letters", "count_dead_letters",
        "shape", "walk", "scan", "look",
    }  # fmt: skip
