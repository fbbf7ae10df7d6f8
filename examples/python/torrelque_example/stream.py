"""One Consume call: what is written to it by one writer, and the settlements that wait for their answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeAlias

import grpc

from .wire import duration, pb

ConsumeCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.ConsumeRequest, pb.ConsumeResponse]"
Answer: TypeAlias = "asyncio.Future[pb.ItemError | None]"

#: Settlements in one message; what gathers while a message is being written goes into the next one.
PORTION = 500
PROGRESS_INTERVAL = 10.0
#: A stream that says nothing for so many seconds is dead.
SILENCE = 3 * PROGRESS_INTERVAL
#: Seconds for the server to end the stream after we have half-closed it.
CLOSE_GRACE = 5.0


class StreamLost(Exception):
    """The stream has ended without an answer to the settlement."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("the stream is lost")
        #: It was sent, so the server may have done it.
        self.sent = sent


class Stream:
    """The writing half of a Consume call, and the patience of its reader."""

    def __init__(self, call: ConsumeCall, queue: str, policy: pb.DisconnectPolicy, credit: int) -> None:
        self._call = call
        self._opening = pb.ConsumeOpen(
            queue=queue,
            # Nobody can open with a credit of 0: what goes beyond ours is taken back at once.
            max_outstanding_tasks=max(1, credit),
            disconnect_policy=policy,
            progress_interval=duration(PROGRESS_INTERVAL),
        )
        self._outbox: list[tuple[pb.Settlement, Answer]] = []
        self._fences: list[Answer] = []
        self._sent: dict[int, list[Answer]] = {}
        self._sequence = 0
        self._granted = max(1, credit)
        self._wanted = credit
        self._wake = asyncio.Event()
        #: Ends the reading of a stream that has nothing to say any more.
        self.patience = asyncio.timeout(SILENCE)
        #: No deliveries will come any more: settle within the grace, and leave.
        self.draining = asyncio.Event()
        self.grace = 0.0
        #: Nothing will be written after what was said so far.
        self.closing = False
        #: Nothing will be delivered any more.
        self.quiet = False
        #: The call is over.
        self.ended = asyncio.Event()

    async def write(self) -> None:
        """Write until told to close. An error is the reader's to report."""
        try:
            await self._call.write(pb.ConsumeRequest(open=self._opening))
            while True:
                while request := self._next_request():
                    await self._call.write(request)
                if self.closing:
                    await self._call.done_writing()
                    return
                await self._wake.wait()
                self._wake.clear()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    def _next_request(self) -> pb.ConsumeRequest | None:
        # Credit goes first: when it shrinks because of a settlement, the server must know before it counts that one.
        if self._wanted != self._granted:
            self._granted = self._wanted
            return pb.ConsumeRequest(credit=pb.ConsumeCredit(max_outstanding_tasks=self._granted))
        if self._outbox:
            portion, self._outbox = self._outbox[:PORTION], self._outbox[PORTION:]
            return self._settle([settlement for settlement, _ in portion], [answer for _, answer in portion])
        if self._fences:
            fences, self._fences = self._fences, []
            return self._settle([], fences)
        return None

    def _settle(self, settlements: list[pb.Settlement], answers: list[Answer]) -> pb.ConsumeRequest:
        self._sequence += 1
        self._sent[self._sequence] = answers
        return pb.ConsumeRequest(settle=pb.ConsumeSettle(sequence=self._sequence, settlements=settlements))

    def grant(self, credit: int) -> None:
        """Let the server have so many tasks delivered and not settled."""
        self._wanted = credit
        self._wake.set()

    async def settle(self, settlement: pb.Settlement) -> pb.ItemError | None:
        """Send a settlement and wait for its answer. Raises StreamLost."""
        answer: Answer = asyncio.get_running_loop().create_future()
        self._outbox.append((settlement, answer))
        self._wake.set()
        return await answer

    async def hush(self) -> None:
        """Wait until nothing can be on its way any more. Credit must be 0: then nothing follows a later answer."""
        fence: Answer = asyncio.get_running_loop().create_future()
        self._fences.append(fence)
        self._wake.set()
        with contextlib.suppress(StreamLost):
            await fence
        self.quiet = True

    def confirm(self, settled: pb.ConsumeSettled) -> None:
        """Hand out the answers: the server lists failures only."""
        errors = {error.index: error for error in settled.errors}
        for index, answer in enumerate(self._sent.pop(settled.sequence, ())):
            if not answer.done():
                answer.set_result(errors.get(index))

    def heard(self) -> None:
        """The server has said something, so it is alive."""
        if not self.closing:
            self.patience.reschedule(asyncio.get_running_loop().time() + SILENCE)

    def close(self) -> None:
        """Half-close, after what was said so far."""
        self.closing = True
        self._wake.set()
        self.patience.reschedule(asyncio.get_running_loop().time() + CLOSE_GRACE)

    def end(self) -> None:
        """Tell those who wait that there will be no answers."""
        self.ended.set()
        for answers in self._sent.values():
            _lose(answers, sent=True)
        _lose([*(answer for _, answer in self._outbox), *self._fences], sent=False)


def _lose(answers: list[Answer], *, sent: bool) -> None:
    for answer in answers:
        if not answer.done():
            answer.set_exception(StreamLost(sent=sent))
