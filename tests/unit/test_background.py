"""What runs in the background, and what becomes of it where that cannot start."""

from __future__ import annotations

import pytest
from unit.scripted import ScriptedDriver

from torrelque import TorrelqueError
from torrelque.background import Background, Runner


async def nothing() -> float:
    return 0.0


def test_a_runner_that_cannot_start() -> None:
    """It tells each who wakes it, not only the first."""
    runner = Runner(Background(ScriptedDriver(lambda call: None)), nothing)
    for _ in range(2):
        with pytest.raises(TorrelqueError, match="enter the queue first"):
            runner.wake()
    assert not runner.running
