"""Every example runs to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAYS = {
    "outage_asyncio.py": "2 tasks in the queue",
    "results_asyncio.py": "328350 is the sum",
    "stop_anyio.py": "finished: short\ngiven back: long\nleft for others: 2",
    "workers_trio.py": "REJECTED, 'https://example.org/broken does not answer', deliveries: 3",
}


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.py")), ids=lambda path: path.name)
def test_example_runs(path: Path) -> None:
    """An example ends well, says what it is about, and warns of nothing."""
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, path], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[path.name] in done.stdout
    assert done.stderr == ""
