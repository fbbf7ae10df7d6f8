"""One of several workers, as its supervisor starts it: settings on standard input, whose end is the end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

from .embedding import serve
from .process import run, say, start_logging
from .settings import Settings, SettingsError
from .workers import LOG_FORMAT, LOG_LEVEL, READY


def _read_settings() -> Settings:
    read: dict[str, Any] = json.loads(sys.stdin.readline())
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
    return Settings(**values)


def _end_with_supervisor() -> None:
    """Drain when the supervisor is gone, however it went, and end at once when it has gone amid that."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Serve; returns the exit code."""
    settings = _read_settings()
    start_logging(os.environ[LOG_FORMAT] == "json", os.environ[LOG_LEVEL])
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
