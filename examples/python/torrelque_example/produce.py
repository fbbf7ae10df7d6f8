"""produce: one task for each file below a folder."""

from __future__ import annotations

import asyncio
import json
import os
import uuid

from .client import CALL_TIMEOUT, Client
from .events import emit, note
from .options import Options
from .wire import pb


async def produce(client: Client, options: Options) -> None:
    """Enqueue the files in order, one call after the other."""
    paths = await asyncio.to_thread(list_files, options.target)
    paths = paths[: options.limit]
    for start in range(0, len(paths), options.batch):
        portion = paths[start : start + options.batch]
        for path, stored in zip(portion, await _enqueue(client, options, portion), strict=True):
            emit("enqueued", task_id=stored.task_id, path=path, deduplicated=stored.deduplicated)
    emit("produced", tasks=len(paths))


async def _enqueue(client: Client, options: Options, paths: list[str]) -> list[pb.EnqueueResponse]:
    if options.batch == 1:
        single = pb.EnqueueRequest(queue=options.queue, task=_task(paths[0]))
        return [await client.stub.Enqueue(single, timeout=CALL_TIMEOUT, metadata=client.metadata)]
    many = pb.BatchEnqueueRequest(queue=options.queue, tasks=map(_task, paths))
    return list((await client.stub.BatchEnqueue(many, timeout=CALL_TIMEOUT, metadata=client.metadata)).results)


def _task(path: str) -> pb.TaskSpec:
    # The request id is what makes it safe to repeat the call.
    return pb.TaskSpec(payload=pb.Payload(data=json.dumps({"path": path}).encode()), request_id=str(uuid.uuid4()))


def list_files(folder: str) -> list[str]:
    """List the regular files below a folder in the order of their paths; links are not followed."""
    found: list[bytes] = []
    folders = [os.fsencode(os.path.abspath(folder))]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        found.append(entry.path)
        except OSError as error:
            note(f"left out: {error}")
    return [path for path in map(_as_text, sorted(found)) if path is not None]


def _as_text(path: bytes) -> str | None:
    try:
        return path.decode()
    except UnicodeDecodeError:
        note(f"left out, for JSON cannot hold its name: {path!r}")
        return None
