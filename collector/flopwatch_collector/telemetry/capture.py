"""Captures: windows of readings at full resolution, into table ``capture`` and out of it.

A slot's answer comes in parts, each a slice of the window. A part that comes again (a batch that is
resent, an agent that was asked again after a restart) collapses by key, and the fuller one stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from flopwatch_collector.telemetry import Reader
from flopwatch_proto.codec import Columns
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.rows import SlotState
from flopwatch_proto.v1 import telemetry_pb2 as pb

ID_CHARACTERS_MAX: Final = 64
COLUMNS_MAX: Final = 256
NEWEST_MS: Final = 120_000
"""A job holds a slot while a row of the last two minutes, the slot's newest, says so."""
ROSTER_MS: Final = 6 * 60_000


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """A slot of a node."""

    cluster: str
    node: str
    slot: str
    simulated: bool = False


def capture_columns(captures: Iterable[pb.Capture]) -> Columns:
    """Return parts as columns of table ``capture``.

    Raises:
        PermanentError: a column's length or a name makes no sense.
    """
    columns: Columns = {
        name: []
        for name in ("id", "slot", "part", "last", "readings", "taken_unix_ms", "names", "values")
    }
    for part in captures:
        count = len(part.taken_unix_ms)
        names = [column.name for column in part.columns]
        if not 1 <= len(part.id) <= ID_CHARACTERS_MAX:
            raise PermanentError(f"a capture whose id has {len(part.id)} characters")
        if len(names) > COLUMNS_MAX or len(set(names)) < len(names):
            raise PermanentError("a capture with more columns than readings have")
        if any(len(column.values) != count for column in part.columns):
            raise PermanentError(f"a capture with columns of other lengths than {count}")
        if min(part.taken_unix_ms, default=1) <= 0:
            raise PermanentError("a capture with readings without a time")
        columns["id"].append(part.id)
        columns["slot"].append(part.slot)
        columns["part"].append(part.part)
        columns["last"].append(part.last)
        columns["readings"].append(count)
        columns["taken_unix_ms"].append(list(part.taken_unix_ms))
        columns["names"].append(names)
        # As arrays: a large job's answers are tens of millions of numbers.
        columns["values"].append([np.array(c.values, np.float32) for c in part.columns])
    return columns


# ---- whom to ask


def places_of_job(reader: Reader, job: str, cluster: str | None, now_unix_ms: int) -> list[Place]:
    """Return the slots that a job holds now, by their newest rows or by a roster that still holds."""
    where = " AND cluster = {cluster:String}" if cluster is not None else ""
    parameters = {
        "job": job,
        "cluster": cluster or "",
        "recent": now_unix_ms - NEWEST_MS,
        "taken": now_unix_ms - ROSTER_MS,
        "now": now_unix_ms,
    }
    rows = reader.query(
        "SELECT DISTINCT cluster, node, slot, simulated FROM interval FINAL "
        f"WHERE start_unix_ms > {{recent:Int64}} AND job = {{job:String}}{where} "
        "AND (cluster, node, slot, start_unix_ms) IN ("
        "SELECT cluster, node, slot, max(start_unix_ms) FROM interval "
        f"WHERE start_unix_ms > {{recent:Int64}}{where} GROUP BY cluster, node, slot)",
        parameters,
    )
    rosters = reader.query(
        "SELECT DISTINCT cluster, node, slot, simulated FROM roster FINAL "
        f"WHERE taken_unix_ms > {{taken:Int64}} AND job = {{job:String}}{where} "
        "AND valid_until_unix_ms > {now:Int64} AND slot != '' "
        "AND (cluster, source, taken_unix_ms) IN ("
        "SELECT cluster, source, max(taken_unix_ms) FROM roster "
        f"WHERE taken_unix_ms > {{taken:Int64}}{where} GROUP BY cluster, source)",
        parameters,
    )
    return sorted({Place(**record) for t in (rows, rosters) for record in t.to_pylist()})


def places_of_nodes(
    reader: Reader, cluster: str, nodes: Sequence[str], now_unix_ms: int
) -> list[Place]:
    """Return the slots of nodes that are in service now."""
    table = reader.query(
        "SELECT node, slot, simulated, state, to_unix_ms FROM slot FINAL "
        "WHERE cluster = {cluster:String} AND has({nodes:Array(String)}, node) "
        "AND from_unix_ms <= {now:Int64} ORDER BY node, slot, from_unix_ms DESC "
        "LIMIT 1 BY node, slot",
        {"cluster": cluster, "nodes": list(nodes), "now": now_unix_ms},
    )
    return sorted(
        Place(cluster=cluster, node=r["node"], slot=r["slot"], simulated=r["simulated"])
        for r in table.to_pylist()
        if r["state"] == SlotState.IN_SERVICE and not 0 < r["to_unix_ms"] <= now_unix_ms
    )


# ---- what came


def answered_slots(reader: Reader, ids: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return (id, cluster, node, slot) of every answer that is whole."""
    table = reader.query(
        "SELECT DISTINCT id, cluster, node, slot FROM capture "
        "WHERE last AND has({ids:Array(String)}, id)",
        {"ids": list(ids)},
    )
    return [(r["id"], r["cluster"], r["node"], r["slot"]) for r in table.to_pylist()]


def values_held(reader: Reader, cluster: str, capture_id: str, node: str | None) -> int:
    """Return how many values an answer has."""
    table = reader.query(
        f"SELECT sum(readings * (1 + length(names))) AS n {_from(node)}",
        _key(cluster, capture_id, node),
    )
    return int(table["n"][0].as_py() or 0)


def names_held(reader: Reader, cluster: str, capture_id: str, node: str | None) -> list[str]:
    """Return the fields that have values anywhere in an answer."""
    table = reader.query(
        f"SELECT DISTINCT arrayJoin(names) AS name {_from(node)} ORDER BY name",
        _key(cluster, capture_id, node),
    )
    return [record["name"] for record in table.to_pylist()]


def readings_held(
    reader: Reader, cluster: str, capture_id: str, node: str | None
) -> list[dict[str, Any]]:
    """Return the readings of each slot, oldest first: ``node slot taken_unix_ms columns``.

    ``columns`` has a list as long as ``taken_unix_ms`` for every field; None where there is no value.
    """
    # By way of their texts: 0.3 as a float32 is 0.30000001192092896 as any other number.
    values = "arrayMap(column -> arrayMap(v -> toFloat64(toString(v)), column), values)"
    table = reader.query(
        f"SELECT node, slot, taken_unix_ms, names, {values} AS numbers {_from(node)} "
        "ORDER BY node, slot, part",
        _key(cluster, capture_id, node),
    )
    parts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in table.to_pylist():
        parts.setdefault((record["node"], record["slot"]), []).append(record)
    return [
        {"node": place[0], "slot": place[1]} | _readings(parts) for place, parts in parts.items()
    ]


def _readings(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the parts of a slot as one."""
    times = [taken for part in parts for taken in part["taken_unix_ms"]]
    columns: dict[str, list[float | None]] = {}
    before = 0
    for part in parts:
        for name, values in zip(part["names"], part["numbers"], strict=True):
            column = columns.setdefault(name, [None] * len(times))
            column[before : before + len(values)] = [
                None if math.isnan(value) else value for value in values
            ]
        before += len(part["taken_unix_ms"])
    return {"taken_unix_ms": times, "columns": dict(sorted(columns.items()))}


def _from(node: str | None) -> str:
    where = " AND node = {node:String}" if node is not None else ""
    return f"FROM capture FINAL WHERE cluster = {{cluster:String}} AND id = {{id:String}}{where}"


def _key(cluster: str, capture_id: str, node: str | None) -> dict[str, Any]:
    return {"cluster": cluster, "id": capture_id, "node": node or ""}
