"""The published package beside the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import Server
from support.peer import Peer, PeerQueue, run_peer


@pytest.fixture(scope="session")
def peer(server: Server) -> Iterator[Peer]:
    """The published package 0.9 in a process of its own, on the same server."""
    with run_peer(server.url) as peer:
        yield peer


@pytest.fixture
def theirs(peer: Peer, name: str) -> PeerQueue:
    """The queue of the test, as the published package sees it."""
    return peer.on(name)
