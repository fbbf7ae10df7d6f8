"""What the server says of its Redis when it starts, and when it does not start because of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from anyio.from_thread import start_blocking_portal
from support.bridge import connect, serving

from torrelque import open_server


@pytest.fixture(scope="module")
def evicting() -> Iterator[str]:
    """A Valkey that throws keys away when its memory is full."""
    options = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_server(fsync="no", options=options)) as url,
    ):
        yield url


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_storage_that_evicts_is_refused(evicting: str, workers: str) -> None:
    """The server ends with one line that says what is wrong and the way out, and serves nothing before (F12)."""
    command = [sys.executable, "-m", "torrelque", "serve", "--listen", "127.0.0.1:0", "--redis", evicting]
    done = subprocess.run([*command, "--workers", workers], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "listening" not in done.stdout
    assert "Traceback" not in done.stderr
    for word in ("allkeys-lru", "noeviction", "allow_eviction"):
        assert word in done.stderr


def test_it_may_be_allowed(evicting: str) -> None:
    """With --allow-eviction it serves, and says each thing once, the severe ones as errors."""
    with serving("--redis", evicting, "--allow-eviction") as process, connect(process.address, "trq") as client:
        client.enqueue()
    lines = [line for line in process.log().splitlines() if "Storage: " in line]
    assert len(lines) == len(set(lines)) >= 3
    assert [line for line in lines if "ERROR" in line and "allkeys-lru" in line]
    assert [line for line in lines if "WARNING" in line and "appendfsync" in line]
