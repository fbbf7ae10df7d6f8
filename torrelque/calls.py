"""What is said to Redis and how its answer is read: pure values, no I/O.

A :class:`Call` carries items, and calls of one kind can be joined into a single script run: that is what makes
coalescing pay. Everything in a call is bytes already, so that a driver only has to send it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar

from . import scripts
from .errors import TorrelqueUnknownOutcomeError
from .keys import Keys
from .model import (
    SweepReport,
    TorrelqueDamage,
    TorrelqueDurability,
    TorrelqueQueueStats,
    TorrelqueTaskId,
    TorrelqueTaskStatus,
)

R = TypeVar("R")

#: An answer of Redis as its drivers hand it up: RESP values, strings as bytes.
Reply = Any

#: No script touches more ids than this.
BOUND = 500
#: A claim has more to do for each id, and moves what is due as well: with 500 it took 6 ms of a server that had
#: 200,000 tasks due. Everybody else should have to wait for 5 ms at most, also where the server shares its cores or is
#: forked; so it is well below that, for which bulk pays 8 %.
CLAIM_BOUND = 125
#: So has a sweep, and is in no hurry: 500 of them took up to 20 ms.
SWEEP_BOUND = 75
#: What is done with dead letters has more to do for each id as well, but is rare.
LETTERS_BOUND = 150
#: No script answers with more bytes of payloads and results, unless a single task has more.
MAX_ANSWER = 1 << 22
#: Nor does one run carry more bytes of items, unless a single item does.
MAX_BYTES = 1 << 20
#: Nobody sleeps longer than this many seconds without looking, so no message is needed for later times.
HORIZON = 30.0

_HORIZON = b"30"

#: Looking so many seconds after a task is due finds it in one look rather than two.
PAST_DUE = 0.001


#: The stored fields of a state, in the order of :class:`TorrelqueTaskState`; ``None`` where not set.
Fields: TypeAlias = list[bytes | None]
FIELDS = 9
#: So many of them are in a dead letter: those of a state but for what all the dead have in common.
LETTER_FIELDS = 6

#: Where a sweep begins: with everything, or with leases and delays only.
SWEEP_ALL, SWEEP_TIMED = b"", b"timed"


class Verdict(enum.IntEnum):
    """What a script says of a task that should be released, requeued or extended."""

    APPLIED = 1
    UNKNOWN = 0
    NOT_WORKING = -1
    LEASE_LOST = -2


@dataclass(slots=True, eq=False)
class Call(Generic[R]):
    """A sentence for Redis: one script run over *items*, with one outcome for each of them, or one for all."""

    script: scripts.Script
    keys: tuple[bytes, ...]
    head: tuple[bytes, ...]
    items: tuple[bytes, ...]
    """The arguments of all items, one after the other."""
    count: int
    """How many items there are; 0 for a call that is never joined with others and answered as a whole."""
    parse: Callable[[Reply], R]
    """Read the outcome of one item, or of the whole."""

    def read(self, reply: Reply) -> R:
        """Read it, and trust nobody.

        :raises TorrelqueUnknownOutcomeError: something between here and Redis has damaged the answer
        """
        try:
            return self.parse(reply)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise damaged() from error


@dataclass(frozen=True, slots=True)
class Assurance:
    """What is said after writes, so that their answers mean more than that they are in the memory of the primary."""

    commands: tuple[tuple[bytes, ...], tuple[bytes, ...]]
    """A write, and what waits for it; that counts the disks of the primary, if it does so, and the replicas."""
    probe: tuple[bytes, ...]
    """The same, without waiting: a server that cannot do it says so."""
    wanted: tuple[int, ...]
    timeout: float

    def lacking(self, said: Reply) -> str | None:
        """Read the answer to the last command; ``None`` if it is what was wanted."""
        counts = said if isinstance(said, list) else [said]
        if all(isinstance(count, int) for count in counts) and len(counts) == len(self.wanted):
            if all(count >= least for count, least in zip(counts, self.wanted, strict=True)):
                return None
            got = " and ".join(map(str, counts))
            return f"applied, but only {got} instead of {' and '.join(map(str, self.wanted))} {self._what} have it"
        return f"applied, but nobody knows who has it: {said}"

    @property
    def _what(self) -> str:
        return "replicas" if len(self.wanted) == 1 else "disks (of the primary, and of replicas)"

    def refused(self, said: str) -> str | None:
        """Read the error that a server made of the probe; ``None`` if it is not of the kind that stays."""
        if "replica" in said:
            return None  # the primary is elsewhere, which writes notice
        ways_out = (
            "fsync of TorrelqueDurability needs Redis 7.2 or Valkey with appendonly yes; with an older Redis, set"
            " appendfsync always there and leave out fsync"
        )
        return f"{said} ({ways_out})" if len(self.wanted) > 1 else said


@dataclass(slots=True)
class Delivery:
    """A task as the dequeue script hands it out, its payload not decoded yet."""

    task_id: bytes
    count: int
    lease: float
    body: bytes
    asked: float = 0.0
    """When the script was sent, by the clock of the event loop: the lease does not end before this and its length."""


@dataclass(slots=True)
class Claim:
    """The answer of the dequeue script."""

    deliveries: list[Delivery]
    dropped: list[bytes]
    """Ids that were removed from the queue because nothing stood behind them."""
    given_up: list[bytes]
    """Ids of tasks that were ended because they had been delivered as often as they may be."""
    until_next: float
    """Seconds until the next due or stale time; infinite when there is none, or more is pending."""
    more: bool
    """The script met its bound: ask again before believing that nothing is there."""


@dataclass(frozen=True, slots=True)
class GivingUp:
    """When a task is not delivered again, and what becomes of it."""

    attempts: int
    """So many deliveries are enough."""
    keep: float | None
    """Seconds for which its state is kept; ``None`` makes it a dead letter."""
    reason: bytes
    """Why, which becomes its result."""


@dataclass(slots=True)
class Letter:
    """A dead letter as its script hands it out, nothing in it decoded yet."""

    task_id: bytes
    time: bytes
    body: bytes | None
    fields: Fields
    """The reason, the two counts and the three times before that of the death; ``None`` where not set."""

    @property
    def size(self) -> int:
        """Bytes of the payload and the reason."""
        return len(self.body or b"") + len(self.fields[0] or b"")


@dataclass(slots=True)
class LettersStep:
    """The answer of a script that requeues or purges dead letters."""

    done: int
    looked: int
    """So many were looked at, in order."""
    left: int
    """So many of these were left alone."""
    until: bytes
    """The time of the newest that are meant."""


@dataclass(slots=True)
class SweepStep:
    """The answer of one run of the sweep script."""

    report: SweepReport
    dropped: list[bytes]
    cursor: bytes
    until_next: float

    @property
    def done(self) -> bool:
        return self.cursor == b"end"


@dataclass(slots=True)
class Shape:
    """What the structures of a queue are."""

    types: dict[str, str]
    """By their documented names; ``none`` where one is empty."""
    sizes: dict[str, int]
    """The same, without ``undequeued``, and ``states``: how many keys the database has at most to look through."""


@dataclass(slots=True)
class Page:
    """A part of what an audit looks at, with the ids that something is wrong with and words that say what."""

    ids: list[bytes]
    """Of a list: what stands there, from the left. Of ``tasks``: those that are neither working nor delayed."""
    wrong: dict[bytes, bytes]
    looked: int
    cursor: bytes = b"0"
    enough: int = 0
    """How much to ask for the next time."""


@dataclass(slots=True)
class Doubt:
    """An id that seemed wrong, to be judged again by *words*.

    :ivar before: what its state was before the lists were walked, and it was not met there
    """

    task_id: bytes
    words: bytes
    before: bytes = b""


@dataclass(slots=True)
class Mended:
    """What the mend script did."""

    cut: tuple[int, int]
    """How many ids left *pending* and *dequeueing*."""
    words: list[bytes]
    """What was put right, of the first ids that were asked for; the rest was too much for one run."""


#: Where in *pending* and in *dequeueing* ids are looked for.
Starts: TypeAlias = tuple[Iterable[int], Iterable[int]]


@lru_cache
def text_of_seconds(seconds: float) -> bytes:
    """Write a length of time the way the published package does: ``300``, ``1.5``."""
    return (b"%d" % seconds) if seconds == int(seconds) else repr(seconds).encode()


def seconds_of_wake(message: bytes | None) -> float:
    """Read a wake message: seconds until something is due; 0 (look now) when it says nothing usable."""
    try:
        seconds = float(message or 0)
    except ValueError:
        return 0.0
    return seconds if 0 <= seconds <= HORIZON else 0.0


def _named(task_id: str) -> tuple[bytes, bytes]:
    """Spell an id and the number of its delivery, '' if it has none."""
    if isinstance(task_id, TorrelqueTaskId):
        return task_id._stored or task_id.encode(), b"%d" % task_id.dequeue_count
    return task_id.encode(), b""


def _milliseconds(keep: float | None) -> bytes:
    """Write how long a state is kept; '' makes a dead letter of it."""
    return b"" if keep is None else b"%d" % max(1, round(keep * 1000))


#: No limit on deliveries.
_NEVER = (b"", b"", b"")


class Calls:
    """Builds the calls of one queue."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._table = (
            keys.pending, keys.dequeueing, keys.undequeued, keys.working, keys.delayed, keys.tasks, keys.task,
        )  # fmt: skip
        self._dead_table = (*self._table, keys.dead, keys.dead_payloads)
        self._sweep_table = (*self._table, keys.outgoing)
        self._waking = (keys.wake, _HORIZON)
        #: How the last tasks ended, and what is said for it.
        self._last_ending: tuple[TorrelqueTaskStatus, float | None] | None = None
        self._last_words: tuple[tuple[bytes, ...], tuple[bytes, ...]] = ((), ())

    def assurance(self, durability: TorrelqueDurability) -> Assurance | None:
        """Spell what an answer has to wait for; ``None`` if for nothing.

        A server waits for the last write of a connection. There is always one: a call that found everything done
        already, by a write over another connection, promises the same.
        """
        if not durability.fsync and not durability.replicas:
            return None
        write = (b"SET", self._keys.durable, b"1", b"PX", b"1000")
        replicas, patience = b"%d" % durability.replicas, b"%d" % max(1, round(durability.timeout * 1000))
        command = (b"WAITAOF", b"1") if durability.fsync else (b"WAIT",)
        wanted = (1, durability.replicas) if durability.fsync else (durability.replicas,)
        probe = (*command, b"0", b"1")
        return Assurance((write, (*command, replicas, patience)), probe, wanted, durability.timeout)

    def enqueue(self, items: Iterable[tuple[str, bytes]], lease: float, delay: float) -> Call[bool]:
        """Add tasks, all with the same lease and delay. Outcome: was it new?"""
        lease_text, delay_text = text_of_seconds(lease), text_of_seconds(delay)
        flat: list[bytes] = []
        for task_id, body in items:
            flat += (task_id.encode(), body, lease_text, delay_text)
        return Call(scripts.ENQUEUE, self._table, self._waking, tuple(flat), len(flat) // 4, _is_done)

    def dequeue(
        self, wanted: int, default_lease: float, adopt: Sequence[bytes] = (), giving_up: GivingUp | None = None
    ) -> Call[Claim]:
        """Lease up to *wanted* tasks, those to *adopt* first: a waiter was handed them."""
        table: tuple[bytes, ...] = self._table
        policy = _NEVER
        if giving_up is not None:
            table = self._dead_table if giving_up.keep is None else self._table
            policy = (b"%d" % giving_up.attempts, _milliseconds(giving_up.keep), giving_up.reason)
        head = (*self._waking, b"%d" % wanted, text_of_seconds(default_lease), b"%d" % CLAIM_BOUND, *policy)
        return Call(scripts.DEQUEUE, table, head, tuple(adopt), 0, _read_claim)

    def requeue(self, task_id: str, delay: float, lease: float | None) -> Call[Verdict]:
        """Give a working task back."""
        lease_text = b"" if lease is None else text_of_seconds(lease)
        item = (*_named(task_id), text_of_seconds(delay), lease_text)
        return Call(scripts.REQUEUE, self._table, self._waking, item, 1, _read_verdict)

    def release(
        self, items: Iterable[tuple[str, bytes | None]], status: TorrelqueTaskStatus, keep: float | None
    ) -> Call[Verdict]:
        """End working tasks, each with its result if it has one, which stays for *keep* seconds.

        With ``None`` for it they become dead letters.
        """
        flat: list[bytes] = []
        for task_id, result in items:
            flat += (*_named(task_id), b"" if result is None else b"=" + result)
        if self._last_ending != (status, keep):  # nearly always tasks end as the last ones did
            self._last_ending = status, keep
            table: tuple[bytes, ...] = self._dead_table if keep is None else self._table
            self._last_words = table, (b"%d" % status, _milliseconds(keep))
        table, head = self._last_words
        return Call(scripts.RELEASE, table, head, tuple(flat), len(flat) // 3, _read_verdict)

    def extend(self, task_id: str, lease: float | None, default_lease: float) -> Call[float | Verdict]:
        """Move the end of a lease. Outcome: the new end, unix time in seconds, or why not."""
        head = (*self._waking, text_of_seconds(default_lease))
        item = (*_named(task_id), b"" if lease is None else text_of_seconds(lease))
        return Call(scripts.EXTEND, self._table, head, item, 1, _read_extension)

    def hand_back(self, deliveries: Iterable[tuple[bytes, int | None]]) -> Call[bool]:
        """Undo deliveries nobody saw: (id, delivery number), the number ``None`` for an id not adopted yet."""
        flat: list[bytes] = []
        for task_id, count in deliveries:
            flat += (task_id, b"" if count is None else b"%d" % count)
        return Call(scripts.HANDBACK, self._table, (), tuple(flat), len(flat) // 2, _is_done)

    def sweep(self, default_lease: float, cursor: bytes) -> Call[SweepStep]:
        """One step of a sweep, going on from *cursor*: :data:`SWEEP_ALL` or :data:`SWEEP_TIMED` at first."""
        head = (b"%d" % SWEEP_BOUND, text_of_seconds(default_lease), cursor)
        return Call(scripts.SWEEP, self._sweep_table, head, (), 0, _read_sweep)

    def dead_letters(self, limit: int, after: tuple[bytes, bytes] | None) -> Call[list[Letter]]:
        """Read dead letters, the oldest first, or those behind the one of this time and id."""
        head = (b"%d" % min(limit, BOUND), b"%d" % MAX_ANSWER, *(after or (b"", b"")))
        return Call(scripts.DEAD_LETTERS, self._dead_table, head, (), 0, _read_letters)

    def count_dead_letters(self) -> Call[int]:
        """Count the dead letters."""
        return Call(scripts.COUNT_DEAD_LETTERS, self._dead_table, (), (), 0, int)

    def requeue_dead_letters(self, ids: Sequence[bytes], until: bytes, passed: int) -> Call[LettersStep]:
        """Give dead letters back to the queue: those of these ids, or without any the oldest ones.

        :param until: none that died later; empty for the newest
        :param passed: how many of the oldest to pass over
        """
        head = (until, b"%d" % passed, b"%d" % LETTERS_BOUND)
        return Call(scripts.REQUEUE_DEAD_LETTERS, self._dead_table, head, tuple(ids), 0, _read_letters_step)

    def purge_dead_letters(self, ids: Sequence[bytes], until: bytes, passed: int) -> Call[LettersStep]:
        """Remove dead letters; which ones, as :meth:`requeue_dead_letters`."""
        head = (until, b"%d" % passed, b"%d" % LETTERS_BOUND)
        return Call(scripts.PURGE_DEAD_LETTERS, self._dead_table, head, tuple(ids), 0, _read_letters_step)

    def stats(self) -> Call[TorrelqueQueueStats]:
        """Count the tasks."""
        return Call(scripts.STATS, self._table, (), (), 0, _read_stats)

    def state(self, task_id: bytes) -> Call[Fields]:
        """Read a state."""
        return Call(scripts.STATE, self._table, (), (task_id,), 1, _read_fields)

    def shape(self) -> Call[Shape]:
        """Tell what the structures are, and how large."""
        return Call(scripts.SHAPE, self._dead_table, (), (), 0, _read_shape)

    def walk(self, name: str, index: int, count: int, judge: bool) -> Call[Page]:
        """List a stretch of *pending* or *dequeueing*, and judge what stands there."""
        head = (name.encode(), b"%d" % index, b"%d" % count, b"judge" if judge else b"list")
        return Call(scripts.WALK, self._dead_table, head, (), 0, _read_walk)

    def scan(self, name: str, cursor: bytes, count: int) -> Call[Page]:
        """Judge some of *working*, *delayed* or *states*; of *tasks* list what is in neither of the first two."""
        head = (name.encode(), cursor, b"%d" % count)
        return Call(scripts.SCAN, self._dead_table, head, (), 0, _read_scan)

    def look(self, doubts: Iterable[Doubt], starts: Starts = ((), ())) -> Call[list[tuple[bytes, bytes]]]:
        """Judge again. Outcome: words and the present state of each, or of the first ones."""
        return Call(scripts.LOOK, self._dead_table, _windows(starts), _doubted(doubts), 0, _read_look)

    def mend(
        self, doubts: Iterable[Doubt], default_lease: float, keep: float, starts: Starts = ((), ())
    ) -> Call[Mended]:
        """Judge again, and put right what is still wrong."""
        head = (*_windows(starts), text_of_seconds(default_lease), b"%d" % max(1, round(keep * 1000)))
        return Call(scripts.MEND, self._dead_table, head, _doubted(doubts), 0, _read_mend)


def _windows(starts: Starts) -> tuple[bytes, bytes]:
    pending, dequeueing = (b" ".join(b"%d" % max(0, start) for start in sorted(each)) for each in starts)
    return pending, dequeueing


def _doubted(doubts: Iterable[Doubt]) -> tuple[bytes, ...]:
    return tuple(part for doubt in doubts for part in (doubt.task_id, doubt.words, doubt.before))


def outcomes(reply: Reply) -> list[Reply]:
    """Part the answer to a call with items; empty when it is none."""
    if isinstance(reply, bytes):
        return reply.split()
    return reply if isinstance(reply, list) else []


def damaged() -> TorrelqueUnknownOutcomeError:
    """Say that an answer cannot be read."""
    return TorrelqueUnknownOutcomeError("the answer was damaged on its way: the call may or may not have taken effect")


_VERDICTS = {b"%d" % verdict: verdict for verdict in Verdict}


def _read_verdict(text: bytes) -> Verdict:
    return _VERDICTS[text]


def _read_extension(text: bytes) -> float | Verdict:
    verdict = _VERDICTS.get(text)
    return float(text) if verdict is None else verdict


_DONE = {b"1": True, b"0": False}


def _is_done(text: bytes) -> bool:
    return _DONE[text]


def _read_fields(reply: Reply) -> Fields:
    if len(reply) != FIELDS or not all(field is None or isinstance(field, bytes) for field in reply):
        raise ValueError(reply)
    return list(reply)


def _read_claim(reply: Reply) -> Claim:
    """Read the answer of the dequeue script."""
    sheet, _, bodies = reply.partition(b"\n")
    until_next, more, drops, ends, *numbers = sheet.split()
    tasks = len(numbers) - int(drops) - int(ends)
    if not float(until_next) >= 0 or int(drops) < 0 or int(ends) < 0 or tasks < 0:
        raise ValueError(sheet)
    deliveries: list[Delivery] = []
    at = 0
    for count, lease, id_length, body_length in zip(*[iter(numbers[:tasks])] * 4, strict=True):
        body_at = at + int(id_length)
        end = body_at + int(body_length)
        deliveries.append(Delivery(bodies[at:body_at], int(count), float(lease), bodies[body_at:end]))
        at = end
    others: list[bytes] = []
    for length in numbers[tasks:]:
        others.append(bodies[at : at + int(length)])
        at += int(length)
    if at != len(bodies):
        raise ValueError(sheet)
    return Claim(deliveries, others[: int(drops)], others[int(drops) :], float(until_next), more == b"1")


def _read_sweep(reply: Reply) -> SweepStep:
    """Read the answer of the sweep script."""
    stale, due, undequeued, dropped, cursor, until_next = reply
    if not isinstance(dropped, list) or not isinstance(cursor, bytes):
        raise TypeError(reply)
    return SweepStep(SweepReport(int(stale), int(due), int(undequeued)), dropped, cursor, float(until_next))


def _read_letters(reply: Reply) -> list[Letter]:
    """Read the answer of the script that reads dead letters."""
    letters = [Letter(task_id, time, body, fields) for task_id, time, body, *fields in reply]
    for letter in letters:
        stored = (letter.body, *letter.fields)
        if len(letter.fields) != LETTER_FIELDS or not isinstance(letter.task_id, bytes) or not float(letter.time) >= 0:
            raise ValueError(letter)
        if not all(field is None or isinstance(field, bytes) for field in stored):
            raise ValueError(letter)
    return letters


def _read_letters_step(reply: Reply) -> LettersStep:
    """Read the answer of a script that requeues or purges dead letters."""
    done, looked, left, until = reply
    if not 0 <= int(done) <= int(looked) - int(left) <= int(looked) or not float(until) >= 0:
        raise ValueError(reply)
    return LettersStep(int(done), int(looked), int(left), until)


def _read_stats(reply: Reply) -> TorrelqueQueueStats:
    """Read the answer of the stats script."""
    return TorrelqueQueueStats(*(int(count) for count in reply))


def _read_shape(reply: Reply) -> Shape:
    """Read the answer of the shape script."""
    names = ("pending", "dequeueing", "undequeued", "working", "delayed", "tasks", "dead", "dead:payloads")
    types = {name: kind.decode() for name, kind in zip(names, reply[:8], strict=True)}
    sized = ("pending", "dequeueing", "working", "delayed", "tasks", "states")
    return Shape(types, dict(zip(sized, map(int, reply[8:]), strict=True)))


def _read_walk(reply: Reply) -> Page:
    """Read the answer of the walk script."""
    ids, wrong = reply
    return Page(_strings(ids), _by_id(wrong), len(ids))


def _read_scan(reply: Reply) -> Page:
    """Read the answer of the scan script."""
    cursor, looked, enough, wrong, loose = reply
    if not isinstance(cursor, bytes) or int(looked) < 0 or int(enough) < 1:
        raise ValueError(reply)
    return Page(_strings(loose), _by_id(wrong), int(looked), cursor, int(enough))


def _read_look(reply: Reply) -> list[tuple[bytes, bytes]]:
    """Read the answer of the look script, which gets on with one id at least."""
    said = _strings(reply)
    if not said:
        raise ValueError(reply)
    return list(zip(map(_words, said[::2]), said[1::2], strict=True))


def _read_mend(reply: Reply) -> Mended:
    """Read the answer of the mend script, which gets on with one id at least."""
    pending, dequeueing, words = reply
    if int(pending) < 0 or int(dequeueing) < 0 or not words:
        raise ValueError(reply)
    return Mended((int(pending), int(dequeueing)), [_words(said) for said in _strings(words)])


def _by_id(flat: Reply) -> dict[bytes, bytes]:
    said = _strings(flat)
    return dict(zip(said[::2], map(_words, said[1::2]), strict=True))


def _strings(reply: Reply) -> list[bytes]:
    if not isinstance(reply, list) or not all(isinstance(each, bytes) for each in reply):
        raise TypeError(reply)
    return reply


_DAMAGES = frozenset(damage.encode() for damage in TorrelqueDamage)


def _words(text: bytes) -> bytes:
    """Check words that say what is wrong."""
    if not _DAMAGES.issuperset(text.split()):
        raise ValueError(text)
    return text
