"""``python -m campaign.slow [ROUNDS [SEED [STALL_SECONDS [COMMIT_SECONDS]]]]``: a store that is slow.

In a round every commit takes `COMMIT_SECONDS` for a while, and then one stalls for `STALL_SECONDS`. Nodes
append far more meanwhile than credits allow. What the collector holds must stay within its credits, and
its memory with it; something new must be acknowledged soon after, and in the end everything is stored once.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from campaign.delivery import FRESH_SECONDS_MAX
from campaign.nodes import Node, collector, held_by, judged
from campaign.serving import serve
from flopwatch_collector import ingest_commit
from flopwatch_collector.ingest_limits import CREDIT_BATCHES
from flopwatch_collector.telemetry import group
from processes import Process

NODES: Final = 8
PACE_SECONDS: Final = 0.25
COMMIT_SECONDS: Final = 5.0
STALL_SECONDS: Final = 60.0
SLOW_COMMITS: Final = 3
GROWN_MIB_MAX: Final = 32.0
"""What the frames of `NODES` times `CREDIT_BATCHES` are good for, many times over."""
PACE: Final = "pace"
"""The file beside a store that says how slow its commits are."""


@dataclass
class Verdict:
    """What happened. Attributes: problems: one line each; held: frames that waited for a commit; waiting:
    batches in spools."""

    problems: list[str] = field(default_factory=list)
    rounds: int = 0
    rows: int = 0
    held: int = 0
    waiting: int = 0
    grown_mib: float = 0.0
    fresh_seconds: float = 0.0
    allowed: int = NODES * CREDIT_BATCHES


def hook(pace: Path) -> None:
    """Make every commit of this process as slow as a file says; note beside it the most frames it held."""
    put, stored = ingest_commit.Commits.put, ingest_commit.Commits.stored
    commit = vars(group)["commit"]
    held = most = 0

    def slowly(*arguments: Any) -> Any:
        began = time.monotonic()
        while time.monotonic() - began < float(pace.read_text()):
            time.sleep(0.05)
        return commit(*arguments)

    async def counted(*arguments: Any) -> None:
        nonlocal held, most
        await put(*arguments)
        held += 1
        if held > most:
            most = held
            pace.with_suffix(".held").write_text(str(most))

    def landed(self: Any, what: Sequence[Any], stored_unix_ms: int) -> None:
        nonlocal held
        held -= len(what)
        stored(self, what, stored_unix_ms)

    commits: Any = ingest_commit.Commits
    vars(group)["commit"], commits.put, commits.stored = slowly, counted, landed


def resident_mib(pid: int) -> float:
    """Return the memory of a process that is its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Slow:
    """A collector that is slow on demand. ``path`` is read by `hook`, in its process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commits_take(0.0)

    def commits_take(self, seconds: float) -> None:
        """From now on; one that is under way goes by it as well."""
        new = self.path.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self.path)

    def held(self) -> int:
        """Return the most frames that waited for a commit at one time."""
        file = self.path.with_suffix(".held")
        return int(file.read_text() or 0) if file.exists() else 0


async def suffer(
    slow: Slow, pid: int, fleet: Sequence[Node], seconds: tuple[float, float], verdict: Verdict
) -> None:
    """One round: slow commits, a stall, and the time after it. ``seconds``: of a commit, of the stall."""
    for each, lasts in ((seconds[0], SLOW_COMMITS * seconds[0]), (seconds[1], seconds[1])):
        slow.commits_take(each)
        until = time.monotonic() + lasts
        while time.monotonic() < until:
            await asyncio.sleep(0.2)
            verdict.waiting = max(verdict.waiting, sum(n.spool.pending_batches for n in fleet))
            verdict.grown_mib = max(verdict.grown_mib, resident_mib(pid))
    slow.commits_take(0.0)
    fresh = await asyncio.gather(*(node.fresh_seconds() for node in fleet))
    verdict.fresh_seconds = max(verdict.fresh_seconds, *fresh)
    verdict.rounds += 1


async def run(
    home: Path,
    slow: Slow,
    serving: Process,
    rounds: int,
    seconds: Callable[[], tuple[float, float]],
) -> Verdict:
    """Run so many rounds, and judge."""
    verdict, base_unix_ms = Verdict(), time.time_ns() // 1_000_000 - 6 * 3_600_000
    target = await asyncio.to_thread(serving.line, "listening ")
    fleet = [
        Node(f"n{i}", target, home, base_unix_ms, pace_seconds=PACE_SECONDS) for i in range(NODES)
    ]
    for node in fleet:
        await node.fresh_seconds()
    await asyncio.sleep(2.0)
    before_mib = resident_mib(serving.pid)
    for number in range(rounds):
        await suffer(slow, serving.pid, fleet, seconds(), verdict)
        sys.stdout.write(
            f"round {number + 1}: {slow.held()} frames held, {verdict.waiting} in spools\n"
        )
        sys.stdout.flush()
    await asyncio.gather(*(node.finish() for node in fleet))
    produced = {node.name: node.promised for node in fleet}
    verdict.problems += judged(await held_by(serving), produced, base_unix_ms)
    verdict.rows, verdict.held = sum(produced.values()), slow.held()
    verdict.grown_mib -= before_mib
    if verdict.held > verdict.allowed:
        verdict.problems.append(f"{verdict.held} frames held, credits allow {verdict.allowed}")
    if verdict.grown_mib > GROWN_MIB_MAX:
        verdict.problems.append(f"memory grew by {verdict.grown_mib:.1f} MiB")
    if verdict.fresh_seconds > FRESH_SECONDS_MAX:
        verdict.problems.append(f"nothing fresh within {FRESH_SECONDS_MAX} s after a stall")
    return verdict


def main(rounds: int, seed: int, stall_seconds: float, commit_seconds: float) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    chance = random.Random(seed)

    def seconds() -> tuple[float, float]:
        return commit_seconds, stall_seconds * chance.uniform(0.9, 1.1)

    with tempfile.TemporaryDirectory() as scratch:
        slow = Slow(Path(scratch, PACE))
        with collector(Path(scratch), module="campaign.slow") as serving:
            verdict = asyncio.run(run(Path(scratch), slow, serving, rounds, seconds))
    sys.stdout.write(
        f"seed {seed}: {verdict.rounds} rounds, {verdict.rows} rows; the collector held {verdict.held} "
        f"frames at most ({verdict.allowed} allowed), {verdict.waiting} waited in spools, memory grew by "
        f"{verdict.grown_mib:.1f} MiB, fresh within {verdict.fresh_seconds:.1f} s, "
        f"{len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    if ":" in "".join(sys.argv[1:2]):
        hook(Path(sys.argv[2]).with_name(PACE))
        asyncio.run(serve(*sys.argv[1:]))
    else:
        words = [float(word) for word in sys.argv[1:]]
        words += [20, 1, STALL_SECONDS, COMMIT_SECONDS][len(words) :]
        sys.exit(main(int(words[0]), int(words[1]), words[2], words[3]))
