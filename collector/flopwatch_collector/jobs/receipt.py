"""One line that stays when a job has ended: for an epilog, Slurm's AdminComment, a W&B summary. Pure.

ASCII, at most 200 characters, without quotes, backslashes or control characters, so that it needs no
escaping in a shell's single quotes or in a database.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

CHARACTERS_MAX: Final = 200
_LOST_MIN: Final = 0.005
_WORDS: Final = {
    "no_process": "no process",
    "sm_idle": "input/idle",
    "clock": "clock",
    "tensor_gap": "tensor gap",
    "recompute": "recompute",
    "eval_checkpoint": "eval+ckpt",
    "rework": "rework",
}


def receipt(job: Mapping[str, Any]) -> str:
    """Return the line of a job's answer, as `/api/v1/jobs/{id}` gives it."""
    answer = job["answer"]
    parts = [
        f"{'SIMULATED ' if job.get('simulated') else ''}"
        f"{job['cards']['allocated']:,.0f} x {_sku(job.get('sku'))}",
        f"{(job.get('held_s') or 0) / 3600:.1f} h",
        f"MFU {_span(job['mfu'])}",
        f"HFU {_percent(job['hfu'].get('value'))}",
    ]
    line = ", ".join(parts)
    lost = [
        f"{_WORDS[step['step']]} {100 * step['share']:.1f} pt"
        for step in sorted(job["waterfall"], key=lambda s: -(s.get("share") or 0))
        if step["step"] in _WORDS and (step.get("share") or 0) >= _LOST_MIN
    ][:3]
    if lost:
        line += ", lost: " + ", ".join(lost)
    line += f"; {answer['verdict']['value']}"
    culprits = (answer.get("stragglers") or {}).get("culprits") or []
    if culprits:
        first = culprits[0]
        place = " ".join(str(first[n]) for n in ("node", "slot") if first[n])
        line += f"; culprit {place} ({first['kind'].replace('_', ' ')})"
    return bounded(line)


def bounded(text: str) -> str:
    """Return printable ASCII without quotes or backslashes, cut to what is allowed."""
    clean = "".join(c if " " <= c <= "~" and c not in "'\"\\`$" else "?" for c in text)
    return clean if len(clean) <= CHARACTERS_MAX else clean[: CHARACTERS_MAX - 3] + "..."


def _sku(sku: str | None) -> str:
    """Return a name short enough: H100 of NVIDIA H100 80GB HBM3."""
    words = (sku or "cards").split()
    return words[1] if len(words) > 1 and words[0] == "NVIDIA" else words[0]


def _span(mfu: Mapping[str, Any]) -> str:
    value, lo, hi = mfu.get("value"), mfu.get("lo"), mfu.get("hi")
    if value is None:
        return "unknown" if lo is None or hi is None else f"{100 * lo:.0f}-{100 * hi:.0f} %"
    if lo is None or hi is None or hi - lo < 0.0005:
        return _percent(value)
    return f"{_percent(value)} ({100 * lo:.1f}-{100 * hi:.1f})"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"
