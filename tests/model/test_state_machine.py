"""Random histories on the real library and a real server, step by step beside a model of a page.

The model is the shortest description of the queue that there is: read it as documentation. What it leaves out on
purpose is time: a lease or a delay ends here when the test moves its score, for the clock of Redis cannot be moved.
Invariants (I1 to I14) are those of ``docs/reliability.md``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import secrets
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import hypothesis
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis import Redis
from support import Pair, Server, snapshot, wait_until

from torrelque import (
    Torrelque,
    TorrelqueDecodeError,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueQueueStats,
    TorrelqueTaskId,
    TorrelqueTaskSerialiser,
    TorrelqueTaskStatus,
    TorrelqueTimeoutError,
)

EXAMPLES = int(os.environ.get("TORRELQUE_EXAMPLES", "50"))
STEPS = 40

#: A payload that can be written, but not read.
POISON = "poison"
RUNNING = math.inf


def _loads(body: bytes) -> Any:
    value = json.loads(body)
    if value == POISON:
        raise ValueError(POISON)
    return value


SERIALISER = TorrelqueTaskSerialiser(lambda value: json.dumps(value).encode(), _loads)


@dataclass
class Task:
    """A live task."""

    payload: Any
    timeout: float
    count: int = 0
    """Deliveries, the fencing token."""
    requeues: int = 0
    """Returns to pending."""
    forgiven: int = 0
    """Deliveries before it was requeued as a dead letter."""


@dataclass
class Model:
    """What a queue is."""

    live: dict[str, Task] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    """The head first."""
    parked: list[str] = field(default_factory=list)
    """Ids in ``dequeueing``, left there by a consumer of the published package that died; the oldest first."""
    noted: set[str] = field(default_factory=set)
    """Parked ids that the last sweep saw."""
    working: dict[str, float] = field(default_factory=dict)
    """When each lease has ended: in the order of these numbers, or RUNNING."""
    delayed: dict[str, float] = field(default_factory=dict)
    """When each delay has ended, alike."""
    final: dict[str, tuple[TorrelqueTaskStatus, Any, Task]] = field(default_factory=dict)
    """What was released with a result that is still kept."""
    dead: dict[str, tuple[Any, Task]] = field(default_factory=dict)
    """Dead letters, each with its reason, in the order of their deaths."""

    def enqueue(self, task_id: str, task: Task, delay: float | None) -> bool:
        if task_id in self.live or task_id in self.final or task_id in self.dead:
            return False  # I7
        self.live[task_id] = task
        if delay:
            self.delayed[task_id] = RUNNING
        else:
            self.pending.append(task_id)
        return True

    def promote(self, place: dict[str, float]) -> int:
        """What has ended goes to the tail, what ended first goes first."""
        ended = sorted((end, task_id) for task_id, end in place.items() if end < RUNNING)
        for _, task_id in ended:
            del place[task_id]
            self.back(task_id)
        return len(ended)

    def back(self, task_id: str) -> None:
        self.pending.append(task_id)
        self.live[task_id].requeues += 1

    def claim(self, wanted: int, limit: int | None) -> list[str]:
        """From the head; ended leases are looked for only when pending runs short."""
        given_up: list[str] = []
        self.promote(self.delayed)
        claimed = self.take(wanted, limit, given_up)
        if len(claimed) < wanted:
            self.promote(self.working)
            claimed += self.take(wanted - len(claimed), limit, given_up)
        for task_id in claimed:
            self.working[task_id] = RUNNING
            self.live[task_id].count += 1
        for task_id in sorted(given_up):  # at one moment
            self.dead[task_id] = f"Not delivered again: max_attempts is {limit}", self.live.pop(task_id)
        return claimed

    def take(self, wanted: int, limit: int | None, given_up: list[str]) -> list[str]:
        """Part what is to be delivered from what was delivered often enough (I8)."""
        taken: list[str] = []
        while self.pending and len(taken) < wanted:
            task_id = self.pending.pop(0)
            task = self.live[task_id]
            (taken if limit is None or task.count - task.forgiven < limit else given_up).append(task_id)
        return taken

    def requeue_dead(self, task_id: str) -> None:
        self.live[task_id] = task = self.dead.pop(task_id)[1]
        task.forgiven = task.count
        self.back(task_id)

    def hand_back(self, task_ids: list[str]) -> None:
        """Undo claims that nobody saw: to the head, in their order, not counted (I5, I11)."""
        for task_id in task_ids:
            del self.working[task_id]
            self.live[task_id].count -= 1
        self.pending = task_ids + self.pending

    def verdict(self, task_id: str) -> type[TorrelqueLookupError] | None:
        """Why a settle is refused, or ``None``."""
        if task_id in self.working:
            token = getattr(task_id, "dequeue_count", None)  # a plain id is not fenced
            return None if token in {None, self.live[task_id].count} else TorrelqueLeaseLostError
        if task_id in self.live or task_id in self.final or task_id in self.dead:
            return TorrelqueNotWorkingError
        return TorrelqueLookupError

    def requeue(self, task_id: str, delay: float | None, timeout: float | None) -> None:
        del self.working[task_id]
        self.live[task_id].timeout = timeout or self.live[task_id].timeout
        if delay:
            self.delayed[task_id] = RUNNING
        else:
            self.back(task_id)

    def release(self, task_id: str, status: TorrelqueTaskStatus, result: Any) -> None:
        del self.working[task_id]
        task = self.live.pop(task_id)
        if result is not None:
            self.final[task_id] = (status, result, task)

    def sweep(self) -> tuple[int, int, int]:
        stale, due = self.promote(self.working), self.promote(self.delayed)
        undequeued = [task_id for task_id in self.parked if task_id in self.noted]
        for task_id in undequeued:
            self.back(task_id)
        self.parked = [task_id for task_id in self.parked if task_id not in self.noted]
        self.noted = set(self.parked)
        return stale, due, len(undequeued)

    def keys(self) -> set[str]:
        """Every key that may exist."""
        full = {
            "pending": self.pending, "dequeueing": self.parked, "undequeued": self.noted, "working": self.working,
            "delayed": self.delayed, "tasks": self.live, "dead": self.dead, "dead:payloads": self.dead,
        }  # fmt: skip
        known = [*self.live, *self.final, *self.dead]
        return {key for key, value in full.items() if value} | {f"task:{task_id}" for task_id in known}


class QueueMachine(RuleBasedStateMachine):
    """Does the same to the queue and to the model, and compares them after every step."""

    portal: BlockingPortal
    client: Any
    admin: Redis

    def __init__(self) -> None:
        super().__init__()
        self.name = f"model{secrets.token_hex(4)}"
        self.model = Model()
        self.stack = ExitStack()
        # Two consumers, as in two processes.
        self.queues = [
            self.stack.enter_context(
                self.portal.wrap_async_context_manager(Torrelque(self.client, queue=self.name, serialiser=SERIALISER))
            )
            for _ in range(2)
        ]
        self.queue = self.queues[0]
        # One delivers for ever, as the published package does; the other gives up.
        self.queues[1].max_attempts, self.queues[1].dead_letter = 2, True
        self.claims: list[TorrelqueTaskId] = []
        """Every id that a consumer was given, current or not: stale workers use them again."""
        self.tokens: dict[str, int] = {}
        self.ended: set[str] = set()
        self.order = itertools.count(1)
        self.serial = itertools.count()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.portal.call(partial(function, *args, **kwargs))

    def pick(self, data: st.DataObject, ids: Any, label: str) -> Any:
        return data.draw(st.sampled_from(list(ids)), label)

    def settle(self, task_id: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Settle strictly; a refusal is the one that the model tells."""
        refused = self.model.verdict(task_id)
        if refused is None:
            self.call(function, task_id, *args, **kwargs)
            return True
        with pytest.raises(TorrelqueLookupError) as caught:
            self.call(function, task_id, *args, **kwargs)
        assert type(caught.value) is refused
        return False

    def any_id(self, data: st.DataObject) -> str:
        """Half of the time an id that holds its lease; else a stale one, a plain one, or one nobody issued."""
        held = [claim for claim in self.claims if self.model.verdict(claim) is None]
        other = [
            *self.claims,
            *map(str, self.model.live),
            *map(str, self.model.final),
            *map(str, self.model.dead),
            "unknown",
        ]
        return data.draw(st.sampled_from(other) | st.sampled_from(held or other), "id")

    # Producers

    @rule(
        which=st.integers(0, 1),
        task_id=st.sampled_from([None, None, "a", "b", "c"]),
        payload=st.sampled_from(["x", 0, None, [], POISON]),
        delay=st.sampled_from([None, None, 0, 1000]),
        timeout=st.sampled_from([None, 1000.5]),
    )
    def enqueue(
        self, which: int, task_id: str | None, payload: Any, delay: float | None, timeout: float | None
    ) -> None:
        queue = self.queues[which]
        got = self.call(queue.enqueue, payload, task_id=task_id, delay=delay, task_timeout=timeout)
        assert task_id in {None, got}
        self.enqueued(got, Task(payload, timeout or 300), delay)

    @rule(ids=st.none() | st.lists(st.sampled_from("abcdef"), max_size=4), delay=st.sampled_from([None, None, 1000]))
    def enqueue_many(self, ids: list[str] | None, delay: float | None) -> None:
        payloads = [next(self.serial) for _ in (ids if ids is not None else range(3))]
        got = self.call(self.queue.enqueue_many, payloads, task_ids=ids, delay=delay)
        assert ids in (None, got)
        for task_id, payload in zip(got, payloads, strict=True):
            self.enqueued(task_id, Task(payload, 300), delay)

    def enqueued(self, task_id: str, task: Task, delay: float | None) -> None:
        if self.model.enqueue(task_id, task, delay):
            # A new life; for the documented limit see `release`.
            self.tokens.pop(task_id, None)
            self.ended.discard(task_id)

    # Consumers

    @rule(which=st.integers(0, 1), wanted=st.integers(1, 4))
    def dequeue(self, which: int, wanted: int) -> None:
        expected = self.model.claim(wanted, self.queues[which].max_attempts)
        poisoned = next((task_id for task_id in expected if self.model.live[task_id].payload == POISON), None)
        try:
            got = self.call(self.queues[which].dequeue, 0, max_tasks=wanted)
        except TorrelqueTimeoutError:
            assert expected == []
        except TorrelqueDecodeError as error:
            assert poisoned is not None
            self.model.hand_back([task_id for task_id in expected if task_id != poisoned])
            self.delivered(poisoned, error.task_id)
            wait_until(lambda: snapshot(self.admin, self.name).pending[::-1] == self.model.pending)
        else:
            pairs = [got] if wanted == 1 else got
            assert pairs == [(task_id, self.model.live[task_id].payload) for task_id in expected]  # I2, I11
            for task_id, (claim, _) in zip(expected, pairs, strict=True):
                self.delivered(task_id, claim)

    def delivered(self, expected: str, task_id: Any) -> None:
        assert task_id == expected
        task = self.model.live[task_id]
        assert task_id.dequeue_count == task.count  # I8
        assert task_id.dequeue_count > self.tokens.get(task_id, 0)  # I5
        assert task_id.task_timeout == task.timeout
        assert task_id not in self.ended  # I6
        self.tokens[task_id] = task_id.dequeue_count
        self.claims.append(task_id)

    @rule(data=st.data(), delay=st.sampled_from([None, 0, 1000]), timeout=st.sampled_from([None, 500]))
    def requeue(self, data: st.DataObject, delay: float | None, timeout: float | None) -> None:
        task_id = self.any_id(data)
        if self.settle(task_id, self.queue.requeue, delay, task_timeout=timeout, strict=True):
            self.model.requeue(str(task_id), delay, timeout)

    @rule(
        data=st.data(),
        status=st.sampled_from([TorrelqueTaskStatus.COMPLETED, TorrelqueTaskStatus.REJECTED]),
        result=st.sampled_from([None, None, 0, "", ["r"]]),
    )
    def release(self, data: st.DataObject, status: TorrelqueTaskStatus, result: Any) -> None:
        task_id = self.any_id(data)
        if self.settle(task_id, self.queue.release, result=result, status=status, strict=True):
            self.released(task_id, status, result)

    def released(self, task_id: str, status: TorrelqueTaskStatus, result: Any) -> None:
        self.model.release(str(task_id), status, result)
        assert task_id not in self.ended, "I6: released twice"
        self.ended.add(str(task_id))
        if result is None:
            # With its state goes its count, so a later life begins with token 1 again: documented limit.
            self.claims = [claim for claim in self.claims if claim != task_id]

    @rule(data=st.data(), results=st.none() | st.lists(st.sampled_from([None, 0, ["r"]]), min_size=3, max_size=3))
    def release_many(self, data: st.DataObject, results: list[Any] | None) -> None:
        """Each is judged by itself, in order; the same id may be there twice."""
        ids = [self.any_id(data) for _ in range(3)]
        refused = []
        for task_id, result in zip(ids, results or [None] * 3, strict=True):
            refused.append(self.model.verdict(task_id))
            if refused[-1] is None:
                self.released(task_id, TorrelqueTaskStatus.COMPLETED, result)
        got = self.call(self.queue.release_many, ids, results=results)
        assert [refusal and type(refusal) for refusal in got] == refused

    @rule(data=st.data(), timeout=st.sampled_from([None, 777]))
    def extend(self, data: st.DataObject, timeout: float | None) -> None:
        task_id = self.any_id(data)
        ends: list[float] = []

        async def extend(task_id: str) -> None:
            ends.append(await self.queues[1].extend(task_id, timeout))

        if self.settle(task_id, extend):
            self.model.working[task_id] = RUNNING
            now = snapshot(self.admin, self.name)
            assert now.working[task_id] == pytest.approx(ends[0], abs=1e-5)
            assert ends[0] == pytest.approx(now.now + (timeout or self.model.live[task_id].timeout), abs=5)

    @rule(data=st.data())
    def settle_not_strictly(self, data: st.DataObject) -> None:
        """Without strict=True a refusal is a warning; that nothing changes is checked as after each step."""
        task_id = self.any_id(data)
        if self.model.verdict(task_id) is not None:
            self.call(self.queue.release, task_id, result="late")
            self.call(self.queue.requeue, task_id, 5, task_timeout=6)

    # Dead letters

    @rule(data=st.data(), reason=st.sampled_from([None, 0, ["r"]]))
    def release_as_a_dead_letter(self, data: st.DataObject, reason: Any) -> None:
        task_id = self.any_id(data)
        rejected = TorrelqueTaskStatus.REJECTED
        if self.settle(task_id, self.queue.release, result=reason, status=rejected, dead_letter=True, strict=True):
            del self.model.working[task_id]
            self.model.dead[str(task_id)] = reason, self.model.live.pop(task_id)

    @rule(data=st.data(), everything=st.booleans(), purge=st.booleans())
    def over_dead_letters(self, data: st.DataObject, everything: bool, purge: bool) -> None:
        """All of them, or two ids, which may be anything."""
        ids = list(self.model.dead) if everything else [str(self.any_id(data)) for _ in range(2)]
        meant = [task_id for task_id in dict.fromkeys(ids) if task_id in self.model.dead]
        call = self.queue.purge_dead_letters if purge else self.queue.requeue_dead_letters
        assert self.call(call, None if everything else ids) == len(meant)
        for task_id in meant:
            if purge:
                del self.model.dead[task_id]
                self.claims = [claim for claim in self.claims if claim != task_id]
            else:
                self.model.requeue_dead(task_id)

    @rule(size=st.integers(1, 3))
    def read_dead_letters(self, size: int) -> None:
        read: list[Any] = []
        page = self.call(self.queue.dead_letters, size)
        while page:
            read += page
            page = self.call(self.queue.dead_letters, size, after=page[-1].cursor)
        assert [(each.task_id, each.reason, each.dequeue_count, each.requeue_count) for each in read] == [
            (task_id, reason, task.count, task.requeues) for task_id, (reason, task) in self.model.dead.items()
        ]

    # Sweeps and looks

    @rule(which=st.integers(0, 1))
    def sweep(self, which: int) -> None:
        assert self.call(self.queues[which].sweep) == self.model.sweep()

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        task_id = self.any_id(data)
        model = self.model
        if task_id in model.live:
            task = model.live[task_id]
            status, result = TorrelqueTaskStatus.PENDING, None
            if task_id in model.working:
                status = TorrelqueTaskStatus.WORKING
            elif task_id in model.delayed:
                status = TorrelqueTaskStatus.DELAYED
        elif task_id in model.final:
            status, result, task = model.final[task_id]
        elif task_id in model.dead:
            status, (result, task) = TorrelqueTaskStatus.REJECTED, model.dead[task_id]
        else:
            with pytest.raises(TorrelqueLookupError):
                self.call(self.queue.get_task_state, task_id)
            return
        state = self.call(self.queue.get_task_state, task_id)
        assert (state.status, state.result) == (status, result)
        assert (state.timeout, state.dequeue_count, state.requeue_count) == (task.timeout, task.count, task.requeues)

    # The world: time passes, others crash

    @precondition(lambda self: self.model.working)
    @rule(data=st.data())
    def lease_ends(self, data: st.DataObject) -> None:
        self.end(self.model.working, "working", self.pick(data, self.model.working, "working"))

    @precondition(lambda self: self.model.delayed)
    @rule(data=st.data())
    def delay_ends(self, data: st.DataObject) -> None:
        self.end(self.model.delayed, "delayed", self.pick(data, self.model.delayed, "delayed"))

    def end(self, place: dict[str, float], key: str, task_id: str) -> None:
        place[task_id] = next(self.order)
        self.admin.zadd(f"{self.name}:{key}", {task_id: place[task_id]})

    @precondition(lambda self: self.model.pending)
    @rule()
    def peer_dies_between_its_two_steps(self) -> None:
        task_id = self.model.pending.pop(0)
        self.model.parked.append(task_id)
        assert self.admin.rpoplpush(f"{self.name}:pending", f"{self.name}:dequeueing") == task_id.encode()

    @precondition(lambda self: self.model.final)
    @rule(data=st.data())
    def result_expires(self, data: st.DataObject) -> None:
        task_id = self.pick(data, self.model.final, "final")
        del self.model.final[task_id]
        self.claims = [claim for claim in self.claims if claim != task_id]
        self.admin.delete(f"{self.name}:task:{task_id}")

    # After every step

    @invariant()
    def same_as_the_model(self) -> None:
        model, stored = self.model, snapshot(self.admin, self.name)
        stored.check()  # I3
        assert stored.pending[::-1] == model.pending  # I1, I11
        assert stored.dequeueing[::-1] == model.parked
        assert set(stored.working) == set(model.working)  # I4: each id once, by one claim
        assert set(stored.delayed) == set(model.delayed)
        assert {task_id: json.loads(body) for task_id, body in stored.tasks.items()} == {
            task_id: task.payload for task_id, task in model.live.items()
        }  # I2
        assert {task_id: json.loads(body) for task_id, body in stored.dead_payloads.items()} == {
            task_id: task.payload for task_id, (_, task) in model.dead.items()
        }
        assert list(stored.dead) == list(model.dead)
        for task_id, task in model.live.items():
            state = stored.states[task_id]
            assert int(state.get("dequeue_count", 0)) == task.count
            assert int(state.get("requeue_count", 0)) == task.requeues
            assert float(state["timeout"]) == task.timeout
            assert "result" not in state
            assert "release_time" not in state

    @invariant()
    def nothing_else_is_stored(self) -> None:
        prefix = f"{self.name}:"
        keys = {key.decode().removeprefix(prefix) for key in self.admin.keys(f"{prefix}*")}
        assert keys == self.model.keys()  # I14
        for task_id, (status, result, _) in self.model.final.items():  # I6
            key = f"{prefix}task:{task_id}"
            assert self.admin.hmget(key, "status", "result") == [b"%d" % status, json.dumps(result).encode()]
            assert self.admin.ttl(key) > 0
        for task_id in self.model.dead:
            assert self.admin.ttl(f"{prefix}task:{task_id}") == -1

    @invariant()
    def stats_agree(self) -> None:
        model = self.model
        expected = TorrelqueQueueStats(len(model.live), len(model.pending), len(model.working), len(model.delayed))
        assert self.call(self.queue.count_dead_letters) == len(model.dead)
        assert self.call(self.queues[1].get_queue_stats) == expected

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.stack.close()
            if keys := self.admin.keys(f"{self.name}:*"):
                self.admin.delete(*keys)

    def drain(self) -> None:
        """Whatever has happened, every task that was enqueued comes out in the end, once (I1), and nothing stays."""
        for place, key in ((self.model.working, "working"), (self.model.delayed, "delayed")):
            for task_id in place:
                self.end(place, key, task_id)
        assert self.call(self.queue.requeue_dead_letters) == len(self.model.dead)
        for task_id in list(self.model.dead):
            self.model.requeue_dead(task_id)
        for _ in range(2):
            self.sweep(0)
        while self.model.live:
            self.dequeue(0, 4)
            for task_id in list(self.model.working):
                self.call(self.queue.release, task_id, strict=True)
                self.model.release(task_id, TorrelqueTaskStatus.COMPLETED, None)
        self.same_as_the_model()
        self.nothing_else_is_stored()


def test_histories(pair: Pair, server: Server, open_client: Any) -> None:
    """Whatever producers, consumers, stale workers, sweeps and crashes do, the queue stays as the model says."""
    backend, options = pair.backend
    with start_blocking_portal(backend, options) as portal, portal.wrap_async_context_manager(open_client()) as client:
        world = {"portal": portal, "client": client, "admin": server.admin}
        machine = type("QueueMachine", (QueueMachine,), world)
        # Each pair and server has histories of its own, the same ones in every run.
        hypothesis.seed(zlib.crc32(f"{server.kind} {pair}".encode()))(machine)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                database=None,
                deadline=None,
                print_blob=True,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_first_in_first_out(pair: Pair, open_client: Any, name: str) -> None:
    """One producer, one consumer, no failure: a thousand tasks come in their order, one at a time or many (I11)."""
    backend, options = pair.backend
    with start_blocking_portal(backend, options) as portal, portal.wrap_async_context_manager(open_client()) as client:
        with portal.wrap_async_context_manager(Torrelque(client, queue=name)) as queue:
            for i in range(100):
                portal.call(queue.enqueue, i)
            portal.call(queue.enqueue_many, range(100, 1000))
            got = [portal.call(queue.dequeue, 0)[1] for _ in range(50)]
            while len(got) < 1000:
                got += [task for _, task in portal.call(partial(queue.dequeue, 0, max_tasks=100))]
            assert got == list(range(1000))
