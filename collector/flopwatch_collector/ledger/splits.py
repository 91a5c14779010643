"""Steps of the waterfall split further, row by row, so that the splits add like everything else. Pure.

``clock`` by reason. The driver's counters say for how long a card was held below its application clock, and
why, not by how much. So the deficit is shared pro rata to the throttled time of the row:

    part(reason) = deficit × t(reason) / max(Σ t, covered)     reasons may overlap: then by their ratio
    application  = deficit − Σ part                            the clock that was asked for, or set
    boost        = the step itself where it is negative        never split

A reason without a counter has no part, and then nobody knows what is left for ``application``.

``tensor_gap`` by bounds. D: time memory was busy, N: time the busiest link was, both as if at full rate;
A: time the tensor pipes were; S: time the SMs were. How they overlap is not known, so (Fréchet)

    memory in [max(0, D − A), min(D, S − A)]         link in [max(0, N − max(A, D)), min(N, S − A)]

of the gap S − A, taken to lie inside S, and scaled to the step, which is at the reference clock. Where D or
N is not known the bounds are 0 and the whole gap. Links at work below full rate are not in N, and a network
beyond the card's own links is not seen at all. Source: science notes §7.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from flopwatch_collector.ledger.evidence import Floats
from flopwatch_collector.ledger.lines import CLOCK_REASONS

MEMORY_REACHED: Final = 0.92
"""Share of the theoretical memory bandwidth that copies reach: a memory at this share is always busy."""


def clock_split(
    clock_step_ms: Floats, covered_ms: Floats, sums: dict[str, Floats]
) -> dict[str, Floats]:
    """Return ``clock_*_step_ms``; with every reason known they add up to the step.

    Args:
        sums: has ``throttled_*_ms`` for each of CLOCK_REASONS.
    """
    held = {r: np.maximum(sums[f"throttled_{r}_ms"], 0.0) for r in CLOCK_REASONS}
    throttled = np.zeros_like(covered_ms)
    for spent in held.values():
        throttled = throttled + np.nan_to_num(spent)
    per_ms = np.maximum(clock_step_ms, 0.0) / np.maximum(np.maximum(throttled, covered_ms), 1e-9)
    parts = {f"clock_{reason}_step_ms": per_ms * spent for reason, spent in held.items()}
    application = np.maximum(clock_step_ms, 0.0)
    for part in parts.values():
        application = application - part
    parts["clock_application_step_ms"] = np.maximum(application, 0.0)
    parts["clock_boost_step_ms"] = np.minimum(clock_step_ms, 0.0)
    return parts


def gap_split(
    gap_step_ms: Floats, active_ms: Floats, tensor_ms: Floats, memory_ms: Floats, link_ms: Floats
) -> dict[str, Floats]:
    """Return the bounds of the gap's time with memory busy and with a link busy.

    Args:
        active_ms, tensor_ms: S and A, with S at least A.
        memory_ms: D; link_ms: N; NaN where not known.
    """
    gap_ms = np.maximum(active_ms - tensor_ms, 0.0)
    scale = np.where(gap_ms > 0, gap_step_ms / gap_ms, 0.0)
    memory = np.minimum(memory_ms, active_ms)
    link = np.minimum(link_ms, active_ms)
    lows = {"memory": memory - tensor_ms, "link": link - np.fmax(tensor_ms, memory)}
    parts = {}
    for name, busy in (("memory", memory), ("link", link)):
        hi = np.where(np.isnan(busy), gap_ms, np.minimum(busy, gap_ms))
        lo = np.clip(np.nan_to_num(lows[name]), 0.0, hi)
        parts[f"tensor_gap_{name}_lo_step_ms"] = lo * scale
        parts[f"tensor_gap_{name}_hi_step_ms"] = np.where(gap_ms > 0, hi * scale, gap_step_ms)
    return parts


def link_busy_ms(sums: dict[str, Floats], nvlink_per_ms: Floats, pcie_per_ms: Floats) -> Floats:
    """Return the time the busier of a card's links was busy; NaN where neither is known.

    Args:
        nvlink_per_ms, pcie_per_ms: bytes per ms and direction at full rate; NaN: not known.
    """
    nvlink = np.fmax(sums["nvlink_tx_bytes"], sums["nvlink_rx_bytes"]) / nvlink_per_ms
    pcie = np.fmax(sums["pcie_tx_bytes"], sums["pcie_rx_bytes"]) / pcie_per_ms
    return np.fmax(nvlink, pcie)
