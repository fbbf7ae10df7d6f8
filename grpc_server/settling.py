"""Settlements: words on leased tasks, each on its own, with as few calls of the library as their order allows."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import anyio

from torrelque import (
    TorrelqueError,
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueTaskState,
    TorrelqueTaskStatus,
    TorrelqueUnavailableError,
    TorrelqueUnknownOutcomeError,
)

from . import convert
from ._pb import torrelque_pb2 as pb
from .errors import Refused, explain, invalid
from .house import Visit
from .settings import MIB, Settings

T = TypeVar("T")

MAX_SETTLEMENTS = 1000
#: What the library does whole or not at all: so many tasks, and a mebibyte.
PORTION = 500


@dataclass(slots=True)
class Release:
    index: int
    task_id: str
    result: bytes | None
    status: TorrelqueTaskStatus
    keep: float | None
    dead_letter: bool

    @property
    def group(self) -> object:
        return Release, self.status, self.keep, self.dead_letter


@dataclass(slots=True)
class Requeue:
    index: int
    task_id: str
    delay: float | None
    lease: float | None

    @property
    def group(self) -> object:
        return Requeue


@dataclass(slots=True)
class Extend:
    index: int
    task_id: str
    lease: float | None

    @property
    def group(self) -> object:
        return Extend


Settlement = Release | Requeue | Extend


def read(message: pb.Settlement, index: int, settings: Settings) -> Settlement:
    """Check one settlement."""
    path = f"settlements[{index}]."
    known = convert.task_id(message.task_id, convert.token(message), f"{path}task_id")
    action = message.WhichOneof("action")
    if action == "release":
        return read_release(message.release, known, settings, f"{path}release.", index)
    if action == "requeue":
        return read_requeue(message.requeue, known, f"{path}requeue.", index)
    if action == "extend":
        return Extend(index, known, convert.lease(message.extend, f"{path}extend.task_timeout"))
    raise invalid(f"{path}action", "must be release, requeue or extend")


def read_release(
    message: pb.ReleaseAction | pb.ReleaseRequest, known: str, settings: Settings, path: str = "", index: int = 0
) -> Release:
    """Check what a release says."""
    result = convert.body(message.result, settings, f"{path}result") if message.HasField("result") else None
    status = convert.final_status(message.status, f"{path}status")
    if message.dead_letter and status is not TorrelqueTaskStatus.REJECTED:
        raise invalid(f"{path}dead_letter", "goes with the status REJECTED")
    return Release(index, known, result, status, convert.kept(message, f"{path}result_ttl"), message.dead_letter)


def read_requeue(message: pb.RequeueAction | pb.RequeueRequest, known: str, path: str = "", index: int = 0) -> Requeue:
    """Check what a requeue says."""
    return Requeue(index, known, convert.delay(message, f"{path}delay"), convert.lease(message, f"{path}task_timeout"))


async def settle(visit: Visit, messages: Sequence[pb.Settlement]) -> list[pb.ItemError]:
    """Apply settlements; returns those that failed, in the order of the request."""
    errors: list[pb.ItemError] = []
    good: list[Settlement] = []
    for index, message in enumerate(messages):
        try:
            good.append(read(message, index, visit.settings))
        except Refused as refused:
            errors.append(convert.item_error(index, refused))
    # Neighbours of one kind go together; what was said first of a task is done first.
    for _, group in groupby(good, lambda each: each.group):
        errors += await _apply_all(visit, list(group))
    return sorted(errors, key=lambda error: error.index)


async def _apply_all(visit: Visit, group: list[Settlement]) -> list[pb.ItemError]:
    if isinstance(group[0], Release):
        said = await _release_all(visit, [each for each in group if isinstance(each, Release)])
    else:
        said = await _apply_each(visit, group)
    return [await _item_error(visit, each, error) for each, error in zip(group, said, strict=True) if error is not None]


async def _apply_each(visit: Visit, group: list[Settlement]) -> list[TorrelqueError | None]:
    said: list[TorrelqueError | None] = [None] * len(group)
    of_task: dict[str, list[int]] = {}
    for place, each in enumerate(group):
        of_task.setdefault(each.task_id, []).append(place)

    async def in_turn(places: list[int]) -> None:
        for place in places:
            try:
                await apply(visit, group[place])
            except TorrelqueError as error:
                said[place] = error

    # Of calls at the same time the later may be done first, so those about one task wait for each other.
    async with anyio.create_task_group() as tasks:
        for places in of_task.values():
            tasks.start_soon(in_turn, places)
    return said


async def _release_all(visit: Visit, releases: list[Release]) -> Sequence[TorrelqueError | None]:
    said: list[TorrelqueError | None] = []
    for portion in _portions(releases):
        try:
            said += await _release(visit, portion)
        except TorrelqueError as error:
            said += [error] * len(portion)
            return [*said, *[_unsent(error)] * (len(releases) - len(said))]
    return said


def _portions(releases: list[Release]) -> Iterator[list[Release]]:
    """Cut as the library does: a call that fails half-way does not say where."""
    portion: list[Release] = []
    size = 0
    for each in releases:
        length = len(each.result or b"")
        if portion and (len(portion) == PORTION or size + length > MIB):
            yield portion
            portion, size = [], 0
        portion.append(each)
        size += length
    if portion:
        yield portion


async def _release(visit: Visit, portion: list[Release]) -> Sequence[TorrelqueError | None]:
    return await visit.queue.release_many(
        [each.task_id for each in portion],
        results=[each.result for each in portion],
        result_ttl=portion[0].keep,
        status=portion[0].status,
        dead_letter=portion[0].dead_letter,
    )


def _unsent(error: TorrelqueError) -> TorrelqueError:
    """What is said of those behind a portion that failed: whatever became of that, they were not changed."""
    if isinstance(error, TorrelqueUnknownOutcomeError):
        return TorrelqueUnavailableError("the storage failed before this was sent")
    return error


async def _item_error(visit: Visit, settlement: Settlement, error: TorrelqueError) -> pb.ItemError:
    return convert.item_error(settlement.index, explain(error), await _known(visit, settlement.task_id, error))


async def _known(visit: Visit, task_id: str, error: Exception) -> TorrelqueTaskState | None:
    """Read the state of a task that is not the caller's any more: it tells a repeated release from a loss."""
    if isinstance(error, TorrelqueNotWorkingError | TorrelqueLeaseLostError):
        with contextlib.suppress(TorrelqueError):
            return await visit.queue.get_task_state(task_id)
    return None


async def apply(visit: Visit, settlement: Settlement) -> None:
    """Apply one settlement."""
    queue, task_id = visit.queue, settlement.task_id
    if isinstance(settlement, Release):
        await queue.release(
            task_id,
            result=settlement.result,
            result_ttl=settlement.keep,
            status=settlement.status,
            dead_letter=settlement.dead_letter,
            strict=True,
        )
    elif isinstance(settlement, Requeue):
        await queue.requeue(task_id, settlement.delay, task_timeout=settlement.lease, strict=True)
    else:
        await queue.extend(task_id, settlement.lease)


async def told(visit: Visit, task_id: str, doing: Awaitable[T]) -> T:
    """Await what is done to a task, and where it cannot be, tell what is known of it."""
    try:
        return await doing
    except TorrelqueLookupError as error:
        metadata = {"queue": visit.queue_name, "taskId": str(task_id)}
        if (state := await _known(visit, task_id, error)) is not None:
            metadata |= {"status": state.status.name, "current": str(state.dequeue_count)}
        raise explain(error, metadata) from error
