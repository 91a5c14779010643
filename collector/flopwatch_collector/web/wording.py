"""Figures as people read them. Pure. Unknown is an em dash, never 0; minus is U+2212."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

UNKNOWN: Final = "—"
WIDE_BOUNDS: Final = 0.02
"""MFU has a decimal only where its bounds are this close."""

STEP_WORDS: Final = {
    "missing": "missing cards",
    "failed": "failed cards",
    "maint": "maintenance",
    "unseen": "unseen cards",
    "held": "held back",
    "stranded": "stranded",
    "free": "free",
    "no_process": "no process",
    "sm_idle": "SM idle",
    "clock": "clock",
    "tensor_gap": "tensor gap",
    "unattributed": "unattributed",
    "dtype": "dtype",
    "tile": "tile quantisation",
    "recompute": "recompute",
    "eval_checkpoint": "evaluation, checkpoints",
    "rework": "rework",
    "hardware_flops": "hardware FLOPs, undeclared",
    "model_flops": "model FLOPs",
}
STEP_REASONS: Final = {
    "dtype": "needs a reference dtype",
    "tile": "needs matrix shapes",
    "eval_checkpoint": "needs phases of jobs",
    "rework": "needs job history",
    "unattributed": "declare dtype to split",
    "clock": "no reference clock known",
    "model_flops": "no job declares model FLOPs",
}
PART_WORDS: Final = {
    "thermal_sw": "thermal by software",
    "thermal_hw": "thermal by hardware",
    "power_brake": "power brake",
    "sync_boost": "sync boost",
    "application": "clock asked for",
    "unknown": "cause not known",
}
PART_SHARE_MIN: Final = 0.0005
OWNERS: Final = ("hardware", "scheduling", "facility", "workload")
BUCKET_OWNERS: Final = {
    "MISSING": "hardware",
    "FAILED": "hardware",
    "MAINT": "facility",
    "HELD": "facility",
    "STRANDED": "scheduling",
    "FREE": "scheduling",
    "IDLE_ALLOC": "workload",
    "SUSPENDED": "workload",
    "GANG_WAIT": "workload",
}


def percent(value: float | None, *, line: float | None = None, decimals: int = 1) -> str:
    """Return a ratio in percent without the sign; below a line it is never rounded onto it."""
    if value is None:
        return UNKNOWN
    shown = round(100 * value, decimals)
    if line is not None and value < line and shown >= round(100 * line, decimals):
        shown = math.floor(100 * value * 10**decimals) / 10**decimals
        if shown >= 100 * line:
            shown = 100 * line - 10**-decimals
    return signed(f"{shown:.{decimals}f}")


def span(lo: float | None, hi: float | None, value: float | None, line: float | None = None) -> str:
    """Return MFU in percent: one figure where the bounds are close, else both."""
    if value is not None:
        return percent(value, line=line)
    if lo is None or hi is None:
        return UNKNOWN
    if hi - lo <= WIDE_BOUNDS:
        return f"{percent(lo)}–{percent(hi, line=line)}"
    return f"{percent(lo, decimals=0)}–{percent(hi, line=line, decimals=0)}"


def signed(text: str) -> str:
    """Return a number's text with a real minus sign."""
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def points(share: float | None) -> str:
    """Return a share of 1 as points of 100."""
    return UNKNOWN if share is None else signed(f"{100 * share:.1f}")


def parts(step: Mapping[str, Any]) -> str:
    """Return what a step is made of, in points: power 3.1 · memory 2.0–7.5; below 0.05 is left out."""
    if not step["card_seconds"] or not step["parts"]:
        return ""
    per_second = step["share"] / step["card_seconds"]
    said = []
    for part in step["parts"]:
        ends = [None if part[end] is None else part[end] * per_second for end in ("lo", "hi")]
        lo, hi = ends
        if lo is None or hi is None or max(abs(lo), abs(hi)) < PART_SHARE_MIN:
            continue
        figure = f"{points(lo)}–{points(hi)}" if part["bounded"] else points(lo)
        said.append(f"{PART_WORDS.get(part['name'], part['name'])} {figure}")
    return " · ".join(said)


def free_cards(of: Mapping[str, float | None]) -> str:
    """Return what is known of the demand for free cards; empty where nothing is free or nobody knows."""
    if not of.get("free") or of.get("free_demand") is None:
        return ""
    return f"{cards(of['free_demand'])} waited for, {cards(of['free_no_demand'])} not"


def cards(count: float | None) -> str:
    """Return a number of cards: 1,240; below ten with a decimal where it has one."""
    if count is None:
        return UNKNOWN
    if abs(count) < 10 and abs(count - round(count)) >= 0.05:
        return signed(f"{count:.1f}")
    return signed(f"{count:,.0f}")


def amount(value: float | None, scale: float = 1.0) -> str:
    """Return a quantity with three digits."""
    if value is None:
        return UNKNOWN
    scaled = value / scale
    if scaled == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(scaled))))
    return signed(f"{scaled:,.{min(digits, 6)}f}")


def flops(value: float | None) -> str:
    """Return FLOPs with a prefix: 1.21 EFLOP."""
    if value is None:
        return UNKNOWN
    for scale, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T")):
        if abs(value) >= scale:
            return f"{amount(value, scale)} {prefix}FLOP"
    return f"{amount(value, 1e9)} GFLOP"


def length(seconds: float) -> str:
    """Return a length of time in one unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size or seconds == size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def clock(moment: str | None) -> str:
    """Return the time of day of an RFC 3339 moment in UTC."""
    return UNKNOWN if moment is None else f"{moment[11:19]} UTC"


def top_cause(waterfall: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the step that lost most; None where nothing is lost. What nobody saw is no cause."""
    lost = [
        s
        for s in waterfall
        if s["owner"] != "output" and s["step"] != "unseen" and (s["share"] or 0) > 0
    ]
    return max(lost, key=lambda s: s["share"], default=None)


def lost_by_owner(waterfall: list[dict[str, Any]]) -> dict[str, float]:
    """Return owner → lost share; what nobody knows adds nothing."""
    return {
        owner: sum(s["share"] or 0.0 for s in waterfall if s["owner"] == owner) for owner in OWNERS
    }
