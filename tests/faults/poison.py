"""What others may have left in a queue's data: eight kinds of damage, and what has to become of each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis

#: The ends that a damaged task can have: given out like any other, dropped with a warning, given out as a payload that
#: cannot be read and rejected, or both given out and, where its id stands a second time, dropped.
DELIVERED, DROPPED, REJECTED, ONCE = "delivered", "dropped", "rejected", "delivered once"

#: A lease that ends while the figure runs, seconds.
_LEASE = "2"
#: What a result is kept for, milliseconds.
_KEPT = 3_600_000


@dataclass(frozen=True)
class Item:
    """A damaged task."""

    task_id: str
    kind: str
    end: str


class Field:
    """Where damage is sown: the keys of one queue, written by a pipeline."""

    def __init__(self, pipeline: Any, queue: str) -> None:
        self.pipeline = pipeline
        self.queue = queue

    def state(self, task_id: str) -> str:
        return f"{self.queue}:task:{task_id}"

    def stand(self, task_id: str, place: str) -> None:
        """Put an id in a place, in the sets with a time that has come."""
        key = f"{self.queue}:{place}"
        if place in {"pending", "dequeueing"}:
            self.pipeline.lpush(key, task_id)
        else:
            self.pipeline.zadd(key, {task_id: 1})

    def task(self, task_id: str, place: str = "pending", **state: str) -> None:
        """Write a task as it should be, but for fields of its state."""
        status = {"pending": "0", "dequeueing": "0", "working": "1", "delayed": "2"}[place]
        self.pipeline.hset(f"{self.queue}:tasks", task_id, json.dumps(task_id))
        self.pipeline.hset(
            self.state(task_id), mapping={"status": status, "timeout": "300", "enqueue_time": "1", **state}
        )
        self.stand(task_id, place)


def wrong_type(field: Field, task_id: str, number: int) -> str:
    """The state is a set, a list or a string."""
    field.task(task_id)
    field.pipeline.delete(field.state(task_id))
    (field.pipeline.sadd, field.pipeline.rpush, field.pipeline.set)[number % 3](field.state(task_id), "x")
    return DELIVERED


def field_missing(field: Field, task_id: str, number: int) -> str:
    """Of the state there is a part, or nothing."""
    field.task(task_id, dequeue_count="1")
    gone = (("status",), ("timeout",), ("enqueue_time", "dequeue_count"), ("status", "timeout", "enqueue_time"))
    if number % 5 == 4:
        field.pipeline.delete(field.state(task_id))
    else:
        field.pipeline.hdel(field.state(task_id), *gone[number % 5])
    return DELIVERED


def text_in_a_number(field: Field, task_id: str, number: int) -> str:
    """A lease, a count or a time is text (U2)."""
    text = ("5 minutes", "nan", "inf", "-inf", "", "-1", "x", "1e999")[number % 8]
    name = ("timeout", "dequeue_count", "requeue_count", "enqueue_time")[number % 4]
    field.task(task_id, **{name: text})
    return DELIVERED


def time_without_end(field: Field, task_id: str, number: int) -> str:
    """A lease ends, or a delay, at an infinite time. (Redis itself refuses NaN.)"""
    place = ("working", "delayed")[number % 2]
    field.task(task_id, place, timeout=_LEASE)
    field.pipeline.zadd(f"{field.queue}:{place}", {task_id: ("+inf", "-inf")[number // 2 % 2]})
    return DELIVERED


def no_payload(field: Field, task_id: str, number: int) -> str:
    """An id stands there alone, or with a state, as a requeue of an unknown id leaves one (U10, U14)."""
    field.stand(task_id, ("pending", "delayed", "working", "dequeueing")[number % 4])
    if number % 3:
        state = {"status": "0", "requeue_count": "1", **({"timeout": "300"} if number % 3 == 2 else {})}
        field.pipeline.hset(field.state(task_id), mapping=state)
    return DROPPED


def undecodable(field: Field, task_id: str, number: int) -> str:
    """The payload is no JSON (U10)."""
    field.task(task_id, ("pending", "delayed", "working")[number % 3])
    field.pipeline.hset(f"{field.queue}:tasks", task_id, (b"\xff\xfe", b"{", b"", b"\x80\x04K\x01.")[number % 4])
    return REJECTED


def stands_twice(field: Field, task_id: str, number: int) -> str:
    """An id stands twice in pending, or there and somewhere else, as two requeues leave it (U13)."""
    field.task(task_id)
    field.stand(task_id, ("pending", "delayed", "working")[number % 3])
    return ONCE


def final(field: Field, task_id: str, number: int) -> str:
    """The task has ended and its result is kept, but the id is in the queue, every other time with a payload (U15)."""
    field.stand(task_id, ("pending", "delayed", "working", "dequeueing")[number // 2 % 4])
    if number % 2:
        field.pipeline.hset(f"{field.queue}:tasks", task_id, json.dumps(task_id))
    state = {"status": "34"[number % 2], "result": json.dumps(f"result of {task_id}"), "release_time": "2"}
    field.pipeline.hset(field.state(task_id), mapping=state)
    field.pipeline.pexpire(field.state(task_id), _KEPT)
    return DROPPED


KINDS: tuple[Callable[[Field, str, int], str], ...] = (
    wrong_type, field_missing, text_in_a_number, time_without_end, no_payload, undecodable, stands_twice, final,
)  # fmt: skip


def sow(admin: redis.Redis, queue: str, each: int, rng: random.Random) -> list[Item]:
    """Write so many damaged tasks of each kind, in a mixed order."""
    order = [(kind, number) for kind in KINDS for number in range(each)]
    rng.shuffle(order)
    items = []
    with admin.pipeline(transaction=False) as pipeline:
        field = Field(pipeline, queue)
        for kind, number in order:
            task_id = f"{kind.__name__}-{number}"
            items.append(Item(task_id, kind.__name__, kind(field, task_id, number)))
        pipeline.execute()
    return items


def kept(admin: redis.Redis, queue: str, items: list[Item]) -> dict[str, dict[bytes, bytes]]:
    """Read the states that must stay as they are."""
    return {
        item.task_id: admin.hgetall(f"{queue}:task:{item.task_id}") for item in items if item.kind == final.__name__
    }
