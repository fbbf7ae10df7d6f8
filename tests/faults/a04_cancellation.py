"""A4: every public coroutine cancelled at every checkpoint, and masses of calls cancelled at random."""

from __future__ import annotations

import inspect
import logging
import random
from collections import Counter
from typing import Any

import anyio
import redis
from faults.cancelling import Storm
from faults.figures import Options, Report
from faults.trials import CASES, Stage, attempt, wipe
from support import PAIRS, Pair, Server, open_client, running_server
from support.checkpoints import Way, no_leaks, ways

from torrelque import Torrelque

TITLE = "each call cancelled at each checkpoint in each way, and 50,000 at random: all or nothing, nobody's answer lost"
SHORT = 0.1

POINTS, RANDOM = 2_000, 50_000
#: A cancelled scope is left within so many seconds.
EXIT = 1.0


class Points:
    """Calls cancelled at every checkpoint, counted.

    :param share: which part of the checkpoints to try, drawn by *rng*
    """

    def __init__(self, admin: redis.Redis, rng: random.Random, share: float) -> None:
        self.reached: Counter[str] = Counter()
        self.violations: list[str] = []
        self.slowest = 0.0
        self._admin = admin
        self._rng = rng
        self._share = share

    async def run(self, pair: Pair, url: str) -> None:
        """Try all cases of a pair."""
        for name in CASES:
            try:
                async with no_leaks(self._admin, pair.backend[0]):
                    await self._case(pair, url, name)
            except Exception as error:
                self.violations.append(f"{pair}, {name}: {told(error)}")
            wipe(self._admin, name)

    async def _case(self, pair: Pair, url: str, name: str) -> None:
        async with open_client(pair, url) as client, anyio.create_task_group() as group:
            async with Torrelque(client, queue=name) as queue:
                stage = Stage(client, queue, name, self._admin, group)
                for way in ways(pair.backend[0]):
                    await self._every_moment(pair, stage, way)

    async def _every_moment(self, pair: Pair, stage: Stage, way: Way) -> None:
        for moment in way.moments:
            if self._rng.random() >= self._share:
                continue
            try:
                cut = await attempt(stage, CASES[stage.name], way, moment)
            except Exception as error:
                raise AssertionError(f"{way.cut.__name__} {moment}: {told(error)}") from error
            if cut is None or not cut.reached:
                return
            self.reached[f"{pair.name.partition('-')[2]} {way.kind}"] += 1
            self.slowest = max(self.slowest, cut.left)


def told(error: BaseException) -> str:
    """Say what went wrong, from out of all groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


async def storm(pair: Pair, server: Server, seed: str, quota: int) -> Storm:
    """Cancel calls at random on a pair."""
    backend, name = pair.backend[0], "storm"
    made = Storm(seed, backend == "asyncio", quota)
    try:
        async with no_leaks(server.admin, backend), open_client(pair, server.url) as client:
            async with Torrelque(client, queue=name) as queue:
                await made.run(queue)
                await made.settle(server.admin, name)
    except Exception as error:
        made.violations.append(told(error))
    wipe(server.admin, name)
    return made


def untried() -> set[str]:
    """Find public coroutines of a queue that no case is about."""
    public = {
        name
        for name, value in vars(Torrelque).items()
        if name[0] != "_" and (inspect.iscoroutinefunction(value) or name in {"watch", "lease"})
    }
    return {name for name in public if not any(case.startswith(name) for case in CASES)}


def run(options: Options) -> Report:
    """Cancel everything, on every pair."""
    # That a plain call finds nothing to do is told to the caller by an error here, and not to be logged as well.
    logger = logging.getLogger("torrelque")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return _run(options)
    finally:
        logger.setLevel(level)


def _run(options: Options) -> Report:
    report = Report()
    report.violations += [f"no case for {name}()" for name in sorted(untried())]
    with running_server(fsync="no") as server:
        points = Points(server.admin, random.Random(options.seed), min(1.0, options.scale))
        for pair in PAIRS:
            anyio.run(points.run, pair, server.url, **_loop(pair))
        storms = [
            anyio.run(
                storm, pair, server, f"{options.seed} {pair}", -(-options.of(RANDOM) // len(PAIRS)), **_loop(pair)
            )
            for pair in PAIRS
        ]
    report.violations += points.violations
    for pair, each in zip(PAIRS, storms, strict=True):
        report.violations += [f"{pair}: {line}" for line in each.violations]
    slowest = max(points.slowest, *(each.slowest for each in storms))
    if slowest > EXIT:
        report.violations.append(f"a cancelled scope was left after {slowest:.2f} s")
    report.minimums = {
        "checkpoints": (points.reached.total(), POINTS * min(1.0, options.scale)),
        "cancelled at random": (sum(each.cancelled for each in storms), options.of(RANDOM)),
    }
    report.measured = {
        "calls in the storms": sum(each.calls for each in storms),
        "slowest exit s": slowest,
        **{f"checkpoints, {where}": count for where, count in sorted(points.reached.items())},
    }
    return report


def _loop(pair: Pair) -> dict[str, Any]:
    return {"backend": pair.backend[0], "backend_options": pair.backend[1]}
