"""What is built of the project holds all that it should, and nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
TARGETS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
#: The first is in each source distribution, the others are made.
PASSED_OVER = {"pyproject.toml", ".venv", "build", "dist"}


def ignored(file: Path) -> set[str]:
    """The paths, from the root on, that a .gitignore names."""
    folder = file.parent.relative_to(ROOT).as_posix()
    return {f"/{folder}/{line.strip('/')}" for line in file.read_text().splitlines()}


def test_types_come_along() -> None:
    """Type checkers of users read the types of each package."""
    for package in TARGETS["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").exists(), package


def test_a_source_distribution_is_whole() -> None:
    """It holds every page, the Makefile and all that this names, so that what they tell to do can be done in it."""
    named = {word.partition("/")[0] for word in re.findall(r"[\w./-]+", (ROOT / "Makefile").read_text())}
    wanted = {path.name for path in ROOT.iterdir() if path.suffix == ".md" or path.name in named | {"Makefile"}}
    assert wanted > {"README.md", "constraints.txt", "tests"}
    assert {f"/{name}" for name in wanted - PASSED_OVER} <= set(TARGETS["sdist"]["include"])


def test_nothing_built_is_in_a_source_distribution() -> None:
    """What the .gitignore files of clients and tests name is left out."""
    files = [*ROOT.glob("examples/*/.gitignore"), *ROOT.glob("benchmarks/*/.gitignore"), ROOT / "tests/wire/.gitignore"]
    named = set().union(*map(ignored, files)) - {"/examples/python/__pycache__"}
    assert named == set(TARGETS["sdist"]["exclude"])
