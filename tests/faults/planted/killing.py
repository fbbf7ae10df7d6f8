"""Looks for what notices a planted bug: a history of the simulation, or one of the ordinary tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from faults.simulation.world import simulate

from .planting import Bug
from .plugin import VARIABLE

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "docs" / "planted-bugs.md"
#: So many histories a bug may outlive before it has outlived the simulation.
SEEDS = 300


@dataclass(frozen=True)
class Kill:
    """What became of a bug."""

    bug: Bug
    killed: bool
    by: str
    """The seed and its violation, or the test; what survived is told here too."""
    seconds: float = 0.0


def known_seeds() -> dict[str, int]:
    """Read from the table which seed killed each bug last time. Another may be needed when the library has changed."""
    table = TABLE.read_text("utf-8") if TABLE.exists() else ""
    return {name: int(seed) for name, seed in re.findall(r"^\| `([\w-]+)` \|.*\| simulation, seed (\d+)", table, re.M)}


def kill(bug: Bug, seeds: int = SEEDS) -> Kill:
    """Try to kill a bug, by its tests or by so many seeds, first that of the table."""
    began = time.monotonic()
    known = known_seeds().get(bug.name)
    order = [*([] if known is None else [known]), *range(seeds)]
    killed, by = _by_tests(bug) if bug.tests else _by_simulation(bug, order)
    return Kill(bug, killed, by, time.monotonic() - began)


def _by_simulation(bug: Bug, seeds: Iterable[int]) -> tuple[bool, str]:
    tried = 0
    with bug.planted():
        for seed in seeds:
            tried += 1
            if violations := simulate(seed).violations:
                return True, f"seed {seed}: {violations[0]}"
    return False, f"outlived {tried} seeds"


def _by_tests(bug: Bug) -> tuple[bool, str]:
    done = run_tests(bug.tests, bug.choose, {VARIABLE: bug.name})
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    # 1 is that tests ran and failed; anything else proves nothing.
    if done.returncode == 1 and failed and failed[0].startswith("FAILED"):
        return True, failed[0].split(" - ")[0].removeprefix("FAILED ")
    return False, f"pytest ended with {done.returncode}: {done.stdout[-300:]} {done.stderr[-300:]}"


def run_tests(
    tests: Iterable[str], choose: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run tests, with a bug planted if the environment names one."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "faults.planted.plugin"]
    command += ["-k", choose] if choose else []
    return subprocess.run(
        [*command, *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
