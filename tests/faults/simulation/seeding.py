"""One seed decides everything: the order in which Trio runs its tasks, chance in the library, and new ids.

What is private to Trio is touched here and nowhere else. ``test_simulation.py`` checks that it has an effect.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import trio._core._run as trio_run


@contextmanager
def seeded(seed: int | str) -> Iterator[None]:
    """Make what runs in here repeatable."""
    chance = random.Random(f"{seed} ids")
    scheduler, library = trio_run._r.getstate(), random.getstate()
    trio_run._r.seed(f"{seed} scheduler")
    random.seed(f"{seed} library")
    try:
        with (
            # Trio shuffles tasks that are ready, but first it sorts them only if told so, by the order of their birth.
            mock.patch.object(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            mock.patch.object(secrets, "token_hex", lambda count: chance.randbytes(count).hex()),
        ):
            yield
    finally:
        trio_run._r.setstate(scheduler)
        random.setstate(library)
