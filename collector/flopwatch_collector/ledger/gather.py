"""From the store to evidence: the queries that `account` needs. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from flopwatch_collector.ledger.absence import MISSING_AFTER_MS, silent_keys
from flopwatch_collector.ledger.account import account
from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import (
    FOREVER,
    ROSTER_COLUMNS,
    ROSTER_HOLDS_MS,
    ROW_COLUMNS,
    SLOT_COLUMNS,
    Heard,
    Rosters,
    Rows,
    Seats,
    Window,
    heard_of,
    rosters_of,
    rows_of,
    seats_of,
)
from flopwatch_collector.telemetry import Reader

ROW_MS_MAX: Final = 60_000
"""No row is longer: rows are cut at multiples of the interval, which is at most a minute."""
SILENT_NODES_MAX: Final = 500
"""So many nodes are named in a question; words of more are looked up with those of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of a cluster around a window."""

    seats: Seats
    rows: Rows
    rosters: Rosters
    heard: Heard

    def judge(self, window: Window, now_unix_ms: int) -> Lines:
        """Return the lines of the window, or of a window inside the one this was gathered for."""
        return account(
            window,
            now_unix_ms=now_unix_ms,
            seats=self.seats,
            rows=self.rows,
            rosters=self.rosters,
            heard=self.heard,
        )

    def within(self, window: Window) -> Evidence:
        """Return the evidence for a window inside the span this was gathered for.

        What spoke inside the span and outside the window becomes the words heard around the window.
        """
        rows, rosters = self.rows, self.rosters
        heard = _widest(self.heard, heard_in_rosters(rosters, self.seats, window))
        before, after = heard.before, heard.after
        # Words outside the span are further away than any inside it: the nearest one stands.
        earlier = rows.start < window.start
        np.maximum.at(before, rows.key[earlier], np.minimum(rows.end[earlier], window.start))
        later = rows.end > window.end
        np.minimum.at(after, rows.key[later], np.maximum(rows.start[later], window.end))
        inside = (rows.end > window.start) & (rows.start < window.end)
        return Evidence(
            seats=self.seats,
            rows=rows.where(inside),
            rosters=rosters,
            heard=Heard(before=before, after=after),
        )


def gather(
    reader: Reader,
    cluster: str,
    window: Window,
    node: str | None = None,
    seats: Seats | None = None,
) -> Evidence:
    """Return the evidence for a window, of the whole cluster or of one node.

    Args:
        seats: of a window that this one ends in, where they were read already.
    """
    where = " AND node = {node:String}" if node is not None else ""
    parameters: dict[str, Any] = {"cluster": cluster, "node": node or ""}
    if seats is None:
        seats = seats_of(_slots(reader, parameters, window, where))
    rows = rows_of(_rows(reader, parameters, window, where), seats)
    rosters = rosters_of(_rosters(reader, parameters, window, node), seats)
    heard = heard_in_rosters(rosters, seats, window)
    silent = silent_keys(window, seats, rows, rosters)
    if len(silent):
        # Only silence needs the words around the window; most windows have none, or little.
        nodes = sorted({seats.names[k][0] for k in silent})
        if node is None and len(nodes) <= SILENT_NODES_MAX:
            where, parameters["nodes"] = " AND node IN {nodes:Array(String)}", nodes
        heard = _widest(heard, _heard_in_rows(reader, parameters, window, where, seats))
    return Evidence(seats=seats, rows=rows, rosters=rosters, heard=heard)


def seats_in_service(reader: Reader, cluster: str) -> Seats:
    """Return every seat a cluster ever had."""
    everything = Window(start=0, end=FOREVER)
    return seats_of(_slots(reader, {"cluster": cluster}, everything, ""))


def _slots(reader: Reader, parameters: dict[str, Any], window: Window, where: str) -> pa.Table:
    return reader.query(
        f"SELECT {', '.join(SLOT_COLUMNS)} FROM slot FINAL "
        f"WHERE cluster = {{cluster:String}} AND from_unix_ms < {{end:Int64}}{where}",
        {**parameters, "end": window.end},
    )


def _rows(reader: Reader, parameters: dict[str, Any], window: Window, where: str) -> pa.Table:
    return reader.query(
        f"SELECT {', '.join(ROW_COLUMNS)} FROM interval FINAL "
        "WHERE cluster = {cluster:String} AND start_unix_ms >= {first:Int64} "
        f"AND start_unix_ms < {{end:Int64}} AND start_unix_ms + duration_ms > {{start:Int64}}{where}",
        {
            **parameters,
            "first": _first_start(reader, parameters, window, where),
            "start": window.start,
            "end": window.end,
        },
    )


def _first_start(reader: Reader, parameters: dict[str, Any], window: Window, where: str) -> int:
    """Return when the first row that reaches into the window begins: mostly none was there before it.

    Asked of two columns, because FINAL reads all columns of all rows that a range of the key has.
    """
    table = reader.query(
        "SELECT minOrNull(start_unix_ms) AS first FROM interval WHERE cluster = {cluster:String} "
        "AND start_unix_ms > {low:Int64} AND start_unix_ms < {start:Int64} "
        f"AND start_unix_ms + duration_ms > {{start:Int64}}{where}",
        {**parameters, "low": window.start - ROW_MS_MAX, "start": window.start},
    )
    first: int | None = table["first"][0].as_py()
    return window.start if first is None else first


def _rosters(
    reader: Reader, parameters: dict[str, Any], window: Window, node: str | None
) -> pa.Table:
    """Rosters from so early that their holds reach every gap that matters, to the same distance after."""
    where = " AND node IN ('', {node:String})" if node is not None else ""
    return reader.query(
        f"SELECT {', '.join(ROSTER_COLUMNS)} FROM roster FINAL "
        "WHERE cluster = {cluster:String} AND taken_unix_ms > {low:Int64} "
        f"AND taken_unix_ms < {{high:Int64}}{where}",
        {
            **parameters,
            "low": window.start - MISSING_AFTER_MS - ROSTER_HOLDS_MS,
            "high": window.end + MISSING_AFTER_MS,
        },
    )


def heard_in_rosters(rosters: Rosters, seats: Seats, window: Window) -> Heard:
    """Return when rosters last spoke of each slot before the window and first after it."""
    heard = Heard.nothing(seats)
    start, end = rosters.start[rosters.hold], rosters.end[rosters.hold]
    earlier = start < window.start
    np.maximum.at(heard.before, rosters.key[earlier], np.minimum(end[earlier], window.start))
    later = end > window.end
    np.minimum.at(heard.after, rosters.key[later], np.maximum(start[later], window.end))
    return heard


def _heard_in_rows(
    reader: Reader, parameters: dict[str, Any], window: Window, where: str, seats: Seats
) -> Heard:
    def query(what: str, span: str) -> pa.Table:
        return reader.query(
            f"SELECT node, slot, {what} AS heard_unix_ms FROM interval "
            f"WHERE cluster = {{cluster:String}} AND {span}{where} GROUP BY node, slot",
            {
                **parameters,
                "low": window.start - MISSING_AFTER_MS - ROW_MS_MAX,
                "start": window.start,
                "end": window.end,
                "high": window.end + MISSING_AFTER_MS,
            },
        )

    before = query(
        "least(max(start_unix_ms + duration_ms), {start:Int64})",
        "start_unix_ms > {low:Int64} AND start_unix_ms < {start:Int64}",
    )
    after = query(
        "greatest(min(start_unix_ms), {end:Int64})",
        "start_unix_ms + duration_ms > {end:Int64} AND start_unix_ms < {high:Int64} "
        "AND start_unix_ms > {start:Int64}",
    )
    return heard_of(before, after, seats)


def _widest(a: Heard, b: Heard) -> Heard:
    return Heard(before=np.maximum(a.before, b.before), after=np.minimum(a.after, b.after))
