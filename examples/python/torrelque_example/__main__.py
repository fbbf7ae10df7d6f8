"""python -m torrelque_example VERB"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import grpc

from .events import emit
from .options import Options, parse

try:
    from .client import Client, open_client
    from .consume import consume
    from .failures import Failure
    from .poll import poll
    from .produce import produce
    from .release import release
    from .watch import watch
except ModuleNotFoundError as error:
    if error.name != "torrelque_wire":
        raise
    print("no generated code in gen/: run ./generate.sh", file=sys.stderr)
    sys.exit(2)

VERBS: dict[str, Callable[[Client, Options], Awaitable[None]]] = {
    "produce": produce,
    "consume": consume,
    "watch": watch,
    "poll": poll,
    "release": release,
}


async def run(options: Options) -> int:
    """Do what was asked for, and say how it went as an exit code."""
    async with open_client(options) as client:
        try:
            await VERBS[options.verb](client, options)
        except (Failure, grpc.aio.AioRpcError) as error:
            failure = error if isinstance(error, Failure) else Failure.of(error)
            emit("error", code=failure.code, reason=failure.reason, metadata=failure.metadata)
            print(failure, file=sys.stderr)
            return 1
    return 0


def main() -> int:
    """Run the program."""
    options = parse(sys.argv[1:])
    try:
        return asyncio.run(run(options))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
