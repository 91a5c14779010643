"""The waterfall as values for its template: one bar in five owners, and the staircase of steps. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flopwatch_collector.web import wording
from flopwatch_kernels.uncertainty import MODEL_OF_HARDWARE_MIN

LABEL_SHARE_MIN: Final = 0.015
LABEL_FITS_MIN: Final = 0.075
"""Share of the bar in which an owner's name has room."""

Json = Mapping[str, Any]


def drawn(subject: Json, window_s: float) -> dict[str, Any]:
    """Return the bar in five owners, its legend, and every step where the one before it ended."""
    steps = subject["waterfall"]
    whole = sum(s["card_seconds"] or 0.0 for s in steps)
    shares = {s["step"]: s["share"] for s in steps}
    model, hardware = shares.get("model_flops") or 0.0, shares.get("hardware_flops") or 0.0
    by_owner = wording.lost_by_owner(steps)
    sure = model + MODEL_OF_HARDWARE_MIN * hardware
    unattributed = max(0.0, shares.get("unattributed") or 0.0)
    order = (
        ("output", "output", sure, "solid"),
        ("output", "", model + hardware - sure, "hatch"),
        ("workload", "workload", max(0.0, by_owner["workload"] - unattributed), "solid"),
        ("workload", "", unattributed, "hatch"),
        *((o, o, max(0.0, by_owner[o]), "solid") for o in ("scheduling", "facility", "hardware")),
    )
    scale = sum(width for *_, width, _ in order) or 1.0
    segments, at = [], 0.0
    for owner, label, width, fill in order:
        segments.append(
            {
                "owner": owner,
                "fill": fill,
                "label": label if width >= LABEL_SHARE_MIN else "",
                "fits": bool(label) and width / scale >= LABEL_FITS_MIN,
                "x": round(100 * at / scale, 3),
                "width": round(100 * width / scale, 3),
            }
        )
        at += width
    totals = {"output": model + hardware, **by_owner}
    legend = [
        {
            "owner": owner,
            "points": wording.points(totals[owner] if whole else None),
            "cards": wording.cards(totals[owner] * whole / window_s if whole else None),
        }
        for owner in ("output", "workload", "scheduling", "facility", "hardware")
    ]
    flops = [s["flops"] for s in steps if s["step"] in ("model_flops", "hardware_flops")]
    known = [f for f in flops if f is not None]
    return {
        "known": whole > 0,
        "segments": segments,
        "legend": legend,
        "steps": _steps(steps, window_s, wording.free_cards(subject["cards"])),
        "delivered": wording.cards(whole / window_s if whole else None),
        "output": wording.flops(sum(known)) if known and sum(known) else wording.UNKNOWN,
    }


def _steps(steps: Sequence[Json], window_s: float, free: str) -> list[dict[str, Any]]:
    at, rows = 0.0, []
    for step in steps:
        share = step["share"]
        end = at + (share or 0.0)
        rows.append(
            {
                "step": step["step"],
                "words": wording.STEP_WORDS.get(step["step"], step["step"]),
                "reason": wording.STEP_REASONS.get(step["step"], "not known here")
                if share is None or step["step"] == "unattributed"
                else (free if step["step"] == "free" else wording.parts(step)),
                "owner": step["owner"],
                "hatched": step["step"] in ("unattributed", "unseen", "hardware_flops"),
                "x": round(100 * min(at, end), 3),
                "width": round(100 * abs(end - at), 3),
                "points": wording.points(share),
                "cards": wording.cards(
                    None if step["card_seconds"] is None else step["card_seconds"] / window_s
                ),
                "card_seconds": wording.amount(step["card_seconds"])
                if step["card_seconds"] is None or abs(step["card_seconds"]) < 1000
                else wording.signed(f"{step['card_seconds']:,.0f}"),
                "flops": wording.amount(step["flops"], 1e18),
                "kwh": wording.amount(step["kwh"]),
                "usd": wording.amount(step["usd"]),
            }
        )
        at = end
    return rows
