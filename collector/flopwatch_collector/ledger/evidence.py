"""What is known of one cluster before it is judged: seats, rows, rosters, words heard. Arrays, no I/O.

`account` turns evidence into lines. Everything here is made from the store's tables (or, by `live`, from
tables of the same columns held in memory), and refers to slots by a small integer, the *key*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flopwatch_collector.ledger.lines import DERIVED_SUMS, LINE_MAXIMA, LINE_SUMS, LINE_TEXTS
from flopwatch_collector.ledger.runs import runs_of
from flopwatch_collector.ledger.texts import group_texts, places_of
from flopwatch_kernels import peaks
from flopwatch_proto.rows import SlotState

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

NEVER: Final = -(2**60)
FOREVER: Final = 2**60
ROSTER_HOLDS_MS: Final = 5 * 60_000
ROW_TIMES: Final = ("card_ms", "covered_ms", "counted_ms", "resident_ms")
ROW_SUMS: Final = tuple(s for s in LINE_SUMS if s not in DERIVED_SUMS)

ROW_COLUMNS: Final = (
    "node",
    "slot",
    "start_unix_ms",
    "duration_ms",
    "bucket",
    "rogue",
    "spool_id",
    "stored_unix_ms",
    *LINE_TEXTS,
    *ROW_TIMES,
    *ROW_SUMS,
    *LINE_MAXIMA,
)
ROSTER_COLUMNS: Final = (
    "source",
    "taken_unix_ms",
    "valid_until_unix_ms",
    "node",
    "slot",
    "bucket",
    "job",
    "team",
    "workload_class",
    "weight",
    "pending_cards",
    "free_cards",
)
SLOT_COLUMNS: Final = (
    "node",
    "slot",
    "from_unix_ms",
    "to_unix_ms",
    "state",
    "sku",
    "device_kind",
    "dtype",
    "simulated",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A half-open span of time in unix milliseconds."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Seats:
    """Spans in which slots are in service. One seat: one span of one slot.

    Attributes:
        names: key → (node, slot), in their order.
        key, start, end: per seat; half open, ``FOREVER`` where nothing ends it.
        texts: per key: (sku, device_kind, dtype).
        peak_flops: per key: dense datasheet FLOP/s of the slot's sku and dtype; NaN when unknown.
    """

    names: list[tuple[str, str]]
    key: Ints
    start: Ints
    end: Ints
    texts: list[tuple[str, str, str]]
    peak_flops: Floats
    simulated: bool = False

    @cached_property
    def _index(self) -> tuple[pa.Array, pa.Array, Ints]:
        """Nodes, slots, and per key their codes as one number, ascending as names are."""
        nodes, slots = (
            pa.array(sorted({name[i] for name in self.names}), pa.string()) for i in (0, 1)
        )
        of_node, of_slot = (
            places_of(pa.chunked_array([[name[i] for name in self.names]], pa.string()), known)
            for i, known in ((0, nodes), (1, slots))
        )
        return nodes, slots, of_node * len(slots) + of_slot

    def keys(self, table: pa.Table) -> Ints:
        """Return the key of each row of a table with columns node and slot; -1 where there is no seat."""
        if not table.num_rows or not self.names:
            return np.full(table.num_rows, -1, np.int64)
        nodes, slots, codes = self._index
        node, slot = places_of(table["node"], nodes), places_of(table["slot"], slots)
        wanted = node * len(slots) + slot
        key = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        return np.where((node >= 0) & (slot >= 0) & (codes[key] == wanted), key, -1)


def seats_of(table: pa.Table, device_kind: str | None = None) -> Seats:
    """Return the seats that declarations make. Columns: ``SLOT_COLUMNS``.

    A declaration holds until the next one of its slot, at most to its own ``to_unix_ms`` (0: open).
    Adjacent spans in service become one.
    """
    by_slot: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in table.to_pylist():
        if device_kind is None or record["device_kind"] == device_kind:
            by_slot.setdefault((record["node"], record["slot"]), []).append(record)
    names: list[tuple[str, str]] = []
    texts: list[tuple[str, str, str]] = []
    known: dict[tuple[str, str], float | None] = {}  # a look-up costs more than all else of a slot
    peak: list[float] = []
    key: list[int] = []
    start: list[int] = []
    end: list[int] = []
    for name in sorted(by_slot):
        declared = sorted(by_slot[name], key=lambda r: r["from_unix_ms"])
        for span_start, span_end in _service_spans(declared):
            key.append(len(names))
            start.append(span_start)
            end.append(span_end)
        names.append(name)
        newest = declared[-1]
        texts.append((newest["sku"], newest["device_kind"], newest["dtype"]))
        of = (newest["sku"], newest["dtype"])
        if of not in known:
            known[of] = peaks.peak_flops(*of)
        flops = known[of]
        peak.append(np.nan if flops is None else flops)
    return Seats(
        names=names,
        key=np.array(key, np.int64),
        start=np.array(start, np.int64),
        end=np.array(end, np.int64),
        texts=texts,
        peak_flops=np.array(peak, np.float64),
        simulated=any(table["simulated"].to_pylist()) if table.num_rows else False,
    )


def _service_spans(declared: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for i, record in enumerate(declared):
        until = declared[i + 1]["from_unix_ms"] if i + 1 < len(declared) else FOREVER
        until = min(until, record["to_unix_ms"] or FOREVER)
        if record["state"] != SlotState.IN_SERVICE or until <= record["from_unix_ms"]:
            continue
        if spans and spans[-1][1] >= record["from_unix_ms"]:
            spans[-1] = (spans[-1][0], until)
        else:
            spans.append((record["from_unix_ms"], until))
    return spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Interval rows of one cluster as arrays; rows of slots without a seat are left out.

    Attributes:
        key: of the slot; start, end: unix ms.
        group: index into ``groups``, tuples in the order of ``LINE_TEXTS``.
        times: whole milliseconds; sums, maxima: NaN where null.
    """

    key: Ints
    start: Ints
    end: Ints
    bucket: Ints
    rogue: Bools
    group: Ints
    groups: list[tuple[str, ...]]
    times: dict[str, Ints]
    sums: dict[str, Floats]
    maxima: dict[str, Floats]

    def where(self, mask: Bools) -> Rows:
        """Return the rows of a mask."""
        return Rows(
            key=self.key[mask],
            start=self.start[mask],
            end=self.end[mask],
            bucket=self.bucket[mask],
            rogue=self.rogue[mask],
            group=self.group[mask],
            groups=self.groups,
            times={n: v[mask] for n, v in self.times.items()},
            sums={n: v[mask] for n, v in self.sums.items()},
            maxima={n: v[mask] for n, v in self.maxima.items()},
        )


def compact(table: pa.Table) -> pa.Table:
    """Return rows with ``ROW_COLUMNS``, those finer than the account's grain as runs (`runs`)."""
    return runs_of(table, LINE_TEXTS, (*ROW_TIMES, *ROW_SUMS), LINE_MAXIMA)


def rows_of(table: pa.Table, seats: Seats) -> Rows:
    """Return the rows of a table with ``ROW_COLUMNS``; where rows overlap, the newest spool wins."""
    table = compact(table)
    key = seats.keys(table)
    kept = np.flatnonzero(key >= 0)
    if len(kept) < len(key):
        table, key = table.take(pa.array(kept)), key[kept]
    start = _ints(table, "start_unix_ms")
    end = start + _ints(table, "duration_ms")
    kept = _without_overlaps(key, start, end, _ints(table, "card_ms"), table)
    if len(kept) < len(key):
        table, key, start, end = table.take(pa.array(kept)), key[kept], start[kept], end[kept]
    group, groups = group_texts([table[name] for name in LINE_TEXTS])
    return Rows(
        key=key,
        start=start,
        end=end,
        bucket=_ints(table, "bucket"),
        rogue=np.asarray(table["rogue"].to_numpy(zero_copy_only=False), np.bool_),
        group=group,
        groups=groups,
        times={name: _ints(table, name) for name in ROW_TIMES},
        sums={name: _floats(table, name) for name in ROW_SUMS},
        maxima={name: _floats(table, name) for name in LINE_MAXIMA},
    )


def _without_overlaps(key: Ints, start: Ints, end: Ints, card_ms: Ints, table: pa.Table) -> Ints:
    """Return the indexes of rows to keep: where a slot's rows weigh more than 1, its newest spool's."""
    everything = np.arange(len(key))
    if not len(key):
        return everything
    # Cheap test first: per slot, card-time can exceed the union of its rows only where they overlap.
    order = np.lexsort((start, key))
    sorted_key, begins, ends = key[order], start[order] - start.min(), end[order] - start.min()
    # Slots lie one after the other on one line, so that one running maximum serves all of them.
    apart = sorted_key * (ends.max() + 1)
    reach = np.maximum.accumulate(ends + apart) - apart
    same = sorted_key[1:] == sorted_key[:-1]
    begins[1:] = np.where(same, np.maximum(begins[1:], reach[:-1]), begins[1:])
    union = np.bincount(sorted_key, np.maximum(reach - begins, 0))
    crowded = np.flatnonzero(np.bincount(key, card_ms) > union + 1)
    if not len(crowded):
        return everything
    spools = table["spool_id"].to_pylist()
    stored = _ints(table, "stored_unix_ms")
    drop: set[int] = set()
    for slot in crowded:
        mine = np.flatnonzero(key == slot)
        newest = spools[mine[np.argmax(stored[mine])]]
        spans = sorted((int(start[i]), int(end[i])) for i in mine if spools[i] == newest)
        for i in mine:
            if spools[i] != newest and any(a < end[i] and start[i] < b for a, b in spans):
                drop.add(int(i))
    return np.array([i for i in everything if i not in drop], np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rosters:
    """What schedulers said, as entries of (hold, slot, job).

    Attributes:
        start, end: per hold: when this roster is the cluster's word.
        hold, key, bucket, weight: per entry, sorted by (hold, key).
        word: per entry: index into ``words``: (job, team, workload_class).
        demand: per hold: share of the free cards that are waited for, 0..1; NaN: it knows no queue.
    """

    start: Ints
    end: Ints
    hold: Ints
    key: Ints
    bucket: Ints
    weight: Floats
    word: Ints
    words: list[tuple[str, ...]]
    demand: Floats


def rosters_of(table: pa.Table, seats: Seats) -> Rosters:
    """Return the rosters of a table with ``ROSTER_COLUMNS`` (header rows have an empty node).

    A roster holds from ``taken_unix_ms`` to the next one, at most to ``valid_until_unix_ms`` and never
    longer than ``ROSTER_HOLDS_MS``. An entry of weight 0 says nothing.
    """
    taken = _ints(table, "taken_unix_ms")
    starts, hold = np.unique(taken, return_inverse=True)
    until = np.full(len(starts), NEVER)
    np.maximum.at(until, hold, _ints(table, "valid_until_unix_ms"))
    demand = np.full(len(starts), np.nan)
    demand[hold] = _demand(_floats(table, "pending_cards"), _floats(table, "free_cards"))
    until = np.minimum(until, starts + ROSTER_HOLDS_MS)
    ends = np.minimum(until, np.append(starts[1:], FOREVER))
    key = seats.keys(table)
    kept = np.flatnonzero((key >= 0) & (_floats(table, "weight") > 0))
    kept = kept[np.lexsort((key[kept], hold[kept]))]
    entries = table.take(pa.array(kept))
    word, words = group_texts([entries[n] for n in ("job", "team", "workload_class")])
    return Rosters(
        start=starts,
        end=ends,
        hold=hold[kept].astype(np.int64),
        key=key[kept],
        bucket=_ints(entries, "bucket"),
        weight=_floats(entries, "weight"),
        word=word,
        words=words,
        demand=demand,
    )


def _demand(pending: Floats, free: Floats) -> Floats:
    """Return min(1, pending / free); where nothing is free, whether anything is pending."""
    share = np.minimum(pending / np.maximum(free, 1e-9), 1.0)
    return np.where(free > 0, share, np.where(np.isnan(free), np.nan, np.minimum(pending, 1.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The last word before a window and the first after it, per key; ``NEVER`` and ``FOREVER``: none."""

    before: Ints
    after: Ints

    @classmethod
    def nothing(cls, seats: Seats) -> Heard:
        """Return that no slot was ever heard outside the window."""
        count = len(seats.names)
        return cls(before=np.full(count, NEVER), after=np.full(count, FOREVER))


def heard_of(before: pa.Table, after: pa.Table, seats: Seats) -> Heard:
    """Return the words around a window. Columns: node, slot, heard_unix_ms."""
    heard = Heard.nothing(seats)
    for table, out, pick in ((before, heard.before, np.maximum), (after, heard.after, np.minimum)):
        key = seats.keys(table)
        said = _ints(table, "heard_unix_ms")
        pick.at(out, key[key >= 0], said[key >= 0])
    return heard


def _ints(table: pa.Table, name: str) -> Ints:
    return np.asarray(table[name].to_numpy(), np.int64)


def _floats(table: pa.Table, name: str) -> Floats:
    return np.asarray(table[name].to_numpy(), np.float64)
