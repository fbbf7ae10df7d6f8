"""The checker finds each kind of broken promise in histories written by hand, and nothing in those that are right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faults import checker
from faults.checker import Allowances, Final, Findings, Violation, partition
from faults.history import (
    APPLIED,
    FAIL,
    LEASE_LOST,
    NOT_WORKING,
    OK,
    UNKNOWN,
    Call,
    Event,
    History,
    Recorder,
    digest,
    outcome,
    read,
)

from torrelque import (
    TorrelqueLeaseLostError,
    TorrelqueStorageError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)

SECOND = 1_000_000_000
#: All of these tests have this lease.
LEASE = 2.0


class Story:
    """A history, told line by line; each call begins at its time in seconds and takes 10 ms."""

    def __init__(self) -> None:
        self.history = History()
        self.final = Final({place: [] for place in ("pending", "dequeueing", "working", "delayed")})

    def call(self, at: float, process: str, op: str, args: Any, how: str = OK, value: Any = None, **more: Any) -> Story:
        took = more.pop("took", 0.01)
        ended = None if took is None else round((at + took) * SECOND)
        self.history.calls.append(Call(process, op, args, round(at * SECOND), how, value, ended, more))
        return self

    def enqueue(self, at: float, how: str = OK, *, task: str = "t", value: Any = None, **more: Any) -> Story:
        return self.call(at, "p", "enqueue", [(task, "d")], how, value, **more)

    def deliver(self, at: float, token: int, process: str = "w1", *, task: str = "t", said: str = "d",
                **more: Any) -> Story:  # fmt: skip
        return self.call(at, process, "dequeue", 1, OK, [(task, token, said)], **more)

    def settle(self, at: float, op: str, token: int | None, process: str = "w1", how: str = OK,
               value: Any = None, **more: Any) -> Story:  # fmt: skip
        return self.call(at, process, op, [("t", token)], how, value, **more)

    def event(self, at: float, kind: str, about: str) -> Story:
        self.history.events.append(Event(kind, about, round(at * SECOND)))
        return self

    def check(self, **allowed: Any) -> Findings:
        return checker.check(self.history, self.final, Allowances(**{"lease": LEASE, **allowed}))

    def kinds(self, **allowed: Any) -> list[str]:
        return [violation.kind for violation in self.check(**allowed).violations]


def done() -> Story:
    """A task's whole life."""
    return Story().enqueue(0).deliver(1, 1).settle(1.5, "release", 1)


# What is in order


def test_ordinary_life() -> None:
    """Enqueued, delivered, released."""
    findings = done().check()
    assert findings.violations == []
    assert findings.counts["enqueued"] == findings.counts["delivered"] == findings.counts["released"] == 1


def test_crash_and_redelivery() -> None:
    """A worker dies with the task, whose lease runs out: the next has it, and the time that took is measured."""
    story = Story().enqueue(0).deliver(1, 1).event(1.2, "kill", "w1").deliver(3.4, 2, "w2")
    findings = story.settle(3.5, "release", 2, "w2").check()
    assert findings.violations == []
    assert findings.recoveries == pytest.approx([0.4])
    assert findings.recovery(0.99) == pytest.approx(0.4)


def test_recovery_by_a_stopped_process() -> None:
    """That a claim's answer is read late by a process that stands still says nothing of the queue."""
    story = Story().enqueue(0).deliver(1, 1).event(2.9, "stop", "w2").event(6, "cont", "w2").deliver(2, 2, "w2", took=5)
    findings = story.settle(7.1, "release", 2, "w2").check()
    assert (findings.violations, findings.recoveries) == ([], [])
    assert findings.counts["to a stopped process"] == 1


def test_lost_claim() -> None:
    """A claim whose answer was lost costs a number, and a lease."""
    story = Story().enqueue(0).call(1, "w1", "dequeue", 1, UNKNOWN, took=None).event(1.1, "kill", "w1")
    findings = story.deliver(3.2, 2, "w2").settle(3.3, "release", 2, "w2").check()
    assert findings.violations == []
    assert findings.counts["unseen claims"] == 1


def test_lost_replies() -> None:
    """Enqueue and release whose answers were lost may have been applied; a repeat that finds it done agrees."""
    story = Story().enqueue(0, UNKNOWN).enqueue(0.1, value=[True]).deliver(1, 1)
    story.settle(1.1, "release", 1, how=UNKNOWN).settle(1.2, "release", 1, how=FAIL, value=[NOT_WORKING])
    assert story.kinds() == []


def test_recovered() -> None:
    """An enqueue that was not known to be stored, and came, is counted."""
    findings = Story().enqueue(0, UNKNOWN).deliver(1, 1).settle(1.1, "release", 1).check()
    assert findings.violations == []
    assert findings.counts["recovered"] == findings.counts["unknown"] == 1
    assert Story().enqueue(0, UNKNOWN).check().counts["recovered"] == 0


def test_given_up() -> None:
    """What the server has given up is done; what was requeued as a dead letter may end once more."""
    assert Story().enqueue(0).deliver(1, 1).settle(4, "give up", 1, "server").kinds() == []
    story = done().settle(2, "revive", 1, "server").deliver(3, 2).settle(3.1, "release", 2)
    assert story.kinds() == []
    assert story.settle(3.2, "release", 2).kinds() == ["settled twice"]
    story = Story().enqueue(0).deliver(1, 1).settle(4, "give up", 1, "server").enqueue(5).deliver(6, 1, "w2")
    assert story.settle(6.1, "release", 1, "w2").kinds() == []


def test_requeued() -> None:
    """A requeue, also one without an answer, and one by the plain id, explains the next delivery."""
    for how, token in ((OK, 1), (UNKNOWN, 1), (OK, None)):
        story = Story().enqueue(0).deliver(1, 1).settle(1.1, "requeue", token, how=how).deliver(1.2, 2, "w2")
        assert story.settle(1.3, "release", 2, "w2").kinds() == []


def test_late_eyes() -> None:
    """A worker that stands still between its claim and its answer sees an old delivery late, and is refused."""
    story = Story().enqueue(0).deliver(1, 1, took=5).deliver(3.1, 2, "w2").settle(3.3, "release", 2, "w2")
    assert story.settle(6.1, "release", 1, how=FAIL, value=[LEASE_LOST]).kinds() == []


def test_enqueued_anew() -> None:
    """Without a result nothing is left of a task, so that a repeated enqueue makes it anew."""
    story = done().enqueue(0, UNKNOWN, took=None).deliver(2, 1, "w2").settle(2.1, "release", 1, "w2")
    assert story.kinds() == []
    assert story.kinds(results_kept=True) == ["settled twice", "after finality", "token"]


def test_shortened_lease() -> None:
    """A lease that its holder made shorter ends sooner; one that it made longer, later."""
    story = Story().enqueue(0).deliver(1, 1).settle(1.1, "extend", 1, lease=0.1).deliver(1.3, 2, "w2")
    assert story.settle(1.4, "release", 2, "w2").kinds() == []
    story = Story().enqueue(0).deliver(1, 1).settle(2.5, "extend", 1).deliver(4.4, 2, "w2")
    assert "unexplained" in story.settle(4.5, "release", 2, "w2").kinds()


def test_peer() -> None:
    """Deliveries without a token, of the published package, are judged by loss, origin and payload only."""
    story = Story().enqueue(0).call(1, "peer", "dequeue", 1, OK, [("t", None, "d")])
    findings = story.settle(1.2, "release", None, "peer").check()
    assert findings.violations == []
    assert findings.counts["without tokens"] == 1


# What is not


def test_lost() -> None:
    """Accepted, and neither done nor there."""
    assert Story().enqueue(0).kinds() == ["lost"]
    assert Story().enqueue(0).deliver(1, 1).settle(4, "release", 1, how=FAIL, value=[NOT_WORKING]).kinds() == ["lost"]
    assert Story().enqueue(0).deliver(1, 1).settle(4, "release", 1, value=[NOT_WORKING]).kinds() == ["lost"]
    findings = Story().enqueue(0).check(rollback=True)
    assert (findings.violations, findings.counts["lost"]) == ([], 1)


def test_lost_behind_a_release_without_an_answer() -> None:
    """That a delivery may have released it explains a loss only if no later one has come."""
    story = Story().enqueue(0).deliver(1, 1).settle(1.5, "release", 1, how=UNKNOWN)
    assert story.kinds() == []
    assert story.deliver(4, 2, "w2").kinds() == ["lost"]
    assert story.settle(4.1, "release", None, "w2", UNKNOWN).kinds() == []


def test_lost_in_another_life() -> None:
    """What ended, began again and is gone was lost, though it had ended once."""
    story = done().settle(2, "revive", 1, "server")
    assert story.kinds() == ["lost"]
    assert story.deliver(3, 2).settle(3.1, "release", 2, how=UNKNOWN).kinds() == []
    story = Story().enqueue(0).deliver(1, 1).settle(4, "give up", 1, "server").settle(5, "revive", 1, "server")
    assert story.kinds() == ["lost"]
    story = done().enqueue(3, value=[False])
    assert story.kinds() == []
    story = Story().enqueue(0, value=[False]).deliver(1, 1).settle(1.5, "release", 1).enqueue(3, value=[False])
    assert story.kinds() == ["lost"]


def test_ended_by_nobody() -> None:
    """A final state is there of a task that nobody has released or given up."""
    story = Story().enqueue(0).deliver(1, 1)
    story.final.results["t"] = "COMPLETED"
    assert story.kinds() == ["ended"]
    assert story.settle(1.5, "release", 1, how=UNKNOWN).kinds() == []


def test_live_is_not_lost() -> None:
    """What is still there is not lost; after a drain it should not be there."""
    story = Story().enqueue(0)
    story.final.places["delayed"] = ["t"]
    assert story.kinds(drained=False) == []
    assert story.kinds() == ["leftover"]


def test_phantom() -> None:
    """What nobody enqueued, in a delivery or in the queue, and what was said not to be stored."""
    assert Story().deliver(1, 1).settle(1.1, "release", 1).kinds() == ["unexpected"]
    assert Story().enqueue(0, FAIL).deliver(1, 1).settle(1.1, "release", 1).kinds() == ["failed but applied"]
    story = Story()
    story.final.places["pending"] = ["x"]
    assert story.kinds(drained=False) == ["unexpected"]


def test_payload() -> None:
    """What came is not what was sent."""
    assert Story().enqueue(0).deliver(1, 1, said="other").settle(1.1, "release", 1).kinds() == ["payload"]
    story = Story().enqueue(0)
    story.final.places["pending"], story.final.payloads["t"] = ["t"], "other"
    assert story.kinds(drained=False) == ["payload"]


def test_after_finality() -> None:
    """Delivered once more after its release, or in the queue."""
    story = done().deliver(4, 2, "w2")
    assert story.kinds() == ["after finality"]
    story = done()
    story.final.places["pending"] = ["t"]
    assert story.kinds(drained=False) == ["undone"]
    assert story.kinds(drained=False, rollback=True) == []


def test_unexplained() -> None:
    """Delivered again while the lease of the first still ran."""
    story = Story().enqueue(0).deliver(1, 1).deliver(2, 2, "w2").settle(2.1, "release", 2, "w2")
    assert story.kinds() == ["unexplained"]
    # That another worker died, or that this one was to die, is no reason; nor is a requeue that was refused.
    assert story.event(1.1, "kill", "w3").event(1.1, "kill", "w1").kinds() == ["unexplained"]
    assert story.settle(1.1, "requeue", 1, "w1", FAIL, "TorrelqueUnavailableError").kinds() == ["unexplained"]


def test_unseen_claim() -> None:
    """A number is missing, and no claim was in doubt."""
    story = Story().enqueue(0).deliver(5, 2).settle(5.1, "release", 2)
    assert story.kinds() == ["unseen claim"]
    assert story.call(9, "w2", "dequeue", 1, UNKNOWN).kinds() == ["unseen claim"]
    assert story.call(-3, "w2", "dequeue", 1, UNKNOWN, took=None).event(-2.9, "kill", "w2").kinds() == ["unseen claim"]
    assert story.call(9, "w2", "dequeue", 1, FAIL, "TorrelqueTimeoutError").kinds() == ["unseen claim"]


@pytest.mark.parametrize(("outcome", "value"), [(FAIL, "TorrelqueTimeoutError"), (OK, [])])
def test_who_leaves_before_its_claim_is_answered(outcome: str, value: Any) -> None:
    """The number of a claim that was made for who had gone by then may be missing."""
    story = Story().enqueue(0).deliver(5, 2).settle(5.1, "release", 2)
    assert story.call(1, "w2", "dequeue", 1, outcome, value, took=2).kinds() == []


@pytest.mark.parametrize(("wanted", "took", "kinds"), [(2, 2, []), (2, 1, ["unseen claim"]), (1, 2, ["unseen claim"])])
def test_who_leaves_with_some(wanted: int, took: float, kinds: list[str]) -> None:
    """So may that of a claim for who went with less than it wanted, if its time had passed."""
    story = Story().enqueue(0).deliver(5, 2).settle(5.1, "release", 2).enqueue(0, task="u")
    story.deliver(6, 2, "w3", task="u").call(1, "w2", "dequeue", wanted, OK, [("u", 1, "d")], took=took, timeout=2)
    assert story.call(7, "w3", "release", [("u", 2)]).kinds() == kinds


def test_token() -> None:
    """The same number twice, or a smaller one later."""
    story = Story().enqueue(0).deliver(1, 1).deliver(4, 1, "w2").settle(4.1, "release", 1, "w2")
    assert story.kinds() == ["token"]
    story = Story().enqueue(0).deliver(1, 2).deliver(4, 1, "w2").call(0, "w3", "dequeue", 1, UNKNOWN, took=None)
    assert story.settle(4.1, "release", 2, "w2").kinds() == ["token"]


def test_settled_twice() -> None:
    """Two releases were said to be applied, by one delivery or by two."""
    assert done().settle(1.6, "release", 1).kinds() == ["settled twice"]
    story = Story().enqueue(0).deliver(1, 1).deliver(4, 2, "w2").settle(4.1, "release", 2, "w2")
    assert set(story.settle(4.2, "release", 1).kinds()) == {"settled twice", "stale"}
    assert done().enqueue(3).settle(3.1, "release", 1).settle(3.2, "release", 1).kinds() == ["settled twice"]


@pytest.mark.parametrize("op", ["requeue", "extend"])
def test_stale(op: str) -> None:
    """Who lost the task to another changed it."""
    story = Story().enqueue(0).deliver(1, 1).deliver(4, 2, "w2").settle(4.5, op, 1).settle(4.6, "release", 2, "w2")
    assert story.kinds() == ["stale"]
    assert story.kinds(rollback=True) == [], "a server that has forgotten the second claim knows the first only"


def test_late_reason() -> None:
    """A requeue that was asked for after the next delivery does not explain it."""
    story = Story().enqueue(0).deliver(1, 1).deliver(2, 2, "w2").settle(2.5, "requeue", 1, how=UNKNOWN)
    assert story.settle(2.6, "release", 2, "w2").kinds() == ["unexplained"]


def test_early_reason() -> None:
    """A requeue by the plain id that was over before the delivery was asked for does not explain the next one."""
    story = Story().enqueue(0).deliver(0.2, 1).settle(0.5, "requeue", None).deliver(1, 2, "w2")
    assert story.settle(1.6, "release", 3, "w3").deliver(1.5, 3, "w3").kinds() == ["unexplained"]


def test_before_the_first_end() -> None:
    """A task that may have begun again is like any other until its first end."""
    story = Story().enqueue(0, UNKNOWN).enqueue(0.1).deliver(1, 1).deliver(1.2, 2, "w2")
    story.settle(1.3, "release", 2, "w2")
    assert story.check().counts["may live again"] == 1
    assert story.kinds() == ["unexplained"]
    assert story.settle(1.25, "extend", 1).kinds() == ["unexplained", "stale"]
    assert story.settle(1.1, "requeue", 1, how=UNKNOWN, took=None).kinds() == ["stale"]


def test_refused() -> None:
    """Who held the task for sure was told that it did not; after its end, or beyond its lease, that is right."""
    story = Story().enqueue(0).deliver(1, 1).settle(1.5, "release", 1, how=FAIL, value=[NOT_WORKING])
    assert story.settle(1.6, "release", 1).kinds() == ["refused"]
    story = Story().enqueue(0).deliver(1, 1).settle(3.1, "extend", 1, value=[LEASE_LOST]).settle(3.2, "release", 1)
    assert story.kinds(lease=5) == ["refused"]
    assert story.kinds() == []
    assert done().settle(1.6, "release", 1, how=FAIL, value=[NOT_WORKING]).kinds() == []
    story = Story().enqueue(0).deliver(1, 1).settle(1.1, "release", 1, how=FAIL, value="TorrelqueUnavailableError")
    assert story.settle(1.2, "release", 1).kinds() == []


def test_leaks() -> None:
    """Faults that the look at the queue has found, and keys that should be gone."""
    story = done()
    story.final.faults = [Violation("leak", "t", "never expires")]
    story.final.leftovers = ["q:dequeueing"]
    assert story.kinds() == ["leak", "leftover"]


def test_partition() -> None:
    """In two places, without a payload, with the status of another place, nowhere."""
    places = {"pending": ["a", "b", "c", "d"], "working": ["a"]}
    statuses = {"a": b"0", "b": b"0", "c": b"1", "d": b"0", "e": b"0"}
    found = {v.task_id: v.text for v in partition(places, {"a", "c", "d", "e"}, statuses)}
    assert found == {
        "a": "stands in pending and working",
        "b": "stands in pending without a payload",
        "c": "has status b'1' in pending",
        "e": "has a payload and stands nowhere",
    }


# Its size


def test_many() -> None:
    """100,000 tasks, each delivered twice, take seconds."""
    story = Story()
    for start in range(0, 100_000, 100):
        names, at = [f"t{i}" for i in range(start, start + 100)], start / 1e5
        story.call(at, "p", "enqueue", [(name, "d") for name in names])
        for token, process in ((1, "w1"), (2, "w2")):
            story.call(at + 3 * token, process, "dequeue", 100, OK, [(name, token, "d") for name in names])
        story.call(at + 7, "w2", "release", [(name, 2) for name in names])
    started = time.process_time()
    findings = story.check()
    assert findings.violations == []
    assert findings.counts["duplicated"] == 100_000
    assert time.process_time() - started < 8


# The recorder


def test_recorded(tmp_path: Path) -> None:
    """What several processes wrote is read as it was written, in order of time."""
    with Recorder(tmp_path, "p") as producer, Recorder(tmp_path, "w") as worker:
        with producer.call("enqueue", [("t", digest(b"x"))], lease=2):
            pass
        with worker.call("dequeue", 1) as call:
            call.ok([("t", 1, digest(b"x"))])
        with pytest.raises(TorrelqueLeaseLostError), worker.call("release", [("t", 1)]):
            raise TorrelqueLeaseLostError("t")
        worker.event("lost")
    history = read(tmp_path)
    assert [(call.process, call.op, call.outcome) for call in history.calls] == [
        ("p", "enqueue", OK),
        ("w", "dequeue", OK),
        ("w", "release", FAIL),
    ]
    assert history.calls[0].more == {"lease": 2}
    assert history.calls[2].value == [LEASE_LOST]
    assert [(event.kind, event.about) for event in history.events] == [("lost", "w")]
    (execution,) = history.executions()
    assert (execution.process, execution.task_id, execution.token, execution.digest) == ("w", "t", 1, digest(b"x"))
    assert execution.start < execution.end == history.calls[2].invoked
    assert checker.check(history, Final()).counts["lost"] == 1


def test_killed_recorder(tmp_path: Path) -> None:
    """A process that is killed in a call leaves all that it wrote before, and that call without an outcome."""
    text = (
        "import sys, time; from pathlib import Path; from faults.history import Recorder;"
        "r = Recorder(Path(sys.argv[1]), 'p'); r.call('enqueue', [('a', 'd')]).__enter__().ok();"
        "r.begin('enqueue', [('b', 'd')]); print('now', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", text, tmp_path], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    with (tmp_path / "p.jsonl").open("ab") as file:
        file.write(b'["i",2,"enqu')
    assert [(call.args[0][0], call.outcome, call.completed is None) for call in read(tmp_path).calls] == [
        ("a", OK, False),
        ("b", UNKNOWN, True),
    ]


@pytest.mark.parametrize(
    ("error", "items", "expected"),
    [
        (TorrelqueUnavailableError(), 1, FAIL),
        (TorrelqueUnavailableError(), 501, UNKNOWN),
        (TorrelqueUnknownOutcomeError(), 1, UNKNOWN),
        (TorrelqueStorageError(), 1, UNKNOWN),
        (KeyboardInterrupt(), 1, UNKNOWN),
    ],
)
def test_outcome(error: BaseException, items: int, expected: str) -> None:
    """Only what was surely not done is a failure."""
    assert outcome(error, items)[0] == expected
    assert outcome(TorrelqueLeaseLostError("t")) == (FAIL, [LEASE_LOST])
    assert APPLIED == "applied"
