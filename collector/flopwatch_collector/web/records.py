"""Lists: events, probes, gaps and declared slots, newest first, bounded."""

from __future__ import annotations

from typing import Any, Final

from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.ledger.fleet import rfc3339
from flopwatch_collector.telemetry import Reader
from flopwatch_proto.rows import SlotState

ROWS_MAX: Final = 1000
SLOTS_MAX: Final = 100_000

Records = list[dict[str, Any]]


def events(reader: Reader, window: Window, cluster: str | None) -> Records:
    """Return what happened in a window: Xids, clock steps, overlaps."""
    return _listed(
        reader,
        "SELECT cluster, node, slot, time_unix_ms, kind, code, severity, text, simulated "
        "FROM event FINAL WHERE time_unix_ms >= {start:Int64} AND time_unix_ms < {end:Int64}",
        "time_unix_ms",
        window,
        cluster,
    )


def probes(reader: Reader, window: Window, cluster: str | None) -> Records:
    """Return the probes begun in a window."""
    return _listed(
        reader,
        "SELECT cluster, node, slot, start_unix_ms, kind, dtype, sku, device_uuid, seconds, "
        "median_flops, p10_flops, p90_flops, sustained, result_json, serial, driver_version, "
        "if(outcome = '', 'ok', outcome) AS outcome, reason, median_value, p10_value, p90_value, "
        "unit, kappa, simulated "
        "FROM probe FINAL WHERE start_unix_ms >= {start:Int64} AND start_unix_ms < {end:Int64}",
        "start_unix_ms",
        window,
        cluster,
    )


def gaps(reader: Reader, window: Window, cluster: str | None) -> Records:
    """Return what agents could not keep, of spans that touch a window."""
    return _listed(
        reader,
        "SELECT cluster, node, spool_id, first_seq, last_seq, rows, bytes, first_unix_ms, "
        "last_unix_ms, reason, simulated FROM gap FINAL "
        "WHERE last_unix_ms >= {start:Int64} AND first_unix_ms < {end:Int64}",
        "last_unix_ms",
        window,
        cluster,
    )


def inventory(reader: Reader, cluster: str | None, now_unix_ms: int) -> Records:
    """Return every declared slot with its state now."""
    where = "AND cluster = {cluster:String} " if cluster is not None else ""
    table = reader.query(
        "SELECT cluster, node, slot, from_unix_ms, to_unix_ms, state, sku, device_uuid, serial, "
        "device_kind, dtype, simulated FROM slot FINAL WHERE from_unix_ms <= {now:Int64} "
        f"{where}ORDER BY cluster, node, slot, from_unix_ms DESC "
        f"LIMIT 1 BY cluster, node, slot LIMIT {SLOTS_MAX}",
        {"now": now_unix_ms, "cluster": cluster or ""},
    )
    listed = []
    for record in table.to_pylist():
        shown = shown_record(record)
        over = 0 < record["to_unix_ms"] <= now_unix_ms
        shown["state"] = "ended" if over else SlotState(record["state"]).name.lower()
        listed.append(shown)
    return listed


def reported(reader: Reader, cluster: str | None, since_unix_ms: int) -> Records:
    """Return every card that reported since a moment, as its newest row says."""
    where = "AND cluster = {cluster:String} " if cluster is not None else ""
    table = reader.query(
        "SELECT cluster, node, slot, max(start_unix_ms + duration_ms) AS heard_unix_ms, "
        "argMax(sku, start_unix_ms) AS sku, argMax(serial, start_unix_ms) AS serial, "
        "argMax(device_uuid, start_unix_ms) AS device_uuid, "
        "argMax(device_kind, start_unix_ms) AS device_kind, max(simulated) AS simulated "
        "FROM interval WHERE start_unix_ms >= {since:Int64} "
        f"{where}GROUP BY cluster, node, slot ORDER BY cluster, node, slot LIMIT {SLOTS_MAX}",
        {"since": since_unix_ms, "cluster": cluster or ""},
    )
    return [shown_record(record) for record in table.to_pylist()]


def agent(record: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of an agent, its moments as texts."""
    return shown_record(record)


def gap_count(reader: Reader, window: Window) -> int:
    """Return how many gaps touch a window."""
    table = reader.query(
        "SELECT count() AS n FROM gap FINAL WHERE last_unix_ms >= {start:Int64} "
        "AND first_unix_ms < {end:Int64} AND NOT simulated",
        {"start": window.start, "end": window.end},
    )
    return int(table["n"][0].as_py())


def newest_rosters(reader: Reader, window: Window) -> Records:
    """Return, by source, when a scheduler last spoke in the window or shortly before."""
    table = reader.query(
        "SELECT source, max(taken_unix_ms) AS taken_unix_ms FROM roster "
        "WHERE taken_unix_ms >= {start:Int64} AND source != '' GROUP BY source ORDER BY source",
        {"start": window.start - 3_600_000},
    )
    rows: Records = table.to_pylist()
    return rows


def _listed(
    reader: Reader, select: str, order: str, window: Window, cluster: str | None
) -> Records:
    where = " AND cluster = {cluster:String}" if cluster is not None else ""
    table = reader.query(
        f"{select}{where} ORDER BY {order} DESC, cluster, node LIMIT {ROWS_MAX}",
        {"start": window.start, "end": window.end, "cluster": cluster or ""},
    )
    return [shown_record(record) for record in table.to_pylist()]


def shown_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with moments as texts, and null where a text is not known."""
    shown: dict[str, Any] = {}
    for name, value in record.items():
        if name.endswith("_unix_ms"):
            unknown = value is None or (name == "to_unix_ms" and value == 0)
            moment = None if unknown else rfc3339(value)
            shown[name.removesuffix("_unix_ms")] = moment
        else:
            shown[name] = None if value == "" else value
    return shown
