"""What became of the tasks of the demo, and whether that is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from anyio import current_time

from torrelque.model import TorrelqueTaskState

from .crew import Crew, Member
from .files import Digest, File, digest, mark_of

#: So many files that are not right are named.
EXAMPLES = 5


@dataclass
class Job:
    """One file: the task that it became, and what became of the task."""

    file: File
    task_id: str
    #: The final state; a task without one is lost.
    state: TorrelqueTaskState | None = None

    @property
    def digest(self) -> Digest | None:
        """What a worker has found out about the file."""
        return Digest.from_result(self.state.result) if self.state else None

    @property
    def worker(self) -> int | None:
        """The process that has released the task."""
        return self.state.result.get("worker") if self.state and isinstance(self.state.result, dict) else None

    @property
    def redelivered(self) -> bool:
        """Whether it took more than one delivery."""
        return self.state is not None and self.state.dequeue_count > 1


class Verdict(Enum):
    """What the check of one task says."""

    RIGHT = "right"
    LOST = "lost"
    MISMATCH = "mismatch"
    #: The file is not what it was when the demo began, so nobody can tell.
    CHANGED = "changed"


def judge(job: Job, between: Callable[[], object] = lambda: None) -> Verdict:
    """Compare what a worker has found out with the file itself.

    :param between: called again and again meanwhile; may raise to stop
    """
    if job.state is None:
        return Verdict.LOST
    if job.digest is not None and job.digest == _digest_or_none(job.file.path, between):
        return Verdict.RIGHT
    return Verdict.MISMATCH if mark_of(job.file.path) == job.file.mark else Verdict.CHANGED


def _digest_or_none(path: str, between: Callable[[], object]) -> Digest | None:
    try:
        return digest(path, between)
    except OSError:
        return None


@dataclass
class Run:
    """What has happened so far; the screen may look at any time."""

    total: int
    jobs: list[Job] = field(default_factory=list)
    done: int = 0
    bytes: int = 0
    redelivered: int = 0
    started: float = field(default_factory=current_time)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (current_time() if self.ended is None else self.ended) - self.started

    @property
    def rate(self) -> float:
        """Tasks per second."""
        return self.done / max(self.seconds, 0.001)

    def note(self, job: Job) -> None:
        """Count a task that has come to its end."""
        self.done += 1
        self.bytes += job.digest.bytes if job.digest else 0
        self.redelivered += job.redelivered


@dataclass(frozen=True)
class Share:
    """What one worker has done."""

    worker: Member
    tasks: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """How the demo has ended."""

    run: Run
    skipped: int
    shares: list[Share]
    verdicts: Counter[Verdict]
    #: Some of the files that are not right.
    examples: list[tuple[Verdict, str]]
    deserters: list[Member]

    @property
    def good(self) -> bool:
        """Nothing is lost, nothing is wrong, and nobody has died but the worker that was killed."""
        return not (self.verdicts[Verdict.LOST] or self.verdicts[Verdict.MISMATCH] or self.deserters)


def make_report(run: Run, skipped: int, crew: Crew, verdicts: list[Verdict]) -> Report:
    """Sum up.

    :param verdicts: one for each of ``run.jobs``
    """
    judged = zip(verdicts, run.jobs, strict=True)
    wrong: list[tuple[Verdict, str]] = [(v, job.file.path) for v, job in judged if v is not Verdict.RIGHT]
    shares = [_share(run, member) for member in crew.members]
    return Report(run, skipped, shares, Counter(verdicts), wrong[:EXAMPLES], crew.deserters)


def _share(run: Run, member: Member) -> Share:
    jobs = [job for job in run.jobs if job.worker == member.process.pid]
    return Share(member, len(jobs), sum(job.digest.bytes for job in jobs if job.digest))
