"""Processes whose clocks are wrong."""

from __future__ import annotations

import glob
import os
from pathlib import Path


def faked(clock: Path, start: str) -> dict[str, str]:
    """Make an environment in which time is what the file says; it may be written anew at any time.

    The embedded server bears it; the allocator of the distribution's Redis does not.
    """
    found = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not found:
        raise RuntimeError("libfaketime is missing: install the package faketime")
    clock.write_text(f"{start}\n")
    return {
        **os.environ, "LD_PRELOAD": found[0], "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        # A clock that runs too fast is that of the whole process; one that jumps is not that of event loops.
        "FAKETIME_DONT_FAKE_MONOTONIC": "0" if "x10" in start else "1",
    }  # fmt: skip
