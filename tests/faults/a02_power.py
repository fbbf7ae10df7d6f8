"""A2: Valkey dies, its machine loses power, its disk fails or is full: what was acknowledged stays, and all go on.

With ``appendfsync always``. Each round lets producers and workers work for a while, brings one fault about under load,
and starts the server again on what is left. Nobody tells the workers, the gRPC server and the producers.

A cut with ``everysec`` follows in the long form, for the numbers only: it loses what was acknowledged in its window.
"""

from __future__ import annotations

import math
import random
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from faults.checker import Allowances, Findings
from faults.figures import Options, Report
from faults.history import OK, History
from faults.storage import SLOT, Storage, disk
from faults.storm import DRAIN, Site, Watch, free_port, progress, site_at, watching
from support import wait_until
from support.standstill import Standstill

TITLE = "Power: what was acknowledged stays through kills, power cuts and disks that fail or are full"
SHORT = 0.04

LEASE = 2.0
SWEEP = 1.0
#: The full form.
TASKS = 100_000
FAULTS = {"kill": 25, "power cut": 25, "fdatasync fails": 5, "disk full": 5}
#: Seconds after which all must work again, once the server serves.
SERVING = 3.0
#: Tasks a second of all producers, which pause while there is no server.
PACE = 500.0
#: Rounds for the numbers of everysec, from this scale on.
_EVERYSEC, _LONG = 3, 0.2
#: Producers go on until they are told to stop.
_ENDLESS = 1 << 40
_PRODUCERS = [("redispy", "asyncio"), ("coredis", "trio"), ("grpc", "")]
_WORKERS = [*_PRODUCERS, ("coredis", "trio")]


def run(options: Options) -> Report:
    """All faults with ``always``, then some cuts with ``everysec``."""
    report, chance, tasks = Report(), random.Random(options.seed), options.of(TASKS)
    faults = [fault for fault, full in FAULTS.items() for _ in range(options.of(full))]
    chance.shuffle(faults)
    with Standstill.counted() as standstill, _opened(options, "always") as rounds:
        done = rounds.play(faults, chance, tasks / PACE)
        told, findings = rounds.end(report, Allowances(lease=LEASE))
    for fault, full in FAULTS.items():
        report.minimums[fault] = (done[fault], options.of(full))
    report.minimums["acked tasks"] = (findings.counts["enqueued"], tasks)
    report.measured |= dict(sorted(findings.counts.items()))
    report.measured["bytes lost in power cuts"] = done["bytes"]
    report.measured["machine stood still, longest s"] = standstill.longest
    _judge_resumption(report, told, SERVING + standstill.longest)
    if options.scale >= _LONG:
        _measure_everysec(report, options, chance)
    return report


class Rounds:
    """Load on a server, which fails round by round."""

    def __init__(self, site: Site, storage: Storage, watch: Watch) -> None:
        self._site = site
        self._storage = storage
        self._watch = watch
        self._slots = [slot for slot in site.crew.members if slot != SLOT]

    def play(self, faults: list[str], chance: random.Random, least: float) -> Counter[str]:
        """Bring about fault after fault, and let the load go on for so many seconds at least; counts what was done."""
        done, began = Counter[str](), time.monotonic()
        for fault in faults:
            self._storage.start(traced=fault == "power cut")
            self._site.crew.note("served", SLOT, fault)
            if fault == "kill":  # not while strace looks at one file
                self._site.admin.bgrewriteaof()
            self._work(SERVING + chance.uniform(0.1, 0.6))
            self._site.crew.note("fault", SLOT, fault)
            done[fault] += self._break(fault)
            done["bytes"] += self._storage.lost
            progress(f"{time.monotonic() - began:.0f} s, {dict(done)}")
        self._storage.start()
        self._site.crew.note("served", SLOT, "end")
        self._work(max(SERVING, began + least - time.monotonic()))
        return done

    def _work(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._site.crew.look()
            time.sleep(0.02)

    def _break(self, fault: str) -> bool:
        """Do it; tells whether it worked out."""
        storage = self._storage
        storage.lost = 0
        match fault:
            case "kill":
                storage.kill()
            case "power cut":
                storage.kill()
                storage.lose()
            case "fdatasync fails":
                with storage.failing():
                    ended = storage.ends()
                storage.lose()
                return ended
            case "disk full":
                storage.fill()
                ended = storage.ends()
                storage.clear()
                return ended
        return True

    def end(self, report: Report, allowances: Allowances) -> tuple[History, Findings]:
        """Stop producing, drain, and judge."""
        crew = self._site.crew
        crew.end_all([slot for slot in self._slots if slot.startswith("producer")])
        drained = self._site.drain()
        report.measured["drained after s"] = -1 if drained is None else drained
        if drained is None:
            report.violations.append(f"liveness: the queue was not empty {DRAIN:g} s after the faults")
        for kind in ("worker", "server"):
            crew.end_all([slot for slot in self._slots if slot.startswith(kind)])
        self._site.sweep_twice()
        progress("judging")
        told, findings = self._site.judge(allowances)
        report.minimums["snapshots"] = (self._watch.snapshots, 3)
        report.violations += [f"liveness: {text}" for text in crew.deserters]
        report.violations += [str(violation) for violation in [*self._watch.violations, *findings.violations]]
        return told, findings


@contextmanager
def _opened(options: Options, fsync: str) -> Iterator[Rounds]:
    """Open a site on a disk of its own, with everybody at work."""
    port, folder = free_port(), options.folder / fsync
    folder.mkdir()
    with (
        disk(folder / "disk") as place,
        site_at(f"redis://127.0.0.1:{port}/0", folder, options.seed, LEASE, SWEEP) as site,
    ):
        storage = Storage(site.crew, place, port, fsync)
        storage.start()  # makes the append-only file
        site.add_server()
        site.wait_for_servers()
        for number, (way, backend) in enumerate(_WORKERS):
            site.add_worker(f"worker-{number}", way, backend)
        for number, (way, backend) in enumerate(_PRODUCERS):
            site.add_producer(f"producer-{number}", way, backend, _ENDLESS, PACE / len(_PRODUCERS), batch=50)
        clients = [slot for slot in site.crew.members if slot.startswith(("worker", "producer"))]
        wait_until(lambda: all(_has_an_answer(site, slot) for slot in clients), 30)
        storage.kill()
        with watching(site.url, site.queue) as watch:
            yield Rounds(site, storage, watch)


def _has_an_answer(site: Site, slot: str) -> bool:
    """Tell whether a client is at work."""
    path = site.crew.history / f"{site.crew.members[slot].name}.jsonl"
    return path.exists() and b'"ok"' in path.read_bytes()


def _judge_resumption(report: Report, told: History, patience: float) -> None:
    """After each return of the server each worker and each producer has an answer soon."""
    served = [event for event in told.events if event.kind == "served"]
    delays: list[float] = []
    for client, answers in _answers(told).items():
        for event in served:
            index = bisect_right(answers, event.at)
            delay = (answers[index] - event.at) / 1e9 if index < len(answers) else math.inf
            delays.append(delay)
            if delay > patience:
                report.violations.append(f"liveness: {client} was served {delay:.1f} s after {event.value}")
    report.minimums["returns that were seen"] = (len(served), 2)
    for share in (0.5, 0.99, 1.0):
        ordered = sorted(delays)
        report.measured[f"served again p{share * 100:g} s"] = ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _answers(told: History) -> dict[str, list[int]]:
    """When each client was told that something is done."""
    answers: dict[str, list[int]] = {}
    for call in told.calls:
        if call.outcome == OK and call.completed is not None:
            answers.setdefault(call.process, []).append(call.completed)
    for times in answers.values():
        times.sort()
    return answers


def _measure_everysec(report: Report, options: Options, chance: random.Random) -> None:
    """Cut the power a few times with ``everysec``, and tell what that cost."""
    with _opened(options, "everysec") as rounds:
        done = rounds.play(["power cut"] * _EVERYSEC, chance, 0)
        told, findings = rounds.end(report, Allowances(lease=LEASE, rollback=True))
    cuts = [event.at for event in told.events if event.kind == "fault"]
    lost = {violation.task_id for violation in findings.forgiven if violation.kind == "lost"}
    window = 0.0
    for call in told.calls:
        if call.op == "enqueue" and call.outcome == OK and any(task_id in lost for task_id, _ in call.args):
            window = max(
                window, *((cut - call.completed) / 1e9 for cut in cuts[bisect_right(cuts, call.completed) :][:1])
            )
    report.measured["everysec: acked"] = findings.counts["enqueued"]
    report.measured["everysec: acked and lost"] = len(lost)
    report.measured["everysec: releases undone"] = findings.counts["undone"] + findings.counts["after finality"]
    report.measured["everysec: oldest loss before its cut s"] = window
    report.measured["everysec: bytes lost"] = done["bytes"]
