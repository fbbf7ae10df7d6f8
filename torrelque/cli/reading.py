"""Reads tasks: strict JSON, from arguments or line by line from a file or standard input."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import anyio
import click

#: So many tasks are enqueued at once.
PORTION = 500
#: Standard input and files are read in pieces of so many bytes.
PIECE = 1 << 16


def parse(text: bytes, where: str) -> Any:
    """Read strict JSON.

    :raises click.ClickException: it is not
    """
    try:
        return json.loads(text.decode(), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError:
        why = "is not UTF-8"
    except json.JSONDecodeError as error:
        why = f"is not JSON: {error.msg} at column {error.colno}"
    except ValueError as error:
        why = f"is not JSON: {error}"
    except RecursionError:
        why = "is nested too deeply"
    raise click.ClickException(f"{where} {why}")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"it has no {name}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large")
    return number


def parse_lines(lines: list[tuple[int, bytes]]) -> list[Any]:
    return [parse(line, f"line {number}") for number, line in lines if line.strip()]


def check_file(path: str) -> int | None:
    """Read a whole file, and count its tasks; ``None`` for what can be read only once.

    :raises click.ClickException: a line is not JSON
    """
    if path == "-" or not stat.S_ISREG(os.stat(path).st_mode):
        return None
    with open(path, "rb") as file:
        return sum(len(parse_lines([numbered])) for numbered in enumerate(file, 1))


@contextmanager
def opened(path: str) -> Iterator[int]:
    if path == "-":
        yield 0
    else:
        with open(path, "rb", buffering=0) as file:
            yield file.fileno()


async def portions(descriptor: int) -> AsyncGenerator[list[tuple[int, bytes]]]:
    """Cut what is read into numbered lines: what has come, in portions of a bounded size."""
    number = 0
    rest: list[bytes] = []
    while piece := await _read(descriptor):
        rest.append(piece)
        if b"\n" in piece:
            *lines, last = b"".join(rest).split(b"\n")
            rest = [last]
            for start in range(0, len(lines), PORTION):
                yield list(enumerate(lines[start : start + PORTION], number + start + 1))
            number += len(lines)
    yield [(number + 1, b"".join(rest))]


async def _read(descriptor: int) -> bytes:
    # A thread that is stuck in reading would outlive a Ctrl-C. Files cannot be waited for, and need not.
    with suppress(OSError):
        await anyio.wait_readable(descriptor)
    return os.read(descriptor, PIECE)
