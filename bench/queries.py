"""How long the questions of the dashboard take over a fleet of 80,000 cards, in the store as it would be.

    .venv/bin/python bench/queries.py [--cards 80000] [--clusters 8] [--days 90] [--asked 30] [--dir DIR]

Rows and lines are written straight into an embedded store: 90 days of days and hours by the grain without
slots, the last hours of minutes, the last hour of intervals, and raw rows of the minutes that are not
written yet and of the edges of the window. Nothing else runs beside the questions, which are asked with the
bounds that readers have, and every one is computed: answers are not shared as the web process does it.
Quantities are random: what they say is of no use, how many there are is that of the real thing.

Beside the questions, what the collector does for them every 10 s: it judges the newest interval.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from measure import machine, write

from flopwatch_agent.clock import SystemClock, wall_unix_ms
from flopwatch_collector.jobs.answer import jobs
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.fleet import cluster, fleet
from flopwatch_collector.ledger.intervals import INTERVAL_SETTLE_MS, RECENT_MS, Intervals
from flopwatch_collector.ledger.lines import LINE_INTS, LINE_SUMS
from flopwatch_collector.ledger.rollup import HOUR_MS, MINUTE_MS, SETTLE_MS
from flopwatch_collector.ledger.window import asked_window
from flopwatch_collector.teams import team, teams
from flopwatch_collector.telemetry.remote import ReadBounds
from flopwatch_collector.telemetry.schema import DAY_MS
from flopwatch_collector.telemetry.store import Handles, TelemetryStore
from flopwatch_proto import rows
from flopwatch_proto.rows import INTERVAL_MS, Bucket

JOBS: Final = 200
"""Jobs at a time in a cluster; beside them a line of free and one of failed cards."""
CARDS_PER_NODE: Final = 8
ROLLUP_MS: Final = 10_000
CHUNK_HOURS: Final = 48
ROWS_COME_MS: Final = 1_000
"""How long after the end of an interval its rows are stored."""
INTERVALS_MS: Final = 65 * MINUTE_MS
LATE_MS: Final = 30_000

Floats = np.ndarray[Any, Any]
_noise = np.random.default_rng(1)


def lines(starts: list[int], cards: int, length_ms: int) -> dict[str, Any]:
    """Return the lines of a cluster that begin at some moments, without slots."""
    each = JOBS + 2
    count = len(starts) * each
    index = np.tile(np.arange(each), len(starts))
    working = index < JOBS
    made: dict[str, Any] = {
        "start_unix_ms": np.repeat(starts, each).tolist(),
        "bucket": pa.array(
            np.where(working, int(Bucket.ACTIVE), np.where(index == JOBS, 9, 2)).astype(np.uint8)
        ),
        "job": pa.array([f"job-{i}" if i < JOBS else "" for i in index]),
        "team": pa.array([f"team-{i % 20}" if i < JOBS else "" for i in index]),
        "sku": pa.array(["H100-SXM5-80GB"] * count),
        "device_kind": pa.array(["gpu"] * count),
        "dtype": pa.array(["bf16"] * count),
        "efficiency_method": pa.array(["gpm"] * count),
        "workload_class": pa.array(["training"] * count),
    }
    time_ms = np.full(count, cards * length_ms // each)
    made |= {name: pa.array(time_ms) for name in LINE_INTS if name != "provisional_ms"}
    made |= {name: pa.array(_noise.random(count) * 1e15) for name in LINE_SUMS}
    return made


def raw(start_unix_ms: int, cards: int) -> dict[str, Any]:
    """Return the rows of one interval of a cluster."""
    node, slot = np.divmod(np.arange(cards), CARDS_PER_NODE)
    names = pa.array([f"n{i}" for i in range(int(node.max()) + 1)])
    return {
        "node": names.take(pa.array(node)),
        "slot": pa.array([str(i) for i in range(CARDS_PER_NODE)]).take(pa.array(slot)),
        "start_unix_ms": [start_unix_ms] * cards,
        "duration_ms": [INTERVAL_MS] * cards,
        "weight": [1.0] * cards,
        "bucket": [int(Bucket.ACTIVE)] * cards,
        "job": pa.array([f"job-{i}" for i in range(JOBS)]).take(
            pa.array(np.arange(cards) * JOBS // cards)
        ),
        "sku": ["H100-SXM5-80GB"] * cards,
        "device_kind": ["gpu"] * cards,
        "dtype": ["bf16"] * cards,
        "efficiency_method": ["gpm"] * cards,
        "allocation_source": ["slurm"] * cards,
        **{q.name: [INTERVAL_MS] * cards for q in rows.CARD_TIMES},
        **{n: pa.array(_noise.random(cards) * 1e4) for n in rows.QUANTITY_NAMES},
    }


def fill(store: TelemetryStore, names: list[str], cards: int, days: int, now: int) -> None:
    """Write what a collector would have at ``now``."""
    written = (now - SETTLE_MS - ROLLUP_MS) // MINUTE_MS * MINUTE_MS
    hours_end = written // HOUR_MS * HOUR_MS
    days_end = hours_end // DAY_MS * DAY_MS
    first = days_end - (days + 1) * DAY_MS
    for name in names:
        place: dict[str, Any] = {"cluster": [name] * cards, "stored_unix_ms": [first] * cards}
        seats = {
            k: v for k, v in raw(now, cards).items() if k in ("node", "slot", "sku", "device_kind")
        }
        declared = {"from_unix_ms": [first] * cards, "state": [3] * cards}
        store.append("slot", {**place, **seats, **declared})
        _lines_of(store, name, cards, "fleet_day", range(first, days_end, DAY_MS), now)
        for at in range(first, hours_end, CHUNK_HOURS * HOUR_MS):
            end = min(at + CHUNK_HOURS * HOUR_MS, hours_end)
            _lines_of(store, name, cards, "fleet_hour", range(at, end, HOUR_MS), now)
        # Minutes that hours stand for are named and not written: nobody reads their lines here.
        said = range(first, hours_end - 2 * HOUR_MS, MINUTE_MS)
        named: dict[str, Any] = {
            "grain": "fleet_minute",
            "cluster": name,
            "lines": JOBS + 2,
            "generation": now,
        }
        constant: dict[str, Any] = {key: [value] * len(said) for key, value in named.items()}
        stored = {"start_unix_ms": list(said), "stored_unix_ms": [now] * len(said)}
        store.append("written", {**constant, **stored})
        starts = range(hours_end - 2 * HOUR_MS, written, MINUTE_MS)
        _lines_of(store, name, cards, "fleet_minute", starts, now)
        # All intervals that the collector would have, but for the newest, which is timed below.
        newest = (now - INTERVAL_SETTLE_MS) // INTERVAL_MS * INTERVAL_MS - INTERVAL_MS
        _intervals_of(store, name, cards, range(newest - INTERVALS_MS, newest, INTERVAL_MS))
        # The newest rows, and those around the beginning of a window of 15 minutes.
        edges = [
            (now - RECENT_MS - 2 * MINUTE_MS, now),
            (now - 17 * MINUTE_MS, now - 14 * MINUTE_MS),
        ]
        for low, high in edges:
            for start in range(low // INTERVAL_MS * INTERVAL_MS, high - INTERVAL_MS, INTERVAL_MS):
                came = [start + INTERVAL_MS + ROWS_COME_MS] * cards
                store.append("interval", {**place, "stored_unix_ms": came, **raw(start, cards)})


def _lines_of(
    store: TelemetryStore, name: str, cards: int, table: str, starts: range, now: int
) -> None:
    made = lines(list(starts), cards, starts.step)
    append: dict[str, Any] = {"cluster": name, "generation": now, "stored_unix_ms": now}
    store.append_lines(table, made, starts_unix_ms=list(starts), **append)


def _intervals_of(store: TelemetryStore, name: str, cards: int, starts: range) -> None:
    made = lines(list(starts), cards, INTERVAL_MS)
    known = [start + INTERVAL_MS + INTERVAL_SETTLE_MS for start in made["start_unix_ms"]]
    told: dict[str, Any] = {"cluster": [name] * len(known), "generation": [1] * len(known)}
    store.append("fleet_interval", {**made, **told, "stored_unix_ms": known})


def arrive_late(store: TelemetryStore, names: list[str], now: int) -> None:
    """Store one row of each cluster again, as if it had come only now: its interval is judged anew."""
    start = now // MINUTE_MS * MINUTE_MS
    for name in names:
        came = [start + LATE_MS]
        store.append("interval", {**raw(start, 1), "cluster": [name], "stored_unix_ms": came})


def timed(ask: Callable[[], Any], times: int) -> dict[str, float]:
    """Return how long a question takes, in milliseconds, once it was asked before."""
    ask()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        ask()
        took.append((time.perf_counter() - began) * 1000)
    took.sort()
    return {
        "p50_ms": round(statistics.median(took), 1),
        "p99_ms": round(took[min(len(took) - 1, int(0.99 * len(took)))], 1),
    }


def questions(
    store: Handles, name: str, now: int, spans: dict[str, int], asked: int
) -> dict[str, Any]:
    """Return how long each view takes over each span."""
    result: dict[str, Any] = {}
    for span, length_ms in spans.items():
        window: Window = asked_window(now, length_ms)
        views: dict[str, Callable[[], Any]] = {
            "fleet": partial(fleet, store, window, now, {}),
            "cluster": partial(cluster, store, name, window, now, {}),
            "jobs of a cluster": partial(jobs, store, name, window, now),
            "teams": partial(teams, store, window, now),
            "a team with its clusters": partial(team, store, "team-7", window, now),
        }
        for view, ask in views.items():
            result[f"{view}, {span}"] = timed(ask, asked)
            sys.stderr.write(f"{view}, {span}: {result[f'{view}, {span}']}\n")
    return result


def main() -> None:
    """Fill a store, ask, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=80_000)
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--asked", type=int, default=30)
    parser.add_argument("--dir", help="keep the store here, and use one that is there")
    flags = parser.parse_args()
    on = machine()
    random.seed(1)
    now = wall_unix_ms(SystemClock()) // MINUTE_MS * MINUTE_MS + 41_000
    names = [f"c{i}" for i in range(flags.clusters)]
    with tempfile.TemporaryDirectory(dir=flags.dir) as place:
        store = TelemetryStore.open(f"chdb://{place}/telemetry")
        try:
            began = time.perf_counter()
            fill(store, names, flags.cards // flags.clusters, flags.days, now)
            sys.stderr.write(f"filled in {time.perf_counter() - began:.0f} s\n")
            began_s = time.process_time()
            judged = Intervals(store).run(now)
            tick_s = round(time.process_time() - began_s, 2)
            sys.stderr.write(f"judged {judged} intervals in {tick_s} s\n")
            spans = {"15 minutes": 15 * MINUTE_MS, "1 hour": HOUR_MS, "1 day": DAY_MS}
            spans |= {f"{days} days": days * DAY_MS for days in (30, 90) if days <= flags.days}
            readers = store.bounded(ReadBounds().engine_settings(), ReadBounds().concurrent)
            result = questions(readers, names[0], now, spans, flags.asked)
            arrive_late(store, names, now)
            late = partial(fleet, readers, asked_window(now, 15 * MINUTE_MS), now, {})
            result["fleet, 15 minutes, a late row in every cluster"] = timed(late, flags.asked)
            readers.close()
        finally:
            store.close()
    write(
        "queries",
        f"What questions about {flags.cards:,} cards take",
        f"python bench/queries.py --cards {flags.cards} --clusters {flags.clusters} --days {flags.days}"
        f" --asked {flags.asked}",
        on,
        {"cards": flags.cards, "clusters": flags.clusters, "asked": flags.asked, "views": result}
        | {"interval_judged_cpu_s": tick_s},
        (
            "Lines and rows were generated straight into an embedded store; nothing else used that store.",
            "Every question was computed; the web process shares an answer for 10 s.",
            f"{JOBS} jobs at a time in each cluster. Targets: fleet over 15 minutes p99 300 ms, 30 days 1 s.",
            "interval_judged_cpu_s: what the collector spends every 10 s on lines of the newest interval.",
        ),
    )


if __name__ == "__main__":
    main()
