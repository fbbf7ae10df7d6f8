"""The short form of every figure of the fault bench."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults.figures import MODULES, Report

ROOT = Path(__file__).parents[2]


#: Judge how fast something was, beside nothing else.
TIMED = {"a1", "a1-mixed", "a2", "a8", "a9"}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.alone] * (n in TIMED)) for n in MODULES])
def test_figure(name: str, tmp_path: Path) -> None:
    """The figure reaches its own minimums and finds no broken promise."""
    command = [sys.executable, "-m", "tests.faults", name, "--short", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "passed"


@pytest.mark.parametrize(
    ("report", "verdict"),
    [
        (Report(minimums={"tasks": (10, 10)}), "passed"),
        (Report(minimums={"tasks": (9, 10)}), "void"),
        (Report(), "void"),
        (Report(minimums={"tasks": (10, 10)}, violations=["lost: a"]), "failed"),
        (Report(minimums={"tasks": (9, 10)}, violations=["lost: a"]), "failed"),
    ],
)
def test_verdict(report: Report, verdict: str) -> None:
    """Too small a run is void, not green; a broken promise is a failure, however small the run."""
    assert report.verdict == verdict
