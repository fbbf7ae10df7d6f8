"""The waits between attempts: 0.1 s, doubled up to 5 s, each shortened at random, lest clients come in step."""

import random

FIRST = 0.1
LONGEST = 5.0


class Waits:
    """The waits of one thing that is tried again and again."""

    def __init__(self) -> None:
        self._next = FIRST

    def next(self) -> float:
        """Say how long to wait now; the next wait is longer."""
        delay, self._next = self._next, min(2 * self._next, LONGEST)
        return round(delay * random.uniform(0.5, 1), 3)

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._next = FIRST
