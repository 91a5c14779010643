"""What an agent costs its node: 8 cards of a fake driver, read once a second, rows of 10 s.

.venv/bin/python bench/agent.py [--seconds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil
from measure import FLOPWATCH, ROOT, Cost, costs, machine, write
from sink import sink

sys.path.insert(0, str(ROOT / "tests"))
from fakenvml import Script, build, device, env

CARDS: Final = 8
SETTLE_S: Final = 25.0
_GPM: Final = {1: 98, 2: 92, 3: 60, 4: 55, 5: 46, 6: 0, 7: 46, 8: 0, 9: 0, 10: 35, 11: 10, 12: 12}
_REMARKS: Final = (
    "The driver is the fake of `tests/fakenvml`: its calls take microseconds. A real driver's calls take "
    "longer, and part of that time is CPU time of the driver child.",
    "CPU is of one core; wakeups are voluntary context switches of all the process's threads. The fake "
    "driver waits for events by looking every 50 ms: those are most of the driver child's.",
    "Every card runs a compute process, so allocation, labels and GPM counters are all at work.",
)


def write_script(path: Path) -> Script:
    """Return a script of busy cards, each with a compute process."""
    script = Script(path)
    cards = [
        [
            *device(slot, power_milliwatts=610_000, sm_clock_mhz=1650, util_gpu=98, gpm=_GPM),
            f"device {slot} process {os.getpid()} compute {60 << 30}",
        ]
        for slot in range(CARDS)
    ]
    return script.write(*cards)


@asynccontextmanager
async def agent(port: int, directory: Path) -> AsyncIterator[int]:
    """Run the agent on the fake driver; yield its pid."""
    driver = env(build(directory / "lib"), write_script(directory / "script.txt"))
    process = await asyncio.create_subprocess_exec(
        *(FLOPWATCH, "agent", "--collector", f"127.0.0.1:{port}", "--node", "bench"),
        *("--data", str(directory / "data"), "--http", "127.0.0.1:0"),
        env=driver,
    )
    try:
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def measure(seconds: float) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        async with sink() as counted, agent(counted.port, Path(scratch)) as pid:
            await asyncio.sleep(SETTLE_S)
            rows, frame_bytes = counted.rows, counted.frame_bytes
            found = await asyncio.to_thread(costs, pid, seconds)
            rows, frame_bytes = counted.rows - rows, counted.frame_bytes - frame_bytes
            parts = {_role(child, pid): asdict(cost) for child, cost in found.items()}
    return {
        "seconds": seconds,
        "cards": CARDS,
        "all_processes": asdict(_sum(found.values())),
        **parts,
        "rows": rows,
        "bytes_per_row": round(frame_bytes / rows, 1) if rows else None,
    }


def _role(pid: int, parent: int) -> str:
    if pid == parent:
        return "agent"
    return "driver" if "driver" in " ".join(psutil.Process(pid).cmdline()) else f"child_{pid}"


def _sum(parts: Any) -> Cost:
    parts = list(parts)
    return Cost(
        cpu_percent=round(sum(part.cpu_percent for part in parts), 2),
        rss_mib=round(sum(part.rss_mib for part in parts), 1),
        wakeups_per_s=round(sum(part.wakeups_per_s for part in parts), 1),
        threads=sum(part.threads for part in parts),
    )


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    seconds = parser.parse_args().seconds
    on = machine()
    command = f"python bench/agent.py --seconds {seconds:g}"
    write("agent", "Cost of the agent", command, on, asyncio.run(measure(seconds)), _REMARKS)


if __name__ == "__main__":
    main()
