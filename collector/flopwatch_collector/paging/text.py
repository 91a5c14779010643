"""How pages write figures, moments, durations and names. Pure.

A figure never rounds onto or over its line: 95.96 % under a line of 96 % reads 95.96, not 96.0.
Names come from hosts and users: what is invisible, turns the direction of writing or drives a terminal
never gets into a page, and a name is never longer than there is room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Final

DECIMALS_MAX: Final = 6
NAME_CHARACTERS_MAX: Final = 64
"""Of a name in a body; a summary cuts shorter."""
DAY_MS: Final = 86_400_000


def percent(ratio: float, line: float | None = None) -> str:
    """A ratio in percent: one decimal, more where fewer would reach the line it is below."""
    exact = Decimal(repr(ratio)) * 100
    edge = None if line is None else Decimal(repr(line)) * 100
    for decimals in range(1, DECIMALS_MAX + 1):
        step = Decimal(1).scaleb(-decimals)
        shown = exact.quantize(step, rounding=ROUND_HALF_EVEN)
        if edge is None or exact >= edge or shown < edge:
            return f"{shown}"
    return f"{exact.quantize(Decimal(1).scaleb(-DECIMALS_MAX), rounding=ROUND_FLOOR)}"


def lasted(milliseconds: int) -> str:
    """A duration in its two largest units: ``45s``, ``23m``, ``3h05m``, ``2d04h``."""
    seconds = max(0, milliseconds) // 1000
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 1:
        return f"{seconds}s"
    if hours < 1:
        return f"{minutes}m"
    if days < 1:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h"


def clock(unix_ms: int, now_unix_ms: int) -> str:
    """A moment before now, in UTC: ``02:51``, or ``20 Nov`` where that is a day ago or more."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return moment.strftime("%H:%M" if now_unix_ms - unix_ms < DAY_MS else "%d %b")


def points(value: float) -> str:
    """Lost points of 100: ``-3.6pt``."""
    return f"-{value:.1f}pt"


def number(value: float) -> str:
    """``1,024``; to one decimal where it is small and no whole number."""
    whole = value >= 10 or abs(value - round(value)) < 0.05
    return f"{value:,.0f}" if whole else f"{value:.1f}"


def count(value: float, thing: str) -> str:
    """``72 cards``, ``1 node``, ``1,024 cards``."""
    return f"{number(value)} {thing}" if number(value) == "1" else f"{number(value)} {thing}s"


def clean(text: str) -> str:
    """Return text on one line with nothing invisible in it."""
    return "".join(character if character.isprintable() else "?" for character in text).strip()


def cut(text: str, characters_max: int) -> str:
    """Return text, cut with an ellipsis where it is longer."""
    return text if len(text) <= characters_max else text[: max(0, characters_max - 1)] + "…"


def name(text: str, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """Return a name as it may stand in a page."""
    return cut(clean(text), characters_max) or "?"


def listed(names: Sequence[str], shown_max: int = 3, in_all: int | None = None) -> str:
    """``n1, n2, n3 and 12 more``."""
    more = (len(names) if in_all is None else in_all) - len(names[:shown_max])
    return ", ".join(names[:shown_max]) + (f" and {more:,} more" if more > 0 else "")
