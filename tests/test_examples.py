"""Every example runs to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAYS = {
    "going_on_anyio.py": "after the restart: COMPLETED, 17",
    "outage_asyncio.py": "2 tasks in the queue",
    "results_asyncio.py": "328350 is the sum",
    "stop_anyio.py": "finished: short\ngiven back: long\nleft for others: 2",
    "workers_trio.py": "REJECTED, 'https://example.org/broken does not answer', deliveries: 3",
}


RUNS = [*((path.name,) for path in sorted(ROOT.glob("examples/*.py"))), ("going_on_anyio.py", "trio")]
#: coredis leaves streams open of a connection that it has lost.
UNCLOSED = {"going_on_anyio.py"}


@pytest.mark.parametrize("run", RUNS, ids=" ".join)
def test_example_runs(run: tuple[str, ...]) -> None:
    """An example ends well, says what it is about, and warns of nothing."""
    name, *arguments = run
    warnings = "error,ignore::ResourceWarning" if name in UNCLOSED else "error"
    environment = {**os.environ, "PYTHONWARNINGS": warnings, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout
    assert done.stderr == ""
