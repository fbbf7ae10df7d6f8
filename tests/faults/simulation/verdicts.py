"""What the clients of a simulated queue were told, and whether that is what the server did."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torrelque import TorrelqueTaskId
from torrelque.model import TorrelqueTaskState

from .ledger import Claim, Ledger

#: What a settle raises, and what the script had answered.
VERDICTS = {"TorrelqueLeaseLostError": "-2", "TorrelqueNotWorkingError": "-1", "TorrelqueLookupError": "0"}
#: Errors after which nothing has happened.
REFUSED = {"TorrelqueUnavailableError", "TorrelqueFullError", "TorrelqueStorageError"}
#: Seconds within which a delivery that nobody saw is handed back, when nothing fails.
AT_ONCE = 1.0
#: Seconds within which a watch ends, when nothing fails; its reader pauses between two states.
TOLD = 4.0


@dataclass
class Settle:
    """One call to release, requeue or extend."""

    operation: str
    task_id: TorrelqueTaskId
    outcome: str = "begun"
    """``ok``, ``cancelled`` or the name of an error; a program that was killed did not get so far."""
    value: Any = None
    wanted: tuple[str, bytes] | None = None
    """Of a release: status and result."""


@dataclass
class Watch:
    """One watch."""

    task_id: str
    began: float
    """Unix time, by the clock of the server."""
    states: list[TorrelqueTaskState] = field(default_factory=list)
    ended: float | None = None
    """Alike, if it ended by itself."""


class History:
    """Collects, and judges at the end."""

    def __init__(self) -> None:
        self.enqueues: dict[str, list[str]] = defaultdict(list)
        """By id, how each try went."""
        self.deliveries: list[tuple[TorrelqueTaskId, bytes]] = []
        self.settles: list[Settle] = []
        self.watches: list[Watch] = []
        self.states: list[tuple[str, TorrelqueTaskState]] = []
        self.stats: list[tuple[int, ...]] = []
        self.sweeps: list[tuple[int, int, int]] = []
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()

    def judge(self, ledger: Ledger) -> list[str]:
        """Compare with what the server did."""
        judges: tuple[Callable[[Ledger], Iterator[str]], ...] = (
            self._enqueues, self._deliveries, self._tokens, self._settles, self._watches, self._looks,
        )  # fmt: skip
        return [*ledger.violations, *self.violations, *(line for judge in judges for line in judge(ledger))]

    def _enqueues(self, ledger: Ledger) -> Iterator[str]:
        """I1, I19: what was acknowledged was stored, what was refused was not."""
        for task_id, tries in self.enqueues.items():
            added = ledger.lives[task_id]
            if "ok" in tries and not added:
                yield f"I1: {task_id} was acknowledged and never stored"
            if added and set(tries) <= REFUSED:
                yield f"I19: {task_id} was refused ({', '.join(tries)}) and stored"
            if ("ok" in tries and "1" not in ledger.said["enqueue", task_id, ""]) or (
                "deduplicated" in tries and "0" not in ledger.said["enqueue", task_id, ""]
            ):
                yield f"I16: {task_id} was told {tries}, and the script said {ledger.said['enqueue', task_id, '']}"

    def _deliveries(self, ledger: Ledger) -> Iterator[str]:
        """I2, I4, I5, I15: each delivery is a claim of its own, and each claim is a delivery or was handed back."""
        seen = Counter((str(task_id), task_id.dequeue_count, body) for task_id, body in self.deliveries)
        standing: dict[tuple[str, int, bytes], list[Claim]] = defaultdict(list)
        for claims in ledger.claims.values():
            for claim in claims:
                if claim.ended != "handback":
                    standing[claim.task_id, claim.token, claim.body].append(claim)
                elif ledger.on_time and claim.ended_at - claim.at > AT_ONCE:
                    yield f"I15: {claim.task_id} was handed back after {claim.ended_at - claim.at:.3f} s"
        for key, count in seen.items():
            if count > len(standing[key]):
                claimed = len(standing[key])
                yield f"I4: {key[0]} was delivered {count} times with token {key[1]}, claimed {claimed} times"
        for key, claims in standing.items():
            if ledger.on_time and len(claims) > seen[key]:
                yield f"I15: {key[0]} was claimed with token {key[1]}, and nobody got it, nor was it handed back"

    def _tokens(self, ledger: Ledger) -> Iterator[str]:
        """I2, I5: what was delivered was claimed, and the numbers that callers see grow as long as a task lives."""
        claimed: set[tuple[str, int, bytes]] = set()
        for task_id, claims in ledger.claims.items():
            last: dict[int, int] = {}
            for claim in claims:
                claimed.add((task_id, claim.token, claim.body))
                if claim.ended == "handback":
                    continue
                if claim.token <= last.get(claim.life, 0):
                    yield f"I5: {task_id} was delivered with token {claim.token} after {last[claim.life]}"
                last[claim.life] = claim.token
        for task_id, body in self.deliveries:
            if (str(task_id), task_id.dequeue_count, body) not in claimed:
                yield f"I2: {task_id} was delivered with {body!r}, which was never claimed"

    def _settles(self, ledger: Ledger) -> Iterator[str]:
        """I5, I7, I16, I19: each caller was told what the script said of its task, and an error is honest."""
        tries: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for settle in self.settles:
            key = (settle.operation, str(settle.task_id), str(settle.task_id.dequeue_count))
            tries[key].append(settle.outcome)
            said = ledger.said[key]
            if settle.outcome in VERDICTS and VERDICTS[settle.outcome] not in said:
                yield f"I16: {key} raised {settle.outcome}, and the script said {sorted(said)}"
            if settle.outcome == "ok" and not self._was_done(settle, ledger):
                yield f"I16: {key} returned {settle.value} for {settle.wanted}, and the script said {sorted(said)}"
        for key, outcomes in tries.items():
            if set(outcomes) <= REFUSED and ledger.said[key] - {"0", "-1", "-2"}:
                yield f"I19: {key} was refused ({', '.join(outcomes)}) and applied"
        for key, releases in ledger.releases.items():
            if len(releases) > sum(claim.token == key[1] for claim in ledger.claims[key[0]]):
                yield f"I7: {key} was released {len(releases)} times"

    @staticmethod
    def _was_done(settle: Settle, ledger: Ledger) -> bool:
        said = ledger.said[settle.operation, str(settle.task_id), str(settle.task_id.dequeue_count)]
        if settle.operation == "extend":
            return any(abs(float(text) - settle.value) < 1e-5 for text in said)
        if settle.wanted is not None:
            return settle.wanted in ledger.releases[str(settle.task_id), settle.task_id.dequeue_count]
        return "1" in said

    def _watches(self, ledger: Ledger) -> Iterator[str]:
        """I12: a watch tells states that were, in their order; its end is an end, and soon told."""
        for watch in self.watches:
            task_id, versions, at = watch.task_id, ledger.versions[watch.task_id], 0
            for state in watch.states:
                version = (str(int(state.status)), state.dequeue_count, state.requeue_count)
                if version not in versions[at:]:
                    yield f"I12: a watch of {task_id} told {version}, out of order in {versions}"
                    break
                at = versions.index(version, at) + 1
                if state.status.isfinal():
                    yield from self._result(ledger, task_id, state)
            releases = [claim.ended_at for claim in ledger.claims[task_id] if claim.ended == "release"]
            if watch.ended is not None and not releases:
                yield f"I12: a watch of {task_id} ended, and the task had not"
            elif watch.ended is not None and ledger.on_time:
                late = watch.ended - max(watch.began, releases[-1])
                if late > TOLD:
                    yield f"I12: a watch of {task_id} ended {late:.3f} s after its task"

    def _looks(self, ledger: Ledger) -> Iterator[str]:
        """I16: what was read of states, counts and sweeps is what the scripts said."""
        for task_id, state in self.states:
            version = (str(int(state.status)), state.dequeue_count, state.requeue_count)
            if version not in ledger.versions[task_id]:
                yield f"I12: the state of {task_id} was told as {version}, not one of {ledger.versions[task_id]}"
            if state.status.isfinal():
                yield from self._result(ledger, task_id, state)
        yield from (f"I16: stats told {counts}" for counts in self.stats if counts not in ledger.stats)
        yield from (f"I20: a sweep told {report}" for report in self.sweeps if report not in ledger.reports)

    @staticmethod
    def _result(ledger: Ledger, task_id: str, state: TorrelqueTaskState) -> Iterator[str]:
        kept = [each for (known, _), all_of_them in ledger.releases.items() if known == task_id for each in all_of_them]
        if (str(int(state.status)), json.dumps(state.result).encode()) not in kept:
            yield f"I16: the result of {task_id} was told as {state.result!r}, and is one of {kept}"


__all__ = ["REFUSED", "VERDICTS", "History", "Settle", "Watch"]
