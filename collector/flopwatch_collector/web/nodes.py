"""Nodes and their cards: figures of one node, the newest row of each slot, and the map of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.figures import figures
from flopwatch_collector.ledger.fleet import NO_REFERENCES, rfc3339
from flopwatch_collector.ledger.gather import gather
from flopwatch_collector.ledger.rework import lost_card_steps
from flopwatch_collector.ledger.waterfall import dtype_ratios, waterfall
from flopwatch_collector.ledger.window import sheet_of_window
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.web.problems import Problem
from flopwatch_proto.rows import INTERVAL_MS, QUANTITY_NAMES, TEXTS, Bucket

WORST_FIRST: Final = (
    Bucket.FAILED,
    Bucket.MISSING,
    Bucket.UNSEEN,
    Bucket.MAINT,
    Bucket.HELD,
    Bucket.STRANDED,
    Bucket.GANG_WAIT,
    Bucket.SUSPENDED,
    Bucket.IDLE_ALLOC,
    Bucket.FREE,
    Bucket.ALLOCATED,
    Bucket.ACTIVE,
)
"""Which card speaks for its node: the one that needs somebody most."""

_CARD_TEXTS: Final = tuple(t for t in TEXTS if t != "slot")
_CARD_COLUMNS: Final = (
    *("slot", "start_unix_ms", "duration_ms", "weight", "bucket", "rogue"),
    *_CARD_TEXTS,
    *("card_ms", "covered_ms", "counted_ms", "resident_ms"),
    *QUANTITY_NAMES,
    *("not_supported", "failed", "stored_unix_ms"),
)


def node(
    reader: Reader,
    name: str,
    cluster: str | None,
    window: Window,
    now_unix_ms: int,
    reference_dtypes: Mapping[str, str] = NO_REFERENCES,
) -> dict[str, Any]:
    """Return `/api/v1/nodes/{node}`.

    Args:
        reference_dtypes: as for the fleet.

    Raises:
        Problem: 404 without slots in service in the window; 422 where several clusters have the name.
    """
    slots = _slots(reader, name, cluster, window)
    owners = sorted({s["cluster"] for s in slots})
    if not owners:
        where = f" of cluster {cluster!r}" if cluster is not None else ""
        raise Problem(404, f"node {name!r}{where} had no slot in service in this window")
    if len(owners) > 1:
        raise Problem(
            422,
            f"cluster: {name!r} is a node of several clusters; add ?cluster= with one of "
            + ", ".join(owners),
            parameter="cluster",
        )
    of = owners[0]
    sheet = sheet_of_window(reader, of, window, now_unix_ms, node=name)
    last = Window(start=max(window.start, window.end - INTERVAL_MS), end=window.end)
    judged = _judged(gather(reader, of, last, name).judge(last, now_unix_ms))
    newest = {r["slot"]: r for r in _newest_rows(reader, of, name, window)}
    return {
        "start": rfc3339(window.start),
        "end": rfc3339(window.end),
        "window_s": (window.end - window.start) / 1000,
        "name": name,
        "cluster": of,
        "simulated": any(s["simulated"] for s in slots),
        "device_kind": "gpu" if any(s["device_kind"] != "cpu" for s in slots) else "cpu",
        "status": "final" if newest else "stale",
        "as_of": _as_of(newest.values(), window),
        **figures(sheet, window.end - window.start),
        "waterfall": waterfall(
            sheet,
            lost_card_steps(reader, of, window, name),
            dtype_ratios(sheet, reference_dtypes.get(of)),
        ),
        "cards_list": [
            _card(s, newest.get(s["slot"]), judged.get((name, s["slot"]))) for s in slots
        ],
    }


def _as_of(rows: Any, window: Window) -> str | None:
    ends = [r["start_unix_ms"] + r["duration_ms"] for r in rows]
    return rfc3339(min(max(ends), window.end)) if ends else None


def _slots(reader: Reader, name: str, cluster: str | None, window: Window) -> list[dict[str, Any]]:
    where = " AND cluster = {cluster:String}" if cluster is not None else ""
    found = reader.query(
        "SELECT cluster, slot, argMax(sku, from_unix_ms) AS sku, "
        "argMax(device_uuid, from_unix_ms) AS device_uuid, "
        "argMax(device_kind, from_unix_ms) AS device_kind, max(simulated) AS simulated "
        "FROM slot FINAL WHERE node = {node:String} AND from_unix_ms < {end:Int64} "
        f"AND (to_unix_ms = 0 OR to_unix_ms > {{start:Int64}}){where} "
        "GROUP BY cluster, slot ORDER BY cluster, slot LIMIT 4096",
        {"node": name, "cluster": cluster or "", "start": window.start, "end": window.end},
    )
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def _newest_rows(reader: Reader, cluster: str, name: str, window: Window) -> list[dict[str, Any]]:
    found = reader.query(
        f"SELECT {', '.join(_CARD_COLUMNS)} FROM interval FINAL "
        "WHERE cluster = {cluster:String} AND node = {node:String} "
        "AND start_unix_ms >= {start:Int64} AND start_unix_ms < {end:Int64} "
        "ORDER BY start_unix_ms DESC, weight DESC LIMIT 1 BY slot",
        {"cluster": cluster, "node": name, "start": window.start, "end": window.end},
    )
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def _card(
    slot: Mapping[str, Any], row: Mapping[str, Any] | None, judged: Bucket | None
) -> dict[str, Any]:
    """Return a card: its state now by the rules of account, and its newest row, every null with a why."""
    shown: dict[str, Any] = {
        "slot": slot["slot"],
        "bucket": None if judged is None else judged.name,
        "sku": slot["sku"] or None,
        "device_uuid": slot["device_uuid"] or None,
        "device_kind": slot["device_kind"] or None,
    }
    if row is None:
        return shown | {
            "row": None, "job": None, "team": None,
            "hfu": {"value": None}, "power_watts": None, "temperature_celsius": None,
        }  # fmt: skip
    shown |= {name: row[name] or None for name in _CARD_TEXTS if row[name] or name not in shown}
    quantities = {name: row[name] for name in QUANTITY_NAMES}
    return shown | {
        "hfu": {"value": _ratio(row["u_flops"], row["capacity_flops"])},
        "power_watts": row["power_watts_max"],
        "temperature_celsius": row["temperature_celsius_max"],
        "row": {
            "start": rfc3339(row["start_unix_ms"]),
            "duration_ms": row["duration_ms"],
            "weight": row["weight"],
            "bucket": Bucket(row["bucket"]).name,
            "rogue": row["rogue"],
            **{n: row[n] for n in ("card_ms", "covered_ms", "counted_ms", "resident_ms")},
            "quantities": quantities,
            "absent": {n: _why(n, row) for n, value in quantities.items() if value is None},
        },
    }


def _why(name: str, row: Mapping[str, Any]) -> str:
    if name in row["not_supported"]:
        return "not_supported"
    return "failed" if name in row["failed"] else "missing"


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _judged(lines: Lines) -> dict[tuple[str, str], Bucket]:
    """Return (node, slot) → the bucket it spent most of the lines' time in."""
    found: dict[tuple[str, str], Bucket] = {}
    for i in np.argsort(lines.ints["card_ms"], kind="stable"):
        found[lines.names[lines.key[i]]] = Bucket(int(lines.bucket[i]))
    return found


def cluster_map(
    reader: Reader, cluster: str, end_unix_ms: int, now_unix_ms: int
) -> list[dict[str, Any]]:
    """Return the nodes of a cluster in order: worst card, cards by bucket, and u of the last interval."""
    last = Window(start=end_unix_ms - INTERVAL_MS, end=end_unix_ms)
    lines = gather(reader, cluster, last).judge(last, now_unix_ms)
    nodes: dict[str, list[Bucket]] = {}
    for (name, _), bucket in _judged(lines).items():
        nodes.setdefault(name, []).append(bucket)
    used = _sums_by_node(lines, "u_flops")
    whole = _sums_by_node(lines, "capacity_flops", among="u_flops")
    rowed: dict[str, int] = {}
    for key, row_ms in zip(lines.key, lines.ints["row_ms"], strict=True):
        name = lines.names[key][0]
        rowed[name] = rowed.get(name, 0) + int(row_ms)
    return [
        {
            "node": name,
            "worst": min(buckets, key=WORST_FIRST.index).name,
            "cards": _counts(buckets),
            "hfu": _ratio(used.get(name), whole.get(name)),
            "reports": rowed.get(name, 0) > 0,
        }
        for name, buckets in sorted(nodes.items(), key=lambda kv: _natural(kv[0]))
    ]


def _counts(buckets: Sequence[Bucket]) -> dict[str, int]:
    return {b.name: buckets.count(b) for b in WORST_FIRST if b in buckets}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key by which n2 stands before n10."""
    parts: list[tuple[int, int, str]] = []
    digits = text = ""
    for letter in [*name, ""]:
        if letter.isdecimal() and letter.isascii():
            if text:
                parts.append((1, 0, text))
            digits, text = digits + letter, ""
            continue
        if digits:
            parts.append((0, int(digits), digits))
        digits, text = "", text + letter
    return [*parts, (1, 0, text)]


def _sums_by_node(lines: Lines, name: str, among: str | None = None) -> dict[str, float]:
    """Return the known sums by node, where another sum is known too."""
    values = lines.sums[name]
    known = ~np.isnan(values) & ~np.isnan(lines.sums[among or name])
    found: dict[str, float] = {}
    for key, value in zip(lines.key[known], values[known], strict=True):
        node_name = lines.names[key][0]
        found[node_name] = found.get(node_name, 0.0) + float(value)
    return found
