"""How a script is run, whatever the client: by its SHA-1, and by its text where the server does not know it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from torrelque.calls import Call, Reply
from torrelque.errors import TorrelqueRedisError

from ._errors import error_code

Send: TypeAlias = Callable[[bytes, Sequence[Call[Any]]], Awaitable[list[Reply | Exception]]]


async def run_scripts(send: Send, calls: Sequence[Call[Any]]) -> list[Reply | Exception]:
    """Run the script of each call; *send* sends them with the command it is given, in one round trip."""
    replies = await send(b"EVALSHA", calls)
    missing = [i for i, reply in enumerate(replies) if _is_noscript(reply)]
    if missing:
        for i, reply in zip(missing, await _run_texts(send, [calls[i] for i in missing]), strict=True):
            replies[i] = reply
    return replies


async def _run_texts(send: Send, calls: Sequence[Call[Any]]) -> Sequence[Reply | Exception]:
    try:
        return await send(b"EVAL", calls)
    except TorrelqueRedisError as error:
        # It is not the word on those calls whose scripts were known, and which have been answered.
        return [error] * len(calls)


def arguments(command: bytes, call: Call[Any]) -> tuple[bytes, ...]:
    """Spell a call after its command: script, number of keys, keys, arguments."""
    script = call.script.sha1 if command == b"EVALSHA" else call.script.text
    return (script, b"%d" % len(call.keys), *call.keys, *call.head, *call.items)


def pack(command: Sequence[bytes]) -> bytes:
    """Write a command in RESP. All of it is bytes already, so this takes a fifth of the time that a client takes."""
    return b"*%d\r\n" % len(command) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in command])


def _is_noscript(reply: Reply | Exception) -> bool:
    return isinstance(reply, Exception) and error_code(reply) == "NOSCRIPT"
