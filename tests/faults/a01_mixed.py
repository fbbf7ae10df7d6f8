"""A1 with two workers of the published package 0.9 beside ours: what ours are told is kept all the same."""

from __future__ import annotations

from dataclasses import replace

from faults.a01_kill_storm import rage
from faults.figures import Options, Report

TITLE = "Kill storm beside two workers of the published package: ours lose nothing"
SHORT = 0.1

#: Its full form is a fifth of A1.
SHARE = 0.2


def run(options: Options) -> Report:
    """As A1; the published package's own deliveries are judged by loss, origin and payload only."""
    return rage(replace(options, scale=options.scale * SHARE), peers=2)
