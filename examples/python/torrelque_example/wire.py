"""The generated code, found in gen/, and the few conversions that everybody needs."""

import sys
from datetime import timedelta
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "gen"))

from torrelque_wire import torrelque_pb2 as pb
from torrelque_wire.torrelque_pb2_grpc import TorrelqueServiceStub

__all__ = ["TorrelqueServiceStub", "duration", "pb", "status_name"]


def duration(seconds: float) -> Duration:
    """Make a Duration of seconds."""
    made = Duration()
    made.FromTimedelta(timedelta(seconds=seconds))
    return made


def status_name(status: pb.TaskStatus) -> str:
    """Shorten TASK_STATUS_COMPLETED to COMPLETED; a number that this proto file does not know stays a number."""
    if status in pb.TaskStatus.values():
        return pb.TaskStatus.Name(status).removeprefix("TASK_STATUS_")
    return str(status)
