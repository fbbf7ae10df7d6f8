"""A pytest plugin, ``-p faults.planted.plugin``: runs the tests with that bug planted which the environment names."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

VARIABLE = "TORRELQUE_PLANT"

_planted = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Plant it before the modules of tests are imported, which may take a script by its name."""
    from faults.planted.bugs import BUGS

    if name := os.environ.get(VARIABLE):
        _planted.enter_context(BUGS[name].planted())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave everything as it was."""
    _planted.close()
