"""The fault bench: ``python -m tests.faults a1 --seed 7 --scale 0.1 --json a1.json``, and ``--help`` for the rest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.command import main

if __name__ == "__main__":
    sys.exit(main())
