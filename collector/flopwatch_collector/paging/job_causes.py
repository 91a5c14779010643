"""What lowered the MFU: one job, or a step of the waterfall in many. Pure.

A job's excess of a step is what it loses now beyond what the same cards lost before it fell: at the job's own
rate of then, or at that of all jobs where it is new. One job is the cause when most of the excess is its
own and the cards of others lost far less each: a stall of all jobs falls on the largest one most, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from flopwatch_collector.paging.evidence import Evidence
from flopwatch_collector.paging.found import Explanation, Subject, subjects_of
from flopwatch_collector.tally import STEPS, Tally

ONE_JOB_SHARE: Final = 0.6
OTHERS_RATE_MAX: Final = 0.35
"""Excess per card of all others, of that of the one job."""
OTHERS_CARDS_MIN: Final = 0.1
"""Of all cards: where others hold fewer, nobody can tell a job from its fleet."""
NOTED_SHARE: Final = 0.02
_STEP_KINDS: Final = {
    "no_process": "no_process",
    "sm_idle": "data_stall",
    "tensor_gap": "slow_math",
    "unattributed": "uncounted",
}
_DETAILS: Final = {
    "no_process": "without a process",
    "sm_idle": "SMs idle",
    "clock": "low clocks",
    "tensor_gap": "tensor cores idle",
    "unattributed": "without counters",
    "recompute": "recomputes",
}
_HEAT: Final = ("clock_thermal_sw", "clock_thermal_hw")
_POWER: Final = ("clock_power", "clock_power_brake")

Excess = Mapping[str, Mapping[str, float]]


def explain(evidence: Evidence) -> Explanation:
    """Return the cause."""
    grown = evidence.grown()
    step = max(sorted(grown), key=grown.__getitem__, default="")
    tally = evidence.tally
    if tally is None or not tally.jobs:
        return _of_causes(step, grown.get(step), evidence)
    excess = excess_of(tally, evidence.earlier)
    one = None if step == "clock" else _one_job(excess, tally)
    return one or _of_step(step, grown.get(step), excess, tally)


def uncounted(evidence: Evidence) -> Explanation:
    """Return what is not measured: coverage fell."""
    if evidence.tally is None:
        return _of_causes("unattributed", None, evidence)
    excess = excess_of(evidence.tally, evidence.earlier)
    return _of_step("unattributed", None, excess, evidence.tally)


def excess_of(tally: Tally, earlier: Tally | None) -> Excess:
    """Return job → step → cards lost beyond what its cards lost before."""
    usual = _rates(earlier)
    found: dict[str, dict[str, float]] = {}
    for name, job in tally.jobs.items():
        own = usual.get(name, usual.get("", {}))
        found[name] = {s: lost - job.cards * own.get(s, 0.0) for s, lost in job.steps.items()}
    return found


def _rates(earlier: Tally | None) -> dict[str, dict[str, float]]:
    """Return job → step → lost per card; of all jobs under the empty name."""
    jobs = {} if earlier is None else earlier.jobs
    rates = {
        name: {step: lost / job.cards for step, lost in job.steps.items()}
        for name, job in jobs.items()
        if job.cards > 0
    }
    cards = sum(job.cards for job in jobs.values())
    if cards > 0:
        steps = {step for job in jobs.values() for step in job.steps}
        rates[""] = {s: sum(j.steps.get(s, 0.0) for j in jobs.values()) / cards for s in steps}
    return rates


def _one_job(excess: Excess, tally: Tally) -> Explanation | None:
    """Return the one job that is the cause; None: it is none."""
    lost = {job: sum(steps.get(s, 0.0) for s in STEPS) for job, steps in excess.items()}
    top = max(sorted(lost), key=lost.__getitem__)
    whole = sum(found for found in lost.values() if found > 0)
    cards = max(tally.mfu_cards, sum(job.cards for job in tally.jobs.values()))
    others = cards - tally.jobs[top].cards
    if whole <= 0 or lost[top] < ONE_JOB_SHARE * whole or others < OTHERS_CARDS_MIN * cards:
        return None
    if (whole - lost[top]) / others > OTHERS_RATE_MAX * lost[top] / tally.jobs[top].cards:
        return None
    most = max(STEPS, key=lambda step: excess[top].get(step, 0.0))
    return Explanation(
        kind="bad_job",
        subjects=(Subject(kind="job", name=top, cards=lost[top]),),
        cards=tally.jobs[top].cards,
        points=100 * lost[top] / cards,
        detail=_DETAILS[most],
    )


def _of_step(step: str, points: float | None, excess: Excess, tally: Tally) -> Explanation:
    lost = {job: steps.get(step, 0.0) for job, steps in excess.items()}
    whole = sum(found for found in lost.values() if found > 0)
    behind = {job: found for job, found in lost.items() if found > NOTED_SHARE * whole > 0}
    return Explanation(
        kind=_kind(step, excess),
        subjects=subjects_of("job", behind),
        cards=sum(tally.jobs[job].cards for job in behind) or None,
        points=points,
    )


def _kind(step: str, excess: Excess) -> str:
    if step != "clock":
        return _STEP_KINDS.get(step, "wasted" if step else "unknown")
    power, heat, whole = (
        sum(steps.get(name, 0.0) for steps in excess.values() for name in names)
        for names in (_POWER, _HEAT, ("clock",))
    )
    if max(power, heat) < whole / 2:
        return "low_clock"
    return "power_cap" if power >= heat else "hot"


def _of_causes(step: str, points: float | None, evidence: Evidence) -> Explanation:
    """Return the cause as far as the largest jobs of two observations tell."""
    known = {cause.name: cause.points for cause in evidence.known if cause.kind == "job"}
    jobs = [cause for cause in evidence.now.causes if cause.kind == "job"]
    fell = {job.name: job.points - known.get(job.name, 0.0) for job in jobs}
    fell = {name: lost for name, lost in fell.items() if lost > 0}
    top = max(sorted(fell), key=fell.__getitem__, default="")
    one = known and len(jobs) > 1 and fell and fell[top] >= ONE_JOB_SHARE * sum(fell.values())
    if one and step != "clock":
        job = (Subject(kind="job", name=top, cards=0.0),)
        detail = _DETAILS.get(step, "")
        return Explanation(kind="bad_job", subjects=job, points=fell[top], detail=detail)
    kind = "low_clock" if step == "clock" else _kind(step, {})
    return Explanation(kind=kind, subjects=subjects_of("job", fell), points=points)
