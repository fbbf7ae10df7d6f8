"""A6: old owners settle tasks around the end of their leases, on clocks that are wrong, and Redis' clock jumps.

Most of it is in ``racing.py``, of which each process has another clock: a day off, jumping by an hour, ten times too
fast. Then Redis itself is put forward and back by an hour, under leases, delays and a consumer that waits.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import redis
from faults.clients import open_queue
from faults.figures import Options, Report
from support import running_server, wait_until
from support.bridge import ROOT, serving
from support.faketime import faked

from torrelque.embedded import _find_server, _free_port

TITLE = "old owners act around the end of their leases, and clocks jump: right verdicts, nothing stale applied"
SHORT = 0.03

RACES, JUMPS = 10_000, 60
HOUR = 3600.0
#: By which way the old owner reaches its queue, and what is wrong with its clock.
RACERS = [
    ("redispy-asyncio", "+1d"), ("coredis-asyncio", "-1d"), ("coredis-trio", "x10"), ("redispy-uvloop", "jumps"),
    ("grpc", "+1d"), ("grpc", "jumps"),
]  # fmt: skip


def race(options: Options, url: str, place: str, number: int, races: int) -> Any:
    """Run a process of racers with its clock."""
    way, wrong = RACERS[number]
    clock = options.folder / f"clock-{number}"
    start = {"+1d": "+86400", "-1d": "-86400", "x10": "+0 x10", "jumps": "+0"}[wrong]
    environment = {**faked(clock, start), "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "faults.racing", url, way, place, f"race{number}", str(options.seed), str(races)]
    jumps = random.Random(f"{options.seed} {number}")
    said = options.folder / f"race-{number}.json"  # a pipe that nobody reads meanwhile may be too small
    with (
        said.open("wb") as output,
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output) as process,
    ):
        while process.poll() is None:
            time.sleep(0.1)
            if wrong == "jumps":
                clock.write_text(f"{jumps.choice(('+0', '+3600', '-3600'))}\n")
    if process.returncode:
        return {
            "verdicts": {},
            "violations": [f"racers by {way}, clock {wrong}: exit {process.returncode}"],
            "voided": 0,
        }
    told = json.loads(said.read_text())
    if told["voided"] > (races // 20 if (way, wrong) == ("grpc", "jumps") else 0):
        told["violations"].append(f"racers by {way}, clock {wrong}: {told['voided']} races were cut short")
    return told


class Clock:
    """The clock of a Redis, and that server."""

    def __init__(self, path: Path, url: str, admin: redis.Redis) -> None:
        self._path = path
        self.url = url
        self.admin = admin
        self._offset = 0.0

    def jump(self, seconds: float) -> None:
        """Put it forward, or back; returns when Redis tells the new time."""
        self._offset += seconds
        self._path.write_text(f"{self._offset:+.0f}\n")
        wait_until(lambda: abs(self.admin.time()[0] - time.time() - self._offset) < 5)


@contextmanager
def redis_with_a_clock(folder: Path) -> Iterator[Clock]:
    """Run a Redis whose clock is a file."""
    port, path = _free_port(), folder / "clock-of-redis"
    command = [
        str(_find_server(None)),
        "--port",
        str(port),
        "--save",
        "",
        "--bind",
        "127.0.0.1",
        "--notify-keyspace-events",
        "KA",
    ]
    with subprocess.Popen(command, env=faked(path, "+0"), cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            with redis.Redis(port=port) as admin:
                wait_until(lambda: answers(admin))
                yield Clock(path, f"redis://127.0.0.1:{port}/0", admin)
        finally:
            process.kill()


def answers(admin: redis.Redis) -> bool:
    try:
        return bool(admin.ping())
    except redis.ConnectionError:
        return False


class Jumps:
    """Jumps of Redis' clock under leases, delays, and a consumer that waits."""

    def __init__(self, clock: Clock) -> None:
        self.violations: list[str] = []
        self.done: Counter[str] = Counter()
        self.slowest = 0.0
        self._clock = clock

    def _expect(self, holds: bool, *facts: object) -> None:
        if not holds:
            self.violations.append(f"a jump of Redis' clock: {facts}")

    async def run(self, client: str, count: int) -> None:
        for number in range(count):
            seconds = (HOUR, -HOUR)[number % 2]
            await self._jump(client, f"jump-{client}-{number}", seconds)
            self.done["forward" if seconds > 0 else "back"] += 1

    async def _jump(self, client: str, name: str, seconds: float) -> None:
        """What was leased or delayed comes in its time after, or early by the jump; nothing else early, none late."""
        async with open_queue(self._clock.url, name, client) as queue, anyio.create_task_group() as group:
            arrived: dict[bytes, float] = {}
            # An extension of a day is none of the clock's doing, and stays.
            await queue.enqueue(b"extended", task_timeout=60)
            extended, _ = await queue.dequeue(5)
            await queue.extend(extended, 86_400)
            await queue.enqueue(b"leased", task_timeout=1)
            await queue.dequeue(5)
            await queue.enqueue(b"delayed", delay=1)
            await queue.enqueue(b"far", delay=HOUR + 3)
            await queue.enqueue(b"further", delay=3 * HOUR)

            async def consume() -> None:
                while True:
                    task_id, body = await queue.dequeue()
                    arrived[body] = anyio.current_time() - began
                    await queue.release(task_id, strict=True)

            began = anyio.current_time()
            group.start_soon(consume)
            queue.schedule_sweep(0.3)
            await anyio.sleep(0.1)
            await anyio.to_thread.run_sync(self._clock.jump, seconds)
            began = anyio.current_time()
            await queue.enqueue(b"new")
            expected = {b"new", b"leased", b"delayed"} | ({b"far"} if seconds > 0 else set())
            with anyio.move_on_after(10):
                while not expected <= arrived.keys():
                    await anyio.sleep(0.02)
            self._expect(arrived.keys() == expected, seconds, "came", arrived)
            self._expect(seconds < 0 or arrived.get(b"far", 9) > 2, "earlier than the jump", arrived)
            self._expect(arrived.get(b"new", 99) < 2, "a new task waited", arrived)
            self.slowest = max(self.slowest, *arrived.values())
            self._expect(self._clock.admin.zscore(f"{name}:working", extended) is not None, "an extension was cut")
            group.cancel_scope.cancel()


def jump(options: Options, report: Report) -> None:
    """Have Redis' clock jump, for each client in turn."""
    for client, backend in (("redispy", "asyncio"), ("coredis", "trio")):
        with redis_with_a_clock(options.folder) as clock:
            jumps = Jumps(clock)
            anyio.run(jumps.run, client, options.of(JUMPS // 2, 2), backend=backend)
        report.violations += jumps.violations
        name = f"jumps of Redis' clock, {client}"
        report.minimums[name] = (sum(jumps.done.values()), options.of(JUMPS // 2, 2))
        report.measured[f"slowest after a jump, {client}, s"] = jumps.slowest


def run(options: Options) -> Report:
    """Race, and jump."""
    report = Report()
    each = -(-options.of(RACES) // len(RACERS))
    verdicts: Counter[str] = Counter()
    voided = 0
    with running_server(fsync="no") as server, serving("--redis", server.url, "--no-sweep") as served:
        with ThreadPoolExecutor(len(RACERS)) as pool:
            work = [pool.submit(race, options, server.url, served.address, n, each) for n in range(len(RACERS))]
            for future in work:
                said = future.result()
                verdicts.update(said["verdicts"])
                report.violations += said["violations"]
                voided += said["voided"]
    jump(options, report)
    report.minimums["races judged"] = (verdicts.total(), options.of(RACES))
    report.measured |= {"races cut short by a clock, and run again": voided, **dict(sorted(verdicts.items()))}
    return report
