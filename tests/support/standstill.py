"""How long this machine stood still meanwhile: nobody is late for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_TICK = 0.005
#: A tick that comes so much later than asked for is no standstill yet.
_PATIENCE = 0.02


class Standstill:
    """Counts the seconds for which a thread that only sleeps was not run."""

    def __init__(self) -> None:
        self.seconds = 0.0
        #: The longest of them.
        self.longest = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def _count(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(_TICK):
            now = time.monotonic()
            gap = now - last - _TICK
            if gap > _PATIENCE:
                self.seconds += gap
                self.longest = max(self.longest, gap)
            last = now

    @classmethod
    @contextmanager
    def counted(cls) -> Iterator[Standstill]:
        """Count while the body runs."""
        self = cls()
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._thread.join()
