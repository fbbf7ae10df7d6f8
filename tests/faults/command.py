"""The command line of the fault bench."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from pathlib import Path

from faults.figures import MODULES, Options, Report, load

#: How a run ended, for whoever called.
EXIT = {"passed": 0, "failed": 1, "void": 3}

ABOUT = """Break things on purpose - kill, freeze, cut off, fill disks, turn clocks - and judge what the queue did.
A figure passes if it kept every promise; it is void if it met fewer faults or less load than it should."""
EXAMPLES = """examples:
  python -m tests.faults a1 --seed 42
  python -m tests.faults a1 a5 --scale 0.1 --json results/
  python -m tests.faults all --short"""
STATUS = "exit status: 0 passed, 1 a promise was broken, 2 usage, 3 void"


def _arguments() -> argparse.ArgumentParser:
    width = max(map(len, MODULES))
    titles = "\n".join(f"  {name:{width}}  {load(name).TITLE}" for name in MODULES)
    parser = argparse.ArgumentParser(
        "python -m tests.faults",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=ABOUT,
        epilog=f"figures:\n{titles}\n\n{EXAMPLES}\n\n{STATUS}",
    )
    parser.add_argument("figures", nargs="+", choices=[*MODULES, "all"], metavar="FIGURE", help="one or more, or: all")
    parser.add_argument("--seed", type=int, help="draws the same by chance again; else one is drawn, and printed")
    parser.add_argument("--scale", type=float, default=1.0, help="of the full load and faults (default 1: minutes)")
    parser.add_argument("--short", action="store_true", help="each at the scale of the ordinary tests: seconds")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there: NAME.json, or a folder")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave data, logs and histories there")
    return parser


def _print(name: str, options: Options, report: Report) -> None:
    print(f"\n{name}  {report.verdict}  seed {options.seed}  scale {options.scale:g}  {report.seconds:.1f} s")
    for what, (got, least) in report.minimums.items():
        print(f"  {what:44} {got:>14,.6g}  (at least {least:,.6g})")
    for what, value in report.measured.items():
        print(f"  {what:44} {value if isinstance(value, str) else format(value, ',.4g'):>14}")
    for violation in report.violations[:50]:
        print(f"  BROKEN: {violation}")
    if len(report.violations) > 50:
        print(f"  ... and {len(report.violations) - 50} more")


def _run(name: str, options: Options) -> Report:
    started = time.monotonic()
    report = load(name).run(options)
    report.seconds = round(time.monotonic() - started, 1)
    return report


def _write(path: Path, name: str, options: Options, report: Report) -> None:
    if path.suffix != ".json":
        path.mkdir(parents=True, exist_ok=True)
        path = path / f"{name}.json"
    path.write_text(json.dumps(report.as_json(name, options), indent=1) + "\n")


def main() -> int:
    """Run the figures one after the other; the worst verdict is the exit status."""
    parser = _arguments()
    given = parser.parse_args()
    names = list(MODULES) if "all" in given.figures else given.figures
    if len(names) > 1 and given.json is not None and given.json.suffix == ".json":
        parser.error("--json must be a folder when there are several figures")
    worst = 0
    for name in names:
        seed = secrets.randbelow(1 << 32) if given.seed is None else given.seed
        print(f"{name}: {load(name).TITLE} (seed {seed})", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix=f"torrelque-{name}-") as scratch:
            folder = Path(scratch) if given.keep is None else given.keep / name
            folder.mkdir(parents=True, exist_ok=True)
            options = Options(seed, load(name).SHORT if given.short else given.scale, folder)
            report = _run(name, options)
        _print(name, options, report)
        if given.json is not None:
            _write(given.json, name, options, report)
        worst = max(worst, EXIT[report.verdict], key=[0, 3, 1].index)
    return worst
