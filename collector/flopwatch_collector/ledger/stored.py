"""Lines on their way into the line tables, and added up on that way. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from flopwatch_collector.ledger.draft import Lines, grouped
from flopwatch_collector.ledger.lines import LINE_TEXTS

Columns = dict[str, pa.Array]


def added(many: Sequence[Lines]) -> Lines:
    """Return the lines of adjacent windows as those of one window."""
    if len(many) == 1:
        return many[0]
    many = _of_same_names(many)
    first = np.cumsum([0, *(len(lines.groups) for lines in many)])

    def column(of: str, name: str) -> Any:
        return np.concatenate([getattr(lines, of)[name] for lines in many])

    whole = replace(
        many[0],
        groups=[group for lines in many for group in lines.groups],
        key=np.concatenate([m.key for m in many]),
        bucket=np.concatenate([m.bucket for m in many]),
        rogue=np.concatenate([m.rogue for m in many]),
        group=np.concatenate([m.group + at for m, at in zip(many, first, strict=False)]),
        ints={n: column("ints", n) for n in many[0].ints},
        sums={n: column("sums", n) for n in many[0].sums},
        maxima={n: column("maxima", n) for n in many[0].maxima},
    )
    return grouped(whole)


def _of_same_names(many: Sequence[Lines]) -> Sequence[Lines]:
    """Return lines whose keys mean the same: slots that were declared meanwhile are new to later windows."""
    names = many[0].names
    if all(lines.names is names or lines.names == names for lines in many):
        return many
    names = sorted({name for lines in many for name in lines.names})
    key_of = {name: key for key, name in enumerate(names)}
    return [
        replace(
            lines,
            names=names,
            key=np.array([key_of[name] for name in lines.names], np.int64)[lines.key],
        )
        for lines in many
    ]


def columns_of(lines: Lines, with_slots: bool, simulated: bool) -> Columns:
    """Return lines as columns of a line table, without cluster, start, generation and the time stored."""
    columns: Columns = {}
    if with_slots:
        for i, name in enumerate(("node", "slot")):
            columns[name] = pa.array([n[i] for n in lines.names], pa.string()).take(
                pa.array(lines.key)
            )
    columns["bucket"] = pa.array(lines.bucket)
    columns["rogue"] = pa.array(lines.rogue)
    for i, name in enumerate(LINE_TEXTS):
        columns[name] = pa.array([g[i] for g in lines.groups], pa.string()).take(
            pa.array(lines.group)
        )
    columns["simulated"] = pa.array(np.full(len(lines.key), simulated))
    columns |= {n: pa.array(v) for n, v in lines.ints.items()}
    for name, values in (*lines.sums.items(), *lines.maxima.items()):
        columns[name] = pa.array(values, mask=np.isnan(values))
    return columns


def one_after_the_other(made: Sequence[tuple[int, Columns]]) -> dict[str, Any]:
    """Return the columns of windows, given by their starts, as one block with ``start_unix_ms``."""
    counts = [len(columns["bucket"]) for _, columns in made]
    block: dict[str, Any] = {
        name: pa.concat_arrays([columns[name] for _, columns in made]) for name in made[0][1]
    }
    block["start_unix_ms"] = np.repeat([start for start, _ in made], counts).tolist()
    return block
