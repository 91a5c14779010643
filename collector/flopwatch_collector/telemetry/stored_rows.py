"""Interval rows of a commit: where each came from, of which cluster, and which minutes they touch. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from flopwatch_collector.telemetry.columns import Block
from flopwatch_collector.telemetry.dirty import MINUTE_MS

if TYPE_CHECKING:
    from flopwatch_collector.telemetry.arrival import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRows:
    """Interval rows of one cluster that a commit stored, as columns of the table."""

    cluster: str
    simulated: bool
    columns: pa.Table


def signed(arrivals: Sequence[Arrival], block: Block, table: str) -> dict[str, pa.Array]:
    """Return the columns of a block with those that say where each row came from."""
    columns = dict(block.columns)
    origins = [arrival.origin for arrival in arrivals]
    names = ("cluster", "node", "spool_id") if table == "interval" else ("cluster", "node")
    for name in names:
        texts = pa.array([getattr(origin, name) for origin in origins]).dictionary_encode()
        codes = texts.indices.to_numpy()[block.of]
        columns[name] = pa.DictionaryArray.from_arrays(pa.array(codes), texts.dictionary)
    columns["simulated"] = pa.array(np.array([o.simulated for o in origins])[block.of])
    if table == "interval":
        columns["seq"] = pa.array(np.array([a.last_seq for a in arrivals], np.uint64)[block.of])
    return columns


def by_cluster(columns: dict[str, pa.Array], stored_unix_ms: int) -> Iterator[StoredRows]:
    """Yield the rows of each cluster."""
    count = len(columns["cluster"])
    table = pa.table({**columns, "stored_unix_ms": pa.repeat(pa.scalar(stored_unix_ms), count)})
    clusters = columns["cluster"]
    for code, cluster in enumerate(clusters.dictionary.to_pylist()):
        here = table
        if len(clusters.dictionary) > 1:
            here = table.filter(pa.array(clusters.indices.to_numpy() == code))
        yield StoredRows(cluster=cluster, simulated=here["simulated"][0].as_py(), columns=here)


def minutes_of_rows(columns: pa.Table) -> set[int]:
    """Return the minutes that rows lie in."""
    start = columns["start_unix_ms"].to_numpy()
    first = start // MINUTE_MS
    last = (start + np.maximum(columns["duration_ms"].to_numpy(), 1) - 1) // MINUTE_MS
    found: set[int] = set()
    for low, high in np.unique(np.stack([first, last]), axis=1).T.tolist():
        found.update(range(low * MINUTE_MS, (high + 1) * MINUTE_MS, MINUTE_MS))
    return found
