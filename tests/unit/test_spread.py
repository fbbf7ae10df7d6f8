"""How tests are spread over processes: those that share what their module has opened run in one of them."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def shared() -> None:
    """Something that is opened once for this module."""


def test_who_shares_is_kept_together(shared: None, request: pytest.FixtureRequest) -> None:
    """The group of a test is known to pytest-xdist by the id of the test. (pytest 9.2 does not show it there.)"""
    spread = getattr(request.config.option, "loadgroup", False)
    assert request.node.nodeid.endswith("@test_spread-shared-None" if spread else "test_who_shares_is_kept_together")
