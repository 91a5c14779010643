"""``python -m campaign.disks [ROUNDS [SEED]]``: disks that are full, so many rounds of each.

    tmpfs    an agent's spool on 1 MiB of memory
    ext4     the same on a file system of 16 MiB in a file
    fsize    the same under a limit of how long a file may be
    store    a collector's store on a tmpfs, with an agent that goes on sending

In a round the disk fills up while batches are appended and acknowledged; sometimes more than the ring in
memory holds, sometimes the agent is killed meanwhile. Then there is room again. Every batch must be where it
was, acknowledged, or under a gap, and each gap must count the rows of its batches exactly.
Mounts are made in a mount namespace of its own, as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from campaign.nodes import Node, collector, held_by, judged
from campaign.prefixes import payload
from flopwatch_agent.spool import Spool, SpoolLimits

LIMITS: Final = SpoolLimits(bytes_max=8 << 20, memory_bytes_max=60_000)
STALLED_BATCHES: Final = 4


class Clock:
    """Time that a test passes."""

    def __init__(self) -> None:
        self.seconds = 1_790_000_000.0

    def wall_unix_ns(self) -> int:
        return int(self.seconds * 1e9)

    def boottime_ns(self) -> int:
        return int(self.seconds * 1e9)

    def monotonic_seconds(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Verdict:
    """Attributes: problems: one line each; rounds: by kind; gap_rows: said to be lost."""

    problems: list[str] = field(default_factory=list)
    rounds: dict[str, int] = field(default_factory=dict)
    degraded: int = 0
    killed: int = 0
    gap_rows: int = 0


class Disk:
    """A disk that fills up on demand. ``limit``: by a limit of a file's length instead."""

    def __init__(self, directory: Path, *, limit: bool = False) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"
        self._limit = limit

    def fill(self) -> None:
        """Leave no room."""
        if self._limit:
            size = max(file.stat().st_size for file in self.directory.rglob("spool.db*"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        """Give it all back."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self._ballast.unlink(missing_ok=True)


class Owner:
    """A spool with what was ever appended. Attributes: frames, rows: by number."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.clock = Clock()
        self.frames: dict[int, bytes] = {}
        self.rows: dict[int, int] = {}
        self.open()

    def open(self) -> None:
        """Open it, as the next run of an agent does."""
        self.spool = Spool.open(self._disk.directory / "spool", LIMITS, clock=self.clock)

    def append(self, count: int) -> None:
        """Append a batch of so many rows and note it."""
        batch = payload(self.spool.rows_produced + 1, count)
        seq = self.spool.append(batch)
        self.rows[seq] = count
        self.clock.seconds += 1

    def deliver(self, batches: int) -> None:
        """Send so many and have them acknowledged, as far as there are any."""
        after = self.spool.state.acked_seq
        sent = self.spool.pending(after, batches, 1 << 20, at_least_one=True)
        if sent:
            self.spool.acknowledge(sent[-1].batch.seq or sent[-1].gap.last_seq)

    def problems(self) -> tuple[list[str], int]:
        """Deliver everything; return what is wrong with it, and the rows of gaps."""
        found, gap_rows, seen = [], 0, self.spool.state.acked_seq
        while frames := self.spool.pending(seen, 64, 1 << 20, at_least_one=True):
            for frame in frames:
                first, last = (
                    frame.batch.seq or frame.gap.first_seq,
                    frame.batch.seq or frame.gap.last_seq,
                )
                if first != seen + 1:
                    found.append(f"{first} comes after {seen}")
                rows = sum(self.rows.get(seq, 0) for seq in range(first, last + 1))
                said = frame.batch.row_count + frame.gap.row_count
                if said != rows:
                    found.append(f"{first}..{last} has {said} rows and was given {rows}")
                gap_rows += frame.gap.row_count
                seen = last
            self.spool.acknowledge(seen)
        if seen != max(self.rows):
            found.append(f"ends with {seen}, and {max(self.rows)} was appended")
        if self.spool.state.produced_rows != sum(self.rows.values()):
            found.append(
                f"{self.spool.state.produced_rows} rows counted, {sum(self.rows.values())} given"
            )
        return found, gap_rows


def round_of(owner: Owner, disk: Disk, chance: random.Random, verdict: Verdict) -> None:
    """Fill the disk, go on, perhaps die, make room, and judge."""
    for _ in range(chance.randrange(1, 6)):
        owner.append(chance.randrange(1, 60))
    disk.fill()
    for _ in range(chance.choice((3, 20, 60))):
        owner.append(chance.randrange(1, 60))
        if chance.random() < 0.3:
            owner.deliver(chance.randrange(1, 4))
    verdict.degraded += owner.spool.degraded
    if chance.random() < 0.3:
        verdict.killed += 1
        owner.spool.close()  # the ring is gone, as it would be
        disk.free()
        owner.open()
    disk.free()
    for _ in range(3):
        owner.clock.seconds += 11
        owner.append(1)
    if owner.spool.degraded:
        verdict.problems.append("still in memory, with room on the disk")
    found, gap_rows = owner.problems()
    verdict.problems += found
    verdict.gap_rows += gap_rows


def of_agent(kind: str, disk: Disk, rounds: int, seed: int, verdict: Verdict) -> None:
    """Run so many rounds with one spool."""
    chance, owner = random.Random(f"{seed} {kind}"), Owner(disk)
    for number in range(rounds):
        before = len(verdict.problems)
        round_of(owner, disk, chance, verdict)
        found = verdict.problems[before:]
        verdict.problems[before:] = [f"{kind}, round {number}: {problem}" for problem in found]
        verdict.rounds[kind] = number + 1
    owner.spool.close()


async def of_collector(home: Path, disk: Disk, rounds: int, verdict: Verdict) -> None:
    """Fill the disk of a store so often, while an agent sends."""
    base_unix_ms = time.time_ns() // 1_000_000 - 3_600_000
    with collector(disk.directory) as serving:  # its log fills up with it
        target = await asyncio.to_thread(serving.line, "listening ")
        node = Node("n1", target, home, base_unix_ms, pace_seconds=0.3)
        for number in range(rounds):
            await node.fresh_seconds()
            disk.fill()
            waiting = node.spool.next_seq + STALLED_BATCHES
            while node.spool.next_seq < waiting or node.spool.pending_batches < STALLED_BATCHES:
                assert serving.running, serving.said()
                await asyncio.sleep(0.05)
            disk.free()
            verdict.rounds["store"] = number + 1
        await node.finish()
        verdict.problems += judged(await held_by(serving), {"n1": node.promised}, base_unix_ms)


def mount(kind: str, at: Path, image: Path) -> None:
    """Mount a small disk of a kind, here and nowhere else."""
    at.mkdir()
    size = {"tmpfs": "1m", "store": "96m"}.get(kind)
    command: tuple[str, ...] = ("mount", "-t", "tmpfs", "-o", f"size={size}", kind, str(at))
    if kind == "ext4":
        with image.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(("mkfs.ext4", "-q", str(image)), check=True)
        command = ("mount", "-o", "loop", str(image), str(at))
    subprocess.run(command, check=True)


def run(home: Path, rounds: int, seed: int, kinds: tuple[str, ...]) -> Verdict:
    """Run so many rounds of each kind."""
    verdict = Verdict()
    for kind in kinds:
        at = home / kind
        if kind == "fsize":
            at.mkdir()
        else:
            mount(kind, at, home / "image")
        disk = Disk(at, limit=kind == "fsize")
        if kind == "store":
            asyncio.run(of_collector(home, disk, rounds, verdict))
        else:
            of_agent(kind, disk, rounds, seed, verdict)
        if kind != "fsize":
            subprocess.run(("umount", str(at)), check=True)
        sys.stdout.write(f"{kind}: {rounds} rounds, {len(verdict.problems)} problems\n")
        sys.stdout.flush()
    return verdict


def main(rounds: int, seed: int, kinds: tuple[str, ...]) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        verdict = run(Path(scratch), rounds, seed, kinds)
    sys.stdout.write(
        f"seed {seed}: rounds {verdict.rounds}, in memory in {verdict.degraded}, killed then in "
        f"{verdict.killed}, {verdict.gap_rows} rows in gaps, {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    if "--here" not in sys.argv:
        inside = (
            "unshare",
            "--mount",
            "--propagation",
            "private",
            sys.executable,
            "-m",
            "campaign.disks",
        )
        os.execvp(inside[0], (*inside, "--here", *sys.argv[1:]))
    words = [word for word in sys.argv[1:] if word != "--here"]
    chosen = [int(word) for word in words if word.isdigit()]
    named = tuple(word for word in words if not word.isdigit()) or (
        "tmpfs",
        "ext4",
        "fsize",
        "store",
    )
    chosen += [50, 1][len(chosen) :]
    sys.exit(main(chosen[0], chosen[1], named))
