"""What is measured: the rows of the tables, how much of everything, and what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workers import OURS

#: The columns that have a target: redis-py on asyncio, and coredis on Trio.
WITH_TARGET = (OURS[0], OURS[3])


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    rounds: int = 5
    seconds: float = 0.3
    """For each rate."""
    samples: int = 40
    """Of a latency, in each round."""
    idle_seconds: float = 5.0
    watchers: int = 1000
    published_watchers: int = 100
    """It needs a core for its watchers and a connection for each; 1,000 of them take it more than a minute."""
    memory_tasks: int = 200_000
    """A million gives figures within 3 % of these, and takes two and a half minutes."""
    due: int = 100_000
    stale: int = 10_000


QUICK = Scale(
    rounds=2,
    seconds=0.1,
    samples=10,
    idle_seconds=1,
    watchers=100,
    published_watchers=20,
    memory_tasks=10_000,
    due=5_000,
    stale=500,
)


@dataclass(frozen=True)
class Load:
    """One way to use a queue; it gives two rows, one for enqueue, and one for dequeue and release."""

    label: str
    callers: int = 1
    bulk: int = 1
    pipelined: bool = False
    enqueue_targets: tuple[float, float] | None = None
    """Ratios to the published package, for the columns with a target."""
    work_targets: tuple[float, float] | None = None

    @property
    def enqueue_row(self) -> str:
        return f"{self._bulk}enqueue, {self.label}"

    @property
    def work_row(self) -> str:
        return f"{self._bulk}dequeue + release, {self.label}"

    @property
    def commands_row(self) -> str:
        return f"commands sent per task, {self.label}"

    @property
    def bytes_row(self) -> str:
        return f"bytes sent / received per task, {self.label}"

    @property
    def shape(self) -> dict[str, Any]:
        """What a worker has to know."""
        return {"callers": self.callers, "bulk": self.bulk, "pipelined": self.pipelined}

    @property
    def _bulk(self) -> str:
        return "bulk " if self.bulk > 1 else ""


#: Bulks come from one caller. "a call": each library's fastest way to do much at once. The published package's is one
#: redis-py pipeline for 100 enqueues, ``dequeue(max_tasks=100)``, and one pipeline for 100 releases. Ours is
#: ``enqueue_many``, ``dequeue(max_tasks=100)`` and ``release_many``. "on pipelines": both libraries enqueue and release
#: on a pipeline of the client; compared with the published package's very same code.
LOADS = (
    Load("1 caller", callers=1, enqueue_targets=(0.95, 0.7), work_targets=(1.3, 0.9)),
    Load("32 callers", callers=32, enqueue_targets=(6, 5), work_targets=(7, 5.5)),
    Load("256 callers", callers=256),
    Load("100 a call", bulk=100, enqueue_targets=(2.5, 2.2), work_targets=(2.5, 2.2)),
    Load("100 on pipelines", bulk=100, pipelined=True),
    Load("500 a call", bulk=500),
)
