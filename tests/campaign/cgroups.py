"""``python -m campaign.cgroups [ROUNDS [SEED]]``: a collector and an agent that the kernel kills for memory.

Both are in a memory cgroup of version 1 of their own (as root; no swap). In a round one is limited to little
more than it has, and what is left is taken from it, until the kernel's out-of-memory killer ends it while
both work; then it starts again on its data. Some rounds only squeeze: the limit is below what it has with
its page cache, and it may live on. The oracle is that of `campaign.delivery`, for a sender that waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from campaign.delivery import FRESH_SECONDS_MAX, judge_node
from processes import Process, awaited

HIERARCHY: Final = Path("/sys/fs/cgroup/memory")
NODE: Final = "n1"
MIB: Final = 1 << 20
SIDES: Final = ("sender", "collector")
BALLAST: Final = (
    "echo -1000 > /proc/self/oom_score_adj; "
    f"exec {sys.executable} -c 'import time; b = bytearray({256 * MIB}); time.sleep(600)'"
)
"""Takes what is left below the limit, and is not killed for it: the other one in its group is."""


class Group:
    """A memory cgroup, for the length of a block."""

    def __init__(self, name: str) -> None:
        self.path = HIERARCHY / f"flopwatch-campaign-{os.getpid()}-{name}"
        self.path.mkdir()

    def within(self, *command: str) -> tuple[str, ...]:
        """Return a command that runs here from its beginning."""
        return ("sh", "-c", f'echo $$ > {self.path}/cgroup.procs; exec "$@"', "sh", *command)

    def limit(self, size_bytes: int) -> None:
        """Limit it; -1: not at all. Raises: OSError: the kernel cannot reclaim as much at once."""
        (self.path / "memory.limit_in_bytes").write_text(str(size_bytes))

    def used(self) -> int:
        """Return the bytes that count here."""
        return int((self.path / "memory.usage_in_bytes").read_text())

    def kills(self) -> int:
        """Return how often the killer came."""
        lines = (self.path / "memory.oom_control").read_text().splitlines()
        return next((int(x.split()[1]) for x in lines if x.startswith("oom_kill ")), 0)

    def remove(self) -> None:
        """Remove it; its processes have ended."""
        awaited(self._is_removed, f"{self.path} is empty")

    def _is_removed(self) -> bool:
        with contextlib.suppress(OSError):
            self.path.rmdir()
        return not self.path.exists()


@dataclass
class Verdict:
    """Attributes: problems: one line each; kills: of the kernel's, by side; squeezes: without one."""

    problems: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    squeezes: int = 0
    rows: int = 0
    fresh_seconds: float = 0.0


class Campaign:
    """A sender and a collector, each one after the other on its own data."""

    def __init__(self, home: Path, seed: int, groups: dict[str, Group]) -> None:
        self._home, self._chance, self._groups = home, random.Random(seed), groups
        self._base = time.time_ns() // 1_000_000 - 6 * 3_600_000
        self._address = "127.0.0.1:0"
        self.verdict = Verdict()
        self._running: dict[str, Process] = {}
        self._start("collector")
        self._start("sender")

    def _start(self, side: str) -> None:
        home, said = self._home, {"sender": "sending ", "collector": "listening "}[side]
        words: tuple[str, ...] = ("collector", self._address, str(home / "store"))
        if side == "sender":
            words = ("sender", NODE, self._address, str(home / NODE), str(home / "ledger"))
            words += (str(self._base), "")
        command = self._groups[side].within(sys.executable, "-m", "campaign.cgroups", *words)
        process = self._running[side] = Process(command, home / f"{side}.log")
        address = process.line(said)
        if side == "collector":
            self._address = address

    def round(self, side: str) -> None:
        """Let the kernel kill one, or only squeeze it; start it again."""
        group, process = self._groups[side], self._running[side]
        before = group.kills()
        time.sleep(self._chance.uniform(0.1, 1.0))
        if self._chance.random() < 0.2:
            with contextlib.suppress(OSError):
                group.limit(group.used() - MIB // 4)  # what is mapped stays; caches go
            time.sleep(0.3)
            group.limit(-1)
            if process.running:
                self.verdict.squeezes += 1
                return
        group.limit(group.used() + MIB)
        ballast = Process(group.within("sh", "-c", BALLAST), self._home / "ballast.log")
        with contextlib.suppress(AssertionError):
            awaited(lambda: not process.running, "the kernel kills")
        ballast.end(signal.SIGKILL)
        group.limit(-1)
        if process.running:
            self.verdict.problems.append(f"the {side} lived on with {group.used()} bytes")
            return
        if group.kills() <= before:
            self.verdict.problems.append(f"the {side} ended by itself: {process.said()[-300:]}")
        self.verdict.kills[side] += 1
        self._start(side)

    def finish(self) -> Verdict:
        """Deliver everything, and judge."""
        sender, serving, verdict = self._running["sender"], self._running["collector"], self.verdict
        began = time.monotonic()
        sender.send(signal.SIGUSR1)
        sender.line("fresh ")
        verdict.fresh_seconds = time.monotonic() - began
        sender.send(signal.SIGTERM)
        produced, dropped = (int(word) for word in sender.line("produced ").split())
        awaited(lambda: not sender.running, "the sender leaves")
        serving.send(signal.SIGTERM)
        held = json.loads(serving.line("held "))
        promised = int((self._home / "ledger").read_text().splitlines()[-1])
        found, _, _ = judge_node(NODE, held, (produced, dropped), promised, self._base)
        verdict.problems += found
        verdict.rows = produced
        if verdict.fresh_seconds > FRESH_SECONDS_MAX:
            verdict.problems.append(f"nothing fresh within {FRESH_SECONDS_MAX} s")
        awaited(lambda: not serving.running, "the collector leaves")
        return verdict

    def close(self) -> None:
        """Leave no process behind."""
        for process in self._running.values():
            process.end(signal.SIGKILL)


@contextlib.contextmanager
def campaign(home: Path, seed: int) -> Iterator[Campaign]:
    """A campaign, and neither process nor cgroup of it after the block."""
    groups = {side: Group(side) for side in SIDES}
    made: Campaign | None = None
    try:
        made = Campaign(home, seed, groups)
        yield made
    finally:
        if made is not None:
            made.close()
        for group in groups.values():
            group.remove()


def main(rounds: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch, campaign(Path(scratch), seed) as running:
        for number in range(rounds):
            running.round(SIDES[number % 2])
            sys.stdout.write(f"round {number + 1}: {SIDES[number % 2]}\n")
            sys.stdout.flush()
        verdict = running.finish()
    sys.stdout.write(
        f"seed {seed}: killed for their memory {dict(verdict.kills)}, {verdict.squeezes} squeezed, "
        f"{verdict.rows} rows, fresh after {verdict.fresh_seconds:.1f} s, {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


def _role(side: str, *words: str) -> None:
    if side == "sender":
        from campaign.sender import main as live

        live(*words)
    else:
        import asyncio

        from campaign.serving import serve

        asyncio.run(serve(*words))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in SIDES:
        _role(*sys.argv[1:])
    else:
        chosen = [int(word) for word in sys.argv[1:]]
        sys.exit(main(*(chosen + [50, 1][len(chosen) :])))
