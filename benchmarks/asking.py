"""Asks workers to do jobs, each on an empty server that nobody else uses."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from plan import Scale
from probe import Probe
from workers import COLUMNS, Worker


@dataclass
class Bench:
    """The workers, the server's own figures, and how much to measure."""

    workers: dict[str, Worker]
    probe: Probe
    scale: Scale
    longest_scripts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By kind of job and column: ``"rates, coredis, Trio"``; seconds."""

    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.probe.watch_scripts()

    async def ask(self, column: str, job: str, *, timeout: float = 90, **arguments: Any) -> Any:
        """Have a job done by the worker of a column."""
        self.probe.flush()
        self.probe.forget_scripts()
        answer = await self.workers[column].ask(job, timeout, **arguments)
        self.longest_scripts[f"{job}, {column}"].append(self.probe.longest_script())
        return answer

    async def sample(self, job: str, arguments: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
        """Have every column take samples, a few in each round; returns all of each column.

        :param arguments: of the columns that need any
        """
        samples: dict[str, list[float]] = defaultdict(list)
        for _ in range(self.scale.rounds):
            for column in COLUMNS:
                samples[column] += await self.ask(column, job, count=self.scale.samples, **arguments.get(column, {}))
        return samples

    def progress(self, text: str) -> None:
        """Tell what is being done."""
        print(f"bench: {time.monotonic() - self._started:4.0f} s  {text}", file=sys.stderr, flush=True)
