"""A3: primaries die, fall silent and are cut off from all others while clients still reach them, and slots move.

First a primary with two replicas and three sentinels, then a cluster of six, each under load with the durability of all
replicas and ``min-replicas-to-write 1``: what was acknowledged stays. (One of two is not enough: Sentinel may promote
the other while the old primary lives on, as it does where a machine stands still for a while.) Then the same failovers
with the default durability, for the numbers only. Nobody tells the workers, the gRPC servers and the producers.
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from faults import storm
from faults.checker import Allowances, Findings
from faults.crew import Crew
from faults.figures import Options, Report
from faults.history import OK, History
from faults.storm import DRAIN, free_port, progress
from support import wait_until
from support.clusters import Network, eventually, may_part, open_cluster, open_sentinel
from support.clusters import Site as Servers
from support.standstill import Standstill

from torrelque import Torrelque

TITLE = "Failover: what replicas have acknowledged stays through failovers, partitions and moves of the slot"
SHORT = 0.02

LEASE, SWEEP = 3.0, 1.0
#: In braces, so that its keys are spelled the same by Sentinel and in a cluster.
QUEUE = "{storm}"
#: The full form.
TASKS = 30_000
SENTINEL = {"killed": 5, "silent": 3, "cut off": 5}
CLUSTER = {"killed": 2, "silent": 2, "moved key by key": 3, "moved in one step": 2}
#: Failovers with the default durability, for the numbers.
_LOCAL = {"killed": 2, "cut off": 2}
#: From this scale on all is done; below it one failover and one partition.
_LONG, _FEW = 0.2, {"killed", "cut off"}
PACE = 400.0
#: Writes must be taken again so soon, in seconds, for 95 of 100 producers and faults.
OUTAGE = 6.0
_ENDLESS = 1 << 40
_PRODUCERS = [("redispy", "asyncio"), ("coredis", "trio"), ("grpc", "")]
_WORKERS = [*_PRODUCERS, ("coredis", "asyncio")]
#: What must not come of a failover where replicas have acknowledged. Claims are not waited for: one that is lost gives
#: its number again, which is counted only.
_PROMISED = {"lost", "undone", "after finality", "settled twice"}
_CLAIMS = {"token", "unexplained", "unseen claim", "stale", "refused"}


@dataclass
class Site(storm.Site):
    """A storm over servers that fail over."""

    replicas: int = 1

    def place(self, way: str) -> Any:
        return self.addresses if way == "grpc" else {"url": self.url, "replicas": self.replicas}

    def add_server(self) -> None:
        number, address = len(self.addresses), f"127.0.0.1:{free_port()}"
        self.addresses.append(address)
        durability = f"replicas:{self.replicas}" if self.replicas else "memory"
        options = {"--redis": self.url, "--durability": durability, "--listen": address, "--task-timeout": self.lease,
                   "--grace": 5.0, "--sweep-interval": self.sweep, "--log-level": "warning"}  # fmt: skip
        spelled = [str(part) for option in options.items() for part in option]
        self.crew.add(f"server-{number}", lambda _: [sys.executable, "-m", "torrelque", "serve", *spelled])

    def sweep_twice(self) -> None:
        async def sweep() -> None:
            async with Torrelque.from_url(self.url, queue=self.queue) as queue:
                await queue.sweep()
                await queue.sweep()

        self.portal.call(sweep)


def run(options: Options) -> Report:
    """Sentinel, a cluster, and both again with less."""
    report, chance = Report(), random.Random(options.seed)
    outages: list[float] = []
    with Standstill.counted() as standstill, ExitStack() as stack:
        network = stack.enter_context(Network()) if may_part() else None
        report.measured["partitions by"] = "network namespaces" if network else "SIGSTOP, for want of rights"
        acked = 0
        with _opened(options, "sentinel", 2, network) as rounds:
            acked += rounds.storm(report, outages, options, SENTINEL, chance, TASKS * 2 // 3)
        if options.scale >= _LONG:
            with _opened(options, "cluster", 1, None) as rounds:
                acked += rounds.storm(report, outages, options, CLUSTER, chance, TASKS // 3)
            with _opened(options, "local", 0, network) as rounds:
                rounds.storm(report, [], options, _LOCAL, chance, 0)
    report.minimums["acked tasks"] = (acked, options.of(TASKS))
    ordered = sorted(outages)
    for share in (0.5, 0.95, 1.0):
        worst = ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.inf
        report.measured[f"write outage p{share * 100:g} s"] = worst
        if share == 0.95 and worst > OUTAGE + standstill.longest:
            report.violations.append(f"liveness: writes were taken again after {worst:.1f} s (p95), {OUTAGE:g} allowed")
    report.measured["machine stood still, longest s"] = standstill.longest
    return report


class Rounds:
    """Load on servers that fail, round by round."""

    def __init__(self, name: str, site: Site, servers: Servers) -> None:
        self._name = name
        self._site = site
        self._servers = servers

    def storm(
        self, report: Report, outages: list[float], options: Options, full: dict[str, int], chance: random.Random,
        tasks: int,
    ) -> int:  # fmt: skip
        """Bring about all faults; returns how many tasks were acknowledged."""
        if options.scale < _LONG:
            full = {fault: number for fault, number in full.items() if fault in _FEW}
        faults = [fault for fault, number in full.items() for _ in range(options.of(number))]
        chance.shuffle(faults)
        ends = time.monotonic() + options.of(tasks) / PACE
        done = dict.fromkeys(full, 0)
        for fault in faults:
            # Sentinels wait twice their failover-timeout before they do it again.
            self._work(chance.uniform(4.0, 5.0) if self._servers.sentinels else chance.uniform(0.5, 1.5))
            done[fault] += self._break(fault)
            self._work(chance.uniform(0.2, 0.8))
            self._servers.heal()
            progress(f"{self._name}: {done}")
        self._work(max(1.0, ends - time.monotonic()))
        told, findings = self._end(report)
        progress(f"{self._name}: judged")
        for fault, number in full.items():
            report.minimums[f"{self._name}: {fault}"] = (done[fault], options.of(number))
        outages += _outages(told)
        self._judge(report, findings)
        return findings.counts["enqueued"]

    def _work(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._site.crew.look()
            time.sleep(0.02)

    def _break(self, fault: str) -> bool:
        """Do it, and wait until there is another primary; tells whether there is."""
        servers, key = self._servers, f"{QUEUE}:pending".encode()
        before = servers.primary(key)
        self._site.crew.note("fault", "redis", fault)
        if fault.startswith("moved"):
            target = next(
                node for node in servers.nodes
                if node is not before and node.admin.info("replication")["role"] == "master"
            )  # fmt: skip
            move = servers.move_slot if fault == "moved key by key" else servers.move_slot_whole
            move(key, target)
        elif fault == "killed":
            before.kill()
        elif fault == "cut off" and servers.network is not None:
            servers.network.cut_off(before)
        else:
            before.send(signal.SIGSTOP)
        eventually(lambda: servers.primary(key) is not before, 30)
        return True

    def _end(self, report: Report) -> tuple[History, Findings]:
        """Stop producing, drain, and judge."""
        crew = self._site.crew
        for slot in [slot for slot in crew.members if slot.startswith("producer")]:
            crew.end(slot)
        progress(f"{self._name}: draining")
        self._site.admin = self._servers.primary(f"{QUEUE}:pending".encode()).admin
        drained = self._site.drain()
        report.measured[f"{self._name}: drained after s"] = -1 if drained is None else drained
        if drained is None:
            report.violations.append(f"liveness: the queue was not empty {DRAIN:g} s after the faults")
        for slot in [slot for slot in crew.members if not slot.startswith("producer")]:
            crew.end(slot)
        progress(f"{self._name}: at rest")
        self._site.sweep_twice()
        time.sleep(1.1)  # what was written to be waited for is forgotten after a second
        report.violations += [f"liveness: {text}" for text in crew.deserters]
        return self._site.judge(Allowances(lease=LEASE, rollback=True))

    def _judge(self, report: Report, findings: Findings) -> None:
        found = [*findings.violations, *findings.forgiven]
        for kind in sorted({each.kind for each in found} | _PROMISED | {"enqueued", "released"}):
            report.measured[f"{self._name}: {kind}"] = findings.counts[kind]
        if self._site.replicas:
            broken = [each for each in found if each.kind not in _CLAIMS]
        else:
            broken = [each for each in findings.violations if each.kind not in _CLAIMS]
        report.violations += [f"{self._name}: {each}" for each in broken]


@contextlib.contextmanager
def _opened(options: Options, name: str, replicas: int, network: Network | None) -> Iterator[Rounds]:
    """Open servers and a site, with everybody at work."""
    folder: Path = options.folder / name
    folder.mkdir()
    safe = {"min_replicas_to_write": "1", "min_replicas_max_lag": "2"} if replicas else {}
    with ExitStack() as stack:
        if name == "cluster":
            servers = stack.enter_context(open_cluster(folder / "servers", **safe))
        else:
            servers = stack.enter_context(open_sentinel(folder / "servers", network=network, **safe))
        portal, crew = stack.enter_context(start_blocking_portal()), stack.enter_context(Crew(folder))
        admin = servers.primary(f"{QUEUE}:pending".encode()).admin
        site = Site(folder, QUEUE, servers.url, options.seed, LEASE, SWEEP, crew, admin, portal, replicas=replicas)
        site.add_server()
        site.wait_for_servers()
        for number, (way, backend) in enumerate(_WORKERS):
            site.add_worker(f"worker-{number}", way, backend)
        for number, (way, backend) in enumerate(_PRODUCERS):
            site.add_producer(f"producer-{number}", way, backend, _ENDLESS, PACE / len(_PRODUCERS), batch=50)
        clients = [slot for slot in crew.members if slot.startswith(("worker", "producer"))]
        wait_until(lambda: all(_has_an_answer(site, slot) for slot in clients), 30)
        yield Rounds(name, site, servers)


def _has_an_answer(site: Site, slot: str) -> bool:
    """Tell whether a client is at work."""
    path = site.crew.history / f"{site.crew.members[slot].name}.jsonl"
    return path.exists() and b'"ok"' in path.read_bytes()


def _outages(told: History) -> list[float]:
    """For each failover and each producer the seconds until a write that was begun after it was acknowledged."""
    faults = [event.at for event in told.events if event.kind == "fault" and not event.value.startswith("moved")]
    writes: dict[str, list[tuple[int, int]]] = {}
    for call in told.calls:
        if call.op == "enqueue" and call.outcome == OK and call.completed is not None:
            writes.setdefault(call.process, []).append((call.invoked, call.completed))
    outages: list[float] = []
    for acked in writes.values():
        begun = [invoked for invoked, _ in acked]
        for at in faults:
            index = bisect_right(begun, at)
            outages.append((acked[index][1] - at) / 1e9 if index < len(acked) else math.inf)
    return outages
