"""Readings of a node's cards side by side in time. Pure.

A node reads its cards one after the other, so a window may begin between two of them: the first card has a
reading less. A card that did not answer has a hole, and where readings come faster than the driver's
counters only some have values. Compared by number, cards would be compared at different moments, and the
difference looks like a lag. So readings are laid on the moments of the card that has most of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flopwatch_collector.jobs.crowd import Counters
from flopwatch_collector.jobs.lag import Floats, Ints


def aligned(counters: Counters) -> Counters:
    """Return the readings with column i of all cards of a node at one moment, the same for each.

    Moments at which less than half of a node's cards know their SM activity are left out: the median of so
    few would be compared with itself.
    """
    known = counters.fields.get("sm_active_ratio")
    if known is None or not counters.nodes:
        return counters
    node = np.unique(np.array(counters.nodes), return_inverse=True)[1]
    places = [np.flatnonzero(node == n) for n in range(int(node.max()) + 1)]
    sources: list[Ints] = []
    moments: list[Floats] = []
    for rows in places:
        grid = _grid(counters.taken_s[rows])
        source = _nearest(counters.taken_s[rows], grid)
        here = ~np.isnan(_taken(known[rows], source))
        keep = 2 * here.sum(0) >= max(int(here.any(1).sum()), 1)
        sources.append(source[:, keep])
        moments.append(grid[keep])
    width = max(len(grid) for grid in moments)

    def laid(values: Floats) -> Floats:
        made = np.full((len(node), width), np.nan)
        for rows, source in zip(places, sources, strict=True):
            made[rows, : source.shape[1]] = _taken(values[rows], source)
        return made

    taken_s = np.full((len(node), width), np.nan)
    for rows, grid in zip(places, moments, strict=True):
        taken_s[rows, : len(grid)] = grid
    fields = {name: laid(values) for name, values in counters.fields.items()}
    return replace(counters, taken_s=taken_s, fields=fields)


def _grid(taken_s: Floats) -> Floats:
    """Return the moments of the card with most readings."""
    most = taken_s[np.argmax((~np.isnan(taken_s)).sum(1))]
    return np.sort(most[~np.isnan(most)])


def _nearest(taken_s: Floats, grid: Floats) -> Ints:
    """Return for each card and moment which of its readings was then; -1: none within half a gap."""
    source = np.full((len(taken_s), len(grid)), -1)
    if not len(grid):
        return source
    near_s = float(np.median(np.diff(grid))) / 2 if len(grid) > 1 else 0.0
    for row, taken in zip(source, taken_s, strict=True):
        known = np.flatnonzero(~np.isnan(taken))
        right = np.searchsorted(grid, taken[known]).clip(1, max(len(grid) - 1, 1))
        left = right - 1
        right = right.clip(max=len(grid) - 1)
        at = np.where(taken[known] - grid[left] <= grid[right] - taken[known], left, right)
        close = np.abs(grid[at] - taken[known]) <= near_s
        row[at[close]] = known[close]
    return source


def _taken(values: Floats, source: Ints) -> Floats:
    if not source.shape[1]:
        return np.empty(source.shape)
    return np.where(source >= 0, np.take_along_axis(values, source.clip(0), 1), np.nan)
