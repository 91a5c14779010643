"""Texts as numbers: columns of texts made into codes that arrays can be grouped and looked up by. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
_CODES_MAX: Final = 2**62


def group_texts(columns: Sequence[pa.ChunkedArray]) -> tuple[Ints, list[tuple[str, ...]]]:
    """Return (group of each row, groups) of equal-length text columns."""
    parts = [_codes(column) for column in columns]
    _, first, group = np.unique(_combined(parts), return_index=True, return_inverse=True)
    groups = [tuple(values[codes[i]] for codes, values in parts) for i in first]
    return group.astype(np.int64), groups


def codes_of(columns: Sequence[pa.ChunkedArray]) -> Ints:
    """Return a number per row, the same for rows that are the same in all these columns."""
    return _combined([_codes(column) for column in columns])


def _combined(parts: Sequence[tuple[Ints, list[str]]]) -> Ints:
    """Return the codes of several columns as one."""
    code, size = np.zeros(len(parts[0][0]), np.int64), 1
    for codes, values in parts:
        if size * max(len(values), 1) > _CODES_MAX:
            made, code = np.unique(code, return_inverse=True)
            size = len(made)
        if len(values) > 1:
            code, size = code * len(values) + codes, size * len(values)
    return code


def _codes(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # no chunk at all
        return np.zeros(0, np.int64), []
    if column.null_count or not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).fill_null("").dictionary_encode()
    codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    # A dictionary may be shared by columns: what it holds beside this one's texts only makes codes large.
    is_used = np.zeros(len(column.dictionary), np.bool_)
    is_used[codes] = True
    used = np.flatnonzero(is_used)
    place = np.cumsum(is_used) - 1
    return place[codes], column.dictionary.take(pa.array(used)).to_pylist()


def places_of(column: pa.ChunkedArray, known: pa.Array) -> Ints:
    """Return the place of each text among the known ones, -1 where it is none of them."""
    codes, values = _codes(column)
    places = pc.index_in(pa.array(values, pa.string()), known).fill_null(-1)
    return np.asarray(places.to_numpy(zero_copy_only=False), np.int64)[codes]
