"""How scripts are run, whatever the client: by their SHA-1, by their text where the server does not know them, and
where the server says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from anyio import current_time, sleep

from torrelque.calls import Assurance, Call, Reply
from torrelque.errors import (
    TorrelqueError,
    TorrelqueNotDurableError,
    TorrelqueRedisError,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)

from ._errors import ErrorMap, error_code
from ._topology import Place, Topology, redirected
from ._wire import ReplyError, Wire

#: Sends calls with a command, in one round trip, to the primary, or to a place that asks to be asked this once.
Send: TypeAlias = Callable[[bytes, Sequence[Call[Any]], Place | None], Awaitable[list[Reply | Exception]]]

#: Seconds for which a call follows a slot that is being moved: then its caller hears of it.
FOLLOWING = 2.0
#: The first and the longest pause of a call that has to try again.
_SOON, _LATER = 0.02, 0.2
#: So many redirections in a row are an ordinary change; more of them, and the nodes do not agree yet.
_HOPS = 2
#: Whoever says so serves nobody, or takes no writes: the primary may be elsewhere. Nothing was applied.
_ELSEWHERE = {
    "READONLY", "MASTERDOWN", "CLUSTERDOWN", "LOADING", "UNBLOCKED", "NOREPLICAS", "BUSY", "MISCONF",
}  # fmt: skip
#: What scripts say of an item for which they have written nothing.
_UNCHANGED = frozenset((b"0", b"-1", b"-2"))


async def run_scripts(send: Send, calls: Sequence[Call[Any]], topology: Topology) -> list[Reply | Exception]:
    """Run the script of each call. What was surely not applied is sent again where that helps."""
    replies = await send(b"EVALSHA", calls, None)
    if any(isinstance(reply, Exception) for reply in replies):
        await _Rerun(send, calls, topology, replies).run()
    return replies


class ScriptRunner:
    """What drivers have in common: they run scripts over round trips that each makes in its own way."""

    errors: ErrorMap
    _topology: Topology
    _requests: Requests

    async def execute(self, calls: Sequence[Call[Any]], *, apart: bool = False) -> list[Reply | Exception]:
        send = partial(self._send, apart=apart) if apart else self._send
        replies = await run_scripts(send, calls, self._topology)
        lost = self.errors.ours[TorrelqueUnknownOutcomeError]
        return [self.errors.translate(reply, lost) if isinstance(reply, Exception) else reply for reply in replies]

    async def _send(
        self, name: bytes, calls: Sequence[Call[Any]], place: Place | None, *, apart: bool = False
    ) -> list[Reply | Exception]:
        harmless = all(call.script.reads_only for call in calls)
        lost = self.errors.ours[TorrelqueUnavailableError if harmless else TorrelqueUnknownOutcomeError]
        try:
            if place is not None:
                replies = await self._ask_once(place, *self._requests.written(name, calls, ASKING), lost)
                replies[: 2 * len(calls)] = replies[1 : 2 * len(calls) : 2]
            else:
                replies = await self._ask(*self._requests.written(name, calls), lost, self._requests.timeout, apart)
        except TorrelqueUnknownOutcomeError as error:
            return [self._unanswered(call, error) for call in calls]
        return self._requests.read(calls, replies, self.errors.ours[TorrelqueNotDurableError])

    def _unanswered(self, call: Call[Any], error: TorrelqueUnknownOutcomeError) -> TorrelqueError:
        """Tell what it means for one call that a round trip had no answer: one that reads has changed nothing."""
        if not call.script.reads_only:
            return error
        unread = self.errors.ours[TorrelqueUnavailableError](*error.args)
        unread.__cause__ = error.__cause__
        return unread

    async def _ask(
        self, request: bytes, answers: int, lost: type[TorrelqueError], waits: float = 0.0, apart: bool = False
    ) -> list[Reply | Exception]:
        """Make one round trip; *lost* is what it means that no answer came.

        :param waits: so many seconds the server may wait before it answers
        :param apart: over a new connection
        """
        raise NotImplementedError

    async def _ask_once(
        self, place: Place, request: bytes, answers: int, lost: type[TorrelqueError]
    ) -> list[Reply | Exception]:
        """Ask a node to which a slot is being moved, which otherwise would send us back."""
        raise NotImplementedError


class _Rerun:
    """Sends again those calls of a round trip that have run nowhere, and puts their answers in place."""

    def __init__(
        self, send: Send, calls: Sequence[Call[Any]], topology: Topology, replies: list[Reply | Exception]
    ) -> None:
        self._send = send
        self._calls = calls
        self._topology = topology
        self._replies = replies
        #: How and where each call was sent last.
        self._ways: list[tuple[bytes, Place | None]] = [(b"EVALSHA", None)] * len(calls)

    async def run(self) -> None:
        if any(isinstance(reply, TorrelqueNotDurableError) for reply in self._replies):
            self._topology.forget()  # it may be because the primary has become a replica
        until, pause, rounds = current_time() + FOLLOWING, _SOON, 0
        while again := self._again():
            rounds += 1
            if current_time() > until:
                return
            if rounds > _HOPS or any(self._says(i, "TRYAGAIN") for i in again):
                await sleep(pause)
                pause = min(2 * pause, _LATER)
            groups: defaultdict[tuple[bytes, Place | None], list[int]] = defaultdict(list)
            for i, way in again.items():
                self._ways[i] = way
                groups[way].append(i)
            for (command, place), indexes in groups.items():
                await self._repeat(command, place, indexes)

    async def _repeat(self, command: bytes, place: Place | None, indexes: list[int]) -> None:
        try:
            replies = await self._send(command, [self._calls[i] for i in indexes], place)
        except TorrelqueRedisError as error:
            # Of these calls alone: others of the same round trip have their answers.
            replies = [error] * len(indexes)
        for i, reply in zip(indexes, replies, strict=True):
            self._replies[i] = reply

    def _says(self, i: int, code: str) -> bool:
        reply = self._replies[i]
        return isinstance(reply, Exception) and error_code(reply) == code

    def _again(self) -> dict[int, tuple[bytes, Place | None]]:
        """Decide which calls to send again, how and where."""
        again: dict[int, tuple[bytes, Place | None]] = {}
        for i, reply in enumerate(self._replies):
            if isinstance(reply, Exception) and not isinstance(reply, TorrelqueRedisError):
                way = self._way(reply, *self._ways[i])
                if way is not None:
                    again[i] = way
        return again

    def _way(self, error: Exception, command: bytes, place: Place | None) -> tuple[bytes, Place | None] | None:
        code = error_code(error)
        if code == "NOSCRIPT" and command == b"EVALSHA":
            return b"EVAL", place
        if not self._topology.moves:
            return None
        if code == "TRYAGAIN":
            return command, None
        if code in {"MOVED", "ASK"}:
            target = redirected(error, place or self._topology.place or Place())
            if target is not None and code == "ASK":
                return command, target
            if target is not None:
                self._topology.learn(target)
                return command, None
        if code in _ELSEWHERE:
            self._topology.forget()
        return None


class Requests:
    """Packs the calls of one queue, and reads their answers."""

    def __init__(self, assurance: Assurance | None = None) -> None:
        self._assurance = assurance
        self._after = b"".join(map(pack, assurance.commands)) if assurance else b""

    @property
    def timeout(self) -> float:
        """Seconds that the server may take for the sake of the answer."""
        return self._assurance.timeout if self._assurance else 0.0

    def waited_for(self, calls: Sequence[Call[Any]]) -> bool:
        """Whether the server is to wait before it answers."""
        return self._assurance is not None and any(call.script.lasting for call in calls)

    def written(self, command: bytes, calls: Sequence[Call[Any]], prefix: bytes = b"") -> tuple[bytes, int]:
        """Spell a round trip; returns it and the number of its answers."""
        parts = [prefix + pack((command, *arguments(command, call))) for call in calls]
        count = len(calls) * (2 if prefix else 1)
        if self._assurance and self.waited_for(calls):
            return b"".join([*parts, self._after]), count + len(self._assurance.commands)
        return b"".join(parts), count

    def read(
        self, calls: Sequence[Call[Any]], replies: list[Reply | Exception], not_durable: type[TorrelqueError]
    ) -> list[Reply | Exception]:
        """Find the answers of the calls in those of a round trip."""
        if not (self._assurance and self.waited_for(calls)):
            return replies
        own, noted, said = replies[:-2], replies[-2], replies[-1]
        lacking = self._assurance.lacking(said)
        refused = lacking is None and isinstance(noted, Exception)
        if lacking is None and not refused:
            return own
        if lacking is None:
            lacking = f"found done, but nobody knows who has it: {noted}"
        return [
            not_durable(lacking)
            if call.script.lasting and not isinstance(reply, Exception) and not (refused and _has_written(reply))
            else reply
            for call, reply in zip(calls, own, strict=True)
        ]

    async def probe(self, wire: Wire, refusal: type[TorrelqueError]) -> None:
        """Ask over a new connection whether the server can do what is wanted of it."""
        if self._assurance is None:
            return
        (said,) = await wire.ask(pack(self._assurance.probe))
        if isinstance(said, ReplyError) and (why := self._assurance.refused(str(said))):
            raise refusal(why)


def _has_written(reply: Reply) -> bool:
    """Whether a script has surely written: then the server has waited for that, whatever became of the write after."""
    return isinstance(reply, bytes) and not _UNCHANGED.issuperset(reply.split())


def arguments(command: bytes, call: Call[Any]) -> tuple[bytes, ...]:
    """Spell a call after its command: script, number of keys, keys, arguments."""
    script = call.script.sha1 if command == b"EVALSHA" else call.script.text
    return (script, b"%d" % len(call.keys), *call.keys, *call.head, *call.items)


def pack(command: Sequence[bytes]) -> bytes:
    """Write a command in RESP. All of it is bytes already, so this takes a fifth of the time that a client takes."""
    return b"*%d\r\n" % len(command) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in command])


#: Said before a command to a node that a slot is being moved to.
ASKING = pack((b"ASKING",))
