"""What a script costs the server: the time that it computes, whatever else this machine has to do."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import redis

from torrelque.calls import SWEEP_TIMED, Call, Calls
from torrelque.keys import Keys
from torrelque.model import TorrelqueTaskId
from torrelque.waiting import CLAIM


class Probe:
    """Runs scripts on a queue, one at a time and nothing beside them, and asks the kernel for the server's time.

    The clock on the wall, which SLOWLOG reads, goes on while the server is not run.
    """

    def __init__(self, admin: redis.Redis, queue: str) -> None:
        pid = admin.info("server")["process_id"]
        self._clock = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._admin = admin
        self._calls = Calls(Keys(queue))
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def _run(self, call: Call[Any]) -> Any:
        rest = (len(call.keys), *call.keys, *call.head, *call.items)
        self._admin.script_load(call.script.text)
        before = self._computed()
        reply = self._admin.execute_command("EVALSHA", call.script.sha1, *rest)
        self.seconds[call.script.name].append(self._computed() - before)
        return reply

    def _computed(self) -> float:
        return int(self._clock.read_text().split()[0]) / 1e9

    def run(self, rounds: int, most: int = CLAIM) -> list[str]:
        """Sweep, claim, requeue and release as much as a script may; returns the ids that were released."""
        released: list[str] = []
        for _ in range(rounds):
            self._run(self._calls.sweep(300, SWEEP_TIMED))
            claims = [self._calls.dequeue(most, 300) for _ in range(2)]
            got = [each for call in claims for each in call.parse(self._run(call)).deliveries]
            ids = [TorrelqueTaskId(each.task_id.decode(), each.count, each.lease) for each in got]
            if ids:
                self._run(self._calls.release([(task_id, None) for task_id in ids], 3, 1))
            released += map(str, ids)
        return released

    def least(self) -> dict[str, float]:
        """Seconds for each script: nine of ten runs are longer, by what else used this machine's caches and cores."""
        return {name: statistics.quantiles(seconds, n=10)[0] for name, seconds in sorted(self.seconds.items())}

    def longest(self) -> dict[str, float]:
        """Seconds for each script, the longest run."""
        return {name: max(seconds) for name, seconds in sorted(self.seconds.items())}
