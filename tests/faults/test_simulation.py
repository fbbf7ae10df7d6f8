"""The simulation itself: one seed is one history, and what is broken on purpose is seen."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from faults.a10_proof import replayed
from faults.simulation.seeding import seeded
from faults.simulation.world import simulate

from torrelque import scripts


def order_of_tasks(seed: int) -> list[int]:
    """In which order Trio runs tasks that are ready at the same time."""
    order: list[int] = []

    async def note(number: int) -> None:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(note, number)

    with seeded(seed):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return order


def test_a_seed_decides_the_scheduler() -> None:
    """What is private to Trio, and could change its name, still does what it should: the order follows the seed."""
    assert order_of_tasks(1) == order_of_tasks(1)
    assert len({tuple(order_of_tasks(seed)) for seed in range(8)}) == 8


def test_a_seed_is_a_history() -> None:
    """The same seed gives the same history to the last event, here and in a process whose strings hash otherwise."""
    seeds = [5, 11, 12]
    first = [simulate(seed, keep_trace=True) for seed in seeds]
    assert [simulate(seed, keep_trace=True).trace for seed in seeds] == [outcome.trace for outcome in first]
    assert replayed(seeds) == {outcome.seed: outcome.digest for outcome in first}
    assert len({outcome.digest for outcome in first}) == 3


@pytest.mark.parametrize("seed", range(20, 30))
def test_histories(seed: int) -> None:
    """A few of those that the figure a10 runs by the thousand."""
    outcome = simulate(seed)
    assert outcome.violations == []
    assert outcome.operations > 20
    assert bool(outcome.faults) == (seed % 5 != 0)


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(1391149295, id="a lease that was lost to the same number of an earlier life of its id"),
        pytest.param(1200879593, id="a task that ended in the hand of who waited for more, from claim to claim"),
        pytest.param(1200879622, id="a task that ended in the hand of one whose time passed"),
        pytest.param(2324153, id="a claim that was made hours after it was sent, by a clock that had jumped"),
    ],
)
def test_histories_that_were_called_broken(seed: int) -> None:
    """Nothing is broken any more in what thousands of them have shown."""
    assert simulate(seed).violations == []


def test_a_broken_script_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that forgets the payload is a violation in the first history."""
    text = scripts.RELEASE.text.replace(b"redis.call('HDEL', tasks, unpack(ended))", b"")
    assert text != scripts.RELEASE.text
    broken = scripts.Script("release", text, b"0" * 40)
    monkeypatch.setattr(scripts, "ALL", tuple(broken if each is scripts.RELEASE else each for each in scripts.ALL))
    monkeypatch.setattr(scripts, "RELEASE", broken)
    assert any(violation.startswith("I3") for violation in simulate(20).violations)
