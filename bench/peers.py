"""What the peers cost on the same fake driver: nvitop-exporter scraped once a second, gpustat's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from measure import Cost, costs, total

SCRAPE_SECONDS: Final = 1.0
START_SECONDS_MAX: Final = 60.0
_LOCAL: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


async def nvitop_exporter(environment: Mapping[str, str], settle: float, seconds: float) -> Cost:
    """Return the cost of nvitop-exporter while it is scraped once a second."""
    port = _free_port()
    command = ("nvitop-exporter", "--port", str(port), "--interval", "1", "--hostname", "bench")
    async with _running(*command, environment=environment) as pid:
        url = f"http://127.0.0.1:{port}/metrics"
        scraping = asyncio.create_task(_scrape(url))
        await asyncio.sleep(settle)
        if scraping.done():
            scraping.result()
        found = await asyncio.to_thread(costs, pid, seconds)
        scraping.cancel()
    return total(found.values())


async def gpustat_loop(environment: Mapping[str, str], settle: float, seconds: float) -> Cost:
    """Return the cost of ``gpustat --interval 1``."""
    async with _running("gpustat", "--interval", "1", environment=environment) as pid:
        await asyncio.sleep(settle)
        found = await asyncio.to_thread(costs, pid, seconds)
    return total(found.values())


async def _scrape(url: str) -> None:
    answered = False
    deadline = asyncio.get_running_loop().time() + START_SECONDS_MAX
    while True:
        try:
            await asyncio.to_thread(_get, url)
            answered = True
        except (urllib.error.URLError, ConnectionError):
            if answered or asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(SCRAPE_SECONDS)


def _get(url: str) -> None:
    with _LOCAL.open(url, timeout=5.0) as answer:
        if b"gpu_utilization" not in answer.read():
            raise RuntimeError("the exporter shows no card")


@asynccontextmanager
async def _running(
    name: str, *arguments: str, environment: Mapping[str, str]
) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name(name)),
        *arguments,
        env={**environment, "TERM": "dumb"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
        if process.returncode is not None:
            raise RuntimeError(f"{name} ended with code {process.returncode}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
