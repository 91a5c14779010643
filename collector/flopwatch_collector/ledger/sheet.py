"""A sheet: lines of one cluster over a window, wherever they came from, ready to be divided.

Sheets add up: minutes, hours and raw edges of a window are concatenated, never averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flopwatch_collector.ledger.draft import Lines
from flopwatch_collector.ledger.evidence import Bools, Floats, Ints
from flopwatch_collector.ledger.lines import EVERYTHING, LINE_INTS, LINE_SUMS, LINE_TEXTS, Wanted
from flopwatch_proto.rows import Bucket

Texts = npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Arrays of equal length, one entry per line. Sums are NaN where null."""

    bucket: Ints
    rogue: Bools
    texts: dict[str, Texts]
    ints: dict[str, Ints]
    sums: dict[str, Floats]

    def only(self, wanted: Wanted) -> Sheet:
        """Return the lines with fewer columns."""
        return replace(
            self,
            texts={n: self.texts[n] for n in wanted.texts},
            sums={n: self.sums[n] for n in wanted.sums},
        )

    def where(self, mask: Bools) -> Sheet:
        """Return the lines of a mask."""
        return Sheet(
            bucket=self.bucket[mask],
            rogue=self.rogue[mask],
            texts={n: v[mask] for n, v in self.texts.items()},
            ints={n: v[mask] for n, v in self.ints.items()},
            sums={n: v[mask] for n, v in self.sums.items()},
        )

    def time(self, *buckets: Bucket, column: str = "card_ms") -> int:
        """Return milliseconds of card-time in the buckets; of all lines without arguments."""
        values = self.ints[column]
        return int(values[np.isin(self.bucket, buckets)].sum() if buckets else values.sum())

    def sum(self, name: str) -> float | None:
        """Return the sum of what is known; None where nothing is."""
        values = self.sums[name]
        known = values[~np.isnan(values)]
        return float(known.sum()) if len(known) else None


def sheet_of_lines(lines: Lines) -> Sheet:
    """Return the lines of a raw window as a sheet."""
    texts = {
        name: np.array([g[i] for g in lines.groups], dtype=np.str_)[lines.group]
        if lines.groups
        else np.zeros(0, dtype=np.str_)
        for i, name in enumerate(LINE_TEXTS)
    }
    return Sheet(
        bucket=lines.bucket, rogue=lines.rogue, texts=texts, ints=lines.ints, sums=lines.sums
    )


def sheet_of_table(table: pa.Table, wanted: Wanted = EVERYTHING) -> Sheet:
    """Return stored lines as a sheet. Columns: bucket, rogue, LINE_INTS, and those that are wanted."""
    return Sheet(
        bucket=np.asarray(table["bucket"].to_numpy(), np.int64),
        rogue=np.asarray(table["rogue"].to_numpy(zero_copy_only=False), np.bool_),
        texts={
            n: np.array(table[n].cast(pa.string()).to_pylist(), dtype=np.str_) for n in wanted.texts
        },
        ints={n: np.asarray(table[n].to_numpy(), np.int64) for n in LINE_INTS},
        sums={n: np.asarray(table[n].to_numpy(), np.float64) for n in wanted.sums},
    )


def joined(sheets: Sequence[Sheet], wanted: Wanted = EVERYTHING) -> Sheet:
    """Return all lines of all sheets, which have the wanted columns."""
    if not sheets:
        nothing = sheet_of_lines(
            Lines(
                names=[],
                groups=[],
                key=np.zeros(0, np.int64),
                bucket=np.zeros(0, np.int64),
                rogue=np.zeros(0, np.bool_),
                group=np.zeros(0, np.int64),
                ints={n: np.zeros(0, np.int64) for n in LINE_INTS},
                sums={n: np.zeros(0, np.float64) for n in LINE_SUMS},
                maxima={},
            )
        )
        return nothing.only(wanted)
    return Sheet(
        bucket=np.concatenate([s.bucket for s in sheets]),
        rogue=np.concatenate([s.rogue for s in sheets]),
        texts={n: np.concatenate([s.texts[n] for s in sheets]) for n in wanted.texts},
        ints={n: np.concatenate([s.ints[n] for s in sheets]) for n in LINE_INTS},
        sums={n: np.concatenate([s.sums[n] for s in sheets]) for n in wanted.sums},
    )
