"""The worker's end of the talk with ``bench.py``: JSON lines in on stdin, answers out on stdout.

A request is ``{"do": "rates", "with": {...}}``, the answer ``{"ok": ...}`` or ``{"error": text}``. Reading blocks, and
no event loop exists while it does: a worker that is not asked does nothing at all.
"""

from __future__ import annotations

import json
import sys
import traceback
from functools import partial

import delays
import idling
import rates
import storage
from side import Side

JOBS = {
    "rates": rates.measure,
    "commands": rates.count_commands,
    "delivery": delays.delivery,
    "lateness": delays.lateness,
    "idle": idling.idle,
    "watchers": idling.watchers,
    "memory": storage.memory,
    "backlog": storage.sweep_backlog,
}


def serve(side: Side) -> None:
    """Do jobs until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": side.run(partial(JOBS[request["do"]], side, **request["with"]))}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
