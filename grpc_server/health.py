"""The standard health service: SERVING while Redis answers, and until the server stops."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME

from .errors import Refused, StatusCode, draining, too_many
from .guard import checked, fail, tolerant
from .metrics import Metrics

logger = logging.getLogger("torrelque.server")

#: Seconds between two looks at Redis, and how long one may take.
INTERVAL, PATIENCE = 2.0, 1.5
#: So many failures in a row are an outage.
FAILURES = 2
#: So long the end waits for watchers to read of it.
_TELLING = 1.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """What the server says of itself, overall and of each service, to at most so many watchers at a time.

    Watchers are told of changes, not waited for: each writes for itself, and only it waits for the one who reads.
    """

    def __init__(self, services: Sequence[str], metrics: Metrics, most: int) -> None:
        self._names = frozenset(("", *services))
        self._serving = False
        self._stopped = False
        self._metrics = metrics
        self._most = most
        self._watchers: set[_Watcher] = set()
        #: How many watchers each connection has.
        self._peers: Counter[str] = Counter()
        #: A watcher has been told something, or has left.
        self._heard = anyio.Event()

    def add_to(self, server: Any) -> None:
        """Answer on *server*; anybody may ask, so junk gets the answer that it gets elsewhere."""
        spell: dict[str, Any] = {
            "request_deserializer": tolerant(health_pb2.HealthCheckRequest.FromString),
            "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
        }
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(_refusing(self._check), **spell),
            "Watch": grpc.unary_stream_rpc_method_handler(_refusing(self._watch), **spell),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def _check(self, request: Any, context: Any) -> Any:
        status = self._status_of(request.service)
        if status == _UNKNOWN:
            await context.abort(StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)

    def _status_of(self, service: str) -> Any:
        if service not in self._names:
            return _UNKNOWN
        return _SERVING if self._serving else _NOT_SERVING

    async def _watch(self, request: Any, context: Any) -> None:
        watcher = self._enter(context.peer())
        try:
            with watcher.scope:
                await self._tell_changes(watcher, request.service, context)
        finally:
            self._leave(watcher)
        raise draining() if self._stopped else too_many("watches of health")

    async def _tell_changes(self, watcher: _Watcher, service: str, context: Any) -> None:
        while True:
            # What is not there may be some day, says the protocol, so who watches that is not sent away.
            status = self._status_of(service)
            if status != watcher.told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                watcher.told = status
                self._heard.set()
            elif self._stopped:
                return
            else:
                await watcher.changed.wait()
                watcher.changed = anyio.Event()

    def _enter(self, peer: str) -> _Watcher:
        """Give a place to a watcher. Strangers may watch too: where none is left, the connection that has most of them
        gives one up to one that has fewer, so that nobody is locked out by one."""
        if len(self._watchers) >= self._most:
            ((most, count),) = self._peers.most_common(1)
            if self._peers[peer] + 1 >= count:
                raise too_many("watches of health")
            last = next(each for each in self._watchers if each.peer == most)
            self._leave(last)
            last.scope.cancel()
        watcher = _Watcher(peer)
        self._watchers.add(watcher)
        self._peers[peer] += 1
        return watcher

    def _leave(self, watcher: _Watcher) -> None:
        if watcher in self._watchers:
            self._watchers.remove(watcher)
            self._peers[watcher.peer] -= 1
            if not self._peers[watcher.peer]:
                del self._peers[watcher.peer]
            self._heard.set()

    def _tell(self, serving: bool) -> None:
        self._metrics.storage_up.set(serving)
        self._change(serving and not self._stopped)

    def _change(self, serving: bool) -> None:
        self._serving = serving
        for watcher in self._watchers:
            watcher.changed.set()

    def begin(self) -> None:
        """Say that the server serves."""
        self._tell(True)

    async def stop(self) -> None:
        """Say that the server stops; nothing changes that any more, so watches end. Returns when all who read have been
        told."""
        self._stopped = True
        self._change(False)
        with anyio.move_on_after(_TELLING):
            while any(watcher.told == _SERVING for watcher in self._watchers):
                self._heard = anyio.Event()
                await self._heard.wait()

    async def run(self, client: Any) -> None:
        """Look at Redis until cancelled."""
        failures, serving = 0, True
        while True:
            failures = 0 if await _answers(client) else failures + 1
            if serving is not (failures < FAILURES):
                serving = not serving
                logger.warning("Redis %s", "answers again" if serving else "does not answer: not serving")
                self._tell(serving)
            await anyio.sleep(INTERVAL if serving else INTERVAL / 4)


class _Watcher:
    """What one watcher was told last, and whether there is more to tell."""

    __slots__ = ("changed", "peer", "scope", "told")

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.scope = anyio.CancelScope()
        self.told: int | None = None
        self.changed = anyio.Event()


def _refusing(handle: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await handle(checked(request), context)
        except Refused as refused:
            await fail(context, refused)
        except grpc.aio.InternalError as error:  # a write has failed: nobody is there any more
            raise asyncio.CancelledError from error

    return call


async def _answers(client: Any) -> bool:
    answered = False
    with anyio.move_on_after(PATIENCE):
        try:
            answered = bool(await client.ping())
        except Exception:
            answered = False
    return answered
