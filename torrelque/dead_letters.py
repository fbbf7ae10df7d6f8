"""Reads, requeues and purges dead letters, any number of them, in scripts of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .calls import LETTERS_BOUND, Call, Calls, LettersStep, R
from .decoding import Decoder
from .model import TorrelqueDeadLetter


class Ask(Protocol):
    """Runs a call."""

    async def __call__(self, call: Call[R], /) -> R: ...


class DeadLetters:
    """The dead letters of one queue."""

    def __init__(self, ask: Ask, calls: Calls, decoder: Decoder) -> None:
        self._ask = ask
        self._calls = calls
        self._decoder = decoder

    async def read(self, limit: int, after: tuple[bytes, bytes] | None, room: float) -> list[TorrelqueDeadLetter]:
        """Read up to *limit* of them, the oldest first, of *room* bytes in payloads and reasons; but always one.

        :param after: time and id of the one behind which to go on
        :raises TorrelqueRedisError: Redis failed
        """
        letters: list[TorrelqueDeadLetter] = []
        while len(letters) < limit:
            page = await self._ask(self._calls.dead_letters(limit - len(letters), after))
            for letter in page:
                room -= letter.size
                if letters and room < 0:
                    return letters
                letters.append(self._decoder.letter(letter))
            if not page:
                break
            after = page[-1].time, page[-1].task_id
        return letters

    async def requeue(self, ids: list[bytes] | None) -> int:
        """Give those of these ids back to the queue, or all that are there now; returns how many.

        :raises TorrelqueRedisError: Redis failed; what was requeued until then stays so
        """
        return await self._go_through(self._calls.requeue_dead_letters, ids)

    async def purge(self, ids: list[bytes] | None) -> int:
        """Remove those of these ids, or all that are there now; returns how many.

        :raises TorrelqueRedisError: Redis failed; what was removed until then stays so
        """
        return await self._go_through(self._calls.purge_dead_letters, ids)

    async def _go_through(
        self, call: Callable[[Sequence[bytes], bytes, int], Call[LettersStep]], ids: list[bytes] | None
    ) -> int:
        done = passed = 0
        if ids is not None:
            while ids:
                step = await self._ask(call(ids[:LETTERS_BOUND], b"", 0))
                done += step.done
                ids = ids[step.looked :]
            return done
        until = b""
        while True:
            step = await self._ask(call((), until, passed))
            if not step.looked:
                return done
            # What is given up meanwhile is not meant: it could go on like this for ever.
            until = step.until
            done += step.done
            passed += step.left
