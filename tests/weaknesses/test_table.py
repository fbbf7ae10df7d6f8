"""docs/weaknesses.md tells of every weakness, and the tests that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent
TABLE = (FOLDER.parent.parent / "docs" / "weaknesses.md").read_text("utf-8")
ROWS = {int(number): row for row, number in re.findall(r"^(\| U(\d+) .*)$", TABLE, re.MULTILINE)}
UNTESTED = {36, 38}
NOT_SHOWN = {28, 29, 33, 36, 38}


def names_in(*paths: Path) -> set[str]:
    """The names of the tests in some files."""
    return {
        name for path in paths for name in re.findall(r"^async def (test_u\d\d_\w+)", path.read_text(), re.MULTILINE)
    }


def test_each_weakness_has_one_line() -> None:
    """U1 to U38, each once, in order, with something in all four columns."""
    numbers = [int(number) for number in re.findall(r"^\| U(\d+) ", TABLE, re.MULTILINE)]
    assert numbers == list(range(1, 39))
    for row in ROWS.values():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4
        assert all(cells)


def test_the_named_tests_are_there() -> None:
    """Every line names exactly the tests of its number, and only the two that need none have none."""
    there = names_in(*FOLDER.glob("test_u*.py"))
    for number, row in ROWS.items():
        named = re.findall(r"`(test_\w+)`", row)
        assert sorted(named) == sorted(name for name in there if name.startswith(f"test_u{number:02}_"))
        assert bool(named) == (number not in UNTESTED)


def test_the_scenarios_are_shown_to_be_real() -> None:
    """The published package shows each weakness in a test, but for those of which the document says why not."""
    shown = {int(name[6:8]) for name in names_in(FOLDER / "test_published.py")}
    assert shown == set(ROWS) - NOT_SHOWN
    (sentence,) = re.findall(r"Five are not shown there: (.*?)\n\n", TABLE, re.DOTALL)
    assert {int(number) for number in re.findall(r"U(\d+)", sentence)} == NOT_SHOWN
