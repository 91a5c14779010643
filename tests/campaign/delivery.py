"""``python -m campaign.delivery [SENDER COLLECTOR BOTH [SEED]]``: kill -9 of either side, and of both.

The sender is an agent's spool and stream, the collector its ingest and embedded store, each a process of its
own; what the sender's disk has taken stands in a ledger that nobody harms. At the end, faults off: everything
that was ever in the spool is in the store, once, with its value, and nothing else is.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from campaign.sender import value
from processes import Process, awaited

FRESH_SECONDS_MAX: Final = 30.0


@dataclass
class Verdict:
    """What the oracle found. Attributes: problems: one line each; fresh_seconds: after the last fault."""

    problems: list[str] = field(default_factory=list)
    produced: int = 0
    fresh_seconds: float = 0.0


def judge(
    starts: Sequence[int],
    values: Sequence[float],
    gaps: int,
    produced: int,
    promised: int,
    base: int,
) -> list[str]:
    """Return what is wrong with what a store holds.

    Args:
        produced: rows that the spool counts; promised: of the ledger's last line; base: start of row 0.
    """
    problems = []
    if promised > produced:
        problems.append(f"the spool forgot rows {produced + 1} to {promised} that it had on disk")
    numbers = [start - base for start in starts]
    if len(set(numbers)) < len(numbers):
        problems.append(f"{len(numbers) - len(set(numbers))} rows are doubled")
    if lost := set(range(1, produced + 1)) - set(numbers):
        problems.append(f"{len(lost)} rows are lost, from {min(lost)}")
    if invented := set(numbers) - set(range(1, produced + 1)):
        problems.append(f"{len(invented)} rows were never produced, from {min(invented)}")
    if wrong := [n for n, held in zip(numbers, values, strict=True) if held != value(n)]:
        problems.append(f"{len(wrong)} rows hold another value, from {wrong[0]}")
    if gaps:
        problems.append(f"{gaps} gaps, and nothing had to be given up")
    return problems


class Campaign:
    """One sender and one collector after the other, each on its own data."""

    def __init__(self, home: Path, seed: int) -> None:
        self._home = home
        self._random = random.Random(seed)
        self._base = time.time_ns() // 1_000_000 - 6 * 3_600_000
        self._address = "127.0.0.1:0"
        self._collector = self._collect()
        self._address = self._collector.line("listening ")
        self._sender = self._send()

    def run(self, kills: Sequence[str]) -> Verdict:
        """Kill in that order (sender, collector, both), end all in good order, and judge."""
        for target in kills:
            # Some die while they start, most when they are at work.
            if self._random.random() < 0.8:
                self._sender.line("sending ")
                self._collector.line("listening ")
            time.sleep(self._random.choice((0.05, 0.3, 1.0)) * self._random.random())
            if target in ("collector", "both"):
                self._collector.send(signal.SIGKILL)
            if target in ("sender", "both"):
                self._sender.end(signal.SIGKILL)
                self._sender = self._send()
            if target in ("collector", "both"):
                self._collector.end(signal.SIGKILL)
                self._collector = self._collect()
        return self._end()

    def close(self) -> None:
        """Leave no process behind."""
        self._sender.end(signal.SIGKILL)
        self._collector.end(signal.SIGKILL)

    def _collect(self) -> Process:
        return self._started("collecting", self._address, str(self._home / "store"))

    def _send(self) -> Process:
        places = (str(self._home / "spool"), str(self._home / "ledger"), str(self._base))
        return self._started("sender", self._address, *places)

    def _started(self, module: str, *arguments: str) -> Process:
        command = (sys.executable, "-m", f"campaign.{module}", *arguments)
        return Process(command, self._home / f"{module}.log")

    def _end(self) -> Verdict:
        verdict = Verdict()
        self._collector.line("listening ")
        self._sender.line("sending ")
        began = time.monotonic()
        self._sender.send(signal.SIGUSR1)
        self._sender.line("fresh ")
        verdict.fresh_seconds = time.monotonic() - began
        self._sender.send(signal.SIGTERM)
        verdict.produced = int(self._sender.line("produced "))
        awaited(lambda: not self._sender.running, "the sender leaves")
        self._collector.send(signal.SIGTERM)
        held = json.loads(self._collector.line("held "))
        lines = (self._home / "ledger").read_text().splitlines()
        verdict.problems = judge(
            held["start_unix_ms"],
            held["sm_active_ms"],
            held["gaps"],
            verdict.produced,
            int(lines[-1]),
            self._base,
        )
        return verdict


@contextlib.contextmanager
def campaign(home: Path, seed: int) -> Iterator[Campaign]:
    """A campaign, and no process of it after the block."""
    made = Campaign(home, seed)
    try:
        yield made
    finally:
        made.close()


def main(counts: Sequence[int], seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    kills = [
        target
        for target, count in zip(("sender", "collector", "both"), counts, strict=True)
        for _ in range(count)
    ]
    random.Random(seed).shuffle(kills)
    with tempfile.TemporaryDirectory() as scratch, campaign(Path(scratch), seed) as running:
        verdict = running.run(kills)
    if verdict.fresh_seconds > FRESH_SECONDS_MAX:
        verdict.problems.append("nothing fresh within 30 s after the last fault")
    sys.stdout.write(
        f"seed {seed}: {counts[0]} kills of the sender, {counts[1]} of the collector, {counts[2]} of both; "
        f"{verdict.produced} rows, fresh after {verdict.fresh_seconds:.1f} s, "
        f"{len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    chosen += [1000, 1000, 200, 1][len(chosen) :]
    sys.exit(main(chosen[:3], chosen[3]))
