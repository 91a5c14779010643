"""How numbers are written in tables. Pure; the dashboard follows the same rules."""

from __future__ import annotations

import math
from typing import Final

UNKNOWN: Final = "—"
_DECIMALS_MAX: Final = 4
_NARROW_POINTS: Final = 2.0


def percent(ratio: float | None, *, line: float | None = None, decimals: int = 1) -> str:
    """``95.3`` of 0.953, without the unit; more decimals where it would round onto or over its line.

    Args:
        ratio: 0 … 1; None is not known.
        line: the ratio below which it is an outage.
        decimals: at least this many.
    """
    if ratio is None:
        return UNKNOWN
    value = 100.0 * ratio
    if line is None or ratio == line:
        return _signed(f"{value:.{decimals}f}")
    limit = 100.0 * line
    for places in range(decimals, _DECIMALS_MAX + 1):
        shown = float(f"{value:.{places}f}")
        if (shown < limit) == (ratio < line) and (shown > limit) == (ratio > line):
            return _signed(f"{value:.{places}f}")
    scale = 10.0**_DECIMALS_MAX
    away = math.floor(value * scale) if ratio < line else math.ceil(value * scale)
    away += 0 if away / scale != limit else (-1 if ratio < line else 1)
    return _signed(f"{away / scale:.{_DECIMALS_MAX}f}")


def span(
    lo: float | None, hi: float | None, value: float | None = None, *, line: float | None = None
) -> str:
    """``36–43`` of bounds, ``41.2–42.0`` of bounds within 2 points, or the value where it is known."""
    if value is not None:
        return percent(value, line=line)
    if lo is None or hi is None:
        return UNKNOWN
    decimals = 1 if 100.0 * (hi - lo) <= _NARROW_POINTS else 0
    low, high = (percent(bound, line=line, decimals=decimals) for bound in (lo, hi))
    return low if low == high else f"{low}–{high}"


def points(ratio: float | None) -> str:
    """``1.6`` points of 0.016; a real minus sign."""
    return UNKNOWN if ratio is None else _signed(f"{100.0 * ratio:.1f}")


def cards(count: float | None) -> str:
    """``1,240``, or ``488.5`` where a part of a card is left."""
    if count is None:
        return UNKNOWN
    whole = abs(count - round(count)) < 0.05
    return _signed(f"{count:,.0f}" if whole else f"{count:,.1f}")


def quantity(value: float | None, scale: float = 1.0) -> str:
    """Three significant digits of value / scale, with separators; never an exponent."""
    if value is None:
        return UNKNOWN
    scaled = value / scale
    if scaled == 0.0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(scaled))))
    return _signed(f"{scaled:,.{min(places, 6)}f}")


def _signed(text: str) -> str:
    if text.startswith("-"):
        return text[1:] if not text.strip("-0.,") else f"\N{MINUS SIGN}{text[1:]}"
    return text
