"""A1: workers and servers are killed, stopped and restarted all the time: no task is lost, or done twice for nothing.

Six workers (redis-py and coredis on asyncio, coredis on Trio, and two through gRPC servers) and two servers work on one
Valkey, for three producers with an even pace. At random moments, drawn from the seed, one of them is killed by SIGKILL
or stopped by SIGSTOP beyond its lease; now and then all of them are restarted one after the other by SIGTERM.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from faults.checker import Allowances, Findings
from faults.figures import Options, Report
from faults.storm import DRAIN, Site, Watch, acked_a_second, open_site, progress, watching
from support.standstill import Standstill

TITLE = "Kill storm: nothing is lost or repeated without a reason while processes die all the time"
SHORT = 0.02

LEASE = 2.0
SWEEP = 1.0
#: The full form, and how long it takes, in seconds.
TASKS, KILLS, STOPS, RESTARTS, DURATION = 300_000, 150, 30, 10, 440.0
#: Seconds from the end of a lease to the next delivery, which 99 of 100 must not exceed.
RECOVERY = 1.0
#: Seconds between two faults at least: what was held up does not come all at once.
GAP = 0.2
#: Tasks a second that must have been acknowledged.
PACE = 560.0
_PRODUCERS = [("redispy", "asyncio"), ("coredis", "trio"), ("grpc", "")]
_WORKERS = [*_PRODUCERS, ("coredis", "asyncio"), ("coredis", "trio"), ("stream", "")]


@dataclass(frozen=True)
class Act:
    """Something that is done to the crew at a time, in seconds from the start."""

    at: float
    what: str
    slot: str = ""


@dataclass
class Storm:
    """The faults of a run."""

    site: Site
    slots: list[str]
    acts: list[Act]
    done: Counter[str] = field(default_factory=Counter)

    def play(self) -> None:
        """Do everything at its time, but for a moment between any two, until the producers have ended."""
        crew, self._began, told, last = self.site.crew, time.monotonic(), 0.0, 0.0
        while self.acts or self._producing():
            self.acts.sort(key=lambda act: -act.at)
            if self.acts and self.acts[-1].at <= self._now and last + GAP <= self._now:
                self._do(self.acts.pop())
                last = self._now
            else:
                crew.look()
                time.sleep(0.02)
            if self._now > told + 10:
                told = self._now
                progress(f"{told:.0f} s, {self.site.admin.hlen(f'{self.site.queue}:tasks')} live, {dict(self.done)}")

    @property
    def _now(self) -> float:
        return time.monotonic() - self._began

    def _producing(self) -> bool:
        crew = self.site.crew
        return not all(crew.done(slot) for slot in list(crew.members) if slot.startswith("producer"))

    def _do(self, act: Act) -> None:
        crew, slot = self.site.crew, self._awake(act.slot) if act.what in ("kill", "stop") else act.slot
        match act.what:
            case "kill":
                crew.kill(slot)
                crew.start(slot)
            case "stop":
                crew.stop(slot)
                self._later("cont", slot, LEASE + 2)
            case "cont":
                crew.resume(slot)
            case "restart":
                for number, each in enumerate(self.slots):
                    self._later("term", each, number * 2 * GAP)
            case "term" if not self.site.serving():
                self._later("term", slot, GAP)  # one after the other
                return
            case "term" if not crew.members[slot].stopped:
                crew.end(slot)
                crew.start(slot)
        self.done[act.what] += 1

    def _later(self, what: str, slot: str, seconds: float) -> None:
        self.acts.append(Act(self._now + seconds, what, slot))

    def _awake(self, slot: str) -> str:
        """Find the next of this kind, from *slot* on, that is not stopped."""
        kind = slot.partition("-")[0]
        index = self.slots.index(slot)
        others = [each for each in self.slots[index:] + self.slots[:index] if each.startswith(kind)]
        return next(each for each in others if not self.site.crew.members[each].stopped)


def draw(options: Options, slots: list[str], duration: float) -> list[Act]:
    """Draw the faults. What is stopped goes on two seconds after its lease."""
    chance = random.Random(options.seed)
    workers = [slot for slot in slots if not slot.startswith("server")]
    acts = [Act(chance.uniform(0.5, duration), "kill", chance.choice(slots)) for _ in range(options.of(KILLS))]
    acts += [Act(chance.uniform(0.5, duration - 1), "stop", chance.choice(workers)) for _ in range(options.of(STOPS))]
    restarts = options.of(RESTARTS)
    return acts + [Act(duration * (i + 0.5) / restarts, "restart") for i in range(restarts)]


def run(options: Options) -> Report:
    """Rage, let the survivors drain the queue, and judge."""
    return rage(options)


def rage(options: Options, peers: int = 0) -> Report:
    """Do it with so many workers of the published package beside ours."""
    report, tasks, duration = Report(), options.of(TASKS), DURATION * options.scale
    with Standstill.counted() as standstill, open_site(options.folder, options.seed, LEASE, SWEEP) as site:
        slots = _assemble(site, peers)
        with watching(site.url, site.queue) as watch:
            storm = Storm(site, slots, draw(options, slots, duration))
            _produce(site, storm, tasks, duration)
            _see_the_end(site, slots, report)
        site.sweep_twice()
        progress("judging")
        told, findings = site.judge(Allowances(lease=LEASE))
    _tell(report, options, storm, findings, watch)
    report.minimums["acked tasks"] = (findings.counts["enqueued"], tasks)
    report.minimums["acked tasks a second"] = (acked_a_second(told), PACE)
    report.measured["machine stood still, longest s"] = standstill.longest
    _judge_recovery(report, findings, watch, standstill.longest)
    return report


def _assemble(site: Site, peers: int) -> list[str]:
    for _ in range(2):
        site.add_server()
    for number, (way, backend) in enumerate(_WORKERS):
        site.add_worker(f"worker-{number}", way, backend)
    for number in range(peers):
        site.add_peer(f"peer-{number}")
    site.wait_for_servers()
    return list(site.crew.members)


def _produce(site: Site, storm: Storm, tasks: int, duration: float) -> None:
    left = tasks
    for number, (way, backend) in enumerate(_PRODUCERS):
        share = left // (len(_PRODUCERS) - number)
        left -= share
        site.add_producer(f"producer-{number}", way, backend, share, share / duration)
    storm.play()


def _see_the_end(site: Site, slots: list[str], report: Report) -> None:
    """The queue is drained, those who are left still work, and they end in order."""
    for name, tasks in (("drained after s", 0), ("probe done after s", 60)):
        if tasks:
            site.add_producer("probe", "coredis", "asyncio", tasks, 1000.0)
            site.crew.done("probe", 20)
        took = site.drain()
        report.measured[name] = -1 if took is None else took
        if took is None:
            report.violations.append(f"liveness: the queue was not empty {DRAIN:g} s after the faults")
    for kind in ("worker", "peer", "server"):
        took = site.crew.end_all([slot for slot in slots if slot.startswith(kind)])
        report.measured[f"{kind}s have ended after SIGTERM s"] = took


def _tell(report: Report, options: Options, storm: Storm, findings: Findings, watch: Watch) -> None:
    for what, least in (("kill", KILLS), ("stop", STOPS), ("restart", RESTARTS)):
        report.minimums[f"{what}s"] = (storm.done[what], options.of(least))
    report.minimums["snapshots"] = (watch.snapshots, 3)
    report.violations += [f"liveness: {text}" for text in storm.site.crew.deserters]
    report.violations += [str(violation) for violation in [*watch.violations, *findings.violations]]
    report.measured |= dict(sorted(findings.counts.items()))


def _judge_recovery(report: Report, findings: Findings, watch: Watch, stood_still: float) -> None:
    report.minimums["leases that ran out"] = (len(findings.recoveries), 1)
    for share in (0.5, 0.99, 1.0):
        report.measured[f"lease end to redelivery p{share * 100:g} s"] = findings.recovery(share)
    report.measured["lease overdue in working, longest s"] = watch.overdue
    if findings.recovery(0.99) > RECOVERY + stood_still:
        report.violations.append(f"recovery: p99 is {findings.recovery(0.99):.2f} s after the end of the lease")
