"""The work itself: the digest of a file. A real service has its own work here."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import threading

from .wire import pb

CHUNK = 1 << 20


async def work(payload: bytes, hold: float) -> pb.ReleaseAction:
    """Work on one task, and say how it shall be released. Cancelling it is safe at any time."""
    try:
        path = json.loads(payload)["path"]
        result: dict[str, object] = await _in_thread(path)
        status = pb.TASK_STATUS_COMPLETED
    except (OSError, ValueError, TypeError, LookupError) as error:
        result = {"error": f"{type(error).__name__}: {error}"}
        status = pb.TASK_STATUS_REJECTED
    await asyncio.sleep(hold)
    return pb.ReleaseAction(status=status, result=pb.Payload(data=json.dumps(result).encode()))


async def _in_thread(path: str) -> dict[str, object]:
    # A thread cannot be cancelled, only asked: it looks at the event after each chunk.
    abandoned = threading.Event()
    try:
        return await asyncio.to_thread(_digest, path, abandoned)
    finally:
        abandoned.set()


def _digest(path: str, abandoned: threading.Event) -> dict[str, object]:
    digest, size, lines = hashlib.sha256(), 0, 0
    # Unbuffered, and O_NONBLOCK: opening a named pipe would wait for a writer otherwise.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"not a regular file: {path}")
        while not abandoned.is_set() and (chunk := file.read(CHUNK)):
            digest.update(chunk)
            size += len(chunk)
            lines += chunk.count(b"\n")
    return {"sha256": digest.hexdigest(), "bytes": size, "lines": lines, "language": "python"}
