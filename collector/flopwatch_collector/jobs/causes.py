"""The largest losses of a job, what each could give back, and what to try first. Pure.

The waterfall of a job is a product: u = Π q_i, with q_i what step i leaves of what the steps before it left
(science notes, section 7). Were a step mended, q_i would be 1, for the tensor gap the best that its cards
measured, and u would grow to u / q_i. The gain is bounded by what its cards reach when measured
(``ceiling``), and by the better quarter of its peers (``peer``), where these are known:

    gain = min(u / q_i, ceiling, max(peer, u)) − u        in points of HFU; × MFU / HFU in points of MFU

Gains of several causes do not add up: each is of that step alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

CAUSES_MAX: Final = 3
LOST_MIN: Final = 0.001
FIRST_THINGS: Final = {
    "no_process": "Find what runs before and after training: image pull, staging, a launcher.",
    "sm_idle": "Profile one step on one rank: input pipeline, host synchronisation, small kernels; "
    "then CUDA graphs or more workers.",
    "clock": "Look at its nodes' throttle reasons: power cap, cooling, application clocks.",
    "tensor_gap": "Look at exposed communication and memory-bound kernels: overlap, fused attention and "
    "optimizer, larger micro-batches.",
    "recompute": "Recompute less: selective instead of full, or more memory per card by sharding.",
    "eval_checkpoint": "Evaluate and write checkpoints asynchronously, or less often.",
    "rework": "Write checkpoints more often, or find why it restarts.",
}
"""By step of the waterfall, in its order."""
_BEFORE_U: Final = ("no_process", "sm_idle", "clock", "tensor_gap")
_OF_OUTPUT: Final = ("recompute", "eval_checkpoint", "rework")


def causes(
    waterfall: Sequence[Mapping[str, Any]],
    *,
    cards: float,
    ceiling: float | None,
    peer: float | None,
    mfu_of_hfu: float | None,
) -> list[dict[str, Any]]:
    """Return the largest losses: step, owner, lost (share), gain_points, gain_cards, bounded_by, first.

    A gain is null where nothing bounds it.

    Args:
        waterfall: of the job's card-time.
        cards: that it holds.
        ceiling: HFU that its cards reach when measured; peer: HFU of the better quarter of its peers.
        mfu_of_hfu: MFU / HFU; None: gains are of HFU, as ``unit`` says.
    """
    shares = {step["step"]: step.get("share") for step in waterfall}
    owners = {step["step"]: step.get("owner") for step in waterfall}
    whole = sum(value for value in shares.values() if value)
    spent = {name: (shares.get(name) or 0.0) / whole if whole else 0.0 for name in FIRST_THINGS}
    outputs = sum((shares.get(n) or 0.0) for n in (*_OF_OUTPUT, "hardware_flops", "model_flops"))
    used = outputs / whole if whole else 0.0
    if used <= 0:
        return []
    found = []
    left = 1.0 - sum((shares.get(n) or 0.0) / whole for n in shares if n not in _ALL)
    for name in _BEFORE_U:
        after = left - spent[name]
        mended = used * left / after if after > 0 and spent[name] > 0 else used
        found.append(_cause(name, owners, spent[name], used, mended, ceiling, peer))
        left = after
    for name in _OF_OUTPUT:
        # These FLOPs ran: without them the same step would take less time, at the same u.
        rest = used - spent[name]
        mended = used * used / rest if rest > 0 and spent[name] > 0 else used
        found.append(_cause(name, owners, spent[name], used, mended, None, None))
    scale = 1.0 if mfu_of_hfu is None else mfu_of_hfu
    unit = "HFU" if mfu_of_hfu is None else "MFU"
    kept = sorted((c for c in found if c["lost"] >= LOST_MIN), key=lambda c: -c["lost"])
    return [
        {
            "step": c["step"],
            "owner": c["owner"],
            "lost": c["lost"],
            "gain_points": None if c["gain"] is None else c["gain"] * scale,
            "gain_cards": None if c["gain"] is None else cards * c["gain"] / used,
            "unit": unit,
            "bounded_by": c["bounded_by"],
            "first": FIRST_THINGS[c["step"]],
        }
        for c in kept[:CAUSES_MAX]
    ]


_ALL: Final = frozenset((*FIRST_THINGS, "hardware_flops", "model_flops"))


def _cause(
    name: str,
    owners: Mapping[str, Any],
    lost: float,
    used: float,
    mended: float,
    ceiling: float | None,
    peer: float | None,
) -> dict[str, Any]:
    bounds = {"itself": mended}
    if ceiling is not None:
        bounds["ceiling"] = max(ceiling, used)
    if peer is not None:
        bounds["peers"] = max(peer, used)
    if name == "tensor_gap":
        del bounds[
            "itself"
        ]  # it is never closed in full: without another bound nothing is promised
    by = min(bounds, key=bounds.__getitem__, default=None)
    return {
        "step": name,
        "owner": owners.get(name),
        "lost": lost,
        "gain": None if by is None else max(bounds[by] - used, 0.0),
        "bounded_by": by,
    }
