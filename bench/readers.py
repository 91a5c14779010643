"""What readers cost the pager: a breach until its webhook, with and without 50 clients at 90-day questions.

    .venv/bin/python bench/readers.py [--clients 50] [--rounds 5] [--cards 80000] [--nodes 250]

The store holds 90 days of bench/queries.py. Beside it a live fleet of bench/fleet.py, of which a third of the
cards become free in each round; the rule is told to wait 10 s, so that a round takes a minute. Half of the
rounds nobody asks anything; in the other half each client asks for fleet, cluster, jobs and teams over 90
days, ending at an hour of its own, so that answers are seldom shared. In a last round the dashboard process
is killed with -9 at the moment of the breach.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from measure import ROOT, Running, collecting, ended, machine, write
from queries import fill

from flopwatch_collector.telemetry.schema import DAY_MS
from flopwatch_collector.telemetry.store import TelemetryStore

sys.path.append(str(ROOT / "tests"))
from webhook import Receiver, receiving

CLUSTER: Final = "bench"
SECRET: Final = "bench-secret"
FREE_SHARE: Final = 0.33
PAGE_S_MAX: Final = 180.0
HOUR_MS: Final = 3_600_000
CONFIG: Final = """
[rules]
settle_s = 0
onboarded_ratio_min = 0
page_simulated = true
[rules.allocation]
for_s = 10
clear_s = 10
deep_points = 90
[[paging.route]]
name = "desk"
url = "{url}"
secret_file = "{secret}"
clusters = ["bench"]
rules = ["allocation"]
"""


@dataclass(slots=True)
class Asked:
    """What the clients got. Attributes: statuses: answers by HTTP status; 0: none."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as scratch, receiving(SECRET) as receiver:
        directory = Path(scratch)
        names = [f"c{i}" for i in range(given.clusters)]
        _prepare(directory, names, given, receiver)
        async with collecting(directory) as running, _fleet(running, given) as fleet:
            await asyncio.sleep(40)  # rules have seen the fleet healthy
            idle = [await _round(fleet, receiver) for _ in range(given.rounds)]
            asked = Asked()
            readers = [
                asyncio.create_task(_client(running.dashboard, names, given.days, asked, number))
                for number in range(given.clients)
            ]
            busy = [await _round(fleet, receiver) for _ in range(given.rounds)]
            killed, again = await _killed(running, fleet, receiver)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    asked.seconds.sort()
    return {
        "breach_to_webhook_s": {"idle": _spread(idle), "with_readers": _spread(busy)},
        "later_with_readers_s": round(statistics.median(busy) - statistics.median(idle), 1),
        "answers_by_status": {
            str(status): count for status, count in sorted(asked.statuses.items())
        },
        "answer_s": {
            "p50": round(statistics.median(asked.seconds), 2),
            "p99": round(asked.seconds[int(0.99 * (len(asked.seconds) - 1))], 2),
        },
        "dashboard_killed": {
            "breach_to_webhook_s": round(killed, 1),
            "dashboard_back_s": round(again, 1),
        },
    }


def _prepare(directory: Path, names: list[str], given: argparse.Namespace, to: Receiver) -> None:
    """Fill the store, and write the collector's configuration."""
    now = time.time_ns() // 1_000_000
    store = TelemetryStore.open(f"chdb://{directory / 'data/telemetry'}")
    fill(store, names, given.cards // given.clusters, given.days, now)
    store.close()
    (directory / "secret").write_text(SECRET, encoding="utf-8")
    text = CONFIG.format(url=to.url, secret=directory / "secret")
    (directory / "collector.toml").write_text(text, encoding="utf-8")
    sys.stderr.write("filled\n")


@asynccontextmanager
async def _fleet(
    running: Running, given: argparse.Namespace
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("fleet.py")), running.ingest),
        *("--nodes", str(given.nodes), "--seconds", "36000"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield process
    finally:
        await ended(process)


async def _say(fleet: asyncio.subprocess.Process, share: float) -> int | None:
    """Set the share of free cards; return since when they are free."""
    assert fleet.stdin is not None
    assert fleet.stdout is not None
    fleet.stdin.write(f"{share}\n".encode())
    report = json.loads(await fleet.stdout.readline())
    since: int | None = report["free_from_unix_ms"]
    return since


async def _round(fleet: asyncio.subprocess.Process, receiver: Receiver) -> float:
    """Let cards become free; return seconds from the first interval in which they are until the page."""
    before = len(receiver.received)
    await _say(fleet, FREE_SHARE)
    page_s = await _awaited(receiver, before, "firing")
    since = await _say(fleet, FREE_SHARE)
    assert since is not None
    await _say(fleet, 0.0)
    await _awaited(receiver, before + 1, "resolved")
    sys.stderr.write(f"{page_s - since / 1000:.1f} s\n")
    return page_s - since / 1000


async def _awaited(receiver: Receiver, from_number: int, state: str) -> float:
    """Return when a page of a state came."""
    async with asyncio.timeout(PAGE_S_MAX):
        while True:
            if any(each.page["state"] == state for each in receiver.received[from_number:]):
                return time.time()
            await asyncio.sleep(0.05)


async def _killed(
    running: Running, fleet: asyncio.subprocess.Process, receiver: Receiver
) -> tuple[float, float]:
    """Kill the dashboard at a breach; return seconds until the page, and until it answers again."""
    (web,) = (
        child
        for child in psutil.Process(running.pid).children()
        if "flopwatch_collector.web" in " ".join(child.cmdline())
    )
    web.send_signal(signal.SIGKILL)
    back = asyncio.create_task(_answering(running.dashboard))
    page_s = await _round(fleet, receiver)
    return page_s, await back


async def _answering(url: str) -> float:
    """Return how long it takes until the dashboard answers."""
    began = time.monotonic()
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        async with asyncio.timeout(PAGE_S_MAX):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{url}/healthz")).status_code == 200:
                        return time.monotonic() - began
                await asyncio.sleep(0.1)


async def _client(url: str, names: list[str], days: int, asked: Asked, seed: int) -> None:
    """Ask for ever, each time for a window that ends at another hour."""
    chance = random.Random(seed)
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        while True:
            end = time.time_ns() // 1_000_000 - chance.randrange(1, 48) * HOUR_MS
            name = chance.choice(names)
            view = chance.choice(("fleet", f"clusters/{name}", f"jobs?cluster={name}", "teams"))
            joint = "&" if "?" in view else "?"
            stamp = time.strftime("%Y-%m-%dT%H:00:00Z", time.gmtime(end / 1000))
            began = time.monotonic()
            try:
                answer = await client.get(
                    f"{url}/api/v1/{view}{joint}window={days - 3}d&end={stamp}"
                )
                asked.statuses[answer.status_code] += 1
                asked.seconds.append(time.monotonic() - began)
                if answer.status_code != 200:
                    await asyncio.sleep(1)
            except httpx.TransportError:
                asked.statuses[0] += 1
                await asyncio.sleep(1)


def _spread(seconds: list[float]) -> dict[str, float]:
    return {
        "min": round(min(seconds), 1),
        "median": round(statistics.median(seconds), 1),
        "max": round(max(seconds), 1),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cards", type=int, default=80_000)
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--nodes", type=int, default=250)
    given = parser.parse_args()
    assert given.days * DAY_MS > 4 * DAY_MS
    on = machine()
    command = f"python bench/readers.py --clients {given.clients} --rounds {given.rounds}"
    command += f" --cards {given.cards} --nodes {given.nodes}"
    write(
        "readers",
        f"The pager beside {given.clients} readers",
        command,
        on,
        asyncio.run(measure(given)),
        (
            "A breach begins with the first interval in which cards are free.",
            "The rule holds for 10 s here, and an interval is judged 11 s after its end: 40 s are due.",
            "503: the readers' bound was reached, and the client was told to come again.",
        ),
    )


if __name__ == "__main__":
    main()
