"""How late each card of a job is, from counters that are means over about a second. Pure, vectorised.

All ranks of a synchronous step do the same at the same time, and each node is read at its own moment. So
the readings of all *other* nodes, taken together, are a curve of the job that is much finer in time than
any of them (`Curve`). Against it, the readings y of a card over its times t are

    y(t) = Y(t − lag) · gain + constant    ≈    Y + (gain − 1)·(Y − mean) − lag · dY/dt + constant

and least squares give its lag in seconds, also where a step is shorter than the time between readings.
Cards of one node are read together: they are compared with the median of their node, which needs no
interpolation and so finds lags of milliseconds; nodes are compared with the curve of the others.
Source: first-order registration of shifted signals (Lucas and Kanade 1981), in time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GRID_PER_READING: Final = 20
"""Points of the curve in the time between two readings of a node."""
_NARROW, _WIDE, _WIDE_WEIGHT = 0.07, 0.25, 1e-3
"""Widths of the curve's smoothing, in times between readings; the wide one only fills holes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What the other nodes do at the moments of each node's readings.

    Attributes:
        own: medians of each node's cards, nodes × readings.
        others: the curve of the other nodes at the same moments, and ``slope`` its derivative per second.
        whole: the curve of all nodes on an even grid, ``grid_s`` apart.
    """

    own: Floats
    others: Floats
    slope: Floats
    whole: Floats
    grid_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Of each row: lag and its standard error in seconds; energy: standard deviation of the difference."""

    lag_s: Floats
    error_s: Floats
    energy: Floats

    @property
    def sure_lag_s(self) -> Floats:
        """The lag, less of it where it is less certain than the median row's."""
        usual = float(np.median(self.error_s))
        return np.asarray(self.lag_s * usual / np.maximum(self.error_s, max(usual, 1e-9)))


def node_medians(values: Floats, node: Ints) -> Floats:
    """Return the median over each node's cards, nodes × readings; NaN where none of them is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all of them unknown: NaN is the answer
        return np.stack([np.nanmedian(values[node == n], axis=0) for n in range(node.max() + 1)])


def curve_of(taken_s: Floats, own: Floats, every_s: float) -> Curve:
    """Return the curve of nodes.

    Args:
        taken_s: moments of each node's readings, nodes × readings.
        own: their medians; NaN where unknown.
        every_s: the time between two readings of a node.
    """
    grid_s = every_s / GRID_PER_READING
    place = (taken_s - np.nanmin(taken_s)) / grid_s
    size = int(np.nanmax(place)) + 2
    known = ~np.isnan(own) & ~np.isnan(place)
    low = np.where(known, place, 0).astype(np.int64)
    part = np.where(known, place - low, 0.0)
    value = np.where(known, own, 0.0)
    nodes = len(own)
    flat = (np.arange(nodes)[:, None] * size + low).ravel()

    def spread(weight: Floats) -> Floats:
        left = np.bincount(flat, (weight * (1 - part)).ravel(), minlength=nodes * size)
        right = np.bincount(flat + 1, (weight * part).ravel(), minlength=nodes * size + 1)
        return np.asarray((left + right[: nodes * size]).reshape(nodes, size))

    sums = _smooth(spread(value), GRID_PER_READING)
    weights = _smooth(spread(known.astype(np.float64)), GRID_PER_READING)
    rest, rest_weight = sums.sum(0) - sums, weights.sum(0) - weights
    others = rest / np.maximum(rest_weight, 1e-12)
    slope = np.gradient(others, grid_s, axis=1)
    return Curve(
        own=own,
        others=_at(others, low, part),
        slope=_at(slope, low, part),
        whole=sums.sum(0) / np.maximum(weights.sum(0), 1e-12),
        grid_s=grid_s,
    )


def _smooth(values: Floats, per_reading: int) -> Floats:
    """Return rows convolved with a narrow bell and, with little weight, a wide one."""
    half = int(4 * _WIDE * per_reading)
    at = np.arange(-half, half + 1) / per_reading
    bell = np.exp(-0.5 * (at / _NARROW) ** 2) + _WIDE_WEIGHT * np.exp(-0.5 * (at / _WIDE) ** 2)
    size = 1 << int(np.ceil(np.log2(values.shape[1] + 2 * half)))
    made = np.fft.irfft(np.fft.rfft(values, size) * np.fft.rfft(bell, size), size)
    return np.maximum(made[:, half : half + values.shape[1]], 0.0)


def _at(rows: Floats, low: Ints, part: Floats) -> Floats:
    high = np.minimum(low + 1, rows.shape[1] - 1)
    left = np.take_along_axis(rows, low, 1)
    right = np.take_along_axis(rows, high, 1)
    return np.asarray(left * (1 - part) + right * part)


def fit(difference: Floats, others: Floats, slope: Floats) -> Fit:
    """Return lag and energy of rows by least squares on [slope, others − mean, 1].

    Args:
        difference: of each row's readings from what its peers did; NaN where unknown.
        others: what the peers did; slope: its derivative per second.
    """
    known = ~np.isnan(difference) & ~np.isnan(others) & ~np.isnan(slope)
    count = np.maximum(known.sum(1), 1)
    y = np.where(known, difference, 0.0)
    centred = others - (np.where(known, others, 0.0).sum(1) / count)[:, None]
    basis = np.stack([np.where(known, slope, 0.0), np.where(known, centred, 0.0), known * 1.0], -1)
    normal = np.einsum("rki,rkj->rij", basis, basis)
    # A little ridge: a row without readings or a flat curve has no lag, and gets 0.
    normal += 1e-9 * (1 + np.trace(normal, axis1=1, axis2=2))[:, None, None] * np.eye(3)
    inverse = np.linalg.inv(normal)
    found = np.einsum("rij,rj->ri", inverse, np.einsum("rki,rk->ri", basis, y))
    left = np.where(known, y - np.einsum("rki,ri->rk", basis, found), 0.0)
    variance = (left**2).sum(1) / np.maximum(count - 3, 1)
    mean = y.sum(1) / count
    energy = np.sqrt(np.where(known, (y - mean[:, None]) ** 2, 0.0).sum(1) / count)
    error = np.sqrt(variance * inverse[:, 0, 0])
    return Fit(lag_s=-found[:, 0], error_s=error, energy=energy)
