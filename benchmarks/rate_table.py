"""The first table: rates and their ratios to the published package, round by round."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any

from figures import number, ratio
from plan import WITH_TARGET, Load
from rich.table import Table
from workers import OURS, PUBLISHED

MISSED = "[bold red]missed[/]"


class Rates:
    """What the rounds have given so far: for each row and column, a figure for each round."""

    def __init__(self) -> None:
        self.rates: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._bytes: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def add(self, load: Load, column: str, answer: dict[str, dict[str, float]]) -> None:
        """Take in one round of one column."""
        self.rates[load.enqueue_row, column].append(answer["enqueue"]["rate"])
        self.rates[load.work_row, column].append(answer["work"]["rate"])
        for way in "sent", "received":
            self._bytes[load.label, column, way].append(answer["enqueue"][way] + answer["work"][way])

    def bytes_per_task(self, load: Load, column: str, way: str) -> float:
        """To enqueue, dequeue and release one task."""
        return median(self._bytes[load.label, column, way])

    def table(self, wanted: Any, loads: list[Load]) -> Table:
        """The rows that *wanted* (a compiled expression) finds."""
        table = Table(
            title="Tasks per second, and ratio to the published 0.9 (medians of the rounds)", title_style="bold"
        )
        table.add_column("")
        for column in (PUBLISHED, *OURS, "to reach"):
            table.add_column(column, justify="right")
        for load in loads:
            for row, targets in (load.enqueue_row, load.enqueue_targets), (load.work_row, load.work_targets):
                if wanted.search(row):
                    table.add_row(row, *self._cells(row, targets))
        table.caption = f"to reach: {WITH_TARGET[0]}; {WITH_TARGET[1]}"
        return table

    def _cells(self, row: str, targets: tuple[float, float] | None) -> list[str]:
        base = self.rates[row, PUBLISHED]
        to_reach = dict(zip(WITH_TARGET, targets or (), strict=False))
        cells = [number(median(base))]
        for column in OURS:
            times = ratio(self.rates[row, column], base)
            missed = f"\n{MISSED}" if times < to_reach.get(column, 0) else ""
            cells.append(f"{number(median(self.rates[row, column]))}  x{times:.2f}{missed}")
        return [*cells, f"{targets[0]:g}; {targets[1]:g}" if targets else ""]
