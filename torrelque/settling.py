"""Releases and requeues tasks: a delivery learns of its end, and the caller of a verdict that changed nothing."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from .batching import Coalescer
from .calls import Call, Verdict
from .errors import (
    TorrelqueLeaseLostError,
    TorrelqueLookupError,
    TorrelqueNotWorkingError,
    TorrelqueRedisError,
    TorrelqueUnknownOutcomeError,
)
from .model import Settled, TorrelqueTaskId

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
        if pipeline is not None:
            await self._run(call, pipeline)
            if task_id._settled != "done":
                task_id._settled = "staged"
            return
        before = task_id._settled
        task_id._settled = "sent"
        try:
            verdict = await self._coalescer.run(call)
            if verdict is Verdict.APPLIED:
                task_id._settled = "done"
        except BaseException as error:
            if task_id._settled == "sent" and _may_be_applied(error):
                task_id._settled = "staged"
            raise
        finally:
            if task_id._settled == "sent":
                task_id._settled = before
        if verdict is not Verdict.APPLIED:
            judge(operation, task_id, verdict, strict)

    async def release_many(self, task_ids: list[str], call: Call[Verdict]) -> list[TorrelqueLookupError | None]:
        """Release many tasks with one call; returns for each why nothing could be done, if so.

        :raises TorrelqueRedisError: Redis failed
        """
        held: list[tuple[TorrelqueTaskId, Settled]] = [
            (task_id, task_id._settled) for task_id in task_ids if isinstance(task_id, TorrelqueTaskId)
        ]
        for task_id, _ in held:
            task_id._settled = "sent"
        verdicts: list[Verdict] = []
        try:
            verdicts = await self._coalescer.run_many(call)
        except BaseException as error:
            for task_id, _ in held if _may_be_applied(error) else ():
                if task_id._settled == "sent":
                    task_id._settled = "staged"
            raise
        finally:
            for said, each in zip(verdicts, task_ids, strict=False):
                if said is Verdict.APPLIED and isinstance(each, TorrelqueTaskId):
                    each._settled = "done"
            for task_id, before in held:
                if task_id._settled == "sent":
                    task_id._settled = before
        return [judge("release", *pair, strict=False) for pair in zip(task_ids, verdicts, strict=True)]


def _may_be_applied(error: BaseException) -> bool:
    """Tell whether a call that ended with *error* may have settled its task all the same."""
    return isinstance(error, TorrelqueUnknownOutcomeError) or not isinstance(error, TorrelqueRedisError)


def is_loss(task_id: TorrelqueTaskId, refusal: TorrelqueLookupError) -> bool | None:
    """Judge a refused extension: the lease was lost, if it has not ended because the task was settled by *task_id*.

    :returns: ``None`` as long as both may be
    """
    settled = task_id._settled
    if settled == "not":
        return True
    if settled == "done":
        return False
    if isinstance(refusal, TorrelqueNotWorkingError):
        return None  # nobody is at work on it, but somebody may be soon
    if isinstance(refusal, TorrelqueLeaseLostError):
        # Who requeued it on a pipeline, or was not told, and goes on, has to bear that: somebody is at work on it now.
        return True if settled == "staged" else None
    return False  # it is gone, and nobody will be


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
