"""The command ``torrelque``, also as ``python -m torrelque``."""

from __future__ import annotations

import sys

#: Exit code of a command that cannot run as it was called or installed.
_USAGE = 2


def main() -> int:
    """Run the command; returns its exit code."""
    try:
        from . import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"click", "rich"}:
            raise
        sys.stderr.write("torrelque: error: the command needs its extra: pip install 'torrelque[cli]'\n")
        return _USAGE
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
