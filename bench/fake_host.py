"""An agent on a busy host: 8 cards of the fake driver, each with a compute process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from measure import FLOPWATCH, ROOT

sys.path.insert(0, str(ROOT / "tests"))
from fakenvml import Script, build, device, env

CARDS: Final = 8
_GPM: Final = {1: 98, 2: 92, 3: 60, 4: 55, 5: 46, 6: 0, 7: 46, 8: 0, 9: 0, 10: 35, 11: 10, 12: 12}


def fake_driver(directory: Path) -> dict[str, str]:
    """Return the environment in which NVML is the fake driver, with busy cards."""
    made = env(build(directory / "lib"), busy_script(directory / "script.txt"))
    # A real driver sleeps until there is an event; the fake one looks at its script.
    return {**made, "FAKENVML_EVENTS_LATE_MS": "60000"}


def busy_script(path: Path) -> Script:
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
async def running_agent(
    port: int, directory: Path, environment: Mapping[str, str]
) -> AsyncIterator[int]:
    """Run the agent on the fake driver; yield its pid."""
    process = await asyncio.create_subprocess_exec(
        *(FLOPWATCH, "agent", "--collector", f"127.0.0.1:{port}", "--node", "bench"),
        *("--data", str(directory / "data"), "--http", "127.0.0.1:0"),
        env={
            **environment,
            "FLOPWATCH_SOCKET": str(directory / "jobs.sock"),
            "FLOPWATCH_JOBS__OTLP": "127.0.0.1:0",
        },
    )
    try:
        yield process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
