"""The table of planted bugs, as docs/planted-bugs.md has it."""

from __future__ import annotations

from collections.abc import Sequence

from .killing import Kill

HEAD = """# Planted bugs

Do the tests notice anything? Each of these bugs was planted into the library, in memory: the weaknesses of the
published package that [became regression tests](weaknesses.md), and some of our own making. U36 and U38 are about the
settings of a server and the tests of a package, and cannot be planted.

The last column says what noticed it: one of the ordinary tests, or a history of the
[simulation](../tests/faults/simulation), with its seed and, in parentheses, what was wrong there: a
[promise](reliability.md#what-is-promised) that was broken, by its number; data in Redis that were *not as the model*
of the queue says; or a command that the server *refused*.

`python -m tests.faults.planted --table` tries them all and writes this file; `python -m tests.faults.planted NAME`
tries one, and `python -m tests.faults.simulation SEED --plant NAME --trace` shows the history of a seed.

| Planted | What it breaks | Noticed by |
|---|---|---|
"""


def row(kill: Kill) -> str:
    """One line."""
    return f"| `{kill.bug.name}` | {kill.bug.breaks} | {_by(kill)} |"


def _by(kill: Kill) -> str:
    if not kill.killed:
        return "**nobody**"
    if kill.bug.tests:
        return f"`{kill.by.split('::')[-1].split('[')[0]}`"
    seed, _, violation = kill.by.removeprefix("seed ").partition(": ")
    rule = violation.split(":")[0].split(" at ")[0]
    return f"simulation, seed {seed} ({ {'model': 'not as the model', 'scripts': 'refused'}.get(rule, rule) })"


def table(kills: Sequence[Kill]) -> str:
    """The whole file."""
    return HEAD + "".join(f"{row(kill)}\n" for kill in kills)
