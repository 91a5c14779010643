"""Any window of time as a sheet: stored lines where they stand, raw evidence where they do not.

`plan` says which part of it comes from which tier; the engine adds up the stored lines of many clusters in
one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.gather import gather
from flopwatch_collector.ledger.lines import EVERYTHING, LINE_INTS, Wanted
from flopwatch_collector.ledger.plan import Plan, plans
from flopwatch_collector.ledger.rollup import HOUR_MS, MINUTE_MS
from flopwatch_collector.ledger.sheet import Sheet, joined, sheet_of_lines, sheet_of_table
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.schema import newest_lines
from flopwatch_proto.rows import INTERVAL_MS

FLEET_TIERS: Final = ("fleet_minute", "fleet_hour", "fleet_day", "fleet_interval")
SLOT_TIERS: Final = ("line_minute", "line_hour")
LIVE_DELAY_MS: Final = 18_000
"""The newest boundary that is answered for: rows of it have had the time to arrive, and to become lines."""


def asked_window(now_unix_ms: int, length_ms: int, end_unix_ms: int | None = None) -> Window:
    """Return the window as used: half open, moved back to a multiple of the grain.

    The grain is the row interval up to an hour, minutes up to two days, hours above. Without an end it is
    the newest boundary that has had time to arrive.
    """
    grain = INTERVAL_MS
    if length_ms > HOUR_MS:
        grain = MINUTE_MS if length_ms <= 48 * HOUR_MS else HOUR_MS
    end = now_unix_ms - LIVE_DELAY_MS if end_unix_ms is None else end_unix_ms
    end = end // grain * grain
    return Window(start=(end - length_ms) // grain * grain, end=end)


def sheet_of_window(
    reader: Reader, cluster: str, window: Window, now_unix_ms: int, node: str | None = None
) -> Sheet:
    """Return the lines of a cluster, or of one of its nodes, over a window."""
    return sheets_of_window(reader, [cluster], window, now_unix_ms, node=node)[cluster]


def sheets_of_window(
    reader: Reader,
    clusters: Sequence[str],
    window: Window,
    now_unix_ms: int,
    wanted: Wanted = EVERYTHING,
    node: str | None = None,
) -> dict[str, Sheet]:
    """Return the lines of clusters over a window, each with the columns that are wanted."""
    made: dict[str, list[Sheet]] = {cluster: [] for cluster in clusters}
    alike: dict[tuple[bytes, ...], list[str]] = {}
    plan_of = plans(reader, clusters, window, with_slots=node is not None) if made else {}
    for cluster, plan in plan_of.items():
        alike.setdefault(tuple(starts.tobytes() for starts in plan.stored), []).append(cluster)
    for names in alike.values():
        # One question for all clusters whose parts come from the same tiers, as nearly always.
        for cluster, sheet in _stored(reader, names, plan_of[names[0]], wanted, node).items():
            made[cluster].append(sheet)
    for cluster, plan in plan_of.items():
        seats = None
        for span in reversed(plan.raw):
            # Spans that begin earlier have the seats of a later one: what begins after them is outside.
            evidence = gather(reader, cluster, span, node, seats)
            seats = evidence.seats
            lines = evidence.judge(span, now_unix_ms).without_slots()
            made[cluster].append(sheet_of_lines(lines).only(wanted))
    return {cluster: joined(sheets, wanted) for cluster, sheets in made.items()}


def _stored(
    reader: Reader, clusters: Sequence[str], plan: Plan, wanted: Wanted, node: str | None
) -> dict[str, Sheet]:
    """Return the stored lines of clusters with one plan, each identity once."""
    keys = ["cluster", "bucket", "rogue", *wanted.texts]
    sums = [*LINE_INTS, *wanted.sums]
    parameters: dict[str, Any] = {"clusters": list(clusters), "node": node}
    parts = []
    for tier, starts in zip(FLEET_TIERS if node is None else SLOT_TIERS, plan.stored, strict=False):
        if not len(starts):
            continue
        where = (
            "cluster IN {clusters:Array(String)} "
            f"AND start_unix_ms >= {starts.min()} AND start_unix_ms <= {starts.max()} "
            f"AND start_unix_ms IN {{{tier}:Array(Int64)}}"
        )
        parameters[tier] = starts.tolist()
        of_node = "" if node is None else " AND node = {node:String}"
        parts.append(f"SELECT {', '.join([*keys, *sums])} {newest_lines(tier, where)}{of_node}")
    if not parts:
        return {}
    table = reader.query(
        f"SELECT {', '.join([*keys, *(f'sum({n}) AS {n}' for n in sums)])} "
        f"FROM ({' UNION ALL '.join(parts)}) GROUP BY {', '.join(keys)}",
        parameters,
    )
    of = np.array(table["cluster"].to_pylist(), np.str_)
    sheet = sheet_of_table(table, wanted)
    return {cluster: sheet.where(of == cluster) for cluster in clusters}
