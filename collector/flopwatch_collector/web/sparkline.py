"""Small plots as SVG path data. Pure. A line breaks where nothing is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

WIDTH: Final = 200
HEIGHT: Final = 56

Values = Sequence[float | None]


def runs(values: Values) -> list[list[tuple[int, float]]]:
    """Return the stretches of neighbouring known values."""
    found: list[list[tuple[int, float]]] = []
    before: float | None = None
    for i, value in enumerate(values):
        if value is not None:
            if before is None:
                found.append([])
            found[-1].append((i, value))
        before = value
    return found


def line(values: Values, low: float, high: float) -> str:
    """Return path data of the values between two levels; a lone point is a short dash."""
    parts = []
    for run in runs(values):
        at = [f"{_x(i, values)},{_y(v, low, high)}" for i, v in run]
        if len(at) == 1:
            x = _x(run[0][0], values)
            at.append(f"{min(WIDTH, x + 2)},{_y(run[0][1], low, high)}")
        parts.append("M" + "L".join(at))
    return "".join(parts)


def band(lows: Values, highs: Values, low: float, high: float) -> str:
    """Return path data of the area between two lines."""
    both = [None if a is None or b is None else a for a, b in zip(lows, highs, strict=True)]
    parts = []
    for run in runs(both):
        upper = [f"{_x(i, both)},{_y(highs[i] or 0.0, low, high)}" for i, _ in run]
        lower = [f"{_x(i, both)},{_y(v, low, high)}" for i, v in reversed(run)]
        parts.append("M" + "L".join([*upper, *lower]) + "Z")
    return "".join(parts)


def level(value: float, low: float, high: float) -> float:
    """Return the y of a level."""
    return _y(value, low, high)


def _x(i: int, values: Values) -> float:
    return round(WIDTH * i / max(1, len(values) - 1), 1)


def _y(value: float, low: float, high: float) -> float:
    ratio = (min(max(value, low), high) - low) / (high - low)
    return round(HEIGHT - 2 - (HEIGHT - 4) * ratio, 1)
