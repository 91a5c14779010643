"""What the peak table says of one card and dtype, as factors for sums. Pure.

A dtype is known only where the job declares it or where a pipe runs nothing else (integer, double
precision). Elsewhere the FLOPs lie between those of the slowest and of the fastest dtype that fits. What
calibrations found of the card (`Trust`) corrects the rate of a dtype and says on which pipe it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

from flopwatch_kernels import peaks

# Which dtypes may run on which tensor pipe (science of this project, §2.5), where no probe has shown it.
# What is on neither the integer nor the double-precision pipe cannot be told apart by counters.
_IMMA_DTYPES: Final = ("int8", "int4")
_DFMA_DTYPES: Final = ("fp64_tensor", "fp64_matrix")
_OTHER_DTYPES: Final = ("tf32", "bf16", "fp16", "fp8", "fp6", "fp4")
_DTYPES: Final = _OTHER_DTYPES + _IMMA_DTYPES + _DFMA_DTYPES

PIPES: Final = ("imma", "dfma", "hmma")
"""Tensor pipes with a counter of their own, as sums tell them apart."""

_REST: Final = "rest"  # active, and on no pipe with a counter of its own
_MOVED: Final = {"imma": "imma", "dfma": "dfma", "dmma": "dfma", "hmma": "hmma", "any": _REST}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What calibrations say of the counters of one card under its driver; hashable.

    Attributes:
        kappas: (dtype, FLOPs known / FLOPs counted).
        refused: dtypes whose absolute FLOPs may not be published.
        pipes: (dtype, counters that it moves: ``hmma``, ``imma``, ``dfma``, ``dmma``, ``any``).
    """

    kappas: tuple[tuple[str, float], ...] = ()
    refused: tuple[str, ...] = ()
    pipes: tuple[tuple[str, tuple[str, ...]], ...] = ()


UNCALIBRATED: Final = Trust()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipe:
    """FLOPs of one tensor pipe, by the slowest and the fastest dtype it may run.

    Attributes:
        lo_per_mhz_ms: FLOPs per (share of time active × MHz × ms), slowest.
        hi_per_mhz_ms: the same, fastest of the dtypes with a reference clock.
        hi_per_ms: FLOPs per ms active, fastest of those without one.
        refused: the calibration of a dtype that it may run is refused.
    """

    lo_per_mhz_ms: float
    hi_per_mhz_ms: float
    hi_per_ms: float
    refused: bool = False

    def bounds(self, active_mhz_ms: float, active_ms: float) -> tuple[float, float]:
        """Return (lo, hi) in FLOPs."""
        lo = self.lo_per_mhz_ms * active_mhz_ms
        return lo, max(lo, self.hi_per_mhz_ms * active_mhz_ms, self.hi_per_ms * active_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the peak table says of one SKU and dtype; made once per pair.

    Attributes:
        peak_flops: dense datasheet peak, FLOP/s; None: not in the table.
        ref_mhz: clock of that peak; None: not published.
        max_mhz: highest clock; bounds u where ``ref_mhz`` is None.
        kappa: of the dtype, 1 where it was not calibrated; None: refused.
        pipes: the pipes whose time has dtypes of its own, of `PIPES`.
        other: pipes whose time is not known → what the rest of the time may be.
    """

    peak_flops: float | None = None
    ref_mhz: float | None = None
    max_mhz: float | None = None
    kappa: float | None = 1.0
    pipes: Mapping[str, Pipe] = field(default_factory=dict)
    other: Mapping[frozenset[str], Pipe | None] = field(default_factory=dict)


def rates(
    sku: str | None, dtype: str, device_max_mhz: float | None, trust: Trust = UNCALIBRATED
) -> Rates:
    """Look up one SKU and dtype.

    Args:
        device_max_mhz: what the device itself says, if it does.
        trust: what calibrations say of the device.
    """
    found = peaks.find(sku) if sku is not None else None
    if found is None:
        return Rates(max_mhz=device_max_mhz)
    max_mhz = device_max_mhz or found.max_clock_mhz
    peak = found.peaks.get(dtype)
    homes = {name: _homes(name, trust) for name in _DTYPES if name in found.peaks}
    made = {pipe: _pipe(found, _on((pipe,), homes), max_mhz, trust) for pipe in PIPES}
    if _on(("hmma",), homes) == _on((_REST,), homes):
        del made["hmma"]  # nothing on it that the rest may not be as well
    unknown = [frozenset(s) for n in range(len(PIPES) + 1) for s in combinations(PIPES, n)]
    return Rates(
        peak_flops=None if peak is None else peak.dense_flops,
        ref_mhz=None if peak is None else peak.ref_clock_mhz,
        max_mhz=max_mhz,
        kappa=None if dtype in trust.refused else dict(trust.kappas).get(dtype, 1.0),
        pipes={name: pipe for name, pipe in made.items() if pipe is not None},
        other={
            pipes: _pipe(found, _on((_REST, *pipes), homes) or _OTHER_DTYPES, max_mhz, trust)
            for pipes in unknown
        },
    )


def _homes(dtype: str, trust: Trust) -> frozenset[str]:
    """Return where a dtype may have run: the pipes that its probe moved, else those that it may move."""
    moved = dict(trust.pipes).get(dtype, ())
    if moved:
        return frozenset(_MOVED[name] for name in moved if name in _MOVED)
    if dtype in _IMMA_DTYPES:
        return frozenset({"imma"})
    return frozenset({"dfma"} if dtype in _DFMA_DTYPES else {"hmma", _REST})


def _on(pipes: tuple[str, ...], homes: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    return tuple(dtype for dtype, home in homes.items() if not home.isdisjoint(pipes))


def _pipe(
    sku: peaks.Sku, dtypes: tuple[str, ...], max_mhz: float | None, trust: Trust
) -> Pipe | None:
    kappas = dict(trust.kappas)
    found = [(sku.peaks[name], kappas.get(name, 1.0)) for name in dtypes if name in sku.peaks]
    if not found:
        return None
    slowest = [
        kappa * peak.dense_flops / (peak.ref_clock_mhz or max_mhz or float("inf")) / 1e3
        for peak, kappa in found
    ]
    return Pipe(
        lo_per_mhz_ms=min(slowest),
        hi_per_mhz_ms=max(
            (k * p.dense_flops / p.ref_clock_mhz / 1e3 for p, k in found if p.ref_clock_mhz),
            default=0.0,
        ),
        hi_per_ms=max(
            (k * p.dense_flops / 1e3 for p, k in found if not p.ref_clock_mhz), default=0.0
        ),
        refused=any(name in trust.refused for name in dtypes if name in sku.peaks),
    )
