"""docs/rivals.md tells of every bug of the list, and the tests that it names are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rivals.md").read_text("utf-8")
#: The bugs that are to be told of: each system's by their numbers.
ITEMS = {
    "redispy": {977, 2028, 2579, 2624, 2665, 3554, 4121},
    "coredis": {143, 317, 321},
    "saq": {118, 124, 127, 195, 277, 286},
    "arq": {196, 300, 343, 531},
    "streaq": {109},
    "vibetuner": {1935, 2035},
    "rq": {507, 2015, 2061, 2289, 2424},
    "celery": {2599, 3270, 5935, 8030, 8091, 8990, 9054, 10205},
    "kombu": {1098},
    "bullmq": {648, 652, 1658, 2466, 2964, 3088, 3185},
    "bull": {1243},
    "taskiq": {101, 130, 131},
    "safe-decoder": {329},
    "dramatiq": {258},
    "docket": {477},
    "sidekiq": {4495, 4611, 4635, 5540, 5719},
    "faktory": {268, 379, 417, 486},
    "asynq": {442, 1015, 1049, 1051, 1086, 1089, 1144},
    "river": {682, 773, 1105, 1258},
    "nats": {4786, 6937, 7564},
    "redis": {949},
    "grpc": {25364, 28999, 29248, 42357, 43360, 43462},
    "anyio": {695, 1111, 1257},
}
_ROW = re.compile(r"^\| (\[\d.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)
_NODE = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def sections() -> dict[str, list[tuple[set[int], str, str]]]:
    """For each system: the numbers of a row, the bug, and what stands for us."""
    found = {}
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        rows = _ROW.findall(part)
        if rows:
            found[part.split("\n", 1)[0]] = [
                ({int(number) for number in re.findall(r"\[(\d+)\]", numbers)}, bug, here)
                for numbers, bug, here in rows
            ]
    return found


@cache
def names_in(path: str) -> set[str]:
    """The names of the tests of a module."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_each_bug_is_told_of_once() -> None:
    """Every item has one row, and no row is of anything else."""
    told = {
        system: sorted(number for numbers, _, _ in rows for number in numbers) for system, rows in sections().items()
    }
    assert told == {system: sorted(numbers) for system, numbers in ITEMS.items()}


def test_each_has_a_test_or_a_reason() -> None:
    """A row names a test, or says why the bug cannot apply."""
    for rows in sections().values():
        for _, bug, here in rows:
            assert bug
            assert all(map(_NODE.fullmatch, here.split(", "))) or re.match(r"Cannot apply: \w", here), here


def test_the_named_tests_are_there() -> None:
    """Each test that the page names is in its module; all that are called after a rival are named, by their number."""
    named = _NODE.findall(PAGE)
    assert len(named) > 50
    for path, test in named:
        assert test in names_in(path), f"{path}::{test}"
    ours = {test for path in Path(__file__).parent.glob("test_*.py") for test in names_in(f"tests/rivals/{path.name}")}
    for test in ours:
        if found := re.fullmatch(r"test_rival_(\w+)_(\d+)", test):
            assert any(
                int(found[2]) in numbers and f"::{test}`" in here for numbers, _, here in sections()[found[1]]
            ), test
