"""Bugs planted into the library, each of which must be noticed by the simulation or by a test."""

from __future__ import annotations

import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor

from faults.figures import Options, Report
from faults.planted.bugs import BUGS
from faults.planted.killing import SEEDS, Kill, kill, run_tests

TITLE = "More than 50 planted bugs, the weaknesses of the published package among them: each is noticed"
SHORT = 0.15


def _kill(name: str) -> tuple[bool, str, float]:
    """Kill one, in a process of its own; a bug itself cannot be sent to another."""
    done = kill(BUGS[name], SEEDS)
    return done.killed, done.by, done.seconds


def _chosen(options: Options) -> list[str]:
    """All in the full form, else some of those that the simulation kills, for to start pytest takes longer."""
    if options.scale >= 1:
        return list(BUGS)
    quick = [name for name, bug in BUGS.items() if not bug.tests]
    return random.Random(options.seed).sample(quick, min(len(quick), options.of(len(BUGS))))


def run(options: Options) -> Report:
    """Kill what there is to kill."""
    report = Report()
    names = _chosen(options)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        kills = [Kill(BUGS[name], *done) for name, done in zip(names, pool.map(_kill, names), strict=True)]
    report.violations = [f"{each.bug.name} survives: {each.by}" for each in kills if not each.killed]
    tests = sorted({test for name in names for test in BUGS[name].tests})
    if tests and run_tests(tests, "valkey and coredis-trio or not valkey and not redis").returncode != 0:
        report.violations.append("a test that should notice a bug fails without any")
    report.minimums = {
        "bugs planted": (len(kills), options.of(50)),
        "noticed": (sum(each.killed for each in kills), len(names)),
    }
    report.measured = {
        "by the simulation": sum(each.killed and not each.bug.tests for each in kills),
        "by a test": sum(each.killed and bool(each.bug.tests) for each in kills),
        "longest search s": max(each.seconds for each in kills),
    }
    return report
