"""Thousands of histories in virtual time, each decided by a seed; and seeds replay."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from faults.figures import Options, Report
from faults.simulation.world import Outcome, simulate

TITLE = "2,000 simulated histories among faults, 100,000 calls: nothing broken, everything drains, seeds replay"
SHORT = 0.05

ROOT = Path(__file__).parents[2]
REPLAY = "python -m tests.faults.simulation"
REPLAYS = 10


def replayed(seeds: Iterable[int]) -> dict[int, str]:
    """Run seeds in a process of its own, whose strings hash otherwise; returns the digests of what happened."""
    command = [sys.executable, *REPLAY.split()[1:], *map(str, seeds)]
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("seed ")]
    return {int(line[1]): line[3] for line in lines}


def histories(seeds: Iterable[int]) -> list[Outcome]:
    """Run seeds on all cores."""
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(simulate, seeds, chunksize=5))


def run(options: Options) -> Report:
    """Run the histories, and some of them again."""
    report = Report()
    outcomes = histories(range(options.seed, options.seed + options.of(2000, 20)))
    again = replayed(outcome.seed for outcome in outcomes[:REPLAYS])
    same = sum(again.get(outcome.seed) == outcome.digest for outcome in outcomes[:REPLAYS])
    for outcome in outcomes:
        report.violations += [f"seed {outcome.seed}: {each}" for each in outcome.violations[:5]]
        if outcome.violations:
            report.violations.append(f"  replay: {REPLAY} {outcome.seed} --trace")
    if same < REPLAYS:
        report.violations.append(f"{REPLAYS - same} of {REPLAYS} histories differed when they were replayed")
    faults: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for outcome in outcomes:
        faults.update(outcome.faults)
        calls.update(outcome.outcomes)
    report.minimums = {
        "histories": (len(outcomes), options.of(2000, 20)),
        "calls": (sum(outcome.operations for outcome in outcomes), options.of(100_000)),
        "faults": (sum(faults.values()), options.of(20_000)),
        "kinds of fault": (len(faults), 18),
        "calls for dead letters that were answered": (calls["letters ok"], options.of(5000)),
        "checks that were answered": (calls["check ok"], options.of(1000)),
        "replayed the same": (same, REPLAYS),
    }
    report.measured = {
        "scripts run, each judged": sum(outcome.scripts for outcome in outcomes),
        "virtual hours": sum(outcome.virtual for outcome in outcomes) / 3600,
        "longest drain after healing, virtual s": max(outcome.drained for outcome in outcomes),
        "latest return without faults, virtual s": max(
            (outcome.lateness for outcome in outcomes if not outcome.faults), default=0.0
        ),
        **{f"fault: {name}": count for name, count in sorted(faults.items())},
    }
    return report
