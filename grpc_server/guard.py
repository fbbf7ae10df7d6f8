"""The one wrapper around every rpc: is the server stopping? who is it? may they? is there room? then the call itself,
its errors as statuses, and its figures.

Handlers are coroutines, never asynchronous generators: those are closed by the collector, in another task.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import grpc
from google.protobuf.message import DecodeError, Message

from .auth import ANYBODY, Credentials, Principal, authorise, shown
from .convert import queue_name
from .errors import Refused, StatusCode, draining, explain, invalid, single
from .house import Drain, House, Visit
from .limits import CALL

logger = logging.getLogger("torrelque.server")

#: What handles a call, once it is let in. It returns the answer, or nothing where it writes itself.
Handler = Callable[[Visit, Any], Awaitable[Message | None]]


#: A stream must say within so many seconds what it wants.
FIRST_WITHIN = 10.0


class Malformed:
    """Stands for bytes that are no message."""


MALFORMED = Malformed()


@dataclass(frozen=True, slots=True)
class Rpc:
    """An rpc: what it needs the right to do, how it holds the server, who does it."""

    name: str
    verb: str
    kind: str
    handle: Handler


def tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Make what cannot be parsed a value: grpcio itself would answer UNKNOWN with Python's words."""

    def deserialise(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return MALFORMED

    return deserialise


def checked(request: Any) -> Any:
    """Refuse what could not be parsed."""
    if request is MALFORMED:
        raise Refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", "the message cannot be parsed")
    return request


@dataclass(eq=False, slots=True)
class _Staying:
    """A poll or a stream, and by whose right it goes on."""

    credentials: Credentials
    principal: Principal
    queue: str
    verb: str
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    refused: Refused = field(init=False)
    """Why it was ended."""

    def renew(self, principal: Principal) -> None:
        """Authorise it anew, where that may have changed."""
        if principal is not self.principal:
            authorise(principal, self.queue, self.verb)
            self.principal = principal


class Guard:
    """Wraps the handlers of one server."""

    def __init__(self, house: House) -> None:
        self._house = house
        #: Calls that have begun and not ended.
        self.in_flight = 0
        self._idle: asyncio.Event | None = None
        #: Calls that stay, of callers who may lose the right to.
        self._staying: set[_Staying] = set()

    def wrap(self, rpc: Rpc, method: Any, request: type[Message], response: type[Message]) -> Any:
        """Build what grpc.aio calls; *method* is the rpc's descriptor."""
        spell: dict[str, Any] = {
            "request_deserializer": tolerant(request.FromString),
            "response_serializer": response.SerializeToString,
        }
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streams(rpc), **spell)
        # On the wire the only answer of a stream is that of a unary call. So the handler of a poll writes its own, and
        # knows when that has failed.
        if method.server_streaming or rpc.kind != CALL:
            return grpc.unary_stream_rpc_method_handler(self._answers(rpc), **spell)
        return grpc.unary_unary_rpc_method_handler(self._answers(rpc), **spell)

    def _answers(self, rpc: Rpc) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(request: Any, context: Any) -> Any:
            return await self._guarded(rpc, context, lambda: self._enter(rpc, context, request))

        return call

    def _streams(self, rpc: Rpc) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(_: Any, context: Any) -> Any:
            return await self._guarded(rpc, context, lambda: self._enter(rpc, context, None))

        return call

    async def _enter(self, rpc: Rpc, context: Any, request: Any) -> Message | None:
        """Let a call in, and do it."""
        house = self._house
        if house.drain.begun:
            raise draining()
        principal = house.authority.identify(context)
        # What has not said what it wants holds no place: streams of headers alone lock nobody out.
        opened = await first(context, house.drain) if request is None else None
        with house.limits.taken(rpc.kind, principal.name):
            if opened is None:
                name = queue_name(checked(request).queue, house.settings)
            else:
                name = queue_name(opened.open.queue, house.settings, "open.queue")
            authorise(principal, name, rpc.verb)
            house.queues.check_served(name)
            entry = await house.queues.entry(name)
            with entry:
                visit = Visit(house, context, entry, name)
                if rpc.kind == CALL or principal is ANYBODY:
                    return await rpc.handle(visit, opened or request)
                staying = _Staying(shown(context), principal, name, rpc.verb)
                return await self._stay(staying, rpc.handle(visit, opened or request))

    async def _stay(self, staying: _Staying, handling: Awaitable[Message | None]) -> Message | None:
        """Do a call that stays, as long as its caller may."""
        self._staying.add(staying)
        try:
            with staying.scope:
                return await handling
        finally:
            self._staying.discard(staying)
        raise staying.refused

    def review(self) -> None:
        """End the calls that stay whose callers may no more: the auth file has changed, or a token has expired."""
        find = functools.cache(self._house.authority.principal)  # many calls show the same
        for staying in list(self._staying):
            try:
                staying.renew(find(staying.credentials))
            except Refused as refused:
                staying.refused = refused
                staying.scope.cancel()

    async def _guarded(self, rpc: Rpc, context: Any, enter: Callable[[], Awaitable[Message | None]]) -> Message | None:
        begun = time.perf_counter()
        code = "OK"
        self.in_flight += 1
        try:
            return await enter()
        except asyncio.CancelledError:
            code = "CANCELLED"
            task = asyncio.current_task()
            if task is None or task.cancelling():  # the peer, its deadline, or the end of the server
                raise
            await fail(context, draining())
        except BaseException as raised:
            error = single(raised)
            if isinstance(error, grpc.aio.AbortError | KeyboardInterrupt | SystemExit):
                raise
            if isinstance(error, grpc.aio.InternalError):  # a write has failed: nobody is there any more
                code = "CANCELLED"
                raise asyncio.CancelledError from error
            refused = explain(error)
            code = refused.code.name
            await fail(context, refused)
        finally:
            self.in_flight -= 1
            if self._idle is not None and not self.in_flight:
                self._idle.set()
            self._house.metrics.ended(rpc.name, rpc.kind != CALL, code, time.perf_counter() - begun)
        return None

    async def idle(self) -> None:
        """Wait until no call is in flight."""
        while self.in_flight:
            self._idle = asyncio.Event()
            await self._idle.wait()


async def first(context: Any, drain: Drain) -> Any:
    """Read the message that opens a stream."""
    request: Any = grpc.aio.EOF
    with anyio.move_on_after(FIRST_WITHIN) as scope, drain.told(scope.cancel):
        request = await context.read()
    if request is grpc.aio.EOF and drain.begun:
        raise draining()
    if request is grpc.aio.EOF or checked(request).WhichOneof("request") != "open":
        raise invalid("request", f"must be open at first, within {FIRST_WITHIN:g} s")
    return request


async def fail(context: Any, refused: Refused) -> None:
    """End a call with a status and its details."""
    await context.abort(refused.code, refused.text, refused.trailers())
