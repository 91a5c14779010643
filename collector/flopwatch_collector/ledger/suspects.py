"""Peaks that jobs divide by and should not, and which of them a ratio of two MFUs gives away. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from flopwatch_kernels import peaks

TOLERANCE: Final = 0.025
SAME_MAX: Final = 0.05
"""Ratios this close to 1 are conventions and clocks, not another peak."""
HARD_CODED: Final = ("A100-SXM4-80GB", "bf16")
"""What several tools divide by whatever the card (§1.3 and §1.4 of the science notes)."""
_DTYPES: Final = ("fp8", "bf16", "fp16", "tf32", "fp4", "int8", "fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakUsed:
    """A peak that a job seems to divide by. Attributes: words: whose it is."""

    flops: float
    words: str


def peak_used(sku: str, dtype: str, ratio: float) -> PeakUsed | None:
    """Return the peak that explains a job's MFU over ours; None where ours does, or none does.

    Of several within TOLERANCE, those that are nearer to the card stand: its own sheet, its family, then a
    constant that tools are known to have; of these the closest, and all that are the same figure.

    Args:
        ratio: the job's MFU / ours, of the same card-time.
    """
    own, found = peaks.peak_flops(sku, dtype), peaks.find(sku)
    if not own or found is None or ratio <= 0 or abs(ratio - 1) <= SAME_MAX:
        return None
    for group in _candidates(found, dtype, own):
        best = min(group, key=lambda used: abs(ratio * used.flops / own - 1), default=None)
        if best is not None and abs(ratio * best.flops / own - 1) <= TOLERANCE:
            same = [used.words for used in group if abs(used.flops / best.flops - 1) <= 0.01]
            return PeakUsed(flops=best.flops, words=" or ".join(same))
    return None


def _candidates(sku: peaks.Sku, dtype: str, own: float) -> tuple[list[PeakUsed], ...]:
    sheet = [PeakUsed(flops=2 * own, words=f"the sparse {dtype} figure of {sku.key}")]
    for other in _DTYPES:
        peak = sku.peaks.get(other)
        if other != dtype and peak is not None and peak.dense_flops != own:
            sheet.append(PeakUsed(flops=peak.dense_flops, words=f"{other} of {sku.key}"))
    family = [
        PeakUsed(flops=cousin.peaks[dtype].dense_flops, words=f"{dtype} of {cousin.key}")
        for cousin in peaks.skus()
        if cousin.key != sku.key
        and _family(cousin.key) == _family(sku.key)
        and dtype in cousin.peaks
        and cousin.peaks[dtype].dense_flops != own
    ]
    name, fixed = HARD_CODED
    constant = peaks.peak_flops(name, fixed) or 0.0
    tools = [
        PeakUsed(flops=constant, words=f"{fixed} of an A100, which some tools use for any card")
    ]
    return sheet, family, tools if constant else []


def _family(key: str) -> str:
    """Return H100 of H100-PCIe and H100-SXM5, and B200 of GB200: the names that are mistaken."""
    return key.split("-", 1)[0].removeprefix("G")
