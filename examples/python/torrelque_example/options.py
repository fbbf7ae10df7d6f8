"""The command line."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

#: What a verb is about, and the options it has beside those of all.
VERBS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "produce": ("FOLDER", ("limit", "batch")),
    "consume": (None, ("credit", "policy", "hold", "until", "idle")),
    "watch": ("TASK_ID", ("timeout", "states")),
    "poll": (None, ("timeout", "deadline", "max")),
    "release": ("TASK_ID", ("dequeue_count", "result")),
}
MAX_INT32 = 2**31 - 1
MAX_SECONDS = 2_000_000.0
LOOPBACK = r"(?:localhost|127(?:\.\d+){3}|\[::1\]):"

USAGE = """python -m torrelque_example VERB [OPTIONS]

  produce FOLDER   one task for each file below the folder      --limit N --batch N
  consume          digest files, release with the result        --credit N --policy keep|requeue --hold SECONDS
                                                                --until N --idle SECONDS
  watch TASK_ID    print each state until the last              --timeout SECONDS --states N
  poll             ask for tasks once                           --timeout SECONDS --deadline SECONDS --max N
  release TASK_ID  end one task                                 --dequeue-count N --result JSON"""


class Options(argparse.Namespace):
    """What was asked for. An option that was not given is None where there is no default."""

    verb: str
    target: str
    address: str
    queue: str
    ca: bytes | None
    token: str | None
    limit: int | None
    batch: int
    credit: int
    policy: str
    hold: float
    until: int | None
    idle: float | None
    timeout: float | None
    states: int | None
    deadline: float | None
    max: int
    dequeue_count: int | None
    result: str | None


def parse(arguments: list[str]) -> Options:
    """Read the command line and the environment; ends the program with exit code 2 if they cannot be used."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments, namespace=Options())
    _check(parser, options)
    _complete(options)
    if options.token and options.ca is None and not re.match(LOOPBACK, options.address):
        parser.error("TORRELQUE_TOKEN is not sent beyond this machine without --ca: everybody could read it")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torrelque_example", usage=USAGE, allow_abbrev=False)
    parser.add_argument("verb", choices=VERBS, help=argparse.SUPPRESS)
    parser.add_argument("target", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--address", type=_address, metavar="HOST:PORT", default=_environment("ADDRESS"))
    parser.add_argument("--queue", metavar="NAME", default=_environment("QUEUE"))
    parser.add_argument("--ca", type=_certificates, metavar="FILE", default=_environment("CA"))
    for name in ("limit", "batch", "credit", "until", "states", "max"):
        parser.add_argument(f"--{name}", type=_number(1), help=argparse.SUPPRESS)
    for name in ("hold", "idle", "timeout", "deadline"):
        parser.add_argument(f"--{name}", type=_seconds, help=argparse.SUPPRESS)
    parser.add_argument("--policy", choices=("keep", "requeue"), help=argparse.SUPPRESS)
    parser.add_argument("--dequeue-count", type=_number(0), help=argparse.SUPPRESS)
    parser.add_argument("--result", type=_json, help=argparse.SUPPRESS)
    return parser


def _check(parser: argparse.ArgumentParser, options: Options) -> None:
    target, own = VERBS[options.verb]
    if target and options.target is None:
        parser.error(f"{options.verb} needs a {target}")
    if target is None and options.target is not None:
        parser.error(f"{options.verb} takes no argument: {options.target}")
    if options.verb == "produce" and not Path(options.target).is_dir():
        parser.error(f"not a folder: {options.target}")
    for name in {name for _, names in VERBS.values() for name in names} - set(own):
        if getattr(options, name) is not None:
            parser.error(f"{options.verb} has no option --{name.replace('_', '-')}")


def _complete(options: Options) -> None:
    options.token = _environment("TOKEN")
    options.address = options.address or "127.0.0.1:50051"
    options.queue = options.queue or ""
    options.policy = options.policy or "keep"
    options.batch = options.batch or 1
    options.credit = options.credit or 4
    options.max = options.max or 1
    options.hold = options.hold or 0.0
    if options.verb == "poll" and options.timeout is None:
        options.timeout = 10.0


def _environment(name: str) -> str | None:
    return os.environ.get(f"TORRELQUE_{name}") or None


def _address(text: str) -> str:
    match = re.fullmatch(r"(?:[^\s:\[\]/]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", text)
    if not match or not 0 < int(match[1]) < 65536:
        raise argparse.ArgumentTypeError(f"not HOST:PORT: {text!r}")
    return text


def _certificates(path: str) -> bytes:
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise argparse.ArgumentTypeError(f"no certificate in {path}")
    return text


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= MAX_INT32:
            raise argparse.ArgumentTypeError(f"not a whole number from {least}: {text!r}")
        return int(text)

    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_SECONDS:  # refuses NaN, too
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return seconds


def _json(text: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    return text
