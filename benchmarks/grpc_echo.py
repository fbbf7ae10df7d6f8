"""A bare server of the same stack: ``python grpc_echo.py`` answers every Enqueue with the same words.

What it cannot do faster, nothing on grpc.aio can: same options, same event loop, same messages; no guard, no queue.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import grpc

from grpc_server._pb import torrelque_pb2 as pb
from grpc_server.embedding import loop_factory
from grpc_server.lifecycle import core_options
from grpc_server.settings import Settings

_ANSWER = pb.EnqueueResponse(task_id="0123456789abcdef" * 2)


async def _enqueue(request: pb.EnqueueRequest, context: Any) -> pb.EnqueueResponse:
    return _ANSWER


async def main() -> None:
    """Serve until SIGTERM."""
    server = grpc.aio.server(options=core_options(Settings()))
    handler = grpc.unary_unary_rpc_method_handler(
        _enqueue,
        request_deserializer=pb.EnqueueRequest.FromString,
        response_serializer=pb.EnqueueResponse.SerializeToString,
    )
    service = pb.DESCRIPTOR.services_by_name["TorrelqueService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Enqueue": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main())
