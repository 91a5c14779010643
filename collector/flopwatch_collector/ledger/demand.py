"""FREE card-time by demand: while cards were waited for, and while none were. Pure.

A roster says how many cards its queue waits for and how many are free. While it holds, each free card is
waited for by the share ``d = min(1, pending / free)`` of its time, so that the cards waited for add up to
min(free, pending). The share is the same for every free card: which of them a job would have got is not
known. Time under a roster that knows no queue, or under none, is in neither part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flopwatch_collector.ledger.evidence import Floats, Ints, Rosters
from flopwatch_collector.ledger.pieces import Pieces
from flopwatch_proto.rows import Bucket


@dataclass(frozen=True, slots=True)
class Spans:
    """Card-time inside pieces. weight: of the card, 0..1; card_ms: weight × span in whole milliseconds."""

    start: Ints
    end: Ints
    piece: Ints
    weight: Floats
    card_ms: Ints


def free_parts(bucket: Ints, spans: Spans, pieces: Pieces, rosters: Rosters) -> dict[str, Ints]:
    """Return ``free_demand_ms`` and ``free_no_demand_ms`` of spans, in whole milliseconds.

    Differences of floors over the roster's own time: how a card's time was cut changes no sum.
    """
    hold = pieces.hold[spans.piece]
    spoken = (hold >= 0) & (bucket == Bucket.FREE)
    demand, begun = np.full(len(hold), np.nan), spans.start.copy()
    demand[spoken] = rosters.demand[hold[spoken]]
    begun[spoken] = rosters.start[hold[spoken]]
    known = ~np.isnan(demand)
    rate = np.where(known, demand, 0.0) * spans.weight
    waited = np.floor((spans.end - begun) * rate) - np.floor((spans.start - begun) * rate)
    free_demand = np.clip(waited.astype(np.int64), 0, spans.card_ms)
    return {
        "free_demand_ms": free_demand,
        "free_no_demand_ms": np.where(known, spans.card_ms - free_demand, 0),
    }
