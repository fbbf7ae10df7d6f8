"""What is measured of the gRPC server: the rows of the table, in which order, and what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass

from grpc_processes import ECHO, ONE, TWO


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    rounds: int = 5
    seconds: float = 2.0
    """For each row in each round."""
    warmup: float = 0.5


QUICK = Scale(rounds=2, seconds=0.7, warmup=0.3)

LOAD, GHZ, LIBRARY = "go-load", "ghz", "the library"


@dataclass(frozen=True)
class Beside:
    """A row that another is compared with, and the ratio to reach, if any."""

    row: str
    name: str
    """What the cell calls it."""
    target: float | None = None


@dataclass(frozen=True)
class Row:
    """One load on one server."""

    label: str
    server: str
    mode: str
    client: str = LOAD
    concurrency: int = 64
    connections: int = 4
    backlog_rate: int = 0
    """Tasks to have in the queue before, for each second."""
    beside: tuple[Beside, ...] = ()
    latency_only: bool = False


_BATCH = "BatchEnqueue of 100, 8 in flight"
_ECHO, _ENQUEUE = "a bare server: echo of Enqueue, 64 in flight", "Enqueue, 64 in flight"
_MANY = "enqueue_many of 100 in-process, 8 callers"
_UNARY = "Dequeue + Release, 64 workers"
_SIXTEEN = "Enqueue, 64 in flight, 16 connections"

ROWS = (
    Row(_ECHO, ECHO, "echo"),
    Row(_ENQUEUE, ONE, "enqueue", beside=(Beside(_ECHO, "echo", 0.75),)),
    Row(f"{_ECHO}, ghz", ECHO, "echo", GHZ),
    Row(f"{_ENQUEUE}, ghz", ONE, "enqueue", GHZ, beside=(Beside(f"{_ECHO}, ghz", "echo", 0.75),)),
    Row(_MANY, ONE, "batch", LIBRARY, concurrency=8),
    Row(
        _BATCH, ONE, "batch", concurrency=8,
        beside=(Beside(_ENQUEUE, "Enqueue", 6.0), Beside(_MANY, "in-process", 0.5)),
    ),
    Row(_UNARY, ONE, "unary-consume", backlog_rate=8_000),
    Row(
        "Consume, 4 streams, settled in batches", ONE, "consume", concurrency=4, backlog_rate=60_000,
        beside=(Beside(_UNARY, "unary", 3.0),),
    ),
    Row("Enqueue to answer of a waiting Dequeue", ONE, "wake", concurrency=1, connections=2, latency_only=True),
    Row("Release to message of a Watch", ONE, "watch", concurrency=1, connections=2, latency_only=True),
    Row(_SIXTEEN, ONE, "enqueue", connections=16),
    Row(f"{_SIXTEEN}, --workers 2", TWO, "enqueue", connections=16, beside=(Beside(_SIXTEEN, "one worker"),)),
)  # fmt: skip
