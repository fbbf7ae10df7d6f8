"""Judges a small history by a sequential model: is there an order of its calls in which all answers are right?

The order must be that of real time: a call takes effect in one moment between its beginning and its end. One of
unknown outcome may take effect at any time after its beginning, or never. This is the search of Wing and Gong, with
Lowe's memory of what was tried; tasks do not touch each other, so each is searched by itself. It takes more than
``checker.py`` and sees more: each verdict and each *deduplicated* must be explained, by all the others.

Each call is put as early as it can be, which is never wrong: an early claim only lets its lease end sooner, and nothing
*must* happen when a lease, a delay or the time of a kept result has ended. What happens by itself is tried wherever it
can: a lease ends; a claim that nobody saw is made, while a dequeue could have made it, and may be handed back.

It needs more of a history than the checker, where that is to be exact: ``lease=``, ``delay=`` and ``kept=`` (for each
task of a release, for how many seconds its state is kept; ``None`` when it is not, infinite for a dead letter). Not in
the model is what gives a number twice, as a rollback does, or gives a task back while its lease lasts, as the death of
a worker on a stream may.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from faults.checker import Allowances, Doubt, Final, Violation, verdicts
from faults.history import (
    APPLIED,
    FAIL,
    LEASE_LOST,
    NOT_DONE,
    NOT_WORKING,
    OK,
    UNKNOWN,
    UNKNOWN_TASK,
    Call,
    History,
)

#: A history of more calls is left to the checker.
SMALL = 2000
#: So many situations are tried for one task, before it is called undecided. The simulation needs less than 100.
_ENOUGH = 20_000
_SECOND = 1_000_000_000

ABSENT, WAITING, WORKING, ENDED, DEAD = "absent", "waiting", "working", "ended", "dead"


class State(NamedTuple):
    """A task in the model.

    :ivar at: the moment of the last step, nanoseconds
    :ivar until: when the lease, the delay or the time of a kept result has ended
    :ivar lease: nanoseconds that a delivery lasts
    :ivar unseen: the delivery came to nobody's knowledge, and may be handed back
    """

    place: str = ABSENT
    at: float = 0
    token: int = 0
    until: float = 0
    lease: float = 0
    digest: str = ""
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class _Step:
    """What one call wanted of one task and was told of it. One that may not have taken effect is not in *must*."""

    op: str
    token: int | None
    told: Any
    invoked: float
    completed: float
    must: bool
    digest: str = ""
    lease: float | None = None
    delay: float = 0
    kept: float | None = 0

    def __str__(self) -> str:
        end = f"{self.completed / _SECOND:.3f}" if self.must else "?"
        return f"[{self.invoked / _SECOND:.3f}, {end}] {self.op} {self.token or ''} {self.told}"


def check(history: History, final: Final, allowances: Allowances) -> list[Violation]:
    """Judge a history that has less than :data:`SMALL` calls; the parameters are those of the checker.

    :raises ValueError: it has more
    """
    if len(history.calls) >= SMALL:
        raise ValueError(f"history is too large: {len(history.calls)} calls")
    model = _Model(allowances, Doubt(history.calls, history.events, allowances.lease))
    steps = _steps(history.calls)
    for task_id in final.live | final.results.keys():
        steps[task_id]  # it is judged even if no call names it
    found = []
    for task_id, those in steps.items():
        place = "live" if task_id in final.live else "final" if task_id in final.results else "gone"
        those.append(_Step("end", None, place, math.inf, math.inf, True))
        if why := model.unexplained(sorted(those, key=lambda step: step.invoked)):
            found.append(Violation("no order", task_id, why))
    return found


def _steps(calls: Iterable[Call]) -> defaultdict[str, list[_Step]]:
    steps: defaultdict[str, list[_Step]] = defaultdict(list)
    for call in calls:
        match call.op:
            case "enqueue" if call.outcome != FAIL:
                known = call.value if call.outcome == OK and call.value else [None] * len(call.args)
                for (task_id, said), deduplicated in zip(call.args, known, strict=True):
                    steps[task_id].append(_step(call, None, deduplicated, call.outcome, said))
            case "dequeue" if call.outcome == OK:
                for task_id, token, said in call.value or ():
                    steps[task_id].append(_step(call, token, None, OK, said))
            case "give up" | "revive" | "purge":
                (keep,) = call.more["kept"]
                for task_id, token in call.args:
                    steps[task_id].append(_step(call, token, None, OK, kept=keep))
            case "release" | "requeue" | "extend":
                kept = call.more.get("kept") or [0] * len(call.args)
                for (task_id, token), said, keep in zip(call.args, verdicts(call), kept, strict=True):
                    if said != NOT_DONE:
                        outcome = UNKNOWN if UNKNOWN in (said, call.outcome) else OK
                        steps[task_id].append(_step(call, token, said, outcome, kept=keep))
    return steps


def _step(call: Call, token: int | None, told: Any, outcome: str, said: str = "", kept: float | None = 0) -> _Step:
    must, lease = outcome == OK, call.more.get("lease")
    return _Step(
        call.op,
        token,
        told if must else UNKNOWN,
        call.invoked,
        call.completed if must and call.completed is not None else math.inf,
        must,
        said,
        lease=None if lease is None else lease * _SECOND,
        delay=(call.more.get("delay") or 0) * _SECOND,
        kept=None if kept is None else kept * _SECOND,
    )


class _Model:
    """Knows what becomes of a task, and looks for an order."""

    def __init__(self, allowances: Allowances, doubt: Doubt) -> None:
        self._lease = allowances.lease * _SECOND
        self._early = allowances.tolerance * _SECOND
        self._doubt = doubt

    def unexplained(self, steps: list[_Step]) -> str:
        """Search; returns the steps that no order explains, as text, or an empty one."""
        must = sum(1 << n for n, step in enumerate(steps) if step.must)
        most = max((step.token or 0 for step in steps), default=0) + 1
        start = (0, State())
        stack, tried, best = [start], {start}, 0
        while stack:
            done, state = stack.pop()
            if done & must == must:
                return ""
            best = max(best, done & must, key=int.bit_count)
            if len(tried) > _ENOUGH:
                return f"undecided after {_ENOUGH} situations: {_shown(steps)}"
            for n, after in self._next(steps, done, state, most):
                entry = (done | 1 << n, after)
                if entry not in tried:
                    tried.add(entry)
                    stack.append(entry)
        missing = [step for n, step in enumerate(steps) if step.must and not best >> n & 1]
        return f"{_shown(steps)}; at best without {_shown(missing)}"

    def _next(self, steps: list[_Step], done: int, state: State, most: int) -> Iterator[tuple[int, State]]:
        """Find each step that may come next, and how it leaves the task."""
        left = [(n, step) for n, step in enumerate(steps) if not done >> n & 1]
        last = min(step.completed for _, step in left if step.must)
        situations = list(self._by_itself(state, last, most))
        for n, step in left:
            if step.invoked > last:
                break
            for before in situations:
                at = max(before.at, step.invoked)
                if at > last:
                    continue
                after = self._after(before._replace(at=at), step)
                if after is not None and after.at <= step.completed:
                    yield n, after

    def _by_itself(self, state: State, last: float, most: int) -> Iterator[State]:
        """Find what may become of a task without any call that is told."""
        found, new = {state}, [state]
        while new:
            state = new.pop()
            yield state
            for after in self._happens(state):
                if after.at <= last and after.token <= most and after not in found:
                    found.add(after)
                    new.append(after)

    def _happens(self, state: State) -> Iterator[State]:
        ended = max(state.at, state.until)
        if state.place == WORKING:
            yield state._replace(place=WAITING, at=ended, until=0, unseen=False)
            if state.unseen:
                yield state._replace(place=WAITING, token=state.token - 1, until=0, unseen=False)
        elif state.place == WAITING:
            at = self._doubt.next(ended)
            if at < math.inf:
                yield self._claimed(state, at, unseen=True)
        elif state.place == ENDED:
            yield State(at=ended)

    def _claimed(self, state: State, at: float, *, unseen: bool = False) -> State:
        until = at + state.lease - self._early
        return state._replace(place=WORKING, at=at, token=state.token + 1, until=until, unseen=unseen)

    def _after(self, state: State, step: _Step) -> State | None:
        """Tell how a step leaves a task; ``None`` if it cannot be told then what it was told."""
        match step.op:
            case "enqueue":
                return self._enqueued(state, step)
            case "dequeue":
                if state.place != WAITING or (state.token + 1, state.digest) != (step.token, step.digest):
                    return None
                return self._claimed(state, max(state.at, state.until))
            case "end":
                place = {ABSENT: "gone", ENDED: "final", DEAD: "final"}.get(state.place, "live")
                return state if place == step.told else None
            case "give up":
                ends = state.place == WAITING and state.until <= state.at and state.token == step.token
                return self._ended(state, step.kept) if ends else None
            case "revive":
                if (state.place, state.token) != (DEAD, step.token):
                    return None
                return state._replace(place=WAITING, until=state.at)
            case "purge":
                return State(at=state.at) if state.place == DEAD else None
        return self._settled(state, step)

    def _enqueued(self, state: State, step: _Step) -> State | None:
        if state.place != ABSENT:
            return state if step.told in (True, None) else None
        if step.told is True:
            return None
        lease = self._lease if step.lease is None else step.lease
        return State(WAITING, state.at, 0, state.at + step.delay, lease, step.digest)

    def _settled(self, state: State, step: _Step) -> State | None:
        if state.place == WORKING:
            verdict = APPLIED if step.token in (None, state.token) else LEASE_LOST
        else:
            verdict = UNKNOWN_TASK if state.place == ABSENT else NOT_WORKING
        if step.told not in (verdict, UNKNOWN) or (verdict != APPLIED and not step.must):
            return None
        if verdict != APPLIED:
            return state
        lease = state.lease if step.lease is None else step.lease
        if step.op == "extend":
            return state._replace(until=state.at + lease - self._early, unseen=False)
        if step.op == "requeue":
            return state._replace(place=WAITING, until=state.at + step.delay, lease=lease, unseen=False)
        return self._ended(state, step.kept)

    @staticmethod
    def _ended(state: State, kept: float | None) -> State:
        if kept is None:
            return State(at=state.at)
        if kept == math.inf:
            return state._replace(place=DEAD, until=0, unseen=False)
        return State(ENDED, state.at, until=state.at + kept)


def _shown(steps: Iterable[_Step]) -> str:
    return ", ".join(map(str, steps))


__all__ = ["SMALL", "check"]
