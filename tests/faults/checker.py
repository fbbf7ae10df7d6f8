"""Judges a history: what was promised to clients, against what they saw and what the queue holds in the end.

Pure but for :func:`take`, which reads a queue. All is grouped by task and sorted by token, so it takes O(n log n).
Bounds are sound: a claim happens somewhere between the request and its answer, so what could have been in order is no
violation. What is no violation in itself is counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import redis
from faults.history import APPLIED, FAIL, NOT_DONE, OK, REFUSALS, UNKNOWN, Call, Event, History, digest
from support import STATUS_OF_PLACE, snapshot

_SECOND = 1_000_000_000
#: Seconds for which a claim may be under way before it is answered, or its connection is given up.
_UNDER_WAY = 15.0
_FINAL = {"3": "COMPLETED", "4": "REJECTED"}


@dataclass(frozen=True)
class Allowances:
    """What a run has to bear, because it was asked for.

    :ivar lease: seconds, for tasks whose enqueue did not write down its own as ``lease=``
    :ivar tolerance: seconds by which the clocks of Redis and of the history may part
    :ivar drained: the queue was drained and swept twice: nothing but kept results may be left
    :ivar results_kept: each release keeps a result beyond the run, so that no id is ever enqueued anew
    :ivar rollback: the server may forget what it acknowledged (a failover, a power cut without fsync): loss, releases
        undone, tokens given twice, forgotten extensions, and what the owner before a forgotten claim did, are counted
        only
    """

    lease: float = 300
    tolerance: float = 0.05
    drained: bool = True
    results_kept: bool = False
    rollback: bool = False


@dataclass(frozen=True)
class Violation:
    """A broken promise."""

    kind: str
    task_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.task_id}: {self.text}"


@dataclass
class Findings:
    """What the checker has to say.

    :ivar forgiven: what is none because of :attr:`Allowances.rollback`
    :ivar counts: by name; ``lost``, ``unexpected``, ``recovered``, ... are there even when they are 0
    :ivar recoveries: seconds from the end of a lease to the next delivery, for each lease that ran out
    """

    violations: list[Violation] = field(default_factory=list)
    forgiven: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)

    def recovery(self, share: float) -> float:
        """Find the time within which this share of the leases that ran out was delivered again; 0 for none."""
        ordered = sorted(self.recoveries)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


@dataclass
class Final:
    """What a queue holds when all is over.

    :ivar places: the live ids, by place
    :ivar payloads: digests by id
    :ivar results: status of each final state that is kept
    :ivar faults: what is not as it must be in any snapshot, or should not be there after a drain
    """

    places: dict[str, list[str]] = field(default_factory=dict)
    payloads: dict[str, str] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    faults: list[Violation] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)

    @property
    def live(self) -> set[str]:
        return {task_id for ids in self.places.values() for task_id in ids}


# Reading a queue


def take(admin: redis.Redis, queue: str) -> Final:
    """Read all of a queue that nobody uses any more."""
    snap = snapshot(admin, queue)
    final = Final(snap.places(), {task_id: digest(body) for task_id, body in snap.tasks.items()})
    final.faults += partition(final.places, set(snap.tasks), {i: f.get("status") for i, f in snap.states.items()})
    named = {f"{queue}:{place}" for place in (*STATUS_OF_PLACE, "tasks", "dead", "dead:payloads")}
    prefix, keys = f"{queue}:task:", [key.decode() for key in admin.scan_iter(f"{queue}:*", count=1000)]
    states = [key for key in keys if key.startswith(prefix) and key.removeprefix(prefix) not in snap.tasks]
    final.leftovers += [key for key in keys if not key.startswith(prefix) and key not in named]
    for start in range(0, len(states), 1000):
        _read_states(admin, prefix, states[start : start + 1000], set(snap.dead), final)
    return final


def _read_states(admin: redis.Redis, prefix: str, keys: list[str], dead: set[str], final: Final) -> None:
    pipe = admin.pipeline(transaction=False)
    for key in keys:
        pipe.hget(key, "status")
        pipe.pttl(key)
    answers = pipe.execute()
    for key, status, ttl in zip(keys, answers[::2], answers[1::2], strict=True):
        task_id, name = key.removeprefix(prefix), _FINAL.get((status or b"").decode())
        if name is None:
            final.faults.append(Violation("leak", task_id, f"a state of status {status!r} without a payload"))
        elif ttl <= 0 and task_id not in dead:
            final.faults.append(Violation("leak", task_id, f"a final state that never expires (TTL {ttl})"))
        else:
            final.results[task_id] = name


def partition(
    places: dict[str, list[str]], payloads: set[str], statuses: dict[str, bytes | None]
) -> Iterator[Violation]:
    """See that each live id is in one place, once, with a payload and the status of its place (I3)."""
    where = defaultdict(list)
    for place, ids in places.items():
        for task_id in ids:
            where[task_id].append(place)
    for task_id, found in where.items():
        if len(found) > 1:
            yield Violation("partition", task_id, f"stands in {' and '.join(found)}")
        elif task_id not in payloads:
            yield Violation("partition", task_id, f"stands in {found[0]} without a payload")
        elif statuses.get(task_id) != STATUS_OF_PLACE[found[0]]:
            yield Violation("partition", task_id, f"has status {statuses.get(task_id)!r} in {found[0]}")
    for task_id in payloads - where.keys():
        yield Violation("partition", task_id, "has a payload and stands nowhere")


# Grouping a history


@dataclass(slots=True)
class _Delivery:
    process: str
    token: int | None
    digest: str
    invoked: int
    completed: int


@dataclass(slots=True)
class _Settle:
    op: str
    token: int | None
    #: ``ok`` when it was applied, ``fail`` when it surely was not.
    outcome: str
    invoked: int
    completed: float
    lease: float | None
    #: It was told that the task is not its caller's.
    refused: bool


@dataclass(slots=True)
class _Enqueue:
    outcome: str
    digest: str
    invoked: int
    completed: float
    added: bool
    #: It was said to be new, in so many words.
    sure: bool
    lease: float | None


@dataclass(slots=True)
class _Task:
    enqueues: list[_Enqueue] = field(default_factory=list)
    deliveries: list[_Delivery] = field(default_factory=list)
    settles: list[_Settle] = field(default_factory=list)
    given_up: list[float] = field(default_factory=list)
    """When the server has done so."""
    revived: int = 0

    def releases(self, *outcomes: str) -> list[_Settle]:
        return [settle for settle in self.settles if settle.op == "release" and settle.outcome in outcomes]

    @property
    def began(self) -> float:
        """No claim is older."""
        return min((e.invoked for e in self.enqueues if e.outcome != FAIL), default=0)

    def may_live_again(self) -> bool:
        """Tell whether the task may have begun again after its end, as a dead letter or as an id that was used anew."""
        if self.revived:
            return True
        able = [e for e in self.enqueues if e.outcome == UNKNOWN or e.added]
        return any(enqueue.completed > self.first_end for enqueue in able) and len(able) > 1

    @property
    def first_end(self) -> float:
        """Before that it has not ended; infinite if nobody has ended it."""
        return min([*(settle.invoked for settle in self.releases(OK, UNKNOWN)), *self.given_up], default=math.inf)

    def first_life(self) -> _Task:
        """Tell what came before it may have ended."""
        end = self.first_end
        return _Task(
            self.enqueues,
            [delivery for delivery in self.deliveries if delivery.completed < end],
            [settle for settle in self.settles if settle.invoked < end],
        )

    def lives(self) -> int:
        """Count how often it has begun for sure, if it was accepted at all."""
        return max(1, sum(enqueue.sure for enqueue in self.enqueues)) + self.revived

    def ends(self) -> int:
        """Count how often it may have ended. A release by a delivery that was not the last one has ended nothing."""
        newest = 0 if self.may_live_again() else max((delivery.token or 0 for delivery in self.deliveries), default=0)
        unsure = [s for s in self.releases(UNKNOWN) if s.token is None or s.token >= newest]
        return len(self.releases(OK)) + len(unsure) + len(self.given_up)


def _group(calls: Iterable[Call]) -> dict[str, _Task]:
    tasks: defaultdict[str, _Task] = defaultdict(_Task)
    for call in calls:
        match call.op:
            case "enqueue":
                _add_enqueues(tasks, call)
            case "dequeue" if call.outcome == OK and call.completed is not None:
                for task_id, token, said in call.value or ():
                    tasks[task_id].deliveries.append(_Delivery(call.process, token, said, call.invoked, call.completed))
            case "release" | "requeue" | "extend":
                _add_settles(tasks, call)
            case "give up" | "revive":
                for task_id, _ in call.args:
                    if call.op == "give up":
                        tasks[task_id].given_up.append(call.invoked)
                    else:
                        tasks[task_id].revived += 1
    for task in tasks.values():
        task.deliveries.sort(key=lambda delivery: (delivery.token or 0, delivery.completed))
    return tasks


def _end(call: Call) -> float:
    return math.inf if call.completed is None else call.completed


def _add_enqueues(tasks: dict[str, _Task], call: Call) -> None:
    known = call.value if call.outcome == OK and call.value else [None] * len(call.args)
    for (task_id, said), deduplicated in zip(call.args, known, strict=True):
        added = call.outcome == OK and not deduplicated
        lease = call.more.get("lease")
        end = math.inf if call.outcome == UNKNOWN else _end(call)  # it may be stored long after its caller gave up
        sure = added and deduplicated is not None
        tasks[task_id].enqueues.append(_Enqueue(call.outcome, said, call.invoked, end, added, sure, lease))


def verdicts(call: Call) -> list[str]:
    """List what a call that settles was told of each task; without an answer, what it would have been: ``applied``."""
    told: list[str] = call.value if call.value and call.outcome != UNKNOWN else [APPLIED] * len(call.args)
    if len(told) != len(call.args) or (call.outcome == FAIL and told[0] not in REFUSALS):
        return [NOT_DONE] * len(call.args)  # the words of an error
    return told


def _add_settles(tasks: dict[str, _Task], call: Call) -> None:
    for (task_id, token), said in zip(call.args, verdicts(call), strict=True):
        outcome = {APPLIED: call.outcome, UNKNOWN: UNKNOWN}.get(said, FAIL)
        lease = call.more.get("lease")
        tasks[task_id].settles.append(
            _Settle(call.op, token, outcome, call.invoked, _end(call), lease, said in REFUSALS)
        )


def _time_has_passed(call: Call) -> bool:
    """Whether a dequeue ended because its time had passed, with nothing, or with less than it wanted."""
    if call.outcome == FAIL:
        return bool(call.value == "TorrelqueTimeoutError")
    if call.outcome != OK or call.completed is None:
        return False
    timeout = call.more.get("timeout")
    late = timeout is not None and call.completed - call.invoked > (timeout - 0.001) * _SECOND
    return not call.value or (late and len(call.value) < call.args)


class Doubt:
    """When a claim that nobody saw may have been made: dequeues without an answer, and those whose time passed.

    Who leaves when its time has passed may leave a claim under way. What that brings is handed back, and its number
    with it; unless the hand-back is lost, or comes when the lease has ended.
    """

    def __init__(self, calls: Iterable[Call], events: Iterable[Event], slack: float) -> None:
        deaths = {event.about: event.at for event in events if event.kind == "kill"}
        spans: list[tuple[float, float]] = []
        for call in calls:
            passed = call.op == "dequeue" and _time_has_passed(call)
            if call.op == "dequeue" and (call.outcome == UNKNOWN or passed):
                end = call.completed or deaths.get(call.process, math.inf)
                begin = max(call.invoked, end - _UNDER_WAY * _SECOND) if passed else call.invoked
                spans.append((begin, end + slack * _SECOND))
        spans.sort()
        self._begins = [begin for begin, _ in spans]
        self._ends = list(accumulate((end for _, end in spans), max))

    def within(self, begin: float, end: float) -> bool:
        """Tell whether there was one at any time in between."""
        return self.next(begin) <= end

    def next(self, at: float) -> float:
        """Find the first moment from *at* on; infinite if there is none."""
        index = bisect_right(self._begins, at)
        if index > 0 and self._ends[index - 1] >= at:
            return at
        return self._begins[index] if index < len(self._begins) else math.inf


def _stops(events: Iterable[Event]) -> dict[str, list[tuple[int, float]]]:
    """When each process stood still."""
    stops: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for event in events:
        if event.kind == "stop":
            stops[event.about].append((event.at, math.inf))
        elif event.kind == "cont":
            stops[event.about][-1] = (stops[event.about][-1][0], event.at)
    return stops


# Judging


def check(history: History, final: Final, allowances: Allowances = Allowances()) -> Findings:
    """Judge a run.

    :param history: of all clients, and of who killed, stopped and started them
    :param final: what :func:`take` has read at the end
    :param allowances: what this run has to bear
    """
    return _Judge(history, final, allowances).judge()


class _Judge:
    def __init__(self, history: History, final: Final, allowances: Allowances) -> None:
        self._allowed = allowances
        self._final = final
        self._live = final.live
        self._tasks = _group(history.calls)
        self._doubt = Doubt(history.calls, history.events, allowances.lease)
        self._stops = _stops(history.events)
        self._findings = Findings()
        names = ("enqueued", "delivered", "released", "lost", "unexpected", "duplicated", "recovered", "unseen claims")
        self._findings.counts.update(dict.fromkeys(names, 0))

    def judge(self) -> Findings:
        for task_id, task in self._tasks.items():
            self._judge_loss(task_id, task)
            self._judge_origin(task_id, task)
            if any(delivery.token is None for delivery in task.deliveries):
                self._findings.counts["without tokens"] += 1  # a peer, whose deliveries nobody can order
            elif not self._allowed.results_kept and task.may_live_again():
                self._judge_lives(task_id, task)
            else:
                self._judge_end(task_id, task)
                self._judge_tokens(task_id, task)
                self._judge_settles(task_id, task)
                self._judge_refusals(task_id, task)
        for task_id in self._live | self._final.results.keys():
            if task_id not in self._tasks:
                self._broken("unexpected", task_id, "is in the queue, and nobody enqueued it")
        self._judge_final()
        return self._findings

    def _broken(self, kind: str, task_id: str, text: str, *, by_rollback: bool = False) -> None:
        self._findings.counts[kind] += 1
        forgiven = by_rollback and self._allowed.rollback
        (self._findings.forgiven if forgiven else self._findings.violations).append(Violation(kind, task_id, text))

    def _judge_loss(self, task_id: str, task: _Task) -> None:
        """I1: what was accepted is done, or may be done, or is there."""
        counts, accepted = self._findings.counts, any(enqueue.outcome == OK for enqueue in task.enqueues)
        counts["enqueued"] += accepted
        counts["released"] += bool(task.releases(OK))
        there = task_id in self._live or task_id in self._final.results or task.ends() > 0
        if task_id in self._final.results and not task.releases(OK, UNKNOWN) and not task.given_up:
            self._broken("ended", task_id, "has a final state, and nobody has ended it")
        elif accepted and task_id not in self._live and task.ends() < task.lives():
            last = f"last delivery {task.deliveries[-1].token}" if task.deliveries else "never delivered"
            self._broken("lost", task_id, f"was accepted, and is neither done nor there ({last})", by_rollback=True)
        unsure = any(enqueue.outcome == UNKNOWN for enqueue in task.enqueues)
        if unsure and not accepted:
            counts["unknown"] += 1
            counts["recovered"] += there or bool(task.deliveries)

    def _judge_origin(self, task_id: str, task: _Task) -> None:
        """I2: what comes was sent, and as it was sent."""
        self._findings.counts["delivered"] += bool(task.deliveries)
        if not (task.deliveries or task_id in self._live or task_id in self._final.results):
            return
        if not task.enqueues:
            self._broken("unexpected", task_id, "came, and nobody enqueued it")
        elif all(enqueue.outcome == FAIL for enqueue in task.enqueues):
            self._broken("failed but applied", task_id, "its producer was told that nothing was stored")
        sent = {enqueue.digest for enqueue in task.enqueues}
        got = {delivery.digest for delivery in task.deliveries}
        if task_id in self._final.payloads:
            got.add(self._final.payloads[task_id])
        if sent and got - sent:
            self._broken("payload", task_id, f"sent {sorted(sent)}, came as {sorted(got)}")

    def _judge_lives(self, task_id: str, task: _Task) -> None:
        """A task that may have begun again after its end: it cannot end more often than it began.

        Until its first end it is like any other.
        """
        self._findings.counts["may live again"] += 1
        begun = sum(enqueue.outcome == UNKNOWN or bool(enqueue.added) for enqueue in task.enqueues) + task.revived
        if len(task.releases(OK)) > begun:
            self._broken("settled twice", task_id, f"ended {len(task.releases(OK))} times, begun {begun} times")
        first = task.first_life()
        self._judge_tokens(task_id, first)
        self._judge_settles(task_id, first)

    def _judge_end(self, task_id: str, task: _Task) -> None:
        """I6: the end is the end, once."""
        released = task.releases(OK)
        if not released:
            return
        if len(released) > 1:
            tokens = [settle.token for settle in released]
            self._broken("settled twice", task_id, f"released by tokens {tokens}", by_rollback=True)
        token, at = released[0].token, min(settle.completed for settle in released)
        for delivery in task.deliveries:
            later = delivery.invoked > at or (token is not None and (delivery.token or 0) > token)
            if later:
                text = f"delivery {delivery.token} to {delivery.process} after the release by token {token}"
                self._broken("after finality", task_id, text, by_rollback=True)
        if task_id in self._live:
            self._broken("undone", task_id, "was released, and is there", by_rollback=True)

    def _judge_tokens(self, task_id: str, task: _Task) -> None:
        """I5, I4: tokens grow, and each delivery but the first has a reason."""
        if not task.deliveries:
            return
        first = task.deliveries[0]
        self._judge_gap(task_id, 0, task.began, first)
        claimed = max(task.began, first.invoked)
        latest = first
        for before, after in pairwise(task.deliveries):
            self._findings.counts["duplicated"] += 1
            if before.token == after.token:
                who = f"{before.process} and {after.process}"
                self._broken("token", task_id, f"delivery {after.token} came twice, to {who}", by_rollback=True)
            elif latest.invoked > after.completed:
                text = f"delivery {latest.token} was asked for after delivery {after.token} had come"
                self._broken("token", task_id, text, by_rollback=True)
            else:
                self._judge_gap(task_id, before.token or 0, claimed, after)
                self._judge_reason(task_id, task, before, claimed, after)
            claimed = max(claimed, after.invoked)
            latest = max(latest, after, key=lambda delivery: delivery.invoked)

    def _judge_gap(self, task_id: str, seen: int, since: float, after: _Delivery) -> None:
        """A number that nobody saw was that of a claim whose answer was lost."""
        unseen = (after.token or 0) - seen - 1
        self._findings.counts["unseen claims"] += max(0, unseen)
        if unseen > 0 and not self._doubt.within(since, after.completed):
            text = f"delivery {after.token} follows {seen}, and no claim lost its answer meanwhile"
            self._broken("unseen claim", task_id, text, by_rollback=True)

    def _judge_reason(self, task_id: str, task: _Task, before: _Delivery, claimed: float, after: _Delivery) -> None:
        own = [s for s in task.settles if s.token in (before.token, None) and s.invoked <= after.completed]
        if any(s.op == "requeue" and s.outcome != FAIL and s.completed >= claimed for s in own):
            self._findings.counts["requeued"] += 1
            return
        if after.completed < self._lease_end(task, own, claimed) - self._allowed.tolerance * _SECOND:
            held = (after.completed - before.completed) / _SECOND
            text = f"delivery {after.token} to {after.process} {held:.3f} s after {before.token} to {before.process}"
            self._broken("unexplained", task_id, text, by_rollback=True)
        elif after.token == (before.token or 0) + 1:
            self._measure(self._lease_end(task, own, before.completed), after)

    def _measure(self, ended: float, after: _Delivery) -> None:
        """Note how long a lease that ran out waited for the next, unless that went to a process that stood still."""
        if any(begin < after.completed and ended < end for begin, end in self._stops.get(after.process, ())):
            self._findings.counts["to a stopped process"] += 1
        else:
            self._findings.recoveries.append(max(0.0, (after.completed - ended) / _SECOND))

    def _lease_end(self, task: _Task, own: Sequence[_Settle], claimed: float) -> float:
        """No lease that was claimed then ended before."""
        own_lease = next((enqueue.lease for enqueue in task.enqueues if enqueue.lease is not None), self._allowed.lease)
        given = min([own_lease, *(s.lease for s in task.settles if s.op == "requeue" and s.lease is not None)])
        extends = [settle for settle in own if settle.op == "extend" and settle.outcome != FAIL]
        applied = [extend.invoked for extend in extends if extend.outcome == OK]
        since = max(applied, default=claimed)
        ends = [
            max(extend.invoked, since) + (given if extend.lease is None else extend.lease) * _SECOND
            for extend in extends
            if extend.outcome == UNKNOWN or extend.completed >= since  # it may have been the last
        ]
        return min(ends if applied else [*ends, claimed + given * _SECOND])

    def _judge_settles(self, task_id: str, task: _Task) -> None:
        """I5: who had the task before another changes nothing."""
        arrivals = [(delivery.completed, delivery.token or 0) for delivery in task.deliveries]
        for settle in task.settles:
            if settle.outcome != OK or settle.token is None:
                continue
            newest = max((token for at, token in arrivals if at < settle.invoked), default=0)
            if newest > settle.token:
                text = f"{settle.op} by token {settle.token} was applied after delivery {newest} had come"
                self._broken("stale", task_id, text, by_rollback=True)

    def _judge_refusals(self, task_id: str, task: _Task) -> None:
        """Who holds a task, for sure, is not told otherwise."""
        claims = {delivery.token: max(task.began, delivery.invoked) for delivery in task.deliveries}
        for settle in task.settles:
            if not settle.refused or settle.token not in claims:
                continue
            own = [s for s in task.settles if s.token in (settle.token, None) and s.invoked <= settle.completed]
            ended = any(other.op != "extend" and other.outcome != FAIL for other in own)
            sure = self._lease_end(task, own, claims[settle.token]) - self._allowed.tolerance * _SECOND
            if not ended and settle.completed < sure:
                self._broken(
                    "refused", task_id, f"{settle.op} by token {settle.token}, which held it", by_rollback=True
                )

    def _judge_final(self) -> None:
        """I3, I14: the queue itself."""
        for fault in self._final.faults:
            self._broken(fault.kind, fault.task_id, fault.text)
        if self._allowed.drained:
            for place, ids in self._final.places.items():
                for task_id in ids:
                    self._broken("leftover", task_id, f"is still in {place}")
            for key in self._final.leftovers:
                self._broken("leftover", key, "is a key that should be gone")


__all__ = ["Allowances", "Doubt", "Final", "Findings", "Violation", "check", "partition", "take", "verdicts"]
