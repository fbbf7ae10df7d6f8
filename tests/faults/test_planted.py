"""The planted bugs themselves: each can be planted, leaves nothing behind, and is in the table."""

from __future__ import annotations

import re

import pytest
from faults.planted.bugs import BUGS
from faults.planted.killing import TABLE, kill
from faults.planted.planting import Bug, PlantError, in_python, in_script

from torrelque import checks, scripts
from torrelque.background import Outage


@pytest.mark.parametrize("name", BUGS)
def test_can_be_planted(name: str) -> None:
    """What a plant replaces is there, once, and is there again afterwards."""
    before = scripts.ALL
    with BUGS[name].planted():
        pass
    assert before == scripts.ALL


def test_a_plant_takes_hold() -> None:
    """Scripts and functions are others while a bug is planted, also for who has imported them before."""
    outage = Outage("x")
    with BUGS["own-no-pause"].planted(), BUGS["u07-max-tasks"].planted(), BUGS["u25-no-ttl"].planted():
        assert outage.failed(ValueError()) == 0
        assert checks.count("max_tasks", 9000) == 9000
        assert b"PEXPIRE" not in scripts.RELEASE.text
    assert outage.failed(ValueError()) > 0
    assert checks.count("max_tasks", 9000) == 1000
    assert b"PEXPIRE" in scripts.RELEASE.text


@pytest.mark.parametrize(
    "plant", [in_script("RELEASE", "no such", ""), in_python("torrelque.checks:timeout", "no such", "")]
)
def test_a_plant_that_misses_is_an_error(plant: object) -> None:
    """When the code has changed, its plants must follow: a bug that was not planted cannot survive."""
    bug = Bug("x", "nothing", [plant])
    with pytest.raises(PlantError), bug.planted():
        pass


def test_no_bug_survives_nothing() -> None:
    """A bug that breaks nothing is reported as a survivor."""
    harmless = Bug("x", "nothing", [in_python("torrelque.checks:timeout", "if value is None:", "if None is value:")])
    assert not kill(harmless, 3).killed


@pytest.mark.parametrize(
    "name", ["u12-late-owner", "u34-only-logged", "own-failed-claim-takes", "own-off-by-one-reply", "own-body-cut"]
)
def test_is_killed(name: str) -> None:
    """Some of them, here by their seeds; all of them by the figure a10-planted."""
    assert kill(BUGS[name]).killed


def test_the_table_is_up_to_date() -> None:
    """docs/planted-bugs.md has each bug, in order, with its killer; U1 to U38 are there but for two."""
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \| (.*) \|$", TABLE.read_text("utf-8"), re.M)
    assert [(name, breaks) for name, breaks, _ in rows] == [(bug.name, bug.breaks) for bug in BUGS.values()]
    for name, _, by in rows:
        assert re.match(r"`test_\w+`$" if BUGS[name].tests else r"simulation, seed \d+ \(", by), (name, by)
    assert len(rows) >= 50
    numbers = {int(name[1:3]) for name, *_ in rows if name.startswith("u")}
    assert numbers == set(range(1, 39)) - {36, 38}
