"""The time of a step, from the rhythm of a job's counters when the job itself says nothing. Pure.

A training loop does the same again and again: its tensor activity, read about once a second, is close to
itself one step later. The autocorrelation of the readings has its first high peak there.

- What is longer than a third of the record is not told apart from chance and has no answer. A step shorter
  than two readings looks like a longer one (aliasing), and nothing here can tell: read faster where in doubt.
- A rhythm of k steps (an accumulation, a log line) peaks at k steps, too. The shortest lag whose peak comes
  near the highest one stands, and its multiples make it exact.
- Confidence is the height of the peak: 1 for a perfect rhythm, about 0 for noise, whose peaks stay below
  `NOISE_SIGMAS` / √(pairs compared).

Source: autocorrelation by the Wiener–Khinchin theorem, bias removed by the number of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

READINGS_PER_STEP_MIN: Final = 2.2
READINGS_MIN: Final = 24
MISSING_MAX: Final = 0.2
CONFIDENCE_MIN: Final = 0.3
NOISE_SIGMAS: Final = 5.0
_NEAR_HIGHEST: Final = 0.8
_FINE: Final = 10
"""Lags per reading: the curve between readings is known, as far as they show the rhythm at all."""
_FLAT: Final = 1e-4
"""Standard deviation of a series, of its mean, below which there is no rhythm to find."""


def step_period(series: Sequence[float | None], dt_s: float) -> tuple[float, float] | None:
    """Return (seconds of a step, confidence 0..1); None where no rhythm stands out.

    Args:
        series: activity at even times, as a ratio; None where a reading is missing.
        dt_s: seconds between readings.
    """
    values = _filled(series)
    if values is None or len(values) < READINGS_MIN:
        return None
    places = np.arange(len(values))
    level = float(np.abs(values).mean())
    values = values - np.polyval(np.polyfit(places, values, 1), places)
    if float(values.std()) <= _FLAT * level:
        return None
    similar = _autocorrelation(values)
    longest = len(similar) // 3
    inner = similar[: longest + 1]
    lags = 1 + np.flatnonzero((inner[1:-1] >= inner[:-2]) & (inner[1:-1] > inner[2:]))
    lags = lags[lags >= READINGS_PER_STEP_MIN * _FINE]
    if not len(lags):
        return None
    lag = int(lags[np.argmax(similar[lags] >= _NEAR_HIGHEST * similar[lags].max())])
    confidence = float(min(1.0, similar[lag]))
    if confidence < max(CONFIDENCE_MIN, NOISE_SIGMAS / np.sqrt(len(values) - lag / _FINE)):
        return None
    return _refined(inner, lag) * dt_s / _FINE, confidence


def _filled(series: Sequence[float | None]) -> Floats | None:
    """Return the series with straight lines over what is missing; None where too much is."""
    values = np.array([np.nan if v is None else v for v in series], np.float64)
    known = np.flatnonzero(~np.isnan(values))
    if len(known) < 2 or len(known) < (1 - MISSING_MAX) * len(values):
        return None
    return np.interp(np.arange(len(values)), known, values[known])


def _autocorrelation(values: Floats) -> Floats:
    """Return how alike the series is to itself at each lag of 1 / `_FINE` reading: 1 at lag 0."""
    count = len(values)
    power = np.abs(np.fft.rfft(values, 2 * count)) ** 2
    products = np.fft.irfft(power, 2 * count * _FINE)[: count * _FINE]
    similar: Floats = products / products[0] * count / (count - np.arange(count * _FINE) / _FINE)
    return similar


def _refined(similar: Floats, lag: int) -> float:
    """Return the lag that its multiples agree on: the peak at k steps errs by 1/k as much."""
    period, k = float(lag), 2
    while (near := round(k * period)) + _FINE < len(similar):
        top = near - _FINE // 2 + int(np.argmax(similar[near - _FINE // 2 : near + _FINE // 2 + 1]))
        if similar[top] < _NEAR_HIGHEST * similar[lag]:
            break
        period, k = top / k, k + 1
    return period
