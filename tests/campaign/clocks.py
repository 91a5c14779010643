"""``python -m campaign.clocks [CASES [SEED]]``: nodes and collectors whose wall clock is wrong, or jumps.

Senders are processes under libfaketime, which is told by a file what to add to the wall clock; the
collector's clock is right. In a case the clock of one sender is wrong, jumps while it sends, or the
machine's boot clock is that of a host that slept (``unshare --time``). Every row is dated by the sender's
clock. In the end each row is stored once, with its value and the start that its node said, or is
quarantined or in a gap, which only rows may be that were dated more than ten minutes ahead or before what is
kept. What comes after the clock is right again must be stored. Nothing may be doubled or lost in silence.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from campaign.nodes import collector, held_by
from campaign.sender import ROWS, SOON, payload, value
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_agent.spool import Spool
from flopwatch_agent.stream import Stream, StreamIdentity
from flopwatch_collector.telemetry.schema import RAW_KEPT_DAYS
from flopwatch_collector.telemetry.times import FUTURE_MS_MAX
from processes import Process, environment

LIBRARY: Final = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
HOUR_SECONDS: Final = 3_600
YEAR_SECONDS: Final = 365 * 86_400
SPARE_MS: Final = 60_000
DAY_MS: Final = 86_400_000
BATCHES: Final = 6
KINDS: Final = {
    "an hour ahead": HOUR_SECONDS,
    "an hour behind": -HOUR_SECONDS,
    "ten years ahead": 10 * YEAR_SECONDS,
    "ten years behind": -10 * YEAR_SECONDS,
    "1970": 0,
    "a second back": -1,
    "a second ahead": 1,
    "slept": 0,
}
"""What is added to the wall clock, in seconds; a leap second is one back while it sends."""


@dataclass
class Verdict:
    """Attributes: problems: one line each; quarantined: rows dated impossibly, in gaps or not."""

    problems: list[str] = field(default_factory=list)
    cases: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    quarantined: int = 0


async def send(name: str, target: str, home: str) -> None:
    """Send batches dated by this process's clock, a third before, with, and after it is wrong.

    SIGUSR1: the next third. Each batch is said with its number and the start of its rows.
    """
    going = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, going.set)
    spool = Spool.open(Path(home, name))
    who = StreamIdentity(cluster="atlas", node_id=name, agent_version="0", boot_id="b")
    stream = Stream(target, who, spool, backoff=SOON)
    delivering = asyncio.create_task(stream.run())
    for third in ("before", "with", "after"):
        for _ in range(BATCHES):
            first = spool.rows_produced + 1
            start = wall_unix_ms(SystemClock())
            seq = await spool.aside(spool.append, payload(first, ROWS, start - first))
            stream.wake()
            _say(f"batch {json.dumps([seq, first, start])}")
            await asyncio.sleep(0.05)
        await stream.drained()
        _say(f"done {third}, {stream.counters.acked_batches} batches in all")
        while third != "after" and not going.is_set():
            await asyncio.sleep(0.02)
        going.clear()
    await stream.goodbye("stop")
    delivering.cancel()
    spool.close()
    _say(f"produced {spool.state.produced_rows}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _added(kind: str, chance: random.Random) -> int:
    """Return what is added to the clock, in seconds."""
    if kind == "1970":
        return 3_600 - int(time.time())
    return KINDS[kind] * (chance.randrange(80, 121) if abs(KINDS[kind]) > 1 else 100) // 100


def _start(kind: str, name: str, target: str, home: Path) -> Process:
    rate = home / f"{name}.rate"
    rate.write_text("+0\n")
    slept = ("unshare", "--time", "--fork", "--kill-child", "--boottime", "864000")
    command = (*(slept if kind == "slept" else ()), sys.executable, "-m", "campaign.clocks", "send")
    more = {
        "LD_PRELOAD": LIBRARY,
        "FAKETIME_TIMESTAMP_FILE": str(rate),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    env = environment(**({} if kind == "slept" else more))
    return Process((*command, name, target, str(home)), home / f"{name}.log", env)


def _next(process: Process) -> None:
    """Send SIGUSR1 to the sender, which may be below another process."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]) if children else process.pid, signal.SIGUSR1)


async def case(kind: str, name: str, target: str, home: Path, chance: random.Random) -> Process:
    """Run one sender to its end."""
    process = _start(kind, name, target, home)
    try:
        await asyncio.to_thread(process.line, "done before")
        new = home / f"{name}.new"
        new.write_text(f"{_added(kind, chance):+d}\n")
        new.rename(home / f"{name}.rate")
        _next(process)
        await asyncio.to_thread(process.line, "done with")
        (home / f"{name}.rate").write_text("+0\n")
        _next(process)
        await asyncio.to_thread(process.line, "produced ")
    finally:
        process.end(signal.SIGKILL)
    return process


def judge(name: str, said: str, held: dict[str, Any], now_unix_ms: int) -> tuple[list[str], int]:
    """Return what is wrong with what a store holds of a sender, and its rows in quarantine."""
    batches = [json.loads(x[6:]) for x in said.splitlines() if x.startswith("batch ")]
    aside = {each["seq"] for each in held["quarantined"] if each["node"] == name}
    spans = [(g["first_seq"], g["last_seq"]) for g in held["gaps"] if g["node"] == name]
    given_up = {seq for first, last in spans for seq in range(first, last + 1)}
    starts, values = held["rows"].get(name, ((), ()))
    expected: dict[int, list[float]] = {}
    problems, oldest = [], now_unix_ms - RAW_KEPT_DAYS * DAY_MS
    for seq, first, start in batches:
        last = start + ROWS - 1
        # As the clock of this judge is not that of the collector at that moment.
        impossible = last > now_unix_ms + FUTURE_MS_MAX or start < oldest
        if impossible != (seq in aside or seq in given_up):
            problems.append(f"batch {seq} of {start} is {'not ' * impossible}aside or in a gap")
        if seq in given_up and start >= oldest:
            problems.append(f"batch {seq} of {start} is in a gap, and had not to be given up")
        if seq not in aside and seq not in given_up:
            for i in range(ROWS):
                expected.setdefault(start + i, []).append(value(first + i))
    found = list(zip(starts, values, strict=True))
    if len(dict(found)) < len(found):
        problems.append("rows are doubled")
    if dict(found).keys() != expected.keys():
        problems.append(f"{len(expected)} starts said, {len(found)} held")
    wrong = [start for start, held in found if held not in expected.get(start, [])]
    if wrong:
        problems.append(f"{len(wrong)} rows hold another value, from {wrong[0]}")
    return [f"{name}: {problem}" for problem in problems], ROWS * len(aside | given_up)


async def run(home: Path, serving: Process, cases: int, seed: int) -> Verdict:
    """Run so many cases, and judge."""
    verdict, chance = Verdict(), random.Random(seed)
    target = await asyncio.to_thread(serving.line, "listening ")
    ended: dict[str, str] = {}
    for number in range(cases):
        kind = list(KINDS)[number % len(KINDS)]
        name = f"n{number}"
        ended[name] = (await case(kind, name, target, home, chance)).said()
        verdict.cases[kind] += 1
        _say(f"case {number + 1}: {kind}")
    held = await held_by(serving)
    for name, said in ended.items():
        problems, aside = judge(name, said, held, time.time_ns() // 1_000_000)
        verdict.problems += problems
        verdict.quarantined += aside
        verdict.rows += 3 * BATCHES * ROWS
    wrong = [each for each in held["audit"] if each["verdict"] != "balanced"]
    verdict.problems += (f"the audit says {each}" for each in wrong)
    return verdict


def main(cases: int, seed: int) -> int:
    """Run one and say how it went; 0 where nothing is wrong."""
    with tempfile.TemporaryDirectory() as scratch, collector(Path(scratch)) as serving:
        verdict = asyncio.run(run(Path(scratch), serving, cases, seed))
    _say(
        f"seed {seed}: cases {dict(verdict.cases)}, {verdict.rows} rows, {verdict.quarantined} "
        f"quarantined or in gaps for their time, {len(verdict.problems)} problems"
    )
    sys.stdout.write("".join(f"WRONG {problem}\n" for problem in verdict.problems[:50]))
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["send"]:
        asyncio.run(send(*sys.argv[2:]))
    else:
        chosen = [int(word) for word in sys.argv[1:]]
        sys.exit(main(*(chosen + [40, 1][len(chosen) :])))
