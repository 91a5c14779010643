"""Counters, declaration and probes of a job side by side, and flags where they cannot all be right. Pure.

    hfu        what the tensor pipes did, of the datasheet's peak         counters
    mfu        model FLOPs declared, of the same peak                     declaration
    reported   MFU as the job itself prints it, by its own convention     the job's word
    ceiling    measured ceiling, of the same peak                         probes

HFU / MFU is taken over lines that have both, outside start-up, evaluations and checkpoints, so that both
sides cover the same card-time. A flag accuses nobody: it says what does not fit, with the figures, and what
to look at next. What is not known raises no flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from flopwatch_collector.ledger.evidence import Bools
from flopwatch_collector.ledger.sheet import Sheet
from flopwatch_collector.ledger.suspects import peak_used
from flopwatch_kernels import peaks
from flopwatch_proto.rows import ALLOCATED_BUCKETS

RATIO_MIN: Final = 0.98
"""HFU / MFU below 1 by more than counters err (§3.4 of the science notes: 1.5 %)."""
RATIO_MAX: Final = 1.45
"""Full recompute (4/3) with the padding of a bad shape."""
PLAUSIBLE_MAX: Final = 0.75
"""No published training run is above it; a lone large matrix product reaches about 0.80."""
CEILING_SLACK: Final = 1.02
COUNTED_FLOPS_MIN: Final = 0.9
"""Least share of 6 × parameters that a count of a training step may come to (§6 of the science notes)."""
SILENT_HFU: Final = 0.01
DECLARED_MFU: Final = 0.05
SYNTHETIC_INTERVALS_MIN: Final = 12
BUSY_MIN: Final = 0.3
UNREST_MAX: Final = 0.01
"""Relative standard deviation over time of a load that has no steps."""
SPREAD_MAX: Final = 0.02
QUIET_BYTES_PER_SECOND: Final = 10e6
_INTERRUPTED: Final = ("startup", "eval", "checkpoint")

Figures = dict[str, float | str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """Something that does not fit.

    Attributes:
        code: of a bounded set, see `reconcile`.
        words: one sentence for a person.
        figures: what it was judged by, by name.
        next_step: what to look at.
    """

    code: str
    words: str
    figures: Figures
    next_step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card of a job over time.

    Attributes:
        activity: tensor activity (or SM activity) per interval, as a ratio; None: not known.
        link_bytes_per_second: over NVLink and PCIe, all directions together; None: not known.
    """

    activity: Sequence[float | None]
    link_bytes_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is known of a job beside its lines. None: not known.

    Attributes:
        parameters: active parameters of the model.
        recompute: none, selective or full.
        claimed_dtype: the precision that the job's own text claims.
        network_bytes_per_second: of its nodes.
        steps_told: whether it tells steps or tokens at all.
    """

    parameters: float | None = None
    recompute: str | None = None
    claimed_dtype: str | None = None
    network_bytes_per_second: float | None = None
    steps_told: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The sides of a job, as ratios of the datasheet's peak; None where nobody says.

    Attributes:
        ratio: HFU / MFU over card-time that has both.
        sku, dtype: of most of its card-time.
        step_share: share of its card-time inside steps, as it times them.
        flops_per_token: declared, training.
    """

    hfu: float | None
    mfu: float | None
    reported: float | None
    ceiling: float | None
    ratio: float | None
    sku: str
    dtype: str
    step_share: float | None
    flops_per_token: float | None


def sides_of(sheet: Sheet) -> Sides:
    """Return the sides of a job, whose lines alone the sheet holds."""
    job = sheet.where(np.isin(sheet.bucket, ALLOCATED_BUCKETS))
    steady = job.where(~np.isin(job.texts["phase"], _INTERRUPTED))
    both = steady.where(_known(steady, "u_flops") & _known(steady, "model_flops"))
    hfu = _ratio(both.sum("u_flops"), both.sum("counted_capacity_flops"))
    mfu = _ratio(both.sum("model_flops"), both.sum("declared_capacity_flops"))
    probed = job.where(_known(job, "achievable_flops") & _known(job, "capacity_flops"))
    in_steps = job.where(_known(job, "step_ms"))
    return Sides(
        hfu=_ratio(job.sum("u_flops"), job.sum("counted_capacity_flops")),
        mfu=_ratio(job.sum("model_flops"), job.sum("declared_capacity_flops"))
        if job.sum("model_flops") is not None
        else None,
        reported=_ratio(job.sum("reported_mfu_ms"), job.sum("reported_ms")),
        ceiling=_ratio(probed.sum("achievable_flops"), probed.sum("capacity_flops")),
        ratio=_ratio(hfu, mfu),
        sku=_most(job, "sku"),
        dtype=_most(job, "dtype"),
        step_share=_ratio(in_steps.sum("step_ms"), float(in_steps.time())),
        flops_per_token=_ratio(job.sum("model_flops"), job.sum("tokens_count")),
    )


def reconcile(sheet: Sheet, cards: Sequence[Card] = (), told: Told | None = None) -> list[Flag]:
    """Return what does not fit in a job, the gravest first.

    Codes: counters_silent, synthetic_load, declaration_inconsistent, zero_flop_operators,
    implausible_mfu, above_ceiling, wrong_peak.

    Args:
        sheet: the job's lines of a window.
        cards: its cards over the same window; empty: not asked.
    """
    sides, told = sides_of(sheet), told or Told()
    found = (
        _silent(sides),
        _synthetic(cards, told),
        _inconsistent(sides),
        _zero_flop(sides, told),
        _implausible(sides, told),
        _above_ceiling(sides),
        _wrong_peak(sides),
    )
    return [flag for flag in found if flag is not None]


def _silent(sides: Sides) -> Flag | None:
    if sides.mfu is None or sides.mfu < DECLARED_MFU:
        return None
    if sides.hfu is not None and sides.hfu >= SILENT_HFU:
        return None
    seen = "no card has counters" if sides.hfu is None else f"counters say {_pct(sides.hfu)}"
    return Flag(
        code="counters_silent",
        words=f"the job declares an MFU of {_pct(sides.mfu)}, and {seen}",
        figures={"mfu": sides.mfu, "hfu": sides.hfu},
        next_step="run `flopwatch doctor` on one of its nodes; then see whether the processes that declare "
        "hold these cards",
    )


def _inconsistent(sides: Sides) -> Flag | None:
    if sides.ratio is None or RATIO_MIN <= sides.ratio <= RATIO_MAX:
        return None
    figures: Figures = {"hfu_over_mfu": sides.ratio, "hfu": sides.hfu, "mfu": sides.mfu}
    if sides.ratio < RATIO_MIN:
        return Flag(
            code="declaration_inconsistent",
            words=f"the job declares more FLOPs than its tensor pipes ran: HFU / MFU is {sides.ratio:.2f}, "
            "and cannot be below 1",
            figures=figures,
            next_step="check the count: attention counted full where the kernel skips the masked half, all "
            "experts of a mixture counted, tokens counted twice, or FLOPs that no tensor pipe runs",
        )
    return Flag(
        code="declaration_inconsistent",
        words=f"the tensor pipes ran {sides.ratio:.2f} times the FLOPs that the job declares; full recompute "
        f"with padding comes to {RATIO_MAX:g}",
        figures=figures,
        next_step="check that the declaration covers every model and every rank of the job; then look for "
        "padding and small matrices",
    )


def _zero_flop(sides: Sides, told: Told) -> Flag | None:
    counted = None
    if sides.flops_per_token is not None and told.parameters:
        counted = sides.flops_per_token / (6 * told.parameters)
    short = counted is not None and counted < COUNTED_FLOPS_MIN
    above = sides.ratio is not None and sides.ratio > RATIO_MAX and told.recompute != "full"
    if not short and not above:
        return None
    words = "operators may be counted as zero FLOPs"
    if short:
        words += f": the count is {counted:.2f} of 6 × parameters"
    return Flag(
        code="zero_flop_operators",
        words=words,
        figures={"counted_of_6n": counted, "hfu_over_mfu": sides.ratio},
        next_step="compare the declared FLOPs per token with `flopwatch mfu`; operators without a formula "
        "(flash-attention packages, Triton, TransformerEngine) count nothing in a FLOP counter",
    )


def _implausible(sides: Sides, told: Told) -> Flag | None:
    """Flag an MFU above any run known, of the row's dtype or of the one that the job claims."""
    claims = {"mfu": (sides.mfu, sides.dtype), "reported": (sides.reported, sides.dtype)}
    own = peaks.peak_flops(sides.sku, sides.dtype)
    claimed = told.claimed_dtype and peaks.peak_flops(sides.sku, told.claimed_dtype)
    if sides.mfu is not None and own and claimed:
        claims["claimed"] = sides.mfu * own / claimed, told.claimed_dtype or ""
    for name, (value, dtype) in claims.items():
        if value is None or value <= PLAUSIBLE_MAX:
            continue
        words = f"an MFU of {_pct(value)} of the {dtype} peak is above any training run known"
        figures: Figures = {name: value, "dtype": dtype}
        peak, fp8 = (peaks.peak_flops(sides.sku, d) for d in (dtype, "fp8"))
        if peak and fp8 and fp8 > peak:
            figures["of_fp8_peak"] = value * peak / fp8
            words += f"; in fp8 it would be {_pct(value * peak / fp8)}"
        return Flag(
            code="implausible_mfu",
            words=words,
            figures=figures,
            next_step="ask in which precision the matrices are multiplied, and declare it (FLOPWATCH_DTYPE); "
            "else check the FLOPs per token and the peak",
        )
    return None


def _above_ceiling(sides: Sides) -> Flag | None:
    if sides.ceiling is None:
        return None
    for name, value in (("mfu", sides.mfu), ("hfu", sides.hfu)):
        if value is not None and value > CEILING_SLACK * sides.ceiling:
            return Flag(
                code="above_ceiling",
                words=f"{name.upper()} {_pct(value)} is above what a probe reached on these cards, "
                f"{_pct(sides.ceiling)}",
                figures={name: value, "ceiling": sides.ceiling},
                next_step="probe again when the cards are free (`flopwatch probe`); if the ceiling stands, "
                "the declaration or the counters' reference is wrong",
            )
    return None


def _wrong_peak(sides: Sides) -> Flag | None:
    """Flag a job whose own MFU is ours times a ratio of peaks; ours inside steps, as jobs count."""
    if sides.reported is None or not sides.mfu:
        return None
    ours = sides.mfu / sides.step_share if sides.step_share else sides.mfu
    used = peak_used(sides.sku, sides.dtype, sides.reported / ours)
    if used is None:
        return None
    return Flag(
        code="wrong_peak",
        words=f"the job reports {_pct(sides.reported)} where we find {_pct(ours)}: as if its peak were "
        f"{used.flops / 1e12:.1f} TFLOP/s, {used.words}",
        figures={
            "reported": sides.reported,
            "mfu": sides.mfu,
            "step_share": sides.step_share,
            "peak_flops": peaks.peak_flops(sides.sku, sides.dtype),
            "peak_used_flops": used.flops,
        },
        next_step=f"set the job's peak to that of {sides.sku}, {sides.dtype}, dense (`flopwatch peaks`); "
        "a ratio below 1.2 may be its convention as well: attention counted in full",
    )


def _synthetic(cards: Sequence[Card], told: Told) -> Flag | None:
    """Flag a load that looks like a burn-in: constant, the same everywhere, and nothing moves."""
    if told.steps_told or not cards:
        return None
    series = [np.array([v for v in card.activity if v is not None]) for card in cards]
    if any(len(of) < SYNTHETIC_INTERVALS_MIN for of in series):
        return None
    links = [card.link_bytes_per_second for card in cards]
    moved = [rate for rate in (*links, told.network_bytes_per_second) if rate is not None]
    if not any(rate is not None for rate in links) or max(moved) > QUIET_BYTES_PER_SECOND:
        return None
    means = np.array([of.mean() for of in series])
    if means.min() < BUSY_MIN:
        return None
    unrest = float(np.max([of.std() / of.mean() for of in series]))
    spread = float((means.max() - means.min()) / means.mean())
    if unrest > UNREST_MAX or spread > SPREAD_MAX:
        return None
    return Flag(
        code="synthetic_load",
        words=f"the load looks synthetic: {_pct(float(means.mean()))} busy on all {len(cards)} cards, "
        "the same at all times, and nothing is moved over any link",
        figures={
            "activity": float(means.mean()),
            "unrest": unrest,
            "spread": spread,
            "bytes_per_second_max": max(moved),
        },
        next_step="ask its owner; burn-in tools look like this, training moves data and pauses between steps",
    )


def _known(sheet: Sheet, name: str) -> Bools:
    return ~np.isnan(sheet.sums[name])


def _most(sheet: Sheet, column: str) -> str:
    """Return the text that most of the card-time has; empty where none has one."""
    totals: dict[str, int] = {}
    for text, card_ms in zip(sheet.texts[column], sheet.ints["card_ms"], strict=True):
        totals[str(text)] = totals.get(str(text), 0) + int(card_ms)
    return max(totals, key=lambda t: totals[t], default="")


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _pct(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"
