"""Every rpc of the wire: the right it needs, how it holds the server, who does it. One that is forgotten here stops the
server at its start."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from . import calls, consuming, watching
from ._pb import torrelque_pb2 as pb
from .guard import Guard, Rpc
from .limits import CALL, CONSUME, POLL, WATCH

TABLE = {
    rpc.name: rpc
    for rpc in (
        Rpc("Enqueue", "enqueue", CALL, calls.enqueue),
        Rpc("BatchEnqueue", "enqueue", CALL, calls.batch_enqueue),
        Rpc("Dequeue", "consume", POLL, calls.dequeue),
        Rpc("ExtendLease", "consume", CALL, calls.extend_lease),
        Rpc("Requeue", "consume", CALL, calls.requeue),
        Rpc("Release", "consume", CALL, calls.release),
        Rpc("BatchRelease", "consume", CALL, calls.batch_release),
        Rpc("Consume", "consume", CONSUME, consuming.consume),
        Rpc("GetTaskState", "watch", CALL, calls.get_task_state),
        Rpc("GetQueueStats", "watch", CALL, calls.get_queue_stats),
        Rpc("Watch", "watch", WATCH, watching.watch),
        Rpc("Sweep", "admin", CALL, calls.sweep),
        Rpc("ScheduleSweep", "admin", CALL, calls.schedule_sweep),
        Rpc("UnscheduleSweep", "admin", CALL, calls.unschedule_sweep),
        Rpc("ListDeadLetters", "admin", CALL, calls.list_dead_letters),
        Rpc("RequeueDeadLetters", "admin", CALL, calls.requeue_dead_letters),
        Rpc("PurgeDeadLetters", "admin", CALL, calls.purge_dead_letters),
    )
}

SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())


def add_all(server: Any, guard: Guard) -> None:
    """Let *server* answer every rpc that the proto file has."""
    for service in pb.DESCRIPTOR.services_by_name.values():
        handlers = {
            method.name: guard.wrap(
                TABLE[method.name],
                method,
                GetMessageClass(method.input_type),
                GetMessageClass(method.output_type),
            )
            for method in service.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
