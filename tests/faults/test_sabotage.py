"""The figures can fail: what somebody breaks behind the library's back while processes die is found."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import a01_kill_storm, a02_power
from faults.figures import Options
from faults.storage import Storage
from redis import Redis

pytestmark = pytest.mark.slow


def lose(admin: Redis, queue: str) -> bool:
    """A task is gone."""
    if (task_id := admin.rpop(f"{queue}:pending")) is None:
        return False
    admin.hdel(f"{queue}:tasks", task_id)
    return bool(admin.delete(f"{queue}:task:{task_id.decode()}"))


def deliver_early(admin: Redis, queue: str) -> bool:
    """A task goes back while its lease runs."""
    for task_id in admin.zrange(f"{queue}:working", -1, -1):
        if admin.zrem(f"{queue}:working", task_id):
            admin.hset(f"{queue}:task:{task_id.decode()}", "status", 0)
            return bool(admin.lpush(f"{queue}:pending", task_id))
    return False


def change(admin: Redis, queue: str) -> bool:
    """A payload is not what was sent."""
    script = """
    local task_id = redis.call('LINDEX', KEYS[1], -1)
    return task_id and redis.call('HSET', KEYS[2], task_id, '{"nonce": 0}') == 0 and 1 or 0
    """
    return admin.eval(script, 2, f"{queue}:pending", f"{queue}:tasks") == 1


def leave(admin: Redis, queue: str) -> bool:
    """A key is left."""
    return bool(admin.set(f"{queue}:left", 1))


DEEDS: dict[str, Callable[[Redis, str], bool]] = {
    "lost": lose, "unexplained": deliver_early, "payload": change, "leftover": leave,
}  # fmt: skip


def test_kill_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each deed is among the violations of A1."""
    produce, left = a01_kill_storm._produce, dict(DEEDS)

    def sabotage(site: Any) -> None:
        ends = time.monotonic() + 30
        with Redis.from_url(site.url) as admin:
            # One after the other, in this order: a task that was changed must not be lost then.
            for kind, deed in DEEDS.items():
                while not deed(admin, site.queue):
                    if time.monotonic() > ends:
                        return
                    time.sleep(0.001)
                del left[kind]

    def produce_with_sabotage(site: Any, *more: Any) -> None:
        thread = threading.Thread(target=sabotage, args=(site,))
        thread.start()
        produce(site, *more)
        thread.join()

    monkeypatch.setattr(a01_kill_storm, "_produce", produce_with_sabotage)
    report = a01_kill_storm.run(Options(7, 0.01, tmp_path))
    assert left == {}
    assert report.verdict == "failed"
    assert {violation.partition(":")[0] for violation in report.violations} >= set(DEEDS)


def test_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut that takes what had been flushed is found by A2."""
    take_away = Storage.lose

    def lose_more(storage: Storage) -> None:
        take_away(storage)
        os.truncate(storage._log, storage._log.stat().st_size - 5000)

    monkeypatch.setattr(Storage, "lose", lose_more)
    monkeypatch.setattr(a02_power, "FAULTS", {"power cut": 25})
    report = a02_power.run(Options(7, 0.04, tmp_path))
    assert report.verdict == "failed"
    # What stands at the end of the log is chance: an enqueue, a settlement, or a claim, whose number is given again.
    found = {violation.partition(":")[0] for violation in report.violations}
    assert found & {"lost", "undone", "after finality", "token", "refused"}
