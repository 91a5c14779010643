"""``python -m campaign.cut [CUTS [SEED]]``: so many cuts of 1 to 120 s between agent and collector.

Each agent and the collector have a network namespace of their own, and a veth pair between them; a cut is
``ip link set down`` at either end. Both sides must notice within 35 s, where the cut lasts that long: the
agent's log says when, and for the collector the kernel's table of connections. Then the link is up again, and
the agent must be heard. At the end everything is stored, once, with its value.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from campaign.delivery import FRESH_SECONDS_MAX
from campaign.nodes import held_by, judged
from pki import Pki
from processes import Process

NOTICED_SECONDS_MAX: Final = 35.0
PORT: Final = 9751
_ESTABLISHED: Final = "01"


@dataclass
class Verdict:
    """What happened. Attributes: problems: one line each; noticed: seconds, by side."""

    problems: list[str] = field(default_factory=list)
    cuts: int = 0
    noticed: dict[str, list[float]] = field(default_factory=lambda: {"agent": [], "collector": []})
    fresh_seconds: float = 0.0
    rows: int = 0


def namespace() -> subprocess.Popen[bytes]:
    """Return a process that does nothing in a network namespace of its own."""
    holder = subprocess.Popen(
        ("unshare", "--net", "sh", "-c", "echo made; exec sleep 100000"), stdout=-1
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    _inside(holder, "ip", "link", "set", "lo", "up")
    return holder


def _inside(holder: subprocess.Popen[bytes], *command: str) -> None:
    _done("nsenter", "--net", "--target", str(holder.pid), *command)


def _done(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


class Pair:
    """An agent in its namespace, and its link to the collector's."""

    def __init__(
        self, home: Path, number: int, far: subprocess.Popen[bytes], base: int, keepalive: str
    ) -> None:
        self.name = f"n{number}"
        self.address = f"10.77.{number}.2"
        self.near, self._far = namespace(), far
        ends = self._ends = (f"fwa{number}", f"fwc{number}")
        at = ("netns", str(self.near.pid))
        _inside(far, "ip", "link", "add", ends[1], "type", "veth", "peer", "name", ends[0], *at)
        for holder, end, last in ((self.near, ends[0], 2), (far, ends[1], 1)):
            _inside(holder, "ip", "address", "add", f"10.77.{number}.{last}/30", "dev", end)
            _inside(holder, "ip", "link", "set", end, "up")
        arguments = (self.name, f"10.77.{number}.1:{PORT}", str(home), str(base), str(home / "pki"))
        inside = ("nsenter", "--net", "--target", str(self.near.pid))
        command = (*inside, sys.executable, "-m", "campaign.afar", *arguments, keepalive)
        self.process = Process(command, home / f"{self.name}.log")
        self._asked = 0

    def link(self, end: int, state: str) -> None:
        """Set one end of the link, 0 the agent's or 1 the collector's, up or down."""
        _inside((self.near, self._far)[end], "ip", "link", "set", self._ends[end], state)

    def endings(self) -> int:
        """Return how often the agent said that its stream ended."""
        return self.process.said().count("stream_ended")

    def is_held(self) -> bool:
        """Return whether the collector's kernel has a connection of this agent that is established."""
        return _established(self._far.pid, self.address)

    async def fresh_seconds(self) -> float:
        """Return how long something new takes from now until it is acknowledged."""
        before = self._fresh()
        self.process.send(signal.SIGUSR1)
        while len(found := self._fresh()) == len(before):
            assert self.process.running, self.process.said()
            await asyncio.sleep(0.1)
        return found[-1]

    def _fresh(self) -> list[float]:
        lines = self.process.said().splitlines(keepends=True)
        found = [line for line in lines if line.startswith("fresh ") and line.endswith("\n")]
        return [float(line.split()[1]) for line in found]

    def close(self) -> None:
        """Leave no process behind."""
        self.process.end(signal.SIGKILL)
        self.near.kill()
        self.near.communicate()


def _established(pid: int, address: str) -> bool:
    """Return whether the namespace of a process has a connection to an address."""
    raw = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            remote, state = line.split()[2:4]
            if remote.partition(":")[0][-8:] == raw and state == _ESTABLISHED:
                return True
    return False


async def suffer(pair: Pair, seconds: float, end: int, verdict: Verdict) -> None:
    """Cut one link for so long (0: until both sides noticed); note when they did, and when all is well."""
    await asyncio.to_thread(pair.link, end, "down")
    began = time.monotonic()
    waiting, endings = {"agent", "collector"}, pair.endings()
    while waiting if seconds == 0 else time.monotonic() - began < seconds:
        passed = time.monotonic() - began
        for side in tuple(waiting):
            if pair.endings() > endings if side == "agent" else not pair.is_held():
                waiting.discard(side)
                verdict.noticed[side].append(passed)
        if waiting and passed > NOTICED_SECONDS_MAX and seconds > 0:
            verdict.problems.append(f"{pair.name}: not noticed in time by the {', '.join(waiting)}")
            waiting.clear()
        await asyncio.sleep(0.2)
    await asyncio.to_thread(pair.link, end, "up")
    fresh = await pair.fresh_seconds()
    verdict.fresh_seconds = max(verdict.fresh_seconds, fresh)
    verdict.cuts += 1


@contextlib.asynccontextmanager
async def fleet(
    home: Path, agents: int, keepalive: str = ""
) -> AsyncIterator[tuple[Process, list[Pair], int]]:
    """A collector and its agents, each in its namespace, and the time of row 0."""
    pki, base = Pki(), time.time_ns() // 1_000_000 - 3_600_000
    pki.server(*(f"10.77.{number}.1" for number in range(agents))).write(home / "pki")
    (home / "pki" / "authority.pem").write_bytes(pki.authority)
    for number in range(agents):
        pki.node("atlas", f"n{number}").write(home / "pki" / f"n{number}")
    far = namespace()
    inside = ("nsenter", "--net", "--target", str(far.pid), sys.executable, "-m")
    arguments = (
        f"0.0.0.0:{PORT}",
        str(home / "store"),
        str(home / "pki"),
        keepalive,
    )
    serving = Process((*inside, "campaign.serving", *arguments), home / "serving.log")
    pairs: list[Pair] = []
    try:
        await asyncio.to_thread(serving.line, "listening ")
        for number in range(agents):
            pairs.append(Pair(home, number, far, base, keepalive))
        for pair in pairs:
            await asyncio.to_thread(pair.process.line, "sending ")
        await asyncio.gather(*(pair.fresh_seconds() for pair in pairs))
        yield serving, pairs, base
    finally:
        for pair in pairs:
            pair.close()
        serving.end(signal.SIGKILL)
        far.kill()
        far.communicate()


async def end(serving: Process, pairs: list[Pair], base: int, verdict: Verdict) -> Verdict:
    """End all in good order, and judge."""
    produced = {}
    for pair in pairs:
        pair.process.send(signal.SIGTERM)
        produced[pair.name] = int(await asyncio.to_thread(pair.process.line, "produced "))
    verdict.problems += judged(await held_by(serving), produced, base)
    verdict.rows = sum(produced.values())
    if verdict.fresh_seconds > FRESH_SECONDS_MAX:
        verdict.problems.append(f"nothing fresh within {FRESH_SECONDS_MAX} s after a cut")
    return verdict


async def run(home: Path, cuts: int, seed: int, agents: int) -> Verdict:
    """Cut so often, the links independently of each other, and judge."""
    verdict, chance = Verdict(), random.Random(seed)
    async with fleet(home, agents) as (serving, pairs, base):

        async def suffer_all(pair: Pair) -> None:
            for _ in range(-(-cuts // agents)):
                await suffer(pair, chance.uniform(1.0, 120.0), chance.randrange(2), verdict)
                sys.stdout.write(f"cut {verdict.cuts}, {len(verdict.problems)} problems\n")
                sys.stdout.flush()

        await asyncio.gather(*(suffer_all(pair) for pair in pairs))
        return await end(serving, pairs, base, verdict)


def main(cuts: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    agents = min(cuts, 8)
    with tempfile.TemporaryDirectory() as scratch:
        verdict = asyncio.run(run(Path(scratch), cuts, seed, agents))
    noticed = ", ".join(
        f"by the {side} {len(seconds)} times, after {max(seconds, default=0.0):.1f} s at most"
        for side, seconds in verdict.noticed.items()
    )
    sys.stdout.write(
        f"seed {seed}: {verdict.cuts} cuts of {agents} links, noticed {noticed}; {verdict.rows} rows, "
        f"fresh within {verdict.fresh_seconds:.1f} s, {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [200, 1][len(chosen) :])))
