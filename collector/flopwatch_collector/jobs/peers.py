"""What others reach on the same cards: jobs of the same SKU, class and about the same size. Pure.

A peer ran on the same SKU, has the same workload class, and at least half and at most twice as many cards.
Quantiles are of jobs, each counted once, by linear interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

PEERS_MIN: Final = 5
SIZE_RATIO_MAX: Final = 2.0
CARD_HOURS_MIN: Final = 1.0
DAYS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFigures:
    """A job of the last days. Attributes: mfu, hfu: ratios; None: not known."""

    cluster: str
    job: str
    sku: str
    workload_class: str
    cards: float
    card_hours: float
    mfu: float | None
    hfu: float | None


def peers(own: JobFigures, others: Sequence[JobFigures]) -> dict[str, Any]:
    """Return ``count``, and of MFU and HFU p25, p50, p75 and this job's rank (1: the best of count + 1)."""
    alike = [o for o in others if _alike(own, o)]
    made: dict[str, Any] = {
        "days": DAYS,
        "sku": own.sku or None,
        "workload_class": own.workload_class or None,
        "cards_min": own.cards / SIZE_RATIO_MAX,
        "cards_max": own.cards * SIZE_RATIO_MAX,
        "count": len(alike),
        "mfu": _place(own.mfu, [o.mfu for o in alike if o.mfu is not None]),
        "hfu": _place(own.hfu, [o.hfu for o in alike if o.hfu is not None]),
        "reason": None,
    }
    if made["mfu"] is None and made["hfu"] is None:
        made["reason"] = (
            f"{len(alike)} jobs of this SKU, class and size with figures in {DAYS} days; "
            f"{PEERS_MIN} are needed"
        )
    return made


def _alike(own: JobFigures, other: JobFigures) -> bool:
    return (
        (other.cluster, other.job) != (own.cluster, own.job)
        and other.sku == own.sku
        and other.workload_class == own.workload_class
        and own.cards / SIZE_RATIO_MAX <= other.cards <= own.cards * SIZE_RATIO_MAX
        and other.card_hours >= CARD_HOURS_MIN
    )


def _place(own: float | None, values: Sequence[float]) -> dict[str, Any] | None:
    if len(values) < PEERS_MIN:
        return None
    p25, p50, p75 = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    rank = None if own is None else 1 + sum(v > own for v in values)
    return {"p25": p25, "p50": p50, "p75": p75, "rank": rank, "of": len(values) + 1}
