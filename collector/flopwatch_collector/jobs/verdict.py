"""Machine, workload, both, neither, or cannot tell: whose the losses of a job are, with the evidence. Pure.

Each side is yes, no or unknown. A side is *yes* where its losses, in points of its card-time, reach
``POINTS_MIN``, or where something was seen that is a fault by itself; it is *no* where everything that would
show it was measured; else it is unknown, and then the verdict is that nobody can tell.

    machine    clock below the reference for a throttle reason, cards below their fleet's ceiling, Xids,
               failing links and memory, a slow clock, card or link named among the stragglers
    workload   no process, SM idle, evaluation and checkpoints, rework, a tensor gap beyond what the cards
               reach when measured, a late rank or a data stall named among the stragglers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

POINTS_MIN: Final = 0.02
CEILING_BELOW_MIN: Final = 0.03
MACHINE_THROTTLES: Final = ("thermal_sw", "thermal_hw", "power_brake", "sync_boost")
MACHINE_KINDS: Final = ("slow_clock", "slow_card", "slow_link")
CEILING_USUAL: Final = 0.80
"""What a large product of matrices reaches of an H100's peak: the bound where no ceiling was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a job. Shares are of its card-time; None: not known.

    Attributes:
        shares: by step of the waterfall.
        throttled: share of time by throttle reason.
        clock_parts: what the clock lost to each reason, as a share of the card-time; None: not known.
        ceilings_below: cards whose ceiling lies below their fleet's: (node, slot, ratio − 1).
        ceilings_known: share of its cards with a measured ceiling.
        ceiling: HFU that its cards reach when measured.
        hfu: of the job.
        faults: sentences about Xids, memory and links in its time.
        stragglers: as `stragglers.Straggler.shown`; None: not looked for.
        coverage: share of its capacity with counters.
    """

    shares: Mapping[str, float | None]
    throttled: Mapping[str, float]
    clock_parts: Mapping[str, float | None]
    ceilings_below: Sequence[tuple[str, str, float]]
    ceilings_known: float
    ceiling: float | None
    hfu: float | None
    faults: Sequence[str]
    stragglers: Sequence[Mapping[str, Any]] | None
    coverage: float | None


@dataclass(slots=True)
class _Side:
    points: float = 0.0
    fault: bool = False
    known: bool = True
    evidence: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        if self.fault or self.points >= POINTS_MIN:
            return "yes"
        return "no" if self.known else "unknown"


def verdict(seen: Seen) -> dict[str, Any]:
    """Return ``value``, both sides' states, points and evidence."""
    machine, workload = _machine(seen), _workload(seen)
    return {
        "value": _value(machine.state, workload.state),
        "machine": _shown(machine),
        "workload": _shown(workload),
    }


def _value(machine: str, workload: str) -> str:
    if "unknown" in (machine, workload):
        return "cannot tell"
    if machine == "yes":
        return "both" if workload == "yes" else "machine"
    return "workload" if workload == "yes" else "neither"


def _shown(side: _Side) -> dict[str, Any]:
    return {"state": side.state, "points": side.points, "evidence": side.evidence}


def _machine(seen: Seen) -> _Side:
    side = _Side()
    clock = seen.shares.get("clock")
    caused = {r: s for r, s in seen.throttled.items() if r in MACHINE_THROTTLES and s > 0}
    if clock is None or (seen.coverage or 0.0) <= 0:
        side.known = False
        side.evidence.append("no clock against a reference: a slow machine would not show")
    elif caused:
        part = sum(max(seen.clock_parts.get(reason) or 0.0, 0.0) for reason in caused)
        side.points += part
        reasons = ", ".join(
            f"{reason.replace('_', ' ')} {100 * share:.1f} % of the time"
            for reason, share in sorted(caused.items(), key=lambda kv: -kv[1])
        )
        side.evidence.append(f"clock lost {100 * part:.1f} pt to {reasons}")
    else:
        power = seen.throttled.get("power", 0.0)
        limit = f"; the power limit held it {100 * power:.1f} % of the time" if power > 0 else ""
        side.evidence.append(f"clock cost {100 * clock:.1f} pt, no thermal or brake reason{limit}")
    if seen.ceilings_below:
        side.fault = True
        node, slot, below = min(seen.ceilings_below, key=lambda c: c[2])
        side.evidence.append(
            f"{len(seen.ceilings_below)} of its cards measured below their fleet, "
            f"the worst {node} {slot} by {-100 * below:.1f} %"
        )
    elif seen.ceilings_known < 0.5:
        side.evidence.append(
            "few of its cards were ever probed: a slow card shows only as straggler"
        )
    if seen.faults:
        side.fault = True
        side.evidence += seen.faults
    _add_stragglers(side, seen, MACHINE_KINDS)
    return side


def _workload(seen: Seen) -> _Side:
    side = _Side()
    if (seen.coverage or 0.0) <= 0:
        side.known = False
        side.evidence.append("no counters: what its cards did is not known")
    for step, words in (
        ("no_process", "no process on its cards"),
        ("sm_idle", "SMs idle"),
        ("eval_checkpoint", "evaluation and checkpoints"),
        ("rework", "steps done twice after restarts"),
    ):
        share = seen.shares.get(step)
        if share:
            side.points += share
            if share >= 0.005:
                side.evidence.append(f"{words} {100 * share:.1f} pt")
    gap = seen.shares.get("tensor_gap")
    if gap is not None and seen.hfu is not None:
        reach = CEILING_USUAL if seen.ceiling is None else seen.ceiling
        beyond = min(gap, max(reach - seen.hfu - side.points, 0.0))
        side.points += beyond
        measured = "its cards measured" if seen.ceiling is not None else "such cards usually reach"
        side.evidence.append(
            f"tensor pipes idle in busy SMs {100 * gap:.1f} pt, {100 * beyond:.1f} of them below "
            f"the {100 * reach:.0f} % that {measured}"
        )
    _add_stragglers(side, seen, ("late_rank", "data_stall"))
    return side


def _add_stragglers(side: _Side, seen: Seen, kinds: Sequence[str]) -> None:
    for straggler in seen.stragglers or ():
        if straggler["kind"] in kinds:
            side.fault = True
            place = " ".join(str(straggler[n]) for n in ("node", "slot") if straggler[n])
            side.evidence.append(f"{straggler['kind'].replace('_', ' ')}: {place}")
