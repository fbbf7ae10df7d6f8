"""What the clients of a simulated queue were told, and whether that is right.

Calls are written down in the form of ``faults/history.py``, and judged as those of real processes are, by
``faults/checker.py``, and by ``faults/sequential.py``. Here is judged only what nobody but a simulation can know, for
its ledger has seen all that the server did: whether each answer is the one that the server gave, and whether what was
claimed came to somebody.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from faults import checker, sequential
from faults.checker import Allowances, Final
from faults.history import (
    APPLIED,
    LEASE_LOST,
    NOT_WORKING,
    OK,
    UNKNOWN_TASK,
    Call,
    Event,
    History,
    digest,
    outcome,
)

from torrelque.model import TorrelqueTaskState

from .ledger import Claim, Ledger
from .view import REJECTED, View

#: What a settle is told, and what the script had answered.
_SCRIPTS_WORD = {LEASE_LOST: "-2", NOT_WORKING: "-1", UNKNOWN_TASK: "0"}
#: Seconds within which a delivery that nobody saw is handed back, when nothing fails.
AT_ONCE = 1.0
#: Seconds within which a watch ends, when nothing fails; its reader pauses between two states.
TOLD = 4.0


@dataclass
class Watch:
    """One watch."""

    task_id: str
    began: float
    """By the virtual clock."""
    states: list[TorrelqueTaskState] = field(default_factory=list)
    ended: float | None = None
    """Alike, if it ended by itself."""


def final(view: View) -> Final:
    """Tell what a queue holds, in the words of the checker. Whether it is in order is judged by the ledger."""
    return Final(
        {
            "pending": view.pending,
            "dequeueing": view.parked,
            "working": list(view.working),
            "delayed": list(view.delayed),
        },
        {task_id: digest(task.body) for task_id, task in view.live.items()},
        {
            task_id: "REJECTED" if each.task.status == REJECTED else "COMPLETED"
            for task_id, each in (*view.final.items(), *view.dead.items())
        },
    )


class Record:
    """Collects, and judges at the end.

    :param clock: nanoseconds, as real processes write them down
    :param allowances: what the checker is told of the run
    """

    def __init__(self, clock: Callable[[], int], allowances: Allowances) -> None:
        self._clock = clock
        self._allowances = allowances
        self.history = History()
        self.watches: list[Watch] = []
        self.states: list[tuple[str, TorrelqueTaskState]] = []
        self.stats: list[tuple[int, ...]] = []
        self.sweeps: list[tuple[int, int, int]] = []
        self.letters: list[tuple[str, bytes, bytes, int, int]] = []
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()

    def begin(self, process: str, op: str, args: Any, **more: Any) -> Call:
        """Note a call that is about to be made; a program that is killed meanwhile leaves it without an end."""
        call = Call(process, op, args, self._clock(), more=more)
        self.history.calls.append(call)
        return call

    def end(self, call: Call, how: str, value: Any) -> None:
        """Note how a call went: ``ok``, ``cancelled``, or with an error; what it was told is for its caller to note."""
        call.completed = self._clock()
        if how == "ok":
            call.outcome = OK
        elif how != "cancelled":
            call.outcome, call.value = outcome(value, len(call.args) if isinstance(call.args, list) else 1)

    def served(self, op: str, task_id: str, token: int, kept: float | None) -> None:
        """Note what the server did with a task of its own accord."""
        now = self._clock()
        self.history.calls.append(Call("server", op, [(task_id, token)], now, now, OK, more={"kept": [kept]}))

    def event(self, kind: str, about: str) -> None:
        """Note what was done to a program."""
        self.history.events.append(Event(kind, about, self._clock()))

    def judge(self, ledger: Ledger) -> list[str]:
        """Judge all that was promised."""
        self._name(ledger)
        held = final(ledger.view())
        promises = list(map(str, checker.check(self.history, held, self._allowances).violations))
        if len(self.history.calls) < sequential.SMALL:
            promises += map(str, sequential.check(self.history, held, self._allowances))
        else:
            promises.append(f"I20: {len(self.history.calls)} calls: somebody calls again and again")
        own = chain(
            self._enqueues(ledger), self._settles(ledger), self._claims(ledger), self._watches(ledger),
            self._looks(ledger),
        )  # fmt: skip
        return [*ledger.violations, *self.violations, *own, *promises]

    def _name(self, ledger: Ledger) -> None:
        """Find the id of what was enqueued without one, and had no answer; what was never stored has none."""
        ids = {digest(body): task_id for (task_id, _), body in ledger.bodies.items()}
        for call in self.history.calls:
            if call.op == "enqueue" and call.args[0][0] is None:
                said = call.args[0][1]
                call.args = [(ids[said], said)] if said in ids else []

    def _enqueues(self, ledger: Ledger) -> Iterator[str]:
        """I16: each producer was told what the script said."""
        for call in self.history.calls:
            if call.op == "enqueue" and call.outcome == OK:
                for (task_id, _), deduplicated in zip(call.args, call.value, strict=True):
                    said = ledger.said["enqueue", task_id, ""]
                    if str(int(not deduplicated)) not in said:
                        yield f"I16: {task_id} was told deduplicated={deduplicated}, and the script said {sorted(said)}"

    def _settles(self, ledger: Ledger) -> Iterator[str]:
        """I16: each consumer was told what the script said of its task, and what it gave as a result was stored."""
        for call in self.history.calls:
            if call.op in ("release", "requeue", "extend"):
                for n, verdict in enumerate(checker.verdicts(call)):
                    task_id, token = call.args[n]
                    said = ledger.said[call.op, task_id, str(token)]
                    if verdict in _SCRIPTS_WORD and _SCRIPTS_WORD[verdict] not in said:
                        yield f"I16: {call.op} of {task_id} was told {verdict}, and the script said {sorted(said)}"
                    if verdict == APPLIED and call.outcome == OK and not self._was_done(call, n, ledger):
                        yield f"I16: {call.op} of {task_id} was told {call.more}, and the script said {sorted(said)}"

    @staticmethod
    def _was_done(call: Call, n: int, ledger: Ledger) -> bool:
        task_id, token = call.args[n]
        said = ledger.said[call.op, task_id, str(token)]
        if call.op == "extend":
            return any(abs(float(text) - call.more["until"]) < 1e-5 for text in said)
        if call.op == "release":
            return call.more["results"][n] in ledger.releases[task_id, token]
        return "1" in said

    def _claims(self, ledger: Ledger) -> Iterator[str]:
        """I15: when nothing fails, what was claimed came to somebody or was handed back at once."""
        if not ledger.on_time:
            return
        seen = Counter(
            each for call in self.history.calls if call.op == "dequeue" and call.outcome == OK for each in call.value
        )
        standing: dict[tuple[str, int, str], list[Claim]] = defaultdict(list)
        for claim in chain.from_iterable(ledger.claims.values()):
            back = claim.ended_at if claim.ended == "handback" else math.inf
            if claim.ended == "swept":  # a lease may be shorter than the way back
                back = ledger.too_late.get((claim.task_id, claim.token), math.inf)
            if back == math.inf:
                standing[claim.task_id, claim.token, digest(claim.body)].append(claim)
            elif back - claim.at > AT_ONCE:
                yield f"I15: {claim.task_id} was handed back after {back - claim.at:.3f} s"
        for key, claims in standing.items():
            if len(claims) > seen[key]:
                yield f"I15: {key[0]} was claimed with token {key[1]}, and nobody got it, nor was it handed back"

    def _watches(self, ledger: Ledger) -> Iterator[str]:
        """I12: a watch tells states that were, in their order; its end is an end, and soon told."""
        for watch in self.watches:
            task_id, versions, at = watch.task_id, ledger.versions[watch.task_id], 0
            for state in watch.states:
                version = (str(int(state.status)), state.dequeue_count, state.requeue_count)
                if version not in versions[at:]:
                    yield f"I12: a watch of {task_id} told {version}, out of order in {versions}"
                    break
                at = versions.index(version, at) + 1
                if state.status.isfinal():
                    yield from self._result(ledger, task_id, state)
            if watch.ended is None:
                continue
            ends = [at for at in ledger.ends[task_id] if at <= watch.ended]
            if not ends:
                yield f"I12: a watch of {task_id} ended, and the task had not"
            elif ledger.on_time:
                late = watch.ended - max(watch.began, ends[-1])
                if late > TOLD:
                    yield f"I12: a watch of {task_id} ended {late:.3f} s after its task"

    def _looks(self, ledger: Ledger) -> Iterator[str]:
        """I16: what was read of states, counts, sweeps and dead letters is what the scripts said."""
        for task_id, state in self.states:
            version = (str(int(state.status)), state.dequeue_count, state.requeue_count)
            if version not in ledger.versions[task_id]:
                yield f"I12: the state of {task_id} was told as {version}, not one of {ledger.versions[task_id]}"
            if state.status.isfinal():
                yield from self._result(ledger, task_id, state)
        yield from (f"I16: stats told {counts}" for counts in self.stats if counts not in ledger.stats)
        yield from (f"I16: a dead letter told {letter}" for letter in self.letters if letter not in ledger.letters)
        yield from (f"I20: a sweep told {report}" for report in self.sweeps if report not in ledger.reports)

    @staticmethod
    def _result(ledger: Ledger, task_id: str, state: TorrelqueTaskState) -> Iterator[str]:
        kept = ledger.results[task_id]
        if (str(int(state.status)), b"" if state.result is None else json.dumps(state.result).encode()) not in kept:
            yield f"I16: the result of {task_id} was told as {state.result!r}, and is one of {kept}"


__all__ = ["Record", "Watch", "final"]
