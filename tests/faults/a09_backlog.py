"""A9: a backlog that is due all at once, with poison in it, is drained; and so is a server whose memory is full."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import anyio
import coredis
import redis
from faults.cost import Probe
from faults.drain import BATCH, Log, Tally, draining
from faults.figures import Options, Report
from faults.poison import DELIVERED, DROPPED, KINDS, ONCE, REJECTED, Item, kept, sow
from support import SERVERS, Server, running_server

from torrelque import Torrelque, scripts

TITLE = "200,000 due at once, 20,000 expired leases, 2,000 poisoned tasks, then no memory left: all drained in time"
SHORT = 0.03

DELAYED, LEASED, POISON = 200_000, 20_000, 2_000
#: Drained at a full server, and enqueues that it refuses meanwhile.
FULL, REFUSED = 20_000, 500
#: Seconds until every good task has been delivered and released.
IN_TIME = 120.0
#: Seconds that a script may compute; and that it may take by the clock, which goes on while the server is not run:
#: none may be so long that it must have gone through all the backlog.
SCRIPT, SCRIPT_AT_WORST = 0.005, 0.25
#: Runs of each script that are looked at one by one.
PROBES = 100
#: Enqueued a second, at the least; the backlog is due a little after it is complete.
PACE = 15_000


@dataclass
class Run:
    """What was found on one server."""

    kind: str
    violations: list[str] = field(default_factory=list)
    measured: dict[str, float | str] = field(default_factory=dict)
    good: int = 0
    poison: int = 0
    full: int = 0
    refused: int = 0

    def expect(self, holds: bool, promise: str) -> None:
        if not holds:
            self.violations.append(f"{self.kind}: {promise}")


async def _fill(url: str, queue: str, due: float, delayed: list[str], leased: list[str], ready: list[str]) -> None:
    """Enqueue tasks whose payloads are their ids: delays and leases end at *due*."""
    async with coredis.Redis.from_url(url) as client, Torrelque(client, queue=queue) as made:
        await made.enqueue_many(leased, task_ids=leased, task_timeout=due - time.time())
        for _ in range(0, len(leased), 1000):
            await made.dequeue(5, max_tasks=1000)
        for start in range(0, len(delayed), 1000):
            part = delayed[start : start + 1000]
            await made.enqueue_many(part, task_ids=part, delay=max(0.0, due - time.time()))
        await made.enqueue_many(ready, task_ids=ready)


def _named(letter: str, count: int) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]


def _backlog(options: Options, server: Server, run: Run, log: Log) -> None:
    """All due at once, with poison in between."""
    admin, queue = server.admin, "backlog"
    delayed, leased = _named("d", options.of(DELAYED)), _named("l", options.of(LEASED))
    due = time.time() + 1.5 + len(delayed) / PACE
    anyio.run(_fill, server.url, queue, due, delayed, leased, [])
    _wait(lambda: time.time() > due, due + 1)
    probe = Probe(admin, queue)
    released = probe.run(max(2, min(PROBES, len(delayed) // 2000)))
    items = sow(admin, queue, max(8, options.of(POISON) // len(KINDS)), random.Random(options.seed))
    states = kept(admin, queue, items)
    good, tally = {*delayed, *leased}, Tally(queue, delivered=released)
    log.lines.clear()
    with _slow_scripts(admin, run):
        with draining(server.url, tally, log):
            _wait(lambda: good <= set(tally.delivered), due + IN_TIME)
            run.measured["all delivered after s"] = round(time.time() - due, 2)
            _wait(lambda: not _live(admin, queue), time.time() + 30)
    run.violations += [f"{run.kind}: {line}" for line in tally.violations]
    _judge_cost(run, probe)
    _judge_good(run, tally, good)
    _judge_poison(run, tally, log, items)
    run.expect(kept(admin, queue, items) == states, "a final state has changed")
    left = {key.decode().rpartition(":")[2] for key in admin.scan_iter(f"{queue}:*", count=1000)}
    run.expect(left == set(states), f"left behind: {sorted(left ^ set(states))[:5]}")
    run.expect(all(admin.pttl(f"{queue}:task:{task_id}") > 0 for task_id in states), "a final state is kept for ever")
    failed = [line for line in log.lines if "failed" in line.lower() or "Traceback" in line]
    run.expect(not failed, f"a sweep or a server has failed: {failed[:3]}")
    run.good, run.poison = len(good), len(items)


def _wait(holds: Callable[[], object], until: float) -> None:
    while not holds() and time.time() < until:
        time.sleep(0.05)


def _live(admin: redis.Redis, queue: str) -> bool:
    return bool(
        admin.exists(*(f"{queue}:{place}" for place in ("tasks", "pending", "dequeueing", "working", "delayed")))
    )


def _judge_good(run: Run, tally: Tally, good: set[str]) -> None:
    got = Counter(task_id for task_id in tally.delivered if task_id in good)
    run.expect(len(got) == len(good), f"not delivered in time: {len(good) - len(got)}, {sorted(good - set(got))[:5]}")
    twice = [task_id for task_id, count in got.items() if count > 1]
    run.expect(not twice, f"delivered twice: {len(twice)}, {twice[:5]}")


def _judge_poison(run: Run, tally: Tally, log: Log, items: list[Item]) -> None:
    """Each came to its end, once, and to no other."""
    happened = {DELIVERED: Counter(tally.delivered), REJECTED: Counter(tally.rejected), DROPPED: Counter(log.dropped())}
    wanted = {
        DELIVERED: {DELIVERED: 1}, REJECTED: {REJECTED: 1}, DROPPED: {DROPPED: 1}, ONCE: {DELIVERED: 1, DROPPED: 1},
    }  # fmt: skip
    wrong: dict[str, list[str]] = {}
    for item in items:
        said = {end: counts[item.task_id] for end, counts in happened.items() if counts[item.task_id]}
        if said != wanted[item.end]:
            wrong.setdefault(item.kind, []).append(f"{item.task_id} was {said or 'left'}, not {item.end}")
    for kind, cases in wrong.items():
        run.expect(False, f"{kind}: {len(cases)} of {len(items) // len(KINDS)}: {'; '.join(cases[:3])}")
    run.measured["poison dealt with"] = len(items) - sum(map(len, wrong.values()))


@contextlib.contextmanager
def _slow_scripts(admin: redis.Redis, run: Run) -> Iterator[None]:
    """Judge how long the scripts took that run while the body does."""
    admin.config_set("slowlog-max-len", 100_000)
    admin.config_set("slowlog-log-slower-than", 500)
    admin.slowlog_reset()
    before = admin.info("commandstats")["cmdstat_evalsha"]["calls"]
    yield
    ran = admin.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    ours = {script.sha1: script.name for script in scripts.ALL}
    longest: Counter[str] = Counter()
    over = 0
    for entry in admin.slowlog_get(100_000):
        name = ours.get(entry["command"].split(b" ", 2)[1] if entry["command"].startswith(b"EVALSHA ") else b"")
        if name is not None:
            longest[name] = max(longest[name], entry["duration"])
            over += entry["duration"] > SCRIPT * 1e6
    run.measured |= {f"longest {name} by SLOWLOG ms": longest[name] / 1000 for name in sorted(longest)}
    run.measured |= {"scripts run": ran, "of them over 5 ms by SLOWLOG": over}
    worst = max(longest.values(), default=0) / 1e6
    run.expect(worst <= SCRIPT_AT_WORST, f"a script took {worst:.3f} s")


def _judge_cost(run: Run, probe: Probe) -> None:
    for name, seconds in probe.least().items():
        run.measured[f"{name} computes ms"] = round(seconds * 1000, 2)
        run.measured[f"longest {name} computes ms"] = round(probe.longest()[name] * 1000, 2)
        run.expect(seconds <= SCRIPT, f"{name} computes for {seconds * 1000:.1f} ms")


def _full(options: Options, server: Server, run: Run, log: Log) -> None:
    """No memory is left while there is work: it is done all the same, and nothing more comes in."""
    admin, queue, count = server.admin, "full", options.of(FULL)
    delayed, leased, ready = _named("d", count // 4), _named("l", count // 4), _named("r", count // 2)
    due = time.time() + 1.5 + count / PACE
    anyio.run(_fill, server.url, queue, due, delayed, leased, ready)
    good, tally = {*delayed, *leased, *ready}, Tally(queue, results=2, intrudes=True)
    log.lines.clear()
    admin.config_set("maxmemory", 1)
    try:
        with draining(server.url, tally, log):
            _wait(lambda: good <= set(tally.delivered) and not _live(admin, queue), due + IN_TIME)
            # What waits now has found nothing, and the server refuses to let it block.
            time.sleep(0.5)
    finally:
        admin.config_set("maxmemory", 0)
    run.violations += [f"{run.kind}, full: {line}" for line in tally.violations]
    _judge_good(run, tally, good)
    run.expect(not _live(admin, queue), "full: not drained")
    intruders = list(admin.scan_iter(f"{queue}:task:intruder*", count=1000))
    run.expect(not intruders, f"full: a refused task was written: {intruders[:3]}")
    results = sum(1 for _ in admin.scan_iter(f"{queue}:task:*", count=1000))
    run.expect(results >= len(good) // BATCH // 2, f"full: only {results} results were kept")
    run.full, run.refused = len(good), len(tally.refused)


def run(options: Options) -> Report:
    """Do it on each kind of server that there is."""
    report, log = Report(), Log()
    logger = logging.getLogger("torrelque")
    logger.addHandler(log)
    logger.propagate = False
    poison = max(8, options.of(POISON) // len(KINDS)) * len(KINDS)
    for kind in SERVERS:
        one = Run(kind)
        with running_server(kind, fsync="no") as server:
            _backlog(options, server, one, log)
            _full(options, server, one, log)
        report.violations += one.violations
        report.measured |= {f"{kind}: {name}": value for name, value in one.measured.items()}
        report.minimums |= {
            f"{kind}: due at once, and expired": (one.good, options.of(DELAYED) + options.of(LEASED)),
            f"{kind}: poisoned": (one.poison, poison),
            f"{kind}: drained at a full server": (one.full, options.of(FULL) // 4 * 4),
            f"{kind}: enqueues refused meanwhile": (one.refused, options.of(REFUSED, 20)),
        }
    return report
