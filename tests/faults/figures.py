"""What a figure of the fault bench is: a run that breaks things on purpose, and what it has to show for itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

#: The figures by the names that the command takes, and where they live.
MODULES: dict[str, str] = {
    "a1": "a01_kill_storm",
    "a1-mixed": "a01_mixed",
    "a2": "a02_power",
    "a3": "a03_failover",
    "a4": "a04_cancellation",
    "a5": "a05_every_byte",
    "a6": "a06_fencing",
    "a7": "a07_bad_inputs",
    "a8": "a08_hostile_peers",
    "a9": "a09_backlog",
    "a10": "a10_proof",
    "a10-planted": "a10_planted",
    "a10-soak": "a10_soak",
}


@dataclass(frozen=True)
class Options:
    """What a run is told.

    :ivar seed: decides everything that the run draws by chance
    :ivar scale: multiplies loads and numbers of faults, and the minimums with them
    :ivar folder: empty at the start; for data, logs and histories
    """

    seed: int
    scale: float
    folder: Path

    def of(self, full: int, least: int = 1) -> int:
        """Scale the number of the full form."""
        return max(least, round(full * self.scale))


@dataclass
class Report:
    """What a run did, what it had to do at least, and what it found.

    :ivar minimums: by name what was reached and what had to be: below it the run proves nothing
    :ivar violations: one line for each promise that was broken
    :ivar measured: numbers for the reader, by name and unit (``recovery p99 s``)
    """

    minimums: dict[str, tuple[float, float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    measured: dict[str, float | str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """``failed`` when a promise was broken, ``void`` when the run was too small to say, else ``passed``."""
        if self.violations:
            return "failed"
        missed = not self.minimums or any(got < least for got, least in self.minimums.values())
        return "void" if missed else "passed"

    def as_json(self, name: str, options: Options) -> Mapping[str, Any]:
        """Everything, for a file."""
        return {
            "figure": name, "verdict": self.verdict, "seed": options.seed, "scale": options.scale, **asdict(self),
        }  # fmt: skip


class Figure(Protocol):
    """The module of a figure."""

    #: One line: what is done, and what must hold.
    TITLE: str
    #: The scale at which it is part of the ordinary test run, in seconds rather than minutes.
    SHORT: float

    def run(self, options: Options) -> Report:
        """Do it; in a process of its own, so the event loops are its choice."""
        ...


def load(name: str) -> Figure:
    """Import a figure."""
    figure: Any = importlib.import_module(f"faults.{MODULES[name]}")
    return figure
