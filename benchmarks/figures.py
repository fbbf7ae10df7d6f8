"""Medians, percentiles and ratios: pure arithmetic, and the cells they become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that is not below *share* of all."""
    return sorted(samples)[math.ceil(share * len(samples)) - 1]


def ratio(rates: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios within each round, so that what slows the machine down for a while does not count."""
    return median(rate / other for rate, other in zip(rates, base, strict=True))


def milliseconds(samples: Sequence[float]) -> str:
    """Median and 99th percentile of seconds, shown in milliseconds."""
    return f"{1000 * percentile(samples, 0.5):.2f} / {1000 * percentile(samples, 0.99):.2f}"


def number(value: float) -> str:
    """A number with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
