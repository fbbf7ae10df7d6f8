"""What a queue holds in one moment, read out of the simulated server."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from torrelque.keys import Keys

from .store import ZSet

PENDING, WORKING, DELAYED, DONE, REJECTED = "0", "1", "2", "3", "4"


@dataclass
class Task:
    """A task, as the queue should know it."""

    body: bytes
    """Empty when it is final."""
    lease: float
    status: str
    count: int = 0
    """Deliveries so far, less those that were handed back: the fencing token."""
    requeues: int = 0
    forgiven: int = 0
    """Deliveries that do not count as attempts any more: those before it was a dead letter."""


@dataclass
class Ended:
    """A task whose result is kept, or a dead letter."""

    task: Task
    result: bytes

    def fork(self) -> Ended:
        """Copy, to be changed."""
        return Ended(copy(self.task), self.result)


@dataclass
class View:
    """A queue in one moment."""

    now: float
    pending: list[str] = field(default_factory=list)
    """The head first."""
    parked: list[str] = field(default_factory=list)
    """``dequeueing``, the oldest first."""
    noted: set[str] = field(default_factory=set)
    """What sweeps have seen there."""
    working: dict[str, float] = field(default_factory=dict)
    delayed: dict[str, float] = field(default_factory=dict)
    live: dict[str, Task] = field(default_factory=dict)
    final: dict[str, Ended] = field(default_factory=dict)
    dead: dict[str, Ended] = field(default_factory=dict)
    died: dict[str, float] = field(default_factory=dict)

    def fork(self) -> View:
        """Copy, to be changed."""
        return replace(
            self,
            pending=self.pending[:],
            parked=self.parked[:],
            noted=set(self.noted),
            working=dict(self.working),
            delayed=dict(self.delayed),
            live={task_id: copy(task) for task_id, task in self.live.items()},
            final={task_id: each.fork() for task_id, each in self.final.items()},
            dead={task_id: each.fork() for task_id, each in self.dead.items()},
            died=dict(self.died),
        )

    def knows(self, task_id: str) -> bool:
        """Tell whether there is anything of this id."""
        return task_id in self.live or task_id in self.final or task_id in self.dead

    def letters(self) -> list[str]:
        """List the dead letters, the oldest first."""
        return sorted(self.died, key=lambda task_id: (self.died[task_id], task_id))

    def newest(self) -> float:
        """Tell when the newest dead letter died; 0 when there is none."""
        return max(self.died.values(), default=0.0)


def read(stored: Mapping[bytes, Any], keys: Keys, now: float) -> View:
    """Read a queue."""
    view = View(now)
    view.pending = [task_id.decode() for task_id in reversed(stored.get(keys.pending, ()))]
    view.parked = [task_id.decode() for task_id in reversed(stored.get(keys.dequeueing, ()))]
    view.noted = {task_id.decode() for key in (keys.undequeued, keys.outgoing) for task_id in stored.get(key, ())}
    view.working = {task_id.decode(): end for task_id, end in stored.get(keys.working, ZSet()).items()}
    view.delayed = {task_id.decode(): due for task_id, due in stored.get(keys.delayed, ZSet()).items()}
    view.died = {task_id.decode(): at for task_id, at in stored.get(keys.dead, ZSet()).items()}
    bodies, buried = stored.get(keys.tasks, {}), stored.get(keys.dead_payloads, {})
    prefix = keys.task + b":"
    for key, state in stored.items():
        if key.startswith(prefix):
            task_id = key[len(prefix) :]
            task = _task(bodies.get(task_id, buried.get(task_id, b"")), state)
            if task_id in bodies:
                view.live[task_id.decode()] = task
            else:
                ended = view.dead if task_id in buried else view.final
                ended[task_id.decode()] = Ended(task, state.get(b"result", b""))
    return view


def _task(body: bytes, state: dict[bytes, bytes]) -> Task:
    numbers = [int(_number(state.get(name))) for name in (b"dequeue_count", b"requeue_count", b"forgiven")]
    return Task(body, _number(state.get(b"timeout")), state.get(b"status", b"").decode(), *numbers)


def _number(text: bytes | None) -> float:
    return float(text or 0)


__all__ = ["DELAYED", "DONE", "PENDING", "REJECTED", "WORKING", "Ended", "Task", "View", "read"]
