"""From the MFU that a job reports to ours, in named steps that add up exactly. Pure.

With R the job's own MFU (its mean over the time for which it gave one) and M ours (model FLOPs over the
capacity of all allocated card-time), the steps multiply:

    M = R × convention × peak × wall

    convention   Σ model FLOPs by our convention / Σ by the job's own           (reported_flops)
    peak         what is left between R × convention and our MFU inside steps: the peak it divides by
    wall         Σ time inside steps / Σ allocated card-time, split by what the rest was spent on

Each factor is also shown as points of MFU in this order, so that the points add up to M − R. A factor that
nobody knows has bounds, never 1 in silence: the known product of convention and peak lies between them,
and the pair is one step. Source: science notes, sections 1.1 and 1.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flopwatch_collector.ledger.suspects import peak_used

_NEAR: Final = 0.015


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """Sums of a job over a window. None: nobody knows. Card-times in ms.

    Attributes:
        reported_mfu_ms, reported_ms: Σ of its own MFU × card-time, and that card-time.
        reported_flops: model FLOPs by the convention of its own MFU; model_flops: by ours.
        model_capacity_flops: capacity of the card-time that ``model_flops`` and ``card_ms`` are of.
        step_ms: card-time inside steps. card_ms: all allocated.
        phase_ms: card-time by phase (startup, checkpoint, eval, steady).
        sku, dtype: whose peak we divide by.
    """

    reported_mfu_ms: float | None
    reported_ms: float | None
    reported_flops: float | None
    model_flops: float | None
    model_capacity_flops: float | None
    step_ms: float | None
    card_ms: float
    phase_ms: Mapping[str, float]
    sku: str = ""
    dtype: str = ""


def bridge(of: Declared) -> dict[str, Any]:
    """Return ``reported``, ``ours``, ``steps`` (step, factor, lo, hi, points, note) and ``reason``.

    Points are null where only bounds are known; known points and those of a closing step add up to
    ours − reported.
    """
    reported = _ratio(of.reported_mfu_ms, of.reported_ms)
    ours = _ratio(of.model_flops, of.model_capacity_flops)
    made: dict[str, Any] = {"reported": reported, "ours": ours, "steps": [], "reason": None}
    if reported is None or reported <= 0:
        return made | {"reason": "the job reports no MFU of its own"}
    if ours is None or ours <= 0:
        return made | {"reason": "the job declares no model FLOPs: there is no exact MFU of ours"}
    if not of.step_ms or of.step_ms > of.card_ms * 1.02:
        total = ours / reported
        steps = [_unknown(name, total) for name in ("convention", "peak", "wall")]
        closing = _step("not split", total, reported, "the job does not say how long its steps are")
        return made | {"steps": [*steps, closing], "reason": "no step times"}
    wall = min(1.0, of.step_ms / of.card_ms)
    inside = ours / wall
    steps = _definitions(of, reported, inside)
    return made | {"steps": [*steps, *_wall(of, inside, ours)]}


def _definitions(of: Declared, reported: float, inside: float) -> list[dict[str, Any]]:
    """Return the steps from the job's own MFU to ours inside steps: convention and peak."""
    both = inside / reported
    convention = _ratio(of.model_flops, of.reported_flops)
    if convention is not None and convention > 0:
        peak = both / convention
        return [
            _step("convention", convention, reported, _convention_note(convention)),
            _step("peak", peak, reported * convention, _peak_note(of, peak)),
        ]
    closing = _step(
        "convention and peak", both, reported, "the job does not say by which convention it counts"
    )
    return [_unknown("convention", both), _unknown("peak", both), closing]


def _convention_note(factor: float) -> str:
    if abs(factor - 1) < 1e-6:
        return "the same convention"
    more = "more" if factor < 1 else "fewer"
    return f"it counts {100 * abs(1 / factor - 1):.1f} % {more} FLOPs per token than we do"


def _peak_note(of: Declared, factor: float) -> str:
    if abs(factor - 1) < _NEAR:
        return "the same peak, and its clock of a step agrees"
    if (used := peak_used(of.sku, of.dtype, 1 / factor)) is not None:
        return f"it divides by {used.flops / 1e12:.0f} TFLOP/s, {used.words}"
    return f"it divides by a peak {factor:.3g} times ours, or times other steps than it reports of"


def _wall(of: Declared, inside: float, ours: float) -> list[dict[str, Any]]:
    """Return the steps from inside steps to all allocated time; their points add up to ours − inside."""
    outside_ms = max(of.card_ms - (of.step_ms or 0.0), 0.0)
    named = {p: of.phase_ms.get(p, 0.0) for p in ("startup", "eval", "checkpoint")}
    # A phase may hold steps: together phases take no more than what lies outside of steps.
    shrink = min(1.0, outside_ms / total) if (total := sum(named.values())) > 0 else 0.0
    parts = {p: ms * shrink for p, ms in named.items()}
    parts["between steps"] = outside_ms - sum(parts.values())
    known = any(named.values()) or "steady" in of.phase_ms
    lost = inside - ours
    steps = []
    for name, ms in parts.items():
        share = ms / outside_ms if outside_ms else 0.0
        if name != "between steps" and not known:
            least = (ours / inside) if inside else 1.0
            steps.append(_unknown(name, least))
            continue
        steps.append(
            {
                "step": name,
                "factor": None,
                "lo": None,
                "hi": None,
                "points": -lost * share,
                "note": f"{100 * ms / of.card_ms:.1f} % of its card-time",
            }
        )
    return steps


def _step(name: str, factor: float, before: float, note: str) -> dict[str, Any]:
    return {
        "step": name,
        "factor": factor,
        "lo": factor,
        "hi": factor,
        "points": before * (factor - 1),
        "note": note,
    }


def _unknown(name: str, product: float) -> dict[str, Any]:
    """Return a step of which only bounds are known: alone it is nothing, or all of the product."""
    return {
        "step": name,
        "factor": None,
        "lo": min(1.0, product),
        "hi": max(1.0, product),
        "points": None,
        "note": "not known; part of the step that closes them",
    }


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
