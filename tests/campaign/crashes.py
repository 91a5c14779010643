"""``python -m campaign.crashes [SENDER COLLECTOR BOTH [SEED]]``: crash points of both sides, in one process.

What `campaign.delivery` does with processes, without their starts: at a point of `points` the collector's
memory is given up as it stands, with its streams, queue and acknowledgements, and the next one begins on
the same store; of a spool the files are taken as they are at that moment, and the next one opens those.
The engine of the store is not restarted, so this says nothing of it; `campaign.delivery` does. The oracle
is the same. Ctrl-C: no more crashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from unittest import mock

import structlog
from prometheus_client import CollectorRegistry

from campaign import points
from campaign.collecting import Nobody
from campaign.delivery import judge_node
from campaign.sender import LOSSY, LOSSY_LIMITS, ROWS, payload
from campaign.storing import held_by
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Backoff, Stream, StreamIdentity
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry import group
from flopwatch_collector.telemetry.store import TelemetryStore

COMMIT_SECONDS: Final = 0.02
REACHED_SECONDS_MAX: Final = 5.0
ELSEWHERE: Final = "where it was"
SPOOL_POINTS: Final = tuple(
    name for name in points.SENDER if name.startswith(("append", "ack, ", "gap"))
)
STORE_POINTS: Final = (
    "before the commit",
    "rows without receipts",
    "rows and receipts",
    "committed, not acknowledged",
    "before the ack is written",
)
_SOON: Final = Backoff(base_seconds=0.01, max_seconds=0.02)


class CrashError(BaseException):
    """Nothing of the product may catch it, as nothing catches a kill."""


@dataclass
class Verdict:
    """Attributes: problems: one line each; kills: by target; deaths: by point."""

    problems: list[str] = field(default_factory=list)
    produced: int = 0
    lost: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)


class _Dead:
    """What is left of a store: whoever holds it still, in another thread, does nothing more with it."""

    def __getattr__(self, name: str) -> Any:
        raise CrashError


class Sender:
    """One spool, which is too small, and one stream; and the ones after them."""

    def __init__(self, home: Path, port: int, base_unix_ms: int) -> None:
        self.promised = 0
        self._home = home / "spool"
        self._port = port
        self._base = base_unix_ms
        self._lives = 0
        self.begin()

    def begin(self) -> None:
        """Open what is there."""
        self.crashed = False
        self.spool = Spool.open(self._home / str(self._lives), LOSSY_LIMITS)
        who = StreamIdentity(cluster="atlas", node_id=LOSSY, agent_version="0", boot_id="b")
        self._store = self.spool._store
        self.stream = Stream(f"127.0.0.1:{self._port}", who, self.spool, backoff=_SOON)
        self._running = asyncio.create_task(self.stream.run())

    def append(self) -> None:
        """Append a batch; a spool that dies of it, or before it, has promised nothing."""
        first = self.spool.rows_produced + 1
        with contextlib.suppress(CrashError):
            self.spool.append(payload(first, ROWS, self._base, LOSSY))
            self.promised = first + ROWS - 1
        self.stream.wake()

    def die(self, _: str) -> None:
        """Leave the files as they are, in whatever thread this is, and go no further."""
        self.leave()
        raise CrashError

    def leave(self) -> None:
        """Take the files as they are, between two verbs or where a verb of this thread stands."""
        with self.spool._lock:
            self._copy()
            self.crashed = True
            self.spool._store = cast(Any, _Dead())

    def _copy(self) -> None:
        old, new = self._home / str(self._lives), self._home / str(self._lives + 1)
        new.mkdir()
        for name in ("spool.db", "spool.db-wal", "spool.journal"):
            shutil.copyfile(old / name, new / name)

    async def reborn(self) -> None:
        """Give this life up and begin the next one."""
        await self.end()
        shutil.rmtree(self._home / str(self._lives))
        self._lives += 1
        self.begin()

    async def end(self) -> None:
        """Stop, and close the files."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self.spool._store = self._store
        self.spool.close()

    async def finish(self) -> tuple[int, int]:
        """Deliver everything and say so in a new session; return rows produced and dropped."""
        await self.stream.drained()
        sessions = self.stream.counters.sessions
        self.stream.move()
        while self.stream.counters.sessions == sessions:
            await asyncio.sleep(0.01)
        state = self.spool.state
        await self.end()
        return state.produced_rows, state.dropped_rows


class Collector:
    """One ingest on the store, and the ones after it."""

    def __init__(self, store: TelemetryStore) -> None:
        self._store = store
        self.port = 0

    async def begin(self) -> None:
        """Listen."""
        self.crashed = False
        nobody = cast(Any, Nobody())
        self.server = IngestServer(self._store, nobody, registry=CollectorRegistry())
        self.port = await self.server.start(f"127.0.0.1:{self.port}")

    def die(self, _: str) -> None:
        """Go no further, in whatever thread this is."""
        self.crashed = True
        raise CrashError

    async def reborn(self) -> None:
        """Give this life up, nothing of it stored or said any more, and begin the next one."""
        ingest = self.server._ingest
        commits = ingest._commits.group
        tasks = [commits._task, *ingest._beside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        commits._thread.shutdown()
        await self.server._server.stop(0)
        await self.begin()


async def run(
    home: Path, kills: Sequence[str], seed: int, enough: Callable[[], bool] = lambda: False
) -> Verdict:
    """Crash in that order (sender, collector, both), until it is enough, and judge."""
    with mock.patch.object(group, "COMMIT_SECONDS_MAX", COMMIT_SECONDS):
        return await _run(home, kills, seed, enough)


async def _run(home: Path, kills: Sequence[str], seed: int, enough: Callable[[], bool]) -> Verdict:
    chance, verdict = random.Random(seed), Verdict()
    store = TelemetryStore.open(f"chdb://{home / 'store'}")
    collector = Collector(store)
    await collector.begin()
    base = time.time_ns() // 1_000_000 - 6 * 3_600_000
    sender = Sender(home, collector.port, base)
    for target in kills:
        dying: dict[str, Sender | Collector] = {}
        if target in ("sender", "both"):
            dying[chance.choice(SPOOL_POINTS)] = sender
        if target in ("collector", "both"):
            dying[chance.choice(STORE_POINTS)] = collector
        await _crash(dying, sender, chance, verdict)
        verdict.kills[target] += 1
        if enough():
            break
    said = await sender.finish()
    await collector.server.stop()
    held = held_by(store)
    store.close()
    verdict.problems, verdict.lost, _ = judge_node(LOSSY, held, said, sender.promised, base)
    verdict.produced = said[0]
    return verdict


async def _crash(
    dying: dict[str, Sender | Collector], sender: Sender, chance: random.Random, verdict: Verdict
) -> None:
    """Work until one came to its point, and let the other, or who does not come to it, die where it is."""
    disarms = [
        points.arm(f"{point}:{chance.randrange(1, 4)}", who.die) for point, who in dying.items()
    ]
    until = time.monotonic() + REACHED_SECONDS_MAX
    while not any(who.crashed for who in dying.values()) and time.monotonic() < until:
        sender.append()
        await asyncio.sleep(0.002)
    for disarm in reversed(disarms):
        disarm()
    for point, who in dying.items():
        verdict.deaths[point if who.crashed else ELSEWHERE] += 1
        if isinstance(who, Sender) and not who.crashed:
            who.leave()
        await who.reborn()


def main(counts: Sequence[int], seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    kills = [
        target
        for target, count in zip(("sender", "collector", "both"), counts, strict=True)
        for _ in range(count)
    ]
    random.Random(seed).shuffle(kills)
    ended = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    with tempfile.TemporaryDirectory() as scratch:
        verdict = asyncio.run(run(Path(scratch), kills, seed, ended.is_set))
    sys.stdout.write(
        f"seed {seed}: crashes of the sender {verdict.kills['sender']}, of the collector "
        f"{verdict.kills['collector']}, of both {verdict.kills['both']}; {verdict.produced} rows "
        f"({verdict.lost} in gaps), {len(verdict.problems)} problems\n"
    )
    for place, count in sorted(verdict.deaths.items()):
        sys.stdout.write(f"  {count:5} {place}\n")
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    chosen = [int(word) for word in sys.argv[1:]]
    chosen += [1000, 1000, 200, 1][len(chosen) :]
    sys.exit(main(chosen[:3], chosen[3]))
