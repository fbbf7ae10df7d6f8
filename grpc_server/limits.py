"""How much at a time: counters taken after a call is known to be allowed, so that strangers cannot fill them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from .errors import RETRY_AFTER, Refused, StatusCode, too_many
from .settings import Settings

#: How a call holds the server: it answers soon, it waits for tasks, for states, or it stays.
CALL, POLL, WATCH, CONSUME = "calls", "polls", "watches", "consumers"


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Place:
    """A place that a call holds. A class, as a generator would cost every call a microsecond more."""

    __slots__ = ("_counted", "_kind", "_limits")

    def __init__(self, limits: Limits, kind: str, counted: str | None) -> None:
        self._limits, self._kind, self._counted = limits, kind, counted

    def __enter__(self) -> None:
        self._limits.enter(self._kind, self._counted)

    def __exit__(self, *_: object) -> None:
        self._limits.leave(self._kind, self._counted)


class Limits:
    """Counts what is in flight, of each kind and of each caller."""

    def __init__(self, settings: Settings) -> None:
        self._most = {
            CALL: settings.max_calls,
            POLL: settings.max_polls,
            WATCH: settings.max_watches,
            CONSUME: settings.max_consumers,
        }
        self._most_each = settings.max_streams_per_principal
        self._rate = settings.rate
        self.in_flight: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._buckets: dict[str, _Bucket] = {}

    def taken(self, kind: str, caller: str) -> Place:
        """Give a place for one call; it is held for the length of a ``with``."""
        if self._rate:
            self._spend(caller)
        if self.in_flight[kind] >= self._most[kind]:
            raise too_many(kind)
        counted = caller if kind != CALL and self._most_each else None
        if counted is not None and self._streams[counted] >= self._most_each:
            raise too_many(f"{kind} of one caller")
        return Place(self, kind, counted)

    def enter(self, kind: str, counted: str | None) -> None:
        """Count a call."""
        self.in_flight[kind] += 1
        if counted is not None:
            self._streams[counted] += 1

    def leave(self, kind: str, counted: str | None) -> None:
        """Count it no more."""
        self.in_flight[kind] -= 1
        if counted is not None:
            self._streams[counted] -= 1
            if not self._streams[counted]:
                del self._streams[counted]

    def _spend(self, caller: str) -> None:
        """Take a token of the caller's bucket, which holds those of a second."""
        now = time.monotonic()
        full = max(1.0, self._rate)
        bucket = self._buckets.setdefault(caller, _Bucket(full, now))
        bucket.tokens = min(full, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.tokens < 1:
            wait = max(RETRY_AFTER, (1 - bucket.tokens) / self._rate)
            raise Refused(StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", "too many calls: slow down", retry_after=wait)
        bucket.tokens -= 1
