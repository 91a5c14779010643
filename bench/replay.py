"""What `flopwatch replay --since 30d` costs: a month of one cluster of 10,000 cards, as a collector keeps it.

    python bench/replay.py DIRECTORY

Makes a control store in DIRECTORY (ten-second ticks of 8 days, full minutes of 38, of every observation that
rules read), replays it with today's rules and with others, and prints seconds and peak memory as JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import func, insert, select

from flopwatch_collector.control.observations import Judged, columns_of
from flopwatch_collector.control.schema import OBSERVATION
from flopwatch_collector.control.store import DAY_MS, ControlStore
from flopwatch_collector.incident import MINUTE_MS, STEP_MS
from flopwatch_collector.replay.player import observed_names
from flopwatch_collector.rules import Cause, Observation

CARDS, NODES = 10_000, 1_250
FINE_DAYS, DAYS = 8, 38
NAMES = observed_names()
TRIED = "[rules.allocation]\nline = 0.97\n[rules.mfu]\nline = 0.45\nfor_s = 600\n"


def observation(name: str, tick_unix_ms: int) -> Observation:
    """A fleet that loses a rack for 40 minutes every day, and whose MFU swings about its line."""
    minute = tick_unix_ms // MINUTE_MS
    out = minute % 1440 < 40
    ratio = 0.92 if out else 0.975
    if name == "mfu":
        ratio = 0.52 + 0.16 * ((minute // 90) % 7) / 7
    counted = name not in ("allocation", "mfu")
    return Observation(
        cluster="atlas",
        rule=name,
        simulated=True,
        device_kind="gpu",
        tick_unix_ms=tick_unix_ms,
        lo=None if counted else ratio,
        hi=None if counted else ratio,
        value=None if counted else ratio,
        coverage=0.99,
        in_service_cards=CARDS,
        unseen_cards=0.0,
        lost_points={"MISSING": 2.0, "FREE": 0.5} if not counted else {},
        causes=tuple(
            Cause(kind="node", name=f"r17n{i}", cards=8, points=0.08)
            for i in range(0 if counted else 10)
        ),
        in_service_nodes=NODES,
        subjects=0 if counted else None,
        subjects_in_all=NODES if counted else None,
    )


def fill(path: Path, until_unix_ms: int) -> int:
    """Make the store: a day by the collector's own code, the others as copies of it. Returns its rows."""
    store = ControlStore.open(f"sqlite:///{path}")
    with store.writing() as connection:
        for tick in range(until_unix_ms - DAY_MS, until_unix_ms, STEP_MS):
            judged = [Judged(observation=observation(name, tick), condition="ok") for name in NAMES]
            connection.execute(insert(OBSERVATION), [columns_of(of) for of in judged])
        for days in range(1, DAYS):
            names = [column.name for column in OBSERVATION.c]
            moved = [
                column - days * DAY_MS if column.name == "tick_unix_ms" else column
                for column in OBSERVATION.c
            ]
            day = select(*moved).where(OBSERVATION.c.tick_unix_ms >= until_unix_ms - DAY_MS)
            if days >= FINE_DAYS:
                day = day.where(OBSERVATION.c.tick_unix_ms % MINUTE_MS == 0)
            connection.execute(insert(OBSERVATION).from_select(names, day))
        count: int = connection.execute(select(func.count()).select_from(OBSERVATION)).scalar_one()
    store.close()
    return count


def main() -> None:
    """Fill, replay, print."""
    directory = Path(sys.argv[1])
    until_unix_ms = time.time_ns() // 1_000_000 // MINUTE_MS * MINUTE_MS
    rows = fill(directory / "control.db", until_unix_ms)
    tried = directory / "tried.toml"
    tried.write_text(TRIED, encoding="utf-8")
    began = time.monotonic()
    command = ["flopwatch", "replay", "--rules", str(tried), "--since", "30d"]
    done = subprocess.run(
        [*command, "--data", str(directory), "--would-have"], check=True, capture_output=True
    )
    seconds = round(time.monotonic() - began, 1)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = round(used.ru_utime + used.ru_stime, 1)
    found = {"rows": rows, "seconds": seconds, "cpu_seconds": cpu_seconds}
    found["peak_mib"] = used.ru_maxrss // 1024
    sys.stdout.write(f"{done.stdout.decode()}{json.dumps(found)}\n")


if __name__ == "__main__":
    main()
