"""A server in this process: what stands around the store. Blocked and subscribed connections, restarts, moods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from .store import CommandError, Store

#: So many commands and connections are more than any history needs: somebody asks and asks, and no time passes.
TOO_MANY = 20_000
#: The server's clock when the simulation begins, unix time in seconds.
EPOCH = 1_700_000_000.0


class Spinning(BaseException):
    """There is no sense in going on: somebody asks again and again, or all is broken. Nobody may outlive it."""


class Observer(Protocol):
    """Sees everything that the server does."""

    def before(self) -> Any:
        """Note how things stand."""
        ...

    def after(self, noted: Any, command: str, args: Sequence[bytes], reply: Any) -> None:
        """Judge what a command has changed."""
        ...


@dataclass(eq=False)
class Block:
    """A connection that waits in BLMOVE."""

    source: bytes
    destination: bytes
    until: float
    done: trio.Event = field(default_factory=trio.Event)
    reply: bytes | None = None
    error: str | None = None
    #: Nobody is at the other end any more, and the server does not know.
    orphaned: bool = False

    def end(self, reply: bytes | None = None, error: str | None = None) -> None:
        self.reply, self.error = reply, error
        self.done.set()


@dataclass(eq=False)
class Subscription:
    """A connection that listens."""

    tell: Callable[[tuple[bytes, bytes, bytes | None]], None]
    hang_up: Callable[[], None]
    channels: set[bytes] = field(default_factory=set)


class SimServer:
    """Runs commands one after the other, each in one moment of the virtual clock."""

    def __init__(self, scripts: Sequence[tuple[bytes, bytes, str]]) -> None:
        self.shift = 0.0
        """What jumps have added to the clock, seconds."""
        self.store = Store(self.now, self._notify, self._publish)
        self._all_scripts = {sha: (text, name) for sha, text, name in scripts}
        self._names = {text: name for _, text, name in scripts}
        self._known: set[bytes] = set()
        self.blocked: list[Block] = []
        self.subscriptions: list[Subscription] = []
        self.down = False
        self.mood: str | None = None
        """An error that is answered to every command, such as ``LOADING``."""
        self.epoch = 0
        """Connections of an earlier one are dead."""
        self.observer: Observer | None = None
        self.asked = 0
        self.lose: Callable[[], int] = lambda: 1
        """How many times a message arrives."""

    def now(self) -> float:
        """Tell the time of the server's clock."""
        return EPOCH + self.shift + trio.current_time()

    # What a client says

    def count(self) -> None:
        """Note that somebody wants something.

        :raises Spinning: there is no end of it
        """
        self.asked += 1
        if self.asked > TOO_MANY:
            raise Spinning(f"more than {TOO_MANY} commands and connections")

    def apply(self, command: Sequence[bytes]) -> Any:
        """Run a command, and serve the blocked connections that it has made something for."""
        self.count()
        try:
            return self._observed(command)
        except CommandError as error:
            return error

    def _observed(self, command: Sequence[bytes]) -> Any:
        self._refuse_in_bad_mood(command[0])
        if command[0] in {b"EVALSHA", b"EVAL"}:
            name, run, args = self._script(command)
        else:
            name, args = command[0].decode(), command[1:]
            run = lambda: self.store.once(*command)  # noqa: E731  one of two ways to run it, not a function of its own
        reply = self._judged(name, args, run)
        self.serve_blocked()
        return reply

    def _judged(self, name: str, args: Sequence[bytes], run: Callable[[], Any]) -> Any:
        if self.observer is None:
            return run()
        self.store.expire()
        noted = self.observer.before()
        try:
            reply = run()
        except CommandError as error:
            self.observer.after(noted, name, args, error)
            raise
        self.observer.after(noted, name, args, reply)
        return reply

    def _refuse_in_bad_mood(self, name: bytes) -> None:
        if self.mood is None or self.mood.startswith("OOM"):
            return
        raise CommandError(self.mood)

    def _script(self, command: Sequence[bytes]) -> tuple[str, Callable[[], Any], Sequence[bytes]]:
        if command[0] == b"EVALSHA":
            if command[1] not in self._known:
                raise CommandError("NOSCRIPT No matching script. Please use EVAL.")
            text, name = self._all_scripts[command[1]]
        else:
            text = command[1]
            name = self._names[text]
            self._known |= {sha for sha, known in self._all_scripts.items() if known[0] == text}
        count = int(command[2])
        keys, args = command[3 : 3 + count], command[3 + count :]
        return name, lambda: self.store.run(text, keys, args), args

    # Blocked connections

    def block(self, block: Block) -> None:
        """Let a connection wait; an id that is there it gets at once."""
        if self.mood is not None and not (self.mood.startswith("OOM") and not self.store.full):
            block.end(error=self.mood)
            return
        self.blocked.append(block)
        self.serve_blocked()

    def serve_blocked(self) -> None:
        """Hand out what is pending, first come first served."""
        while self.blocked and self.blocked[0].until <= trio.current_time():
            self.blocked.pop(0).end()
        for block in list(self.blocked):
            if block.until <= trio.current_time():
                self.blocked.remove(block)
                block.end()
            elif self.store.keys.get(block.source):
                self._move(block)

    def _move(self, block: Block) -> None:
        if self.store.full:
            self.blocked.remove(block)
            block.end(error="OOM command not allowed when used memory > 'maxmemory'.")
            return
        command = (b"LMOVE", block.source, block.destination, b"RIGHT", b"LEFT")
        task_id = self._judged("LMOVE", command[1:], lambda: self.store.once(*command))
        self.blocked.remove(block)
        block.end(task_id)

    def unblock(self, block: Block) -> None:
        """CLIENT UNBLOCK."""
        if block in self.blocked:
            self.blocked.remove(block)
            block.end()

    def forget(self, block: Block) -> None:
        """A blocked connection has ended, and the server knows."""
        if block in self.blocked:
            self.blocked.remove(block)

    # Messages

    def _publish(self, channel: bytes, data: bytes) -> int:
        listening = [each for each in self.subscriptions if channel in each.channels]
        for each in listening:
            for _ in range(self.lose()):
                each.tell((b"message", channel, data))
        return len(listening)

    def _notify(self, key: bytes, event: bytes) -> None:
        if self.subscriptions:
            self._publish(b"__keyspace@0__:%b" % key, event)

    # Disasters

    def crash(self) -> None:
        """End every connection; what was written stays, the scripts do not."""
        self.down = True
        self.epoch += 1
        self._known.clear()
        for block in self.blocked:
            block.end(error="connection closed")
        self.blocked.clear()
        for each in list(self.subscriptions):
            each.hang_up()
        self.subscriptions.clear()

    def flush_scripts(self) -> None:
        """SCRIPT FLUSH."""
        self._known.clear()


__all__ = ["EPOCH", "Block", "SimServer", "Spinning", "Subscription"]
