"""Many at once: all of it is checked and serialised first, then cut into portions for one script each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from .calls import BOUND, MAX_BYTES
from .checks import shown
from .codec import Serialiser, encode
from .errors import TorrelqueTypeError, TorrelqueValueError

#: A payload, or a result, of which there may be none.
B = TypeVar("B", bound=bytes | None)


def encode_tasks(serialiser: Serialiser, tasks: Iterable[Any]) -> list[bytes]:
    """Serialise payloads.

    :raises TorrelqueTypeError: they are no iterable, or the serialiser did not return bytes
    """
    if not isinstance(tasks, Iterable):
        raise TorrelqueTypeError(f"tasks must be an iterable, not {type(tasks).__name__}: {shown(tasks)}")
    return [encode(serialiser, task, "tasks") for task in tasks]


def encode_results(serialiser: Serialiser, results: Iterable[Any] | None, count: int) -> list[bytes | None]:
    """Serialise the results of *count* tasks, ``None`` for a task that has none.

    :raises TorrelqueTypeError: they are no iterable, or the serialiser did not return bytes
    :raises TorrelqueValueError: there is not one for each task
    """
    if results is None:
        return [None] * count
    if not isinstance(results, Iterable):
        raise TorrelqueTypeError(f"results must be an iterable, not {type(results).__name__}: {shown(results)}")
    bodies = [None if result is None else encode(serialiser, result, "results") for result in results]
    if len(bodies) != count:
        raise TorrelqueValueError(f"results must be {count}, one for each task, not {len(bodies)}")
    return bodies


def portions(ids: list[str], bodies: list[B]) -> Iterator[list[tuple[str, B]]]:
    """Pair ids with what goes with them, for one script each, by number and by bytes."""
    portion: list[tuple[str, B]] = []
    size = 0
    for task_id, body in zip(ids, bodies, strict=True):
        length = 0 if body is None else len(body)
        if portion and (len(portion) == BOUND or size + length > MAX_BYTES):
            yield portion
            portion, size = [], 0
        portion.append((task_id, body))
        size += length
    if portion:
        yield portion
