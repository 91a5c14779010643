"""What a rule says of one observation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

# Ratios are quotients of sums of card-time: a figure this close to its line stands on it.
RATIO_TOLERANCE: Final = 1e-12


class Condition(Enum):
    """Three values, and a fourth for bounds that straddle the line though no data is missing."""

    BREACH = "breach"
    OK = "ok"
    UNKNOWN = "unknown"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A rule's word on one observation.

    Attributes:
        condition: where the figure stands to the line.
        figure: the judged ratio, 0..1: the most favourable reading of what was observed, so that
            silence never makes it worse; None when nothing is known.
        clears: True when the figure stands at or above the hysteresis line, False when it is known to
            stand below it, None when missing data leaves that open.
        deep: the deficit is deep, proven, and not explained by a lack of demand.
        no_demand: the deficit is deep but FREE without waiting demand explains it.
        subjects: how many nodes, cards or jobs a counting rule found; None of a ratio.
        unwanted: FREE without waiting demand explains the whole breach: with it in use there were none.
    """

    condition: Condition
    figure: float | None = None
    clears: bool | None = None
    deep: bool = False
    no_demand: bool = False
    unwanted: bool = False
    subjects: int | None = None


UNKNOWN: Final = Verdict(condition=Condition.UNKNOWN)


def below(ratio: float, line: float) -> bool:
    """Whether a ratio stands below a line, beyond rounding error."""
    return ratio < line - RATIO_TOLERANCE
