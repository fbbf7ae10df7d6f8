"""Looks for what is wrong in the data of a queue, while others work on it, and puts it right.

Nothing is believed that is seen once. A first pass looks at everything, in scripts of bounded size, and has doubts:
about what a script finds wrong with an id, and about what only shows when the lists have been walked (ids that stand
there twice, or nowhere). A producer that writes in several steps then has time to finish; a second pass judges the
doubtful ids alone, each in one atomic look, with which it is also repaired.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from anyio import sleep

from .batching import Coalescer
from .calls import Calls, Doubt, Starts
from .model import TorrelqueCheckFinding, TorrelqueCheckReport, TorrelqueDamage

logger = logging.getLogger("torrelque")

#: How many ids a script judges, and how many it only lists.
JUDGED, LISTED = 150, 300
#: Payloads may come along with their ids, so the first look at them is for few.
FIRST = 10
#: So far before the place where an id was met it is looked for: somebody may have cut others out meanwhile.
SLACK = 20
#: So many of the places are kept where an id was met before: the last ones, to be told from the next.
FEW = 3
#: A list that ids were cut out of is walked again, until nothing is cut any more, but no more often than this.
WALKS = 3
#: The types of the structures; ``none`` is an empty one.
TYPES = {
    "pending": "list", "dequeueing": "list", "undequeued": "set", "working": "zset", "delayed": "zset", "tasks": "hash",
    "dead": "zset", "dead:payloads": "hash",
}  # fmt: skip
LISTS = ("dequeueing", "pending")
#: For each list where ids stand in it, without the drift.
Places: TypeAlias = dict[str, dict[bytes, set[int]]]

#: Told how much has been looked at, and about how much there is.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Terms:
    """How to check.

    :ivar default_lease: seconds, for a task that has no lease stored
    :ivar keep: seconds for which a final state is kept that has no end
    :ivar grace: seconds between the two passes
    """

    repair: bool
    default_lease: float
    keep: float
    grace: float
    progress: Progress | None = None


@dataclass(slots=True)
class Walk:
    """Goes through a list from the left, by indexes that change beneath it.

    What is added at the left moves everything to the right; so each stretch begins with the last id of the one before,
    and how far that has moved tells what was met already.
    """

    name: str
    index: int = 0
    last: bytes | None = None
    #: How far everything has moved to the right since the walk began.
    drift: int = 0

    @property
    def begin(self) -> int:
        """Where the next stretch begins."""
        return self.index if self.last is None else self.index - 1

    def pass_by(self, ids: list[bytes]) -> list[bytes]:
        """Go on behind *ids*; returns those that were surely not met before."""
        begin = self.begin
        self.index = begin + len(ids)
        if self.last is None:
            fresh = ids
        elif self.last in ids:
            moved = ids.index(self.last)
            self.drift += moved
            fresh = ids[moved + 1 :]
        else:
            return []
        self.last = ids[-1] if ids else self.last
        return fresh

    def go_back(self, begin: int, cut: int) -> None:
        """Look again from *begin* on, where so many ids have been cut out of the list."""
        self.index = max(0, begin - cut)
        self.last = None
        self.drift -= cut


class Audit:
    """One check of one queue; used once."""

    def __init__(self, coalescer: Coalescer, calls: Calls, terms: Terms) -> None:
        self._coalescer = coalescer
        self._calls = calls
        self._terms = terms
        #: What to judge ids by in the second pass.
        self._doubts: dict[bytes, set[bytes]] = {}
        #: Ids of payloads that were met nowhere, and what their states were then.
        self._missing: dict[bytes, bytes] = {}
        self._findings: dict[tuple[bytes, TorrelqueDamage], bool] = {}
        self._looked = self._done = self._total = 0

    async def run(self) -> TorrelqueCheckReport:
        """Look at everything, and at what is doubtful once more.

        :raises TorrelqueRedisError: Redis failed; what was repaired until then stays so
        """
        shape = await self._coalescer.run(self._calls.shape())
        if foreign := [name for name, kind in TYPES.items() if shape.types[name] not in (kind, "none")]:
            findings = [TorrelqueCheckFinding(TorrelqueDamage.TYPE, name, repaired=False) for name in foreign]
            return TorrelqueCheckReport(0, findings)
        self._total = sum(shape.sizes.values())
        await self._survey()
        if self._doubts or self._missing:
            await sleep(self._terms.grace)
            await self._judge()
        return TorrelqueCheckReport(self._looked, list(self._reported()))

    def _reported(self) -> Iterator[TorrelqueCheckFinding]:
        for (task_id, damage), repaired in self._findings.items():
            yield TorrelqueCheckFinding(damage, task_id.decode(errors="backslashreplace"), repaired)

    # The first pass

    async def _survey(self) -> None:
        listed: set[bytes] = set()
        for name in LISTS:
            await self._survey_list(Walk(name), listed)
        for name in ("working", "delayed", "states"):
            await self._scan(name)
        loose = [task_id for task_id in await self._scan("tasks") if task_id not in listed]
        del listed
        while loose:
            states = await self._coalescer.run(self._calls.look([Doubt(task_id, b"") for task_id in loose[:JUDGED]]))
            self._missing.update({task_id: state for task_id, (_, state) in zip(loose, states, strict=False)})
            del loose[: len(states)]

    async def _survey_list(self, walk: Walk, listed: set[bytes]) -> None:
        while True:
            page = await self._coalescer.run(self._calls.walk(walk.name, walk.begin, JUDGED, judge=True))
            self._doubt(page.wrong)
            for task_id in walk.pass_by(page.ids):
                if task_id in listed:
                    self._doubt({task_id: b"twice"})
                listed.add(task_id)
            listed.update(page.ids)
            self._advance(page.looked, page.looked)
            if page.looked < JUDGED:
                return

    async def _scan(self, name: str) -> list[bytes]:
        """Look through a set, a hash or the states; returns the ids that the script leaves to us."""
        loose: list[bytes] = []
        cursor, count = b"0", FIRST if name == "tasks" else JUDGED
        while True:
            page = await self._coalescer.run(self._calls.scan(name, cursor, count))
            self._doubt(page.wrong)
            loose += page.ids
            # Of all the keys that are looked through few may be states.
            self._advance(page.looked, count if name == "states" else page.looked)
            cursor, count = page.cursor, page.enough
            if cursor == b"0":
                return loose

    def _doubt(self, wrong: dict[bytes, bytes]) -> None:
        for task_id, words in wrong.items():
            self._doubts.setdefault(task_id, set()).update(words.split())

    def _advance(self, looked: int, done: int) -> None:
        self._looked += looked
        self._done = min(self._done + done, self._total)
        if self._terms.progress is not None:
            self._terms.progress(self._done, self._total)

    # The second pass

    async def _judge(self) -> None:
        met: set[bytes] = set()
        places: Places = {name: {} for name in LISTS}
        for name in LISTS:
            for _ in range(WALKS):
                places[name].clear()
                # What is cut out moves some of the others, so where those stand is a guess until the next walk.
                if not await self._judge_list(Walk(name), places, met):
                    break
        self._admit(places)
        # What the lists do not hold is in a place where it is found at once, or nowhere.
        await self._settle([self._doubtful(task_id) for task_id in self._doubts if task_id not in met])
        missing = [item for item in self._missing.items() if item[0] not in met]
        await self._settle([Doubt(task_id, b"expiry leftover orphan", state) for task_id, state in missing])

    def _admit(self, places: Places) -> None:
        """Call nothing repaired that the last walks through the lists have met in several places, and not cut out."""
        met = Counter(task_id for name in LISTS for task_id, known in places[name].items() for _ in known)
        for task_id, count in met.items():
            if count > 1 and (task_id, TorrelqueDamage.TWICE) in self._findings:
                self._findings[task_id, TorrelqueDamage.TWICE] = False

    def _doubtful(self, task_id: bytes) -> Doubt:
        return Doubt(task_id, b" ".join(sorted(self._doubts[task_id])))

    async def _judge_list(self, walk: Walk, places: Places, met: set[bytes]) -> bool:
        """Settle what is doubtful in a list; returns whether anything was cut out of it."""
        changed = False
        while True:
            begin = walk.begin
            page = await self._coalescer.run(self._calls.walk(walk.name, begin, LISTED, judge=False))
            walk.pass_by(page.ids)
            at: dict[bytes, list[int]] = {}
            for n, task_id in enumerate(page.ids):
                if task_id in self._doubts:
                    at.setdefault(task_id, []).append(begin + n)
            met.update(at)
            met.update(task_id for task_id in page.ids if task_id in self._missing)
            if cut := await self._judge_stretch(walk, begin, at, places):
                walk.go_back(begin, cut)
                changed = True
            elif page.looked < LISTED:
                return changed

    async def _judge_stretch(self, walk: Walk, begin: int, at: dict[bytes, list[int]], places: Places) -> int:
        """Settle what is doubtful in a stretch of a list; returns how many ids were cut out of the list, if any."""
        pending = walk.name == "pending"
        once = [task_id for task_id in at if b"twice" not in self._doubts[task_id]]
        starts: Starts = ([begin], []) if pending else ([], [begin])
        cuts = await self._settle([self._doubtful(task_id) for task_id in once], starts)
        if cut := cuts[0 if pending else 1]:
            return cut
        for task_id in at.keys() - once:
            known = places[walk.name].setdefault(task_id, set())
            known.update(index - walk.drift for index in at[task_id])
            here = [place + walk.drift - SLACK for place in known]
            there = [place - SLACK for place in places["dequeueing"].get(task_id, ())]
            cuts = await self._settle([self._doubtful(task_id)], (here, there) if pending else ([], here))
            if pending and cuts[1]:
                places["dequeueing"].pop(task_id, None)
            if cut := cuts[0 if pending else 1]:
                known.clear()  # what was left of it stands in this stretch, and is met again
                return cut
            places[walk.name][task_id] = set(sorted(known)[-FEW:])
        return 0

    async def _settle(self, doubts: list[Doubt], starts: Starts = ((), ())) -> tuple[int, int]:
        """Judge ids for good, and put them right if we may; returns how many were cut out of the two lists."""
        pending = dequeueing = 0
        while doubts:
            some = doubts[:JUDGED]
            if self._terms.repair:
                call = self._calls.mend(some, self._terms.default_lease, self._terms.keep, starts)
                mended = await self._coalescer.run(call)
                pending, dequeueing = pending + mended.cut[0], dequeueing + mended.cut[1]
                words = mended.words
            else:
                words = [said for said, _ in await self._coalescer.run(self._calls.look(some, starts))]
            self._note(some, words)
            doubts = doubts[len(words) :]
        return pending, dequeueing

    def _note(self, doubts: list[Doubt], words: list[bytes]) -> None:
        for doubt, said in zip(doubts, words, strict=False):
            for word in said.split():
                self._findings[doubt.task_id, TorrelqueDamage(word.decode())] = self._terms.repair
            if said and self._terms.repair:
                logger.info("Repaired task %r: %s", doubt.task_id, said.decode())
