"""``python -m campaign.upgrades [ROUNDS [SEED]]``: backup, restore, and stores of other versions, under load.

Nodes send all the time. In a round one of these befalls their collector:

    restore    it is backed up while it takes more, killed, and started on what `flopwatch restore` makes
    upgrade    it is killed, its store set back to what an older version leaves, and started on that
    newer      it is killed, and its store is of a newer version: the start is refused and changes nothing

In the end every row is stored once, with its value. Only what was acknowledged between a backup and the
kill may be missing, as no spool has it any more; the audit must name exactly as many rows as are.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from prometheus_client import CollectorRegistry

from campaign.collecting import Nobody
from campaign.delivery import FRESH_SECONDS_MAX, judge
from campaign.nodes import ROWS_PER_BATCH, Node, held_by
from campaign.storing import held_by as held_in
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.listen import IngestServer
from flopwatch_collector.telemetry import backup, migrations
from flopwatch_collector.telemetry import store as stores
from flopwatch_collector.telemetry.migrations import STEPS
from flopwatch_collector.telemetry.snapshot import snapshot
from flopwatch_collector.telemetry.store import TelemetryStore
from processes import Process, done

KINDS: Final = ("restore", "upgrade", "newer")
NODES: Final = 4
NEWER: Final = 99


@dataclass
class Verdict:
    """Attributes: problems: one line each; missing: rows acknowledged after the backup that was restored."""

    problems: list[str] = field(default_factory=list)
    rounds: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    missing: int = 0
    fresh_seconds: float = 0.0


# ---- processes of their own, as each may open one store


async def serve(address: str, data: str) -> None:
    """Collect until SIGTERM; SIGUSR1: back up into the directory ``backup`` beside the data."""
    home, loop, ending = Path(data), asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    store = TelemetryStore.open(f"chdb://{home / 'telemetry'}")
    control = f"sqlite:///{home / 'control.db'}"
    ControlStore.open(control).close()

    def back_up() -> None:
        with snapshot(store, control, time.time_ns() // 1_000_000) as found:
            backup.copy(found, home.with_name("backup"), lambda *_: None)
        _say(f"backed up {len(found.tables)} tables")

    loop.add_signal_handler(signal.SIGUSR1, lambda: loop.run_in_executor(None, back_up))
    server = IngestServer(store, cast(Any, Nobody()), registry=CollectorRegistry())
    _say(f"listening 127.0.0.1:{await server.start(address)}")
    await ending.wait()
    await server.stop()
    _say(f"held {json.dumps(held_in(store))}")
    store.close()


def set_back(client: Any) -> None:
    """Leave a store as an older version does: no steps noted, a column and tables lacking."""
    client.command("DROP TABLE migration")
    for name in ("fleet_interval", "fleet_day"):
        client.command(f"DROP TABLE {name}")
    client.command("ALTER TABLE interval DROP COLUMN energy_joules")


def set_forward(client: Any) -> None:
    """Let a store say that a newer version carried it forward."""
    client.command(f"INSERT INTO migration VALUES ({NEWER}, 1)")


def take_back(data: str) -> None:
    """Undo that, as only this campaign can: the product refuses to open it."""
    migrate, steps = migrations.migrate, (*STEPS, *[_nothing] * (NEWER - len(STEPS)))
    vars(stores)["migrate"] = lambda client: migrate(client, steps)
    undone = f"ALTER TABLE migration DELETE WHERE number = {NEWER} SETTINGS mutations_sync = 2"
    change(data, lambda client: client.command(undone))


def _nothing(client: Any) -> None:
    pass


def change(data: str, how: Callable[[Any], Any]) -> None:
    """Do something to a store that nobody uses."""
    store = TelemetryStore.open(f"chdb://{data}/telemetry")
    with store.still() as client:
        how(client)
    store.close()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# ---- the campaign


class Campaign:
    """Nodes, and one collector after the other."""

    def __init__(self, home: Path, seed: int) -> None:
        self._home, self._chance = home, random.Random(seed)
        self._base = time.time_ns() // 1_000_000 - 6 * 3_600_000
        self._address = "127.0.0.1:0"
        self._data = home / "data0"
        self._data.mkdir()
        self._allowed: dict[str, set[int]] = {}
        self.verdict = Verdict()
        self._serving = self._start()
        self._nodes: list[Node] = []

    def _run(self, *words: str) -> Process:
        return Process(
            (sys.executable, "-m", "campaign.upgrades", *words), self._home / "collector.log"
        )

    def _start(self) -> Process:
        return self._run("serve", self._address, str(self._data))

    async def _listening(self) -> str:
        return await asyncio.to_thread(self._serving.line, "listening ")

    async def _change(self, what: str) -> None:
        changed = self._run(what, str(self._data))
        if await asyncio.to_thread(changed.wait):
            raise RuntimeError(changed.said())

    async def open(self) -> None:
        """Start the nodes."""
        self._address = await self._listening()
        where = self._home / "spools"
        for i in range(NODES):
            node = Node(f"n{i}", self._address, where, self._base, pace_seconds=0.15)
            self._nodes.append(node)
            self._allowed[node.name] = set()
        # What comes before the first receipt of a spool is not compared by the audit.
        await asyncio.gather(*(node.fresh_seconds() for node in self._nodes))

    async def round(self, kind: str) -> None:
        """Let one thing happen; then everybody must be heard."""
        await asyncio.sleep(self._chance.uniform(0.2, 1.5))
        if kind == "restore":
            await self._restore()
        else:
            self._serving.end(signal.SIGKILL)
            await self._change("set_back" if kind == "upgrade" else "set_forward")
        if kind == "newer":
            refused = self._start()
            code = await asyncio.to_thread(refused.wait)
            if code == 0 or "of a newer flopwatch" not in refused.said():
                self.verdict.problems.append(f"a newer store: {code} {refused.said()[-300:]}")
            await self._change("take_back")
        self._serving = self._start()
        await self._listening()
        fresh = await asyncio.gather(*(node.fresh_seconds() for node in self._nodes))
        self.verdict.fresh_seconds = max(self.verdict.fresh_seconds, *fresh)
        self.verdict.rounds[kind] += 1

    async def _restore(self) -> None:
        shutil.rmtree(self._home / "backup", ignore_errors=True)
        before = {node.name: node.spool.state.acked_seq for node in self._nodes}
        self._serving.send(signal.SIGUSR1)
        await asyncio.to_thread(self._serving.line, "backed up")
        await asyncio.sleep(self._chance.uniform(0.0, 1.5))
        self._serving.end(signal.SIGKILL)
        await asyncio.sleep(0.5)  # acknowledgements that are on their way
        for node in self._nodes:
            first, last = ROWS_PER_BATCH * before[node.name], node.spool.state.acked_seq
            self._allowed[node.name] |= set(range(first + 1, ROWS_PER_BATCH * last + 1))
        self._data = self._home / f"data{sum(self.verdict.rounds.values()) + 1}"
        arguments = ("restore", str(self._home / "backup"), "--data", str(self._data))
        told = await asyncio.to_thread(done, *arguments)
        if told.returncode:
            raise RuntimeError(told.stderr)

    async def finish(self) -> Verdict:
        """Deliver everything, and judge."""
        await asyncio.gather(*(node.finish() for node in self._nodes))
        held, verdict = await held_by(self._serving), self.verdict
        said = {each["node"]: each for each in held["audit"]}
        for node in self._nodes:
            starts, values = held["rows"].get(node.name, ((), ()))
            gone = set(range(1, node.promised + 1)) - {start - self._base for start in starts}
            found = judge(
                starts,
                values,
                sum(gap["node"] == node.name for gap in held["gaps"]),
                node.promised,
                node.promised,
                self._base,
                declared=gone & self._allowed[node.name],
            )
            verdict.problems += (f"{node.name}: {problem}" for problem in found)
            if said[node.name]["missing_rows"] != len(gone):
                verdict.problems.append(f"{len(gone)} rows missing: {said[node.name]}")
            verdict.missing += len(gone)
            verdict.rows += node.promised
        if verdict.fresh_seconds > FRESH_SECONDS_MAX:
            verdict.problems.append(f"nothing fresh within {FRESH_SECONDS_MAX} s")
        return verdict

    def close(self) -> None:
        """Leave no process behind."""
        self._serving.end(signal.SIGKILL)


async def run(home: Path, rounds: int, seed: int) -> Verdict:
    """Run so many rounds, and judge."""
    made = Campaign(home, seed)
    try:
        await made.open()
        for number in range(rounds):
            await made.round(KINDS[number % len(KINDS)])
            _say(f"round {number + 1}: {KINDS[number % len(KINDS)]}")
        return await made.finish()
    finally:
        made.close()


def main(rounds: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        verdict = asyncio.run(run(Path(scratch), rounds, seed))
    _say(
        f"seed {seed}: rounds {dict(verdict.rounds)}, {verdict.rows} rows, {verdict.missing} of them "
        f"acknowledged after the backup that was restored, and named by the audit, fresh within "
        f"{verdict.fresh_seconds:.1f} s, {len(verdict.problems)} problems"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["serve"]:
        asyncio.run(serve(*words[1:]))
    elif words[:1] == ["take_back"]:
        take_back(words[1])
    elif words[:1] in (["set_back"], ["set_forward"]):
        change(words[1], {"set_back": set_back, "set_forward": set_forward}[words[0]])
    else:
        chosen = [int(word) for word in words]
        sys.exit(main(*(chosen + [20, 1][len(chosen) :])))
