"""``python -m campaign.failing [STRIDE]``: each call that a spool makes of its disk fails with EIO.

A shim that is preloaded lets the n-th write, fsync, unlink, rename or truncation fail, once or from then on:
for every n (every STRIDEth) until the spool makes no more of them. The spool is opened, appended to,
acknowledged and closed, twice, the second time with a file that is damaged, so that it is salvaged. Then
the disk is well again. Every row must be delivered, or counted in a gap, and no start refused.

One loss cannot be said: what was in memory when an agent ended whose disk took neither it nor the journal.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from campaign.disks import LIMITS, Clock
from campaign.prefixes import payload
from flopwatch_agent.spool import Spool

KINDS: Final = ("write", "fsync", "unlink", "rename", "truncate")
FOR_EVER: Final = 1 << 40
ROWS: Final = 20
ROUNDS_MAX: Final = 12


@dataclass
class Verdict:
    """Attributes: problems: one line each; calls: that failed, by kind; gap_rows: said to be lost."""

    problems: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    gap_rows: int = 0
    unsaid_rows: int = 0


class Owner:
    """An agent of a spool.

    Attributes:
        given, got: rows by their number; in_memory: those that ended with a process.
        gaps: rows said to be lost, by spool and number.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._clock = Clock()
        self.given: set[int] = set()
        self.got: set[int] = set()
        self.in_memory: set[int] = set()
        self.gaps: dict[tuple[str, int], int] = {}
        self.spool = self._open()

    def _open(self) -> Spool:
        return Spool.open(self._directory, LIMITS, clock=self._clock)

    def append(self) -> None:
        """Append a batch."""
        first = len(self.given) + 1
        self.spool.append(payload(first, ROWS))
        self.given |= set(range(first, first + ROWS))
        self._clock.seconds += 3

    def deliver(self, batches: int = 1) -> None:
        """Send so many, and have them acknowledged."""
        for _ in range(batches):
            state = self.spool.state
            for frame in self.spool.pending(state.acked_seq, 1, 1 << 20, at_least_one=True):
                first, gap = frame.batch.first_unix_ms, frame.gap
                self.got |= set(range(first, first + frame.batch.row_count))
                if gap.last_seq:
                    self.gaps[state.spool_id, gap.first_seq] = gap.row_count
                self.spool.acknowledge(frame.batch.seq or gap.last_seq)

    def again(self, damage: int = 0) -> None:
        """Close it and open it again, with a byte of its file changed where that is asked for."""
        if self.spool.degraded:
            self.in_memory |= self.given - self.got
        self.spool.close()
        file = self._directory / "spool.db"
        if damage and file.exists() and file.stat().st_size > damage:
            content = bytearray(file.read_bytes())
            content[damage] ^= 0xFF
            (self._directory / "damaged").write_bytes(content)
            os.replace(self._directory / "damaged", file)
        self.spool = self._open()

    def recover(self) -> None:
        """Go on with a disk that is well, until all is delivered."""
        for _ in range(ROUNDS_MAX):
            self._clock.seconds += 11
            self.append()
            self.deliver(64)


def work(owner: Owner) -> None:
    """Do all that a spool does to its disk."""
    for _ in range(3):
        owner.append()
    owner.deliver()
    owner.append()
    owner.again()
    owner.append()
    owner.deliver()
    owner.again(damage=100)
    owner.append()


def scenario(shim: Any, home: Path, kind: str, at: int, times: int, verdict: Verdict) -> bool:
    """Let one call fail, or all from that one on; return whether there was such a call."""
    shutil.rmtree(home, ignore_errors=True)
    what = f"{kind} {at}, {'once' if times == 1 else 'from then on'}"
    owner = Owner(home / "spool")
    shim.failing_arm(KINDS.index(kind), ctypes.c_long(at), ctypes.c_long(times))
    try:
        work(owner)
    except Exception as exc:
        verdict.problems.append(f"{what}: {type(exc).__name__}: {exc}")
        owner = Owner(home / "elsewhere" / "spool")
    reached = bool(shim.failing_seen() >= at)
    shim.failing_arm(-1, ctypes.c_long(0), ctypes.c_long(0))
    owner.recover()
    lost, said = owner.given - owner.got, sum(owner.gaps.values())
    unsaid = len(lost) - said
    if owner.spool.degraded:
        verdict.problems.append(f"{what}: still in memory")
    if not 0 <= unsaid <= len(lost & owner.in_memory):
        verdict.problems.append(f"{what}: {len(lost)} rows lost and {said} said to be")
    verdict.unsaid_rows += unsaid
    verdict.gap_rows += said
    owner.spool.close()
    return reached


def run(home: Path, stride: int, verdict: Verdict) -> None:
    """Let every call of every kind fail."""
    shim = ctypes.CDLL(None)
    shim.failing_seen.restype = ctypes.c_long
    for kind in KINDS:
        for times in (1, FOR_EVER):
            at = 1
            while scenario(shim, home, kind, at, times, verdict):
                verdict.calls[kind] = verdict.calls.get(kind, 0) + 1
                at += random.Random(at).randrange(1, 2 * stride)


def main(stride: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    verdict = Verdict()
    with tempfile.TemporaryDirectory() as scratch:
        run(Path(scratch) / "home", stride, verdict)
    sys.stdout.write(
        f"calls that failed {verdict.calls}, {verdict.gap_rows} rows in gaps, "
        f"{verdict.unsaid_rows} unsaid that were in memory, {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:60]))
    return 1 if verdict.problems or not verdict.calls else 0


if __name__ == "__main__":
    if "--here" not in sys.argv:
        with tempfile.TemporaryDirectory() as built:
            library = Path(built) / "failing.so"
            source = Path(__file__).with_suffix(".c")
            subprocess.run(
                ("gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"), check=True
            )
            again = (sys.executable, "-m", "campaign.failing", "--here", *sys.argv[1:])
            sys.exit(
                subprocess.run(again, env={**os.environ, "LD_PRELOAD": str(library)}).returncode
            )
    sys.exit(main(int(sys.argv[2]) if len(sys.argv) > 2 else 1))
