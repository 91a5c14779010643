"""``python -m campaign.rollback [ROUNDS [SEED]]``: spools that were copied, set back, and sent by two hosts.

In a round one of these befalls an agent that sends:

    set back   its spool is a snapshot of before, as a restored machine image has it: its numbers come again
               with other rows
    cloned     a copy of its spool sends under the same name beside it, and both append
    double     another host has its name, with a spool of its own

Whatever was acknowledged, or waits in a spool that is still there, must be in the store in the end, with its
value: no row may be swallowed because its number was seen before. Nothing else may be in it.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from campaign.nodes import ROWS_PER_BATCH, collector, held_by
from campaign.sender import SOON, payload, value
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream, StreamIdentity
from processes import Process

KINDS: Final = ("set back", "cloned", "double")
WHO: Final = StreamIdentity(cluster="atlas", node_id="n1", agent_version="0", boot_id="b")


@dataclass
class Verdict:
    """Attributes: problems: one line each; rounds: by kind; rows: that had to be there."""

    problems: list[str] = field(default_factory=list)
    rounds: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    set_back_rows: int = 0


class Host:
    """A host that sends one spool. Attributes: rows: seq → the first row of its batch."""

    def __init__(self, target: str, directory: Path, rows: dict[int, int], seed: int) -> None:
        self.directory = directory
        self.rows = rows
        self.spool = Spool.open(directory)
        self.stream = Stream(target, WHO, self.spool, backoff=SOON, random=random.Random(seed))
        self._sending = asyncio.create_task(self.stream.run())

    async def append(self, first: int, base_unix_ms: int) -> None:
        """Append a batch that begins with a row of that number."""
        batch = payload(first, ROWS_PER_BATCH, base_unix_ms)
        self.rows[await self.spool.aside(self.spool.append, batch)] = first
        self.stream.wake()

    async def leave(self) -> set[int]:
        """Stop at once; return the first rows of what was acknowledged."""
        self._sending.cancel()
        await asyncio.gather(self._sending, return_exceptions=True)
        acked_seq = self.spool.state.acked_seq
        self.spool.close()
        return {first for seq, first in self.rows.items() if seq <= acked_seq}

    async def finish(self) -> set[int]:
        """Deliver everything; return the first rows of all of it."""
        await self.stream.drained()
        await self.stream.goodbye("stop")
        self.spool.close()
        return set(self.rows.values())


class Campaign:
    """Agents of one name, one after the other and beside each other."""

    def __init__(self, home: Path, target: str, seed: int) -> None:
        self._home = home
        self._target = target
        self._chance = random.Random(seed)
        self._made = 0
        self._next = 1
        self.base_unix_ms = time.time_ns() // 1_000_000 - 12 * 3_600_000
        self.must: set[int] = set()
        self.verdict = Verdict()

    def _host(self, directory: Path, rows: dict[int, int] | None = None) -> Host:
        return Host(self._target, directory, rows or {}, self._chance.getrandbits(32))

    def _place(self) -> Path:
        self._made += 1
        return self._home / f"spool{self._made}"

    async def _work(self, *hosts: Host) -> None:
        for _ in range(self._chance.randrange(1, 6)):
            for host in hosts:
                await host.append(self._next, self.base_unix_ms)
                self._next += ROWS_PER_BATCH
            await asyncio.sleep(self._chance.choice((0.0, 0.1, 0.4)))

    def _copied(self, host: Host) -> tuple[Path, dict[int, int]]:
        """Return a copy of a host's spool as it lies there, with the log that belongs to it."""
        place = self._place()
        with host.spool._lock:
            shutil.copytree(host.directory, place)
            return place, dict(host.rows)

    async def round(self, kind: str) -> None:
        """Let one thing happen, and all that is left be delivered."""
        host = self._host(self._place())
        await self._work(host)
        others: list[Host] = []
        if kind == "double":
            others.append(self._host(self._place()))
        else:
            place, rows = self._copied(host)
            if kind == "set back":
                await self._work(host)
                acked = await host.leave()
                self.verdict.set_back_rows += ROWS_PER_BATCH * len(host.rows.keys() - rows.keys())
                self.must |= acked
                host = self._host(place, rows)
            else:
                others.append(self._host(place, rows))
        await self._work(host, *others)
        # Of two that are there at one time the newest stands: they take turns, and then one is ended.
        for other in others:
            self.must |= await other.leave()
            left = self._host(other.directory, other.rows)
            await host.leave()
            self.must |= await left.finish()
            host = self._host(host.directory, host.rows)
        self.must |= await host.finish()
        self.verdict.rounds[kind] = self.verdict.rounds.get(kind, 0) + 1

    def judge(self, held: dict[str, Any]) -> Verdict:
        """Hold the store against what had to be in it."""
        starts, values = held["rows"].get("n1", ((), ()))
        numbers = [start - self.base_unix_ms for start in starts]
        must = {first + i for first in self.must for i in range(ROWS_PER_BATCH)}
        problems = self.verdict.problems
        if swallowed := must - set(numbers):
            problems.append(f"{len(swallowed)} rows are swallowed, from {min(swallowed)}")
        if invented := set(numbers) - set(range(1, self._next)):
            problems.append(f"{len(invented)} rows were never produced, from {min(invented)}")
        if len(set(numbers)) < len(numbers):
            problems.append(f"{len(numbers) - len(set(numbers))} rows are doubled")
        if wrong := [n for n, held in zip(numbers, values, strict=True) if held != value(n)]:
            problems.append(f"{len(wrong)} rows hold another value, from {wrong[0]}")
        problems += (f"quarantined: {aside}" for aside in held["quarantined"])
        self.verdict.rows = len(must)
        return self.verdict


async def run(home: Path, serving: Process, rounds: int, seed: int) -> Verdict:
    """Run so many rounds, and judge."""
    made = Campaign(home, await asyncio.to_thread(serving.line, "listening "), seed)
    for number in range(rounds):
        await made.round(KINDS[number % len(KINDS)])
        if number % 20 == 19:
            sys.stdout.write(f"round {number + 1}\n")
            sys.stdout.flush()
    return made.judge(await held_by(serving))


def main(rounds: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch, collector(Path(scratch)) as serving:
        verdict = asyncio.run(run(Path(scratch), serving, rounds, seed))
    sys.stdout.write(
        f"seed {seed}: rounds {verdict.rounds}, {verdict.rows} rows that had to be there, "
        f"{verdict.set_back_rows} appended after a snapshot, {len(verdict.problems)} problems\n"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*(chosen + [200, 1][len(chosen) :])))
