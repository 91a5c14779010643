"""Cutting: a window into pieces of constant roster, rows into the parts that lie in them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flopwatch_collector.ledger.evidence import Ints, Rosters, Rows, Seats, Window


@dataclass(frozen=True, slots=True)
class Pieces:
    """edges: n+1 times; hold: per piece the roster that holds, -1 for none."""

    edges: Ints
    hold: Ints

    @classmethod
    def of(cls, window: Window, rosters: Rosters) -> Pieces:
        inner = np.concatenate([rosters.start, rosters.end])
        inner = inner[(inner > window.start) & (inner < window.end)]
        edges = np.unique(np.concatenate([[window.start, window.end], inner])).astype(np.int64)
        hold = np.searchsorted(rosters.start, edges[:-1], side="right") - 1
        if len(rosters.end):
            hold = np.where((hold >= 0) & (edges[:-1] < rosters.end[hold]), hold, -1)
        else:
            hold = np.full(len(edges) - 1, -1)
        return cls(edges, hold.astype(np.int64))

    @property
    def count(self) -> int:
        return len(self.hold)


def explode(start: Ints, end: Ints, edges: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Return (index of the span, piece, start, end) of every overlap of spans with pieces."""
    low = np.clip(start, edges[0], edges[-1])
    high = np.clip(end, edges[0], edges[-1])
    first = np.searchsorted(edges, low, side="right") - 1
    last = np.searchsorted(edges, high, side="left") - 1
    count = np.where(high > low, last - first + 1, 0)
    index = np.repeat(np.arange(len(start)), count)
    offset = np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
    piece = first[index] + offset
    return (
        index,
        piece,
        np.maximum(low[index], edges[piece]),
        np.minimum(high[index], edges[piece + 1]),
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """Overlaps of rows with seats and pieces. card_ms is exact: the parts of a row add up to it."""

    row: Ints
    seat: Ints
    piece: Ints
    start: Ints
    end: Ints
    card_ms: Ints


def row_parts(rows: Rows, pieces: Pieces, seats: Seats) -> Parts:
    order = np.argsort(seats.key, kind="stable")
    first = np.searchsorted(seats.key[order], rows.key, side="left")
    count = np.searchsorted(seats.key[order], rows.key, side="right") - first
    row = np.repeat(np.arange(len(rows.key)), count)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    seat = order[first[row] + offset] if len(row) else np.zeros(0, np.int64)
    start = np.maximum(rows.start[row], seats.start[seat])
    end = np.minimum(rows.end[row], seats.end[seat])
    index, piece, start, end = explode(start, end, pieces.edges)
    row, seat = row[index], seat[index]
    weighted = rows.times["card_ms"][row]
    duration = rows.end[row] - rows.start[row]
    # Cumulative floors, so that the whole milliseconds of a row's parts add up to the row's.
    card_ms = weighted * (end - rows.start[row]) // duration - (
        weighted * (start - rows.start[row]) // duration
    )
    return Parts(row, seat, piece, start, end, card_ms)
