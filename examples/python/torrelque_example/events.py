"""What the program says: a JSON object a line for programs, the rest for people."""

import json
import os
import sys


def emit(event: str, **fields: object) -> None:
    """Print one event on standard output, at once: somebody may read it through a pipe."""
    try:
        print(json.dumps({"event": event, **fields}), flush=True)
    except BrokenPipeError:
        # Nobody reads any more. What Python still flushes at its exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def note(text: str) -> None:
    """Print a line for people on standard error."""
    print(text, file=sys.stderr, flush=True)
