"""The means of the fault bench: what a power cut takes away, and that no process outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.crew import Crew
from faults.storage import unflushed
from support import wait_until

AOF = "</d/appendonlydir/appendonly.aof.1.incr.aof>"


@pytest.mark.parametrize(
    ("lines", "bytes_lost"),
    [
        ([], 0),
        ([f'7 write(8{AOF}, ""..., 100) = 100', f"7 fdatasync(8{AOF}) = 0"], 0),
        ([f'7 write(8{AOF}, ""..., 100) = 100', f"7 fdatasync(8{AOF}) = -1 EIO (Input/output error) (INJECTED)"], 100),
        ([f"7 fdatasync(8{AOF}) = 0", f'7 write(8{AOF}, ""..., 90) = 70', "7 +++ killed by SIGKILL +++"], 70),
        # Another thread flushes: what is written meanwhile may or may not be covered, so it is not.
        (
            [
                f'7 write(8{AOF}, ""..., 100) = 100',
                f"8 fdatasync(8{AOF} <unfinished ...>",
                f'7 write(8{AOF}, ""..., 30) = 30',
                "8 <... fdatasync resumed>) = 0",
            ],
            30,
        ),
        ([f'7 write(8{AOF}, ""..., 5 <unfinished ...>', "7 <... write resumed>) = 5"], 5),
        ([f'7 write(8{AOF}, ""..., 100) = 100', f"7 fdatasync(8{AOF} <unfinished ...>"], 100),
    ],
)
def test_unflushed(lines: list[str], bytes_lost: int) -> None:
    """What was written after the beginning of the last fdatasync that returned well is lost."""
    assert unflushed(lines) == bytes_lost


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_crew_ends(tmp_path: Path) -> None:
    """Members are gone when the crew is left, also those that were stopped; who ended unasked is told and replaced."""
    with Crew(tmp_path) as crew:
        crew.add("stopped", lambda _: ["sleep", "60"])
        crew.add("gone", lambda name: ["sh", "-c", f"echo why; [ {name} = gone.1 ] && sleep 60 || exit 3"])
        crew.stop("stopped")
        first = crew.members["gone"]
        wait_until(lambda: crew.look() or crew.members["gone"] is not first)
        pids = [child.process.pid for child in crew.members.values()]
        assert all(map(alive, pids))
    assert not any(map(alive, pids))
    assert crew.deserters == ["gone.0 ended by itself with 3: why"]


def test_crew_dies_with_its_maker(tmp_path: Path) -> None:
    """A bench that is killed itself leaves nobody behind."""
    text = (
        "import sys, time; from pathlib import Path; from faults.crew import Crew; crew = Crew(Path(sys.argv[1]));"
        "crew.add('m', lambda _: ['sleep', '60']); print(crew.members['m'].process.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", text, tmp_path], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not alive(pid))
