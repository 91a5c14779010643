"""What an agent costs its node, beside its peers: 8 cards of one fake driver, read once a second.

.venv/bin/python bench/agent.py [--seconds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil
from fake_host import CARDS, fake_driver, running_agent
from measure import costs, machine, total, write
from peers import gpustat_loop, nvitop_exporter
from sink import sink

SETTLE_S: Final = 25.0
_REMARKS: Final = (
    "The driver is the fake of `tests/fakenvml`: its calls take microseconds. A real driver's calls take "
    "longer, and part of that time is CPU time of the driver child.",
    "CPU is of one core; wakeups are voluntary context switches of all the process's threads.",
    "The peers run one after the other in the same run, on the same driver and script: nvitop-exporter "
    "scraped once a second, `gpustat --interval 1`. Neither reads GPM, keeps a spool or sends anything.",
    "Every card runs a compute process, so allocation, labels and GPM counters are all at work.",
)


async def measure(seconds: float) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        driver = fake_driver(directory)
        async with sink() as counted, running_agent(counted.port, directory, driver) as pid:
            await asyncio.sleep(SETTLE_S)
            rows, frame_bytes = counted.rows, counted.frame_bytes
            found = await asyncio.to_thread(costs, pid, seconds)
            rows, frame_bytes = counted.rows - rows, counted.frame_bytes - frame_bytes
            parts = {_role(child, pid): asdict(cost) for child, cost in found.items()}
        ours = total(found.values())
        nvitop = await nvitop_exporter(driver, SETTLE_S, seconds)
        gpustat = await gpustat_loop(driver, SETTLE_S, seconds)
    return {
        "seconds": seconds,
        "cards": CARDS,
        "all_processes": asdict(ours),
        **parts,
        "rows": rows,
        "bytes_per_row": round(frame_bytes / rows, 1) if rows else None,
        "nvitop_exporter": asdict(nvitop),
        "gpustat": asdict(gpustat),
        "cpu_microseconds_per_card_reading": {
            name: round(cost.cpu_percent / 100 / CARDS * 1e6, 1)
            for name, cost in (
                ("flopwatch", ours),
                ("nvitop_exporter", nvitop),
                ("gpustat", gpustat),
            )
        },
        "cpu_ratio_to_flopwatch": {
            "nvitop_exporter": round(nvitop.cpu_percent / ours.cpu_percent, 2),
            "gpustat": round(gpustat.cpu_percent / ours.cpu_percent, 2),
        },
    }


def _role(pid: int, parent: int) -> str:
    if pid == parent:
        return "agent"
    return "driver" if "driver" in " ".join(psutil.Process(pid).cmdline()) else f"child_{pid}"


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
