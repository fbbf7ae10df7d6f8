"""Releases and requeues tasks: a delivery learns of its end, and the caller of a verdict that changed nothing."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from .batching import Coalescer
from .calls import Call, Verdict
from .errors import TorrelqueLeaseLostError, TorrelqueLookupError, TorrelqueNotWorkingError
from .model import TorrelqueTaskId

logger = logging.getLogger("torrelque")


class Run(Protocol):
    """Runs a call now, or queues it on the user's own pipeline (then there is no outcome yet)."""

    async def __call__(self, call: Call[Any], pipeline: Any) -> Any: ...


class Settler:
    """Settles tasks, and marks those as settled that were delivered here.

    A task is marked before anything is sent, for a renewal of its lease may be answered before the settlement is.
    """

    def __init__(self, coalescer: Coalescer, run: Run) -> None:
        self._coalescer = coalescer
        self._run = run

    async def settle(self, operation: str, task_id: str, call: Call[Verdict], pipeline: Any, strict: bool) -> None:
        """Settle one task.

        :raises TorrelqueLookupError: (strict) nothing could be done
        :raises TorrelqueRedisError: Redis failed
        """
        if not isinstance(task_id, TorrelqueTaskId):
            judge(operation, task_id, await self._run(call, pipeline), strict)
            return
        settled = task_id._settled
        task_id._settled = True
        try:
            verdict = await (self._coalescer.run(call) if pipeline is None else self._run(call, pipeline))
            settled = settled or verdict is None or verdict is Verdict.APPLIED
        finally:
            task_id._settled = settled
        if verdict is not Verdict.APPLIED:
            judge(operation, task_id, verdict, strict)

    async def release_many(self, task_ids: list[str], call: Call[Verdict]) -> list[TorrelqueLookupError | None]:
        """Release many tasks with one call; returns for each why nothing could be done, if so.

        :raises TorrelqueRedisError: Redis failed
        """
        held = [(task_id, task_id._settled) for task_id in task_ids if isinstance(task_id, TorrelqueTaskId)]
        for task_id, _ in held:
            task_id._settled = True
        verdicts: list[Verdict] = []
        try:
            verdicts = await self._coalescer.run_many(call)
        finally:
            for task_id, settled in held:
                task_id._settled = settled
            for said, each in zip(verdicts, task_ids, strict=False):
                if said is Verdict.APPLIED and isinstance(each, TorrelqueTaskId):
                    each._settled = True
        return [judge("release", *pair, strict=False) for pair in zip(task_ids, verdicts, strict=True)]


def judge(operation: str, task_id: str, verdict: Verdict | None, strict: bool) -> TorrelqueLookupError | None:
    """Turn a verdict into nothing, a warning or an error; a call on a pipeline has none yet."""
    if verdict is None or verdict is Verdict.APPLIED:
        return None
    errors = {
        Verdict.UNKNOWN: TorrelqueLookupError(f"Task {task_id} is unknown"),
        Verdict.NOT_WORKING: TorrelqueNotWorkingError(task_id),
        Verdict.LEASE_LOST: TorrelqueLeaseLostError(task_id),
    }
    if strict:
        raise errors[verdict]
    logger.warning("Inconsistent %s, nothing was changed: %s", operation, errors[verdict])
    return errors[verdict]
