"""Keeps a Consume stream open: opens a new one when it is lost, and leaves one in order when the server drains."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import grpc

from .client import Client
from .events import emit, note
from .failures import MISTAKES, Failure
from .options import Options
from .stream import SILENCE, ConsumeCall, Stream
from .waits import Waits
from .wire import pb

POLICIES = {"keep": pb.DISCONNECT_POLICY_KEEP_LEASE, "requeue": pb.DISCONNECT_POLICY_REQUEUE}


class Intake(Protocol):
    """Who takes what is delivered."""

    #: Set while nothing is in hand.
    empty: asyncio.Event

    def allowance(self, stream: Stream | None) -> int:
        """Say how many tasks the stream may have outstanding; None is one that is to be opened."""

    def take(self, stream: Stream, task: pb.Task) -> None:
        """Begin with a task."""


class Link:
    """The way to the server: one stream after another."""

    def __init__(self, client: Client, options: Options) -> None:
        self._client = client
        self._options = options
        self._waits = Waits()
        self._opened = asyncio.Event()
        self._closing = False
        #: The stream that can be written to, if there is one.
        self.stream: Stream | None = None
        #: Why the latest stream has ended.
        self.failure: Failure | None = None

    async def keep(self, intake: Intake) -> None:
        """Open streams until closed. Raises Failure when the server says that the mistake is ours."""
        while True:
            self.failure = await self._follow(intake)
            if self._closing:
                return
            if self.failure.code in MISTAKES:
                raise self.failure
            delay = self._waits.next()
            emit("reconnecting", code=self.failure.code, reason=self.failure.reason, delay=delay)
            note(str(self.failure))
            await asyncio.sleep(delay)

    async def current(self) -> Stream:
        """Give the stream that is open, or wait for the next one."""
        while self.stream is None:
            await self._opened.wait()
        return self.stream

    def close(self) -> bool:
        """Half-close the stream and open no other. False: there is none to be closed."""
        self._closing = True
        if self.stream is None:
            return False
        self._leave(self.stream)
        return True

    async def _follow(self, intake: Intake) -> Failure:
        """Live through one stream, and say how it has ended."""
        call = self._client.stub.Consume(metadata=self._client.metadata)
        policy = POLICIES[self._options.policy]
        stream = Stream(call, self._options.queue, policy, credit=intake.allowance(None))
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(stream.write()), group.create_task(self._drain(stream, intake))]
                failure = await self._listen(call, stream, intake)
                for helper in helpers:
                    helper.cancel()
        finally:
            call.cancel()
            self._forget(stream)
            stream.end()
        return failure

    async def _listen(self, call: ConsumeCall, stream: Stream, intake: Intake) -> Failure:
        try:
            async with stream.patience:
                while (response := await call.read()) is not grpc.aio.EOF:
                    stream.heard()
                    self._hear(stream, response, intake)
        except grpc.aio.AioRpcError as error:
            return Failure.of(error)
        except TimeoutError:
            if not stream.closing:
                return Failure("UNAVAILABLE", details=f"not a word for {SILENCE} s")
        if stream.draining.is_set():
            return Failure("UNAVAILABLE", "SERVER_DRAINING")
        return Failure("OK")

    def _hear(self, stream: Stream, response: pb.ConsumeResponse, intake: Intake) -> None:
        kind = response.WhichOneof("response")
        if kind == "opened":
            emit("opened", consumer_id=response.opened.consumer_id)
            self.stream = stream
            self._opened.set()
            stream.grant(intake.allowance(stream))
            return
        self._waits.reset()  # only now: a server that opens streams to drop them is not to be asked ten times a second
        if kind == "delivery" and not stream.closing:
            for task in response.delivery.tasks:
                intake.take(stream, task)
        elif kind == "settled":
            stream.confirm(response.settled)
        elif kind == "draining":
            stream.grace = response.draining.grace.ToTimedelta().total_seconds()
            stream.draining.set()

    async def _drain(self, stream: Stream, intake: Intake) -> None:
        """Leave a server that is about to stop, when all is settled or when the time is over."""
        await stream.draining.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(stream.grace):
                await intake.empty.wait()
        self._leave(stream)

    def _leave(self, stream: Stream) -> None:
        if not stream.closing:
            stream.close()
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        if self.stream is stream:
            self.stream = None
            self._opened.clear()
