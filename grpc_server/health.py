"""The standard health service: SERVING while Redis answers, and until the server stops."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health import SERVICE_NAME

from .errors import Refused
from .guard import checked, fail, tolerant
from .metrics import Metrics

logger = logging.getLogger("torrelque.server")

#: Seconds between two looks at Redis, and how long one may take.
INTERVAL, PATIENCE = 2.0, 1.5
#: So many failures in a row are an outage.
FAILURES = 2
#: Telling watchers can wait behind one that does not read.
_TELLING = 1.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """What the server says of itself, overall and of each service."""

    def __init__(self, services: Sequence[str], metrics: Metrics) -> None:
        self._names = ("", *services)
        self._servicer = HealthServicer()
        self._metrics = metrics
        #: Watchers who have been told that it serves.
        self._trusting: set[_Teller] = set()
        self._told = anyio.Event()

    def add_to(self, server: Any) -> None:
        """Answer on *server*; anybody may ask, so junk gets the answer that it gets elsewhere."""
        spell: dict[str, Any] = {
            "request_deserializer": tolerant(health_pb2.HealthCheckRequest.FromString),
            "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
        }
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(_parsed(self._servicer.Check), **spell),
            "Watch": grpc.unary_stream_rpc_method_handler(_parsed(self._watch), **spell),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def _tell(self, serving: bool) -> None:
        self._metrics.storage_up.set(serving)
        with anyio.move_on_after(_TELLING):
            for name in self._names:
                await self._servicer.set(name, _SERVING if serving else _NOT_SERVING)

    async def _watch(self, request: Any, context: Any) -> None:
        teller: Any = _Teller(context, self._note)
        try:
            await self._servicer.Watch(request, teller)
        finally:
            self._note(teller, False)

    def _note(self, teller: _Teller, serving: bool) -> None:
        if serving:
            self._trusting.add(teller)
        else:
            self._trusting.discard(teller)
            self._told.set()

    async def begin(self) -> None:
        """Say that the server serves."""
        await self._tell(True)

    async def stop(self) -> None:
        """Say that the server stops; nothing changes that any more. Returns when all who watch have been told."""
        with anyio.move_on_after(_TELLING):
            await self._servicer.enter_graceful_shutdown()
            while self._trusting:
                self._told = anyio.Event()
                await self._told.wait()

    async def run(self, client: Any) -> None:
        """Look at Redis until cancelled."""
        failures, serving = 0, True
        while True:
            failures = 0 if await _answers(client) else failures + 1
            if serving is not (failures < FAILURES):
                serving = not serving
                logger.warning("Redis %s", "answers again" if serving else "does not answer: not serving")
                await self._tell(serving)
            await anyio.sleep(INTERVAL if serving else INTERVAL / 4)


class _Teller:
    """Writes to one watcher, and notes what it was told."""

    def __init__(self, context: Any, note: Callable[[_Teller, bool], None]) -> None:
        self._context = context
        self._note = note

    async def write(self, response: Any) -> None:
        await self._context.write(response)
        self._note(self, response.status == _SERVING)


def _parsed(handle: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        try:
            checked(request)
        except Refused as refused:
            await fail(context, refused)
        return await handle(request, context)

    return call


async def _answers(client: Any) -> bool:
    answered = False
    with anyio.move_on_after(PATIENCE):
        try:
            answered = bool(await client.ping())
        except Exception:
            answered = False
    return answered
