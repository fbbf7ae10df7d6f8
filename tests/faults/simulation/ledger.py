"""The oracle at the server: what each script may change, said a second time in Python, and compared after each run.

The numbers (I1 to I14) are those of the invariants in ``docs/reliability.md``. It knows nothing of clients; what these
were told is compared with the ledger by ``verdicts.py``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from torrelque.calls import BOUND
from torrelque.keys import Keys

from .server import SimServer, Spinning
from .store import CommandError
from .view import DELAYED, DONE, PENDING, REJECTED, WORKING, Ended, Task, View, read

MICROSECOND = 2e-6
#: The token of what no delivery has done.
NOBODY = 0
#: So many broken promises say it all.
ENOUGH = 50
#: What a server whose memory is full may refuse: all else must go on, or the queue could not be emptied.
MAY_BE_REFUSED = {"enqueue", "LMOVE"}


@dataclass
class Claim:
    """One delivery, as the server made it."""

    task_id: str
    token: int
    life: int
    at: float
    body: bytes
    ended: str = ""
    """By what: release, requeue, handback, swept; empty while it stands."""
    ended_at: float = math.inf


class Ledger:
    """Watches one queue in a server.

    :param on_time: nothing fails in this run, and somebody sweeps
    :param late: seconds after which a delay or lease that has ended is back, in such a run
    """

    def __init__(self, server: SimServer, queue: str, *, on_time: bool, late: float) -> None:
        self._server = server
        self.keys = Keys(queue)
        self._prefix = f"{queue}:".encode()
        self.on_time = on_time
        self._allowed = late
        self.violations: list[str] = []
        self.scripts = 0
        self.claims: dict[str, list[Claim]] = defaultdict(list)
        self.lives: dict[str, int] = defaultdict(int)
        self.bodies: dict[tuple[str, int], bytes] = {}
        self.releases: dict[tuple[str, int], list[tuple[str, bytes]]] = defaultdict(list)
        """By id and token: status and result, of what was released."""
        self.said: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        """By script, id and token: every answer."""
        self.stats: set[tuple[int, ...]] = set()
        self.reports: set[tuple[int, int, int]] = set()
        self.versions: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        """By id: status, count and requeues, in order."""
        self.ends: dict[str, list[float]] = defaultdict(list)
        """By id: when it became final, by the virtual clock."""
        self.too_late: dict[tuple[str, int], float] = {}
        """By id and token: when it was handed back, and was no longer its giver's."""
        self.results: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
        """By id: status and result of what was kept."""
        self.letters: set[tuple[str, bytes, bytes, int, int]] = set()
        """All dead letters that were read: id, payload, reason, count and requeues."""
        self.lateness = 0.0
        self._parked_since: dict[str, float] = {}
        self.trace: Callable[[str], None] = lambda line: None
        self.did: Callable[[str, str, int, float | None], None] = lambda op, task_id, token, kept: None
        """Is told what the server did with a task on its own account: the operation, the id, its token, and for how
        many seconds what is known of it is kept."""

    def _broken(self, rule: str, text: str) -> None:
        self.violations.append(f"{rule} at {self._server.now():.3f}: {text}")
        if len(self.violations) > ENOUGH:
            raise Spinning("too much is broken to go on")

    # Reading

    def view(self) -> View:
        """Read the queue."""
        return read(self._server.store.keys, self.keys, round(self._server.now() * 1e6) / 1e6)

    def before(self) -> View:
        """See :class:`Observer`."""
        return self.view()

    def after(self, noted: View, command: str, args: Sequence[bytes], reply: Any) -> None:
        """See :class:`Observer`."""
        self.scripts += 1
        after = self.view()
        self.trace(f"{command} {_shown(args)} -> {_shown([reply])}")
        self._check_partition(after)
        expected = noted.fork()
        if isinstance(reply, CommandError):
            if command not in MAY_BE_REFUSED or not str(reply).startswith("OOM"):
                self._broken("scripts", f"{command} {_shown(args)} answered {reply}")
        else:
            judge = getattr(self, f"_{command.lower()}", None)
            if judge is None:
                self._broken("scripts", f"nobody should have sent {command}")
            else:
                items = [arg.decode("utf-8", "replace") for arg in args]
                if len(items) > 4 * BOUND + 5:
                    self._broken("I18", f"{command} for {len(items)} arguments")
                judge(noted, expected, items, reply, args)
        self._compare(command, args, expected, after)
        self._note_versions(after)
        self._note_parked(after)

    def _note_parked(self, view: View) -> None:
        """I15: what was taken for somebody who waits does not stay between the places when nothing fails."""
        for task_id in [task_id for task_id in self._parked_since if task_id not in view.parked]:
            since = self._parked_since.pop(task_id)
            if self.on_time and view.now - since > 1:
                self._broken("I15", f"{task_id} stood in dequeueing for {view.now - since:.3f} s")
        for task_id in view.parked:
            self._parked_since.setdefault(task_id, view.now)

    def _check_partition(self, view: View) -> None:
        """I3: a live id is in one place, once, with payload and state; I14: nothing else is stored."""
        places = [*view.pending, *view.parked, *view.working, *view.delayed]
        if len(places) != len(set(places)):
            self._broken("I3", f"an id stands in two places: {sorted(places)}")
        bodies = {task_id.decode() for task_id in self._server.store.keys.get(self.keys.tasks, ())}
        if set(places) != bodies or bodies != set(view.live):
            self._broken("I3", f"ids {sorted(places)}, payloads {sorted(bodies)}, states {sorted(view.live)}")
        for status, ids in (
            (PENDING, (*view.pending, *view.parked)), (WORKING, view.working), (DELAYED, view.delayed),
        ):  # fmt: skip
            for task_id in ids:
                if task_id in view.live and view.live[task_id].status != status:
                    self._broken("I3", f"{task_id} has status {view.live[task_id].status}, not {status}")
        self._check_letters(view)
        expires = self._server.store.expires
        for task_id in (*view.live, *view.dead):
            if self.keys.state(task_id.encode()) in expires:
                self._broken("I3", f"the state of {task_id} would expire, and the task lives or is a dead letter")
        for task_id, ended in view.final.items():
            status = ended.task.status
            if status not in {DONE, REJECTED}:
                self._broken("I14", f"a state without a task: {task_id}, status {status!r}")
            elif self.keys.state(task_id.encode()) not in expires:
                self._broken("I14", f"the result of {task_id} would be kept for ever")

    def _check_letters(self, view: View) -> None:
        """I3: a dead letter has a time, a payload and a state, and is no live task."""
        payloads = {task_id.decode() for task_id in self._server.store.keys.get(self.keys.dead_payloads, ())}
        if not view.died.keys() == view.dead.keys() == payloads:
            stands = f"dead {sorted(view.died)}, their payloads {sorted(payloads)}, states {sorted(view.dead)}"
            self._broken("I3", stands)
        for task_id, letter in view.dead.items():
            if letter.task.status != REJECTED or task_id in view.live:
                self._broken("I3", f"{task_id} is a dead letter and has status {letter.task.status}")

    def _compare(self, command: str, args: Sequence[bytes], expected: View, after: View) -> None:
        if expected == after:
            return
        for name in ("pending", "parked", "noted", "live", "final", "dead"):
            wanted, got = getattr(expected, name), getattr(after, name)
            if wanted != got:
                self._broken("model", f"{command} {_shown(args)}: {name} is {got}, should be {wanted}")
        for name in ("working", "delayed", "died"):
            wanted, got = getattr(expected, name), getattr(after, name)
            if wanted.keys() != got.keys() or any(abs(wanted[key] - got[key]) > MICROSECOND for key in wanted):
                self._broken("model", f"{command} {_shown(args)}: {name} is {got}, should be {wanted}")

    def _note_versions(self, view: View) -> None:
        ended = {task_id: each.task for task_id, each in (*view.final.items(), *view.dead.items())}
        for task_id, task in (*view.live.items(), *ended.items()):
            versions, version = self.versions[task_id], (task.status, task.count, task.requeues)
            if not versions or versions[-1] != version:
                versions.append(version)

    def _late(self, by: float, task_id: str, rule: str) -> None:
        if by < -MICROSECOND:
            self._broken(rule, f"{task_id} came back {-by:.6f} s early")
        self.lateness = max(self.lateness, by)
        if self.on_time and by > self._allowed:
            self._broken(rule, f"{task_id} came back {by:.3f} s late")

    # What each script may do. `view` becomes what should be there afterwards.

    def _put_back(self, view: View, task_id: str, *, count: bool = True) -> None:
        view.pending.append(task_id)
        view.live[task_id].status = PENDING
        if count:
            view.live[task_id].requeues += 1

    def _promote(self, view: View, place: dict[str, float], rule: str) -> int:
        ended = sorted((end, task_id) for task_id, end in place.items() if end <= view.now + 1e-7)
        for end, task_id in ended:
            self._late(view.now - end, task_id, rule)
            del place[task_id]
            self._put_back(view, task_id)
            self._end_claim(task_id, "swept")
        return len(ended)

    def _end_claim(self, task_id: str, how: str) -> None:
        claims = self.claims[task_id]
        if claims and not claims[-1].ended:
            claims[-1].ended, claims[-1].ended_at = how, self._server.now()

    def _claim(self, view: View, task_id: str) -> None:
        task = view.live[task_id]
        task.status = WORKING
        task.count += 1
        view.working[task_id] = view.now + task.lease
        claims, life = self.claims[task_id], self.lives[task_id]
        if claims and not claims[-1].ended:
            self._broken("I4", f"{task_id} is claimed while an earlier claim stands")
        claims.append(Claim(task_id, task.count, life, view.now, task.body))

    def _enqueue(self, before: View, view: View, args: list[str], reply: bytes, raw: Sequence[bytes]) -> None:
        said = reply.split()
        for n, i in enumerate(range(2, len(args), 4)):
            task_id, delay = args[i], float(args[i + 3])
            new = not view.knows(task_id)
            if (said[n] == b"1") != new:
                self._broken("I7", f"enqueue of {task_id} answered {said[n]!r}")
            self.said["enqueue", task_id, ""].add(said[n].decode())
            if not new:
                continue
            self.lives[task_id] += 1
            self.bodies[task_id, self.lives[task_id]] = raw[i + 1]
            view.live[task_id] = Task(raw[i + 1], float(args[i + 2]), DELAYED if delay else PENDING)
            if delay:
                view.delayed[task_id] = view.now + delay
            else:
                view.pending.append(task_id)

    def _dequeue(self, before: View, view: View, args: list[str], reply: bytes, raw: Sequence[bytes]) -> None:
        wanted, adopt, giving_up = int(args[2]), args[8:], _GivingUp.read(args, raw)
        claimed: list[str] = []
        ended: list[str] = []
        for task_id in dict.fromkeys(adopt):
            if task_id in view.parked:
                view.parked.remove(task_id)
                self._claim_or_end(view, task_id, giving_up, claimed, ended)
        self._promote(view, view.delayed, "I9")
        self._claim_pending(view, wanted, giving_up, claimed, ended)
        if len(claimed) < wanted:
            self._promote(view, view.working, "I10")
            self._claim_pending(view, wanted, giving_up, claimed, ended)
        self._check_claim(view, claimed, ended, wanted, reply)

    def _claim_pending(
        self, view: View, wanted: int, giving_up: _GivingUp, claimed: list[str], ended: list[str]
    ) -> None:
        while view.pending and len(claimed) < wanted:
            self._claim_or_end(view, view.pending.pop(0), giving_up, claimed, ended)

    def _claim_or_end(
        self, view: View, task_id: str, giving_up: _GivingUp, claimed: list[str], ended: list[str]
    ) -> None:
        """I8: a task that was delivered as often as it may be is ended, and not before."""
        if not giving_up.meets(view.live[task_id]):
            self._claim(view, task_id)
            claimed.append(task_id)
            return
        ended.append(task_id)
        self.did("give up", task_id, view.live[task_id].count, giving_up.kept)
        self._end(view, task_id, REJECTED, giving_up.reason, giving_up.kept)

    def _end(self, view: View, task_id: str, status: str, result: bytes, kept: float | None) -> None:
        """Make a live task final; *kept* is for how many seconds, infinite for a dead letter."""
        task = view.live.pop(task_id)
        self.ends[task_id].append(trio.current_time())
        if kept is None:
            return
        task.status = REJECTED if kept == math.inf else status
        self.results[task_id].append((task.status, result))
        if kept == math.inf:
            # Behind all others, also where the clock was put back.
            view.dead[task_id], view.died[task_id] = Ended(task, result), max(view.now, view.newest() + 1e-6)
        else:
            task.body = b""
            view.final[task_id] = Ended(task, result)

    def _check_claim(self, view: View, claimed: list[str], ended: list[str], wanted: int, reply: bytes) -> None:
        """What is answered is what was done (I2, I5, I16), and tells when to look again (I9, I10)."""
        sheet, _, bodies = reply.partition(b"\n")
        until_next, _, drops, given_up, *numbers = sheet.split()
        told = b"".join(task_id.encode() + view.live[task_id].body for task_id in claimed) + "".join(ended).encode()
        counts = [int(number) for number in numbers[: 4 * len(claimed) : 4]]
        should = [view.live[task_id].count for task_id in claimed]
        if told != bodies or int(drops) or int(given_up) != len(ended) or counts != should:
            self._broken("I16", f"dequeue claimed {claimed}, ended {ended} and answered {reply[:200]!r}")
        if len(claimed) < wanted:
            self._check_until(view, until_next)

    def _check_until(self, view: View, told: bytes) -> None:
        soonest = min([*view.working.values(), *view.delayed.values()], default=math.inf)
        left = max(soonest - view.now, 0)
        if left != float(told) and abs(left - float(told)) > 1e-5:
            self._broken("I9", f"the next time is told as {told!r}, and is {left}")

    def _verdict(self, view: View, task_id: str, token: str) -> int:
        if task_id in view.working:
            return 1 if token in {"", str(view.live[task_id].count)} else -2
        return -1 if view.knows(task_id) else 0

    def _heard(self, script: str, task_id: str, token: str, said: bytes, should: int) -> None:
        self.said[script, task_id, token].add(said.decode())
        if should != 1 and said != b"%d" % should:
            self._broken("I5", f"{script} of {task_id} by {token!r} answered {said!r}, should be {should}")
        if should == 1 and said in {b"0", b"-1", b"-2"}:
            self._broken("I5", f"{script} of {task_id} by {token!r}, its owner, answered {said!r}")

    def _requeue(self, before: View, view: View, args: list[str], reply: bytes, raw: Sequence[bytes]) -> None:
        said = reply.split()
        for n, i in enumerate(range(2, len(args), 4)):
            task_id, token, delay, lease = args[i], args[i + 1], float(args[i + 2]), args[i + 3]
            should = self._verdict(view, task_id, token)
            self._heard("requeue", task_id, token, said[n], should)
            if should != 1:
                continue
            self._end_claim(task_id, "requeue")
            del view.working[task_id]
            task = view.live[task_id]
            task.lease = float(lease or task.lease)
            if delay:
                view.delayed[task_id] = view.now + delay
                task.status = DELAYED
            else:
                self._put_back(view, task_id)

    def _release(self, before: View, view: View, args: list[str], reply: bytes, raw: Sequence[bytes]) -> None:
        said = reply.split()
        for n, i in enumerate(range(2, len(args), 3)):
            task_id, token, result = args[i], args[i + 1], raw[i + 2]
            should = self._verdict(view, task_id, token)
            self._heard("release", task_id, token, said[n], should)
            if should != 1:
                continue
            self._end_claim(task_id, "release")
            del view.working[task_id]
            self.releases[task_id, view.live[task_id].count].append((args[0], result[1:]))
            kept = math.inf if args[1] == "" else float(args[1]) / 1000 if result else None
            self._end(view, task_id, args[0], result[1:], kept)

    def _extend(self, before: View, view: View, args: list[str], reply: bytes, raw: Sequence[bytes]) -> None:
        said = reply.split()
        for n, i in enumerate(range(3, len(args), 3)):
            task_id, token, lease = args[i], args[i + 1], args[i + 2]
            should = self._verdict(view, task_id, token)
            self._heard("extend", task_id, token, said[n], should)
            if should == 1:
                end = view.working[task_id] = view.now + float(lease or view.live[task_id].lease)
                if abs(float(said[n]) - end) > MICROSECOND:
                    self._broken("I16", f"extend of {task_id} answered {said[n]!r}, should be {end}")

    def _handback(self, before: View, view: View, args: list[str], reply: bytes, raw: Sequence[bytes]) -> None:
        for n, i in enumerate(range(0, len(args), 2)):
            task_id, token = args[i], args[i + 1]
            done = False
            if token == "":
                done = task_id in view.parked
                if done:
                    view.parked.remove(task_id)
            elif task_id in view.working and view.live[task_id].count == int(token):
                done = True
                del view.working[task_id]
                view.live[task_id].count -= 1
                view.live[task_id].status = PENDING
                self._end_claim(task_id, "handback")
            if done:
                view.pending.insert(0, task_id)
            elif token:
                self.too_late[task_id, int(token)] = self._server.now()
            if (reply.split()[n] == b"1") != done:
                self._broken("I15", f"handing back {task_id} answered {reply!r}")

    def _sweep(self, before: View, view: View, args: list[str], reply: list[Any], raw: Sequence[bytes]) -> None:
        stale = self._promote(view, view.working, "I10")
        due = self._promote(view, view.delayed, "I9")
        undequeued = 0
        if args[2] != "timed":
            back = [task_id for task_id in view.parked if task_id in view.noted]
            for task_id in back:
                view.parked.remove(task_id)
                self._put_back(view, task_id)
            undequeued = len(back)
            view.noted = set(view.parked)
        told = (reply[0], reply[1], reply[2])
        self.reports.add(told)
        if told != (stale, due, undequeued) or reply[3] or reply[4] != b"end":
            self._broken("I20", f"a sweep gave back {(stale, due, undequeued)} and answered {reply}")
        self._check_until(view, reply[5])

    def _lmove(self, before: View, view: View, args: list[str], reply: bytes | None, raw: Sequence[bytes]) -> None:
        if reply is not None:
            view.parked.append(view.pending.pop(0))

    def _stats(self, before: View, view: View, args: list[str], reply: list[int], raw: Sequence[bytes]) -> None:
        counts = (len(view.live), len(view.pending), len(view.working), len(view.delayed))
        self.stats.add(counts)
        if tuple(reply) != counts:
            self._broken("I3", f"stats answered {reply}, should be {counts}")

    def _state(self, before: View, view: View, args: list[str], reply: Any, raw: Sequence[bytes]) -> None:
        for task_id, (status, *_) in zip(args, reply, strict=True):
            task = view.live.get(task_id)
            ended = view.final.get(task_id) or view.dead.get(task_id)
            should = task.status if task else ended and ended.task.status
            if (status.decode() if status else None) != should:
                self._broken("I12", f"the state of {task_id} is told as {status!r}, and is {should!r}")

    # Checks. A queue that is well has nothing that could seem wrong, to any of their scripts.

    def _shape(self, before: View, view: View, args: list[str], reply: list[Any], raw: Sequence[bytes]) -> None:
        sizes = [len(each) for each in (view.pending, view.parked, view.working, view.delayed, view.live)]
        if reply[8:13] != sizes:
            self._broken("I3", f"the structures have the sizes {sizes}, and {reply} was told")

    def _walk(self, before: View, view: View, args: list[str], reply: list[Any], raw: Sequence[bytes]) -> None:
        # From the left, where ids are added.
        ids = (view.pending if args[0] == "pending" else view.parked)[::-1][int(args[1]) :][: int(args[2])]
        if reply != [[task_id.encode() for task_id in ids], []]:
            self._broken("I3", f"walk {args} met {reply}, there are {ids}")

    def _scan(self, before: View, view: View, args: list[str], reply: list[Any], raw: Sequence[bytes]) -> None:
        if reply[3]:
            self._broken("I3", f"scan {args} found something wrong: {reply}")

    def _look(self, before: View, view: View, args: list[str], reply: list[Any], raw: Sequence[bytes]) -> None:
        if any(reply[::2]):
            self._broken("I3", f"look {args} found something wrong: {reply}")

    def _mend(self, before: View, view: View, args: list[str], reply: list[Any], raw: Sequence[bytes]) -> None:
        if any(reply[:2]) or any(reply[2]):
            self._broken("I3", f"mend {args} has changed something: {reply}")

    # Dead letters

    def _count_dead_letters(self, before: View, view: View, args: list[str], reply: int, raw: Sequence[bytes]) -> None:
        if reply != len(view.dead):
            self._broken("I3", f"{reply} dead letters were counted, there are {len(view.dead)}")

    def _dead_letters(
        self, before: View, view: View, args: list[str], reply: list[list[Any]], raw: Sequence[bytes]
    ) -> None:
        limit, time, last = int(args[0]), args[2], args[3]
        behind = (float(time), last if view.died.get(last) == float(time) else "") if time else (-math.inf, "")
        should = [task_id for task_id in view.letters() if (view.died[task_id], task_id) > behind][:limit]
        if [letter[0].decode() for letter in reply] != should:
            self._broken("I16", f"the dead letters are {should}, and were told as {reply}")
        for task_id, _, body, reason, count, requeues, *_ in reply:
            letter = view.dead[task_id.decode()]
            told = (task_id.decode(), body, reason or b"", int(count), int(requeues or 0))
            self.letters.add(told)
            if told[1:] != (letter.task.body, letter.result, letter.task.count, letter.task.requeues):
                self._broken("I16", f"a dead letter is told as {told}, and is {letter}")

    def _meant(self, view: View, args: list[str], reply: list[Any]) -> list[str]:
        """Find which dead letters a requeue or a purge is for, and check what it tells of that."""
        until, passed, bound, *ids = args
        told, now = reply[3].decode(), max(view.now, view.newest())
        if told != until and (until or abs(float(told) - now) > MICROSECOND):
            self._broken("I16", f"dead letters until {until or now} were meant, and {told} was told")
        old = [task_id for task_id in view.letters() if view.died[task_id] <= float(told) + 1e-7]
        return ids or old[int(passed) : int(passed) + int(bound)]

    def _taken(self, view: View, args: list[str], reply: list[Any]) -> list[tuple[str, Task]]:
        """Take the dead letters away that a requeue or a purge is for, and check what it tells of that."""
        meant = self._meant(view, args, reply)
        taken: list[tuple[str, Task]] = []
        for task_id in meant:
            if task_id in view.dead:
                del view.died[task_id]
                taken.append((task_id, view.dead.pop(task_id).task))
        if (reply[0], reply[1], reply[2]) != (len(taken), len(meant), len(meant) - len(taken)):
            self._broken("I16", f"{len(taken)} of {len(meant)} dead letters were taken, and {reply} was told")
        return taken

    def _requeue_dead_letters(
        self, before: View, view: View, args: list[str], reply: list[Any], raw: Sequence[bytes]
    ) -> None:
        for task_id, task in self._taken(view, args, reply):
            view.live[task_id] = task
            task.forgiven = task.count
            self._put_back(view, task_id)
            self.did("revive", task_id, task.count, None)

    def _purge_dead_letters(
        self, before: View, view: View, args: list[str], reply: list[Any], raw: Sequence[bytes]
    ) -> None:
        for task_id, _ in self._taken(view, args, reply):
            self.did("purge", task_id, NOBODY, None)


@dataclass(frozen=True)
class _GivingUp:
    """When a dequeue ends a task instead of delivering it."""

    attempts: float
    kept: float
    reason: bytes

    @classmethod
    def read(cls, args: list[str], raw: Sequence[bytes]) -> _GivingUp:
        return cls(float(args[5] or math.inf), float(args[6]) / 1000 if args[6] else math.inf, raw[7])

    def meets(self, task: Task) -> bool:
        return task.count - task.forgiven >= self.attempts


def _shown(args: Sequence[Any]) -> str:
    return " ".join(repr(arg)[:120] for arg in args)


__all__ = ["Claim", "Ledger"]
