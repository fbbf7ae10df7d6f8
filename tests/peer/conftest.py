"""The published package beside the tests; one pair for each event loop and client is enough here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import PAIRS, Pair, Server
from support.peer import Peer, PeerQueue, run_peer


@pytest.fixture(params=[pair for pair in PAIRS if pair.name in {"redispy-asyncio", "coredis-trio"}], ids=str)
def pair(request: pytest.FixtureRequest) -> Pair:
    """A client library on an event loop that it works on."""
    return request.param


@pytest.fixture(scope="session")
def peer(server: Server) -> Iterator[Peer]:
    """The published package 0.9 in a process of its own, on the same server."""
    with run_peer(server.url) as peer:
        yield peer


@pytest.fixture
def theirs(peer: Peer, name: str) -> PeerQueue:
    """The queue of the test, as the published package sees it."""
    return peer.on(name)
