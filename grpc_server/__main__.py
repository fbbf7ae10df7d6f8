"""One of several workers, as its supervisor starts it: settings on standard input, whose end is the end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from .embedding import serve
from .process import run, say, start_logging
from .settings import SettingsError
from .workers import READY, told


def _end_with_supervisor() -> None:
    """Drain when the supervisor is gone, however it went, and end at once when it has gone amid that."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Serve; returns the exit code."""
    if len(sys.argv) > 1 or sys.stdin.isatty():
        sys.stderr.write("torrelque: error: this is what `torrelque serve --workers` starts: run `torrelque serve`\n")
        return 2
    settings, log = told(sys.stdin.readline())
    start_logging(log)
    _end_with_supervisor()

    async def serving(*, task_status: Any) -> None:
        await serve(settings, task_status=task_status)

    try:
        # SIGTERM may come twice, from the supervisor and from who stops them all.
        run(serving, lambda _: say(READY), at_once=[signal.SIGINT])
    except SettingsError as error:
        sys.stderr.write(f"torrelque: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
