"""Tests without Redis run once on each event loop."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loops that AnyIO's plugin runs these tests on."""
    return request.param
