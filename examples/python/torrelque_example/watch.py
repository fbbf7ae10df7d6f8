"""watch: print each state of a task until the last, whatever becomes of the stream."""

from __future__ import annotations

import asyncio
import base64
import json

import grpc

from .client import Client
from .events import emit, note
from .failures import Failure
from .options import Options
from .waits import Waits
from .wire import duration, pb, status_name

PROGRESS_INTERVAL = 10.0
#: A stream that says nothing for so long is dead.
SILENCE = 3 * PROGRESS_INTERVAL
#: Seconds of the call beyond those that the server shall watch: so it is the server that says WATCH_TIMEOUT.
MARGIN = 5.0
FINAL = (pb.TASK_STATUS_COMPLETED, pb.TASK_STATUS_REJECTED)


async def watch(client: Client, options: Options) -> None:
    """Follow the task through as many streams as it takes."""
    watcher = _Watcher(client, options)
    waits = Waits()
    while True:
        cursor = watcher.cursor
        try:
            return await watcher.follow()
        except Failure as failure:
            if not failure.is_over_soon:
                raise
            if watcher.cursor is not cursor:
                waits.reset()
            note(f"the stream is lost ({failure}); opening a new one")
        await asyncio.sleep(min(waits.next(), watcher.remaining()))
        if not watcher.remaining():
            raise Failure("DEADLINE_EXCEEDED")


class _Watcher:
    """What is known of the task so far."""

    def __init__(self, client: Client, options: Options) -> None:
        self._client = client
        self._options = options
        self._states = 0
        self._final = False
        self._end = None if options.timeout is None else asyncio.get_running_loop().time() + options.timeout
        self.cursor: pb.WatchCursor | None = None

    def remaining(self) -> float:
        """Say how many seconds are left for all of it."""
        return float("inf") if self._end is None else max(0.0, self._end - asyncio.get_running_loop().time())

    async def follow(self) -> None:
        """Print states from one stream. Returns when all is said."""
        call = self._open()
        try:
            async with asyncio.timeout(SILENCE) as patience:
                while (response := await call.read()) is not grpc.aio.EOF:
                    patience.reschedule(asyncio.get_running_loop().time() + SILENCE)
                    if self._show(response):
                        call.cancel()
                        emit("cancelled")
                        return
        except grpc.aio.AioRpcError as error:
            if not self._final:
                raise Failure.of(error) from None
        except TimeoutError:
            raise Failure("UNAVAILABLE", details=f"not a word for {SILENCE} s") from None

    def _open(self) -> grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]:
        request = pb.WatchRequest(
            queue=self._options.queue,
            task_id=self._options.target,
            cursor=self.cursor,
            progress_interval=duration(PROGRESS_INTERVAL),
        )
        if self._end is None:
            return self._client.stub.Watch(request, metadata=self._client.metadata)
        left = self.remaining()
        request.timeout.CopyFrom(duration(left))
        return self._client.stub.Watch(request, timeout=left + MARGIN, metadata=self._client.metadata)

    def _show(self, response: pb.WatchResponse) -> bool:
        """Print a state; True when enough of them were printed."""
        if response.HasField("cursor"):
            self.cursor = response.cursor
        if not response.HasField("state"):
            return False
        state = response.state
        emit(
            "state",
            task_id=self._options.target,
            status=status_name(state.status),
            dequeue_count=state.dequeue_count,
            result=_result(state.result) if state.HasField("result") else None,
        )
        self._final = state.status in FINAL
        self._states += 1
        return self._states == self._options.states


def _result(payload: pb.Payload) -> object:
    """Read a result; one that is not JSON is shown as base64."""
    try:
        return json.loads(payload.data)
    except ValueError:
        return {"content_type": payload.content_type, "base64": base64.b64encode(payload.data).decode()}
