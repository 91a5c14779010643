"""From the store to what `answer` needs of a job. Reads only; each query is bounded by window and job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import numpy as np
import pyarrow as pa

from flopwatch_collector.jobs.crowd import FIELDS, THROTTLES, Counters
from flopwatch_collector.jobs.lag import Floats
from flopwatch_collector.jobs.peers import DAYS, JobFigures
from flopwatch_collector.ledger.evidence import Window
from flopwatch_collector.telemetry import Reader
from flopwatch_collector.telemetry.schema import newest_lines
from flopwatch_proto.rows import ALLOCATED_BUCKETS

DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
ROWS_SPAN_MS: Final = 15 * 60_000
"""Rows of so much time are looked at for stragglers where there is no capture: 90 of each card."""
COUNTERS_MAX: Final = 4_000_000
"""Values of one look for stragglers: 4,096 cards × 60 readings × 14 fields."""
CARDS_MAX: Final = 20_000
JOBS_MAX: Final = 5_000
EVENTS_MAX: Final = 200
LINKS: Final = ("nvlink_tx", "nvlink_rx", "pcie_tx", "pcie_rx")
_ALLOCATED: Final = ", ".join(str(int(b)) for b in ALLOCATED_BUCKETS)


# ---- its cards


def cards_of(reader: Reader, cluster: str, job: str, window: Window) -> list[dict[str, Any]]:
    """Return per slot of a job: card_ms, sku, ceiling (achievable of capacity), throttled ms by reason,
    bytes by link and direction. Null: nobody knows."""
    sums = ", ".join(f"sum(throttled_{r}_ms) AS {r}" for r in THROTTLES)
    links = ", ".join(f"sum({link}_bytes) AS {link}" for link in LINKS)
    found = reader.query(
        "SELECT node, slot, any(sku) AS sku, sum(card_ms) AS card_ms, "
        f"sum(achievable_flops) / sum(capacity_flops) AS ceiling, {sums}, "
        f"{links} {_slots_in(window)} "
        "AND job = {job:String} GROUP BY node, slot ORDER BY node, slot "
        f"LIMIT {CARDS_MAX}",
        _of(cluster, window, job=job),
    )
    cards: list[dict[str, Any]] = found.to_pylist()
    return cards


def network_bytes_per_second(
    reader: Reader, cluster: str, nodes: Sequence[str], window: Window
) -> float | None:
    """Return what the job's nodes sent and received over their networks, together; None: not known."""
    found = reader.query(
        "SELECT sum(ifNull(nic_tx_bytes, 0) + ifNull(nic_rx_bytes, 0) + ifNull(rdma_tx_bytes, 0) "
        "+ ifNull(rdma_rx_bytes, 0)) AS moved, countIf(nic_tx_bytes IS NOT NULL "
        "OR rdma_tx_bytes IS NOT NULL) AS known FROM host FINAL WHERE cluster = {cluster:String} "
        "AND has({nodes:Array(String)}, node) AND start_unix_ms >= {start:Int64} "
        "AND start_unix_ms < {end:Int64}",
        _of(cluster, window, nodes=list(nodes)),
    ).to_pylist()[0]
    if not found["known"]:
        return None
    return float(found["moved"]) * 1000 / (window.end - window.start)


def fleet_ceiling(reader: Reader, cluster: str, sku: str, window: Window) -> float | None:
    """Return the median ceiling over the cards of a SKU in a cluster, as a part of the peak."""
    found = reader.query(
        "SELECT median(ceiling) AS m FROM (SELECT sum(achievable_flops) / sum(capacity_flops) "
        f"AS ceiling {_slots_in(window)} AND sku = {{sku:String}} "
        "GROUP BY node, slot HAVING ceiling > 0)",
        _of(cluster, window, sku=sku),
    )
    value = found["m"][0].as_py()
    return None if value is None or np.isnan(value) else float(value)


def _slots_in(window: Window) -> str:
    """Return ``FROM … WHERE …`` for slots: rows for an hour, minutes for two days, else hours."""
    length = window.end - window.start
    where = "cluster = {cluster:String} AND start_unix_ms >= {start:Int64} AND start_unix_ms < {end:Int64}"
    if length <= HOUR_MS:
        return f"FROM interval FINAL WHERE {where}"
    return newest_lines("line_minute" if length <= 2 * DAY_MS else "line_hour", where)


def events_of(
    reader: Reader, cluster: str, job: str, nodes: Sequence[str], window: Window
) -> list[dict[str, Any]]:
    """Return what happened to a job, and what hurt its nodes while it ran, oldest first."""
    found = reader.query(
        "SELECT time_unix_ms, node, slot, kind, code, severity, text, job FROM event FINAL "
        "WHERE cluster = {cluster:String} AND time_unix_ms >= {start:Int64} "
        "AND time_unix_ms < {end:Int64} AND (job = {job:String} OR "
        "(has({nodes:Array(String)}, node) AND severity IN ('warning', 'critical'))) "
        f"ORDER BY time_unix_ms LIMIT {EVENTS_MAX}",
        _of(cluster, window, job=job, nodes=list(nodes)),
    )
    events: list[dict[str, Any]] = found.to_pylist()
    return events


# ---- its peers


def jobs_of_days(reader: Reader, simulated: bool, now_unix_ms: int) -> list[JobFigures]:
    """Return the jobs of the last 30 days from whole hours, those with most card-time."""
    found = reader.query(
        "SELECT cluster, job, any(sku) AS sku, any(workload_class) AS workload_class, "
        "sum(card_ms) AS card_ms, uniqExact(start_unix_ms) AS hours, sum(u_flops) AS u, "
        "sum(counted_capacity_flops) AS counted, sum(model_flops) AS model, "
        "sum(measured_capacity_flops) AS measured, sum(declared_capacity_flops) AS declared "
        f"{newest_lines('fleet_hour', 'start_unix_ms >= {since:Int64}')} "
        "AND job != '' AND simulated = {simulated:Bool} "
        f"AND bucket IN ({_ALLOCATED}) GROUP BY cluster, job ORDER BY card_ms DESC "
        f"LIMIT {JOBS_MAX}",
        {"since": now_unix_ms - DAYS * DAY_MS, "simulated": simulated},
    )
    return [
        JobFigures(
            cluster=r["cluster"],
            job=r["job"],
            sku=r["sku"],
            workload_class=r["workload_class"],
            cards=r["card_ms"] / (r["hours"] * HOUR_MS),
            card_hours=r["card_ms"] / HOUR_MS,
            mfu=_exact_mfu(r),
            hfu=_ratio(r["u"], r["counted"]),
        )
        for r in found.to_pylist()
    ]


def _exact_mfu(record: Mapping[str, Any]) -> float | None:
    declared = _ratio(record["declared"], record["measured"])
    if declared is None or declared < 0.999:
        return None
    return _ratio(record["model"], record["measured"])


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


# ---- its counters


def newest_capture(
    reader: Reader, cluster: str, nodes: Sequence[str], window: Window
) -> str | None:
    """Return the id of the newest capture whose readings lie in a window, of most of these nodes."""
    found = reader.query(
        "SELECT id, max(arrayMax(taken_unix_ms)) AS newest, uniqExact(node) AS nodes FROM capture "
        "WHERE cluster = {cluster:String} AND has({nodes:Array(String)}, node) AND readings > 0 "
        "AND stored_unix_ms >= {start:Int64} AND stored_unix_ms < {late:Int64} GROUP BY id "
        "HAVING newest >= {start:Int64} AND newest < {end:Int64} AND nodes * 2 > {count:UInt32} "
        "ORDER BY newest DESC LIMIT 1",
        _of(cluster, window, nodes=list(nodes), count=len(nodes), late=window.end + HOUR_MS),
    )
    return str(found["id"][0].as_py()) if found.num_rows else None


def capture_counters(
    reader: Reader, cluster: str, capture_id: str, places: Set[tuple[str, str]]
) -> Counters | str:
    """Return the readings of a capture, or why they cannot be looked at.

    Args:
        places: (node, slot) of the job's cards: a capture of an outage has all cards of its nodes.
    """
    of = {"cluster": cluster, "id": capture_id}
    where = "FROM capture FINAL WHERE cluster = {cluster:String} AND id = {id:String}"
    held = int(reader.query(f"SELECT sum(readings) AS n {where}", of)["n"][0].as_py() or 0)
    if held * len(FIELDS) > COUNTERS_MAX:
        return f"{held} readings are too many to compare; capture less at once"
    # The element of an index that is not there, 0, is an empty array.
    fields = ", ".join(f"values[indexOf(names, '{name}')] AS {name}" for name in FIELDS)
    table = reader.query(
        f"SELECT node, slot, taken_unix_ms, {fields} {where} AND readings > 0 "
        "ORDER BY node, slot, part",
        of,
    )
    pairs = zip(table["node"].to_pylist(), table["slot"].to_pylist(), strict=True)
    return _joined(table.filter(pa.array([pair in places for pair in pairs], pa.bool_())))


def _joined(table: pa.Table) -> Counters:
    """Return the parts of each slot one after the other."""
    places: dict[tuple[str, str], list[int]] = {}
    pairs = zip(table["node"].to_pylist(), table["slot"].to_pylist(), strict=True)
    for i, place in enumerate(pairs):
        places.setdefault(place, []).append(i)
    taken = [np.asarray(v, np.float64) for v in table["taken_unix_ms"].to_pylist()]
    width = max((sum(len(taken[i]) for i in parts) for parts in places.values()), default=0)

    def laid(arrays: Sequence[Floats]) -> Floats:
        made = np.full((len(places), width), np.nan)
        for row, parts in enumerate(places.values()):
            at = 0
            for i in parts:
                made[row, at : at + len(arrays[i])] = arrays[i]
                at += len(taken[i])
        return made

    fields = {}
    for name in FIELDS:
        arrays = [np.asarray(v, np.float64) for v in table[name].to_pylist()]
        if any(len(a) for a in arrays):
            fields[name] = laid(arrays)
    return Counters(
        nodes=[place[0] for place in places],
        slots=[place[1] for place in places],
        taken_s=laid(taken) / 1000,
        fields=fields,
    )


def last_rows(window: Window) -> Window:
    """Return the end of a window, whose rows are looked at one by one."""
    return Window(start=max(window.start, window.end - ROWS_SPAN_MS), end=window.end)


def row_counters(reader: Reader, cluster: str, job: str, window: Window) -> Counters:
    """Return the rows of a job's last minutes in a window as if they were readings 10 s apart."""
    window = last_rows(window)
    mean = {
        "sm_active_ratio": "sm_active_ms / card_ms",
        "tensor_active_ratio": "tensor_active_ms / card_ms",
        "sm_clock_mhz": "sm_clock_mhz_seconds * 1000 / duration_ms",
        "power_watts": "energy_joules * 1000 / duration_ms",
        "nvlink_tx_bytes_per_second": "nvlink_tx_bytes * 1000 / duration_ms",
        "pcie_tx_bytes_per_second": "pcie_tx_bytes * 1000 / duration_ms",
    }
    columns = {
        n: f"arrayMap(v -> ifNull(v, nan), groupArray(tuple({e})).1)" for n, e in mean.items()
    }
    rises = {
        f"throttled_{r}_seconds_total": (
            f"arrayCumSum(groupArray(ifNull(throttled_{r}_ms, 0) / 1000))"
        )
        for r in THROTTLES
    }
    table = reader.query(
        "SELECT node, slot, groupArray(start_unix_ms + duration_ms) AS taken_unix_ms, "
        + ", ".join(f"{e} AS {n}" for n, e in (columns | rises).items())
        + " FROM (SELECT * FROM interval FINAL WHERE cluster = {cluster:String} "
        "AND job = {job:String} AND start_unix_ms >= {start:Int64} AND start_unix_ms < {end:Int64} "
        "AND card_ms > 0 ORDER BY node, slot, start_unix_ms) "
        f"GROUP BY node, slot ORDER BY node, slot LIMIT {CARDS_MAX}",
        _of(cluster, window, job=job),
    )
    return _joined(table)


def _of(cluster: str, window: Window, **more: Any) -> dict[str, Any]:
    return {"cluster": cluster, "start": window.start, "end": window.end, **more}
