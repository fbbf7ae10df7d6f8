"""The command is one user of the library, which is tried on each kind of server by tests of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import Server, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A Valkey for the whole run."""
    with running_server("valkey", fsync="no", options={"enable-debug-command": "yes"}) as server:
        yield server
