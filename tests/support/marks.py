"""For tests of what goes with one of the client libraries only."""

from __future__ import annotations

import pytest

from . import PAIRS

ON_REDISPY, ON_COREDIS = (
    pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.client == client], indirect=True, ids=str)
    for client in ("redispy", "coredis")
)
