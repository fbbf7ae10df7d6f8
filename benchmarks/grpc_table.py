"""The table of the gRPC server: rates, their ratios, and whose time they cost."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from figures import number, ratio
from grpc_load import Outcome
from grpc_plan import Beside, Row
from rate_table import MISSED
from rich.table import Table


class Outcomes:
    """What the rounds have given so far, by row."""

    def __init__(self) -> None:
        self._of: dict[str, list[Outcome]] = defaultdict(list)

    def add(self, row: Row, outcome: Outcome) -> None:
        """Take in one round of one row."""
        self._of[row.label].append(outcome)

    def table(self, rows: Sequence[Row], caption: str) -> Table:
        """Show the rows that were measured."""
        table = Table(title="The gRPC server (medians of the rounds)", title_style="bold", caption=caption)
        table.add_column("")
        for column in (
            "items/s", "ratio", "to reach", "µs of processor per item\nserver / Valkey / client",
            "processor:\nclient's share", "p50 / p99 ms",
        ):  # fmt: skip
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(row.label, *self._cells(row))
        return table

    def _cells(self, row: Row) -> list[str]:
        seen = self._of[row.label]
        latency = f"{1000 * median(o.p50 for o in seen):.2f} / {1000 * median(o.p99 for o in seen):.2f}"
        if row.latency_only:
            return ["-", "", "", "-", "-", latency]
        beside = [each for each in row.beside if each.row in self._of]
        costs = " / ".join(_microseconds([cost(o) for o in seen]) for cost in _COSTS)
        return [
            number(median(o.rate for o in seen)),
            "\n".join(self._ratio(seen, each) for each in beside),
            "\n".join(f"{each.target:g}" if each.target else "" for each in beside),
            costs,
            _share(seen),
            latency,
        ]

    def _ratio(self, seen: list[Outcome], beside: Beside) -> str:
        times = ratio([o.rate for o in seen], [o.rate for o in self._of[beside.row]])
        missed = f" {MISSED}" if beside.target and times < beside.target else ""
        return f"x{times:.2f} {beside.name}{missed}"


_COSTS = (lambda o: o.server, lambda o: o.storage, lambda o: o.client)


def _microseconds(costs: Sequence[float | None]) -> str:
    known = [1e6 * cost for cost in costs if cost is not None]
    return number(median(known)) if known else "-"


def _share(seen: list[Outcome]) -> str:
    """How much of all cores together the client had."""
    shares = [o.rate * o.client / (os.cpu_count() or 1) for o in seen if o.client is not None]
    return f"{100 * median(shares):.0f} %" if shares else "-"
