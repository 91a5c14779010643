"""What one open interval row adds up: from two readings to quantities. Pure; time comes in as numbers.

`increment` turns two consecutive readings of a card into amounts for the time between them, `Sums`
adds such amounts (or a part of one, where a row's edge cuts it), and `Sums.values` says what a share
of the card's row holds. Three invariants:

- Products are taken inside each pair of readings and then summed: Σ A·f·dt, never ΣA·Σf.
- Everything is summed for the whole card and free of any dtype; peak and reference clock are applied
  once, when the row closes. So a card's shares always agree with the card.
- Where S, A and the clock are all known somewhere in the row (``counted_ms``), S and A are summed over
  exactly that time, so that a ratio's numerator and denominator cover the same milliseconds.

A value that is not finite, negative or beyond what any device can say counts as a failed reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from flopwatch_agent.rates import PIPES, Rates
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence

_RATIO_MAX: Final = 2.0  # a MIG instance was seen at 1.29 of "its" SMs; beyond twice it is a bug
_VALUE_MAX: Final = 1e30  # larger than any counter of any device

_NOISE_MS: Final = 1e-6  # what subtracting leaves
_REFUSED: Final = (Absence.FAILED, Absence.FAILED)

_RATIO, _RATE, _COUNTER, _GAUGE = range(4)

_FIELDS: Final[dict[str, tuple[int, str, float]]] = {
    **{
        f"{name}_ratio": (_RATIO, f"{name}_ms", 1.0)
        for name in (
            "gpu_utilization",
            "memory_utilization",
            "dfma_active",
            "hmma_active",
            "imma_active",
            "dram_active",
            "fp64_active",
            "fp32_active",
            "fp16_active",
        )
    },
    **{
        f"{name}_per_second": (_RATE, name, 1.0)
        for name in ("pcie_tx_bytes", "pcie_rx_bytes", "nvlink_tx_bytes", "nvlink_rx_bytes")
    },
    **{
        f"throttled_{name}_seconds_total": (_COUNTER, f"throttled_{name}_ms", 1e3)
        for name in (
            "power",
            "thermal_sw",
            "thermal_hw",
            "power_brake",
            "sync_boost",
            "application_clock",
        )
    },
    # A driver counts double precision on the tensor pipe as DFMA or, a newer one, as DMMA: see `_activity`.
    "dmma_active_ratio": (_RATIO, "_dmma_active_ms", 1.0),
    "energy_joules_total": (_COUNTER, "energy_joules", 1.0),
    "ecc_corrected_total": (_COUNTER, "ecc_corrected_count", 1.0),
    "ecc_uncorrected_total": (_COUNTER, "ecc_uncorrected_count", 1.0),
    **{
        name: (_GAUGE, f"{name}_max", 1.0)
        for name in (
            "power_watts",
            "temperature_celsius",
            "memory_temperature_celsius",
            "memory_used_bytes",
            "memory_total_bytes",
        )
    },
}
"""Field of a reading → how it is summed, its column, and the factor to the column's unit."""

_ORIGIN: Final = {
    **{column: name for name, (_, column, _) in _FIELDS.items() if column[0] != "_"},
    "sm_active_ms": "sm_active_ratio",
    "tensor_active_ms": "tensor_active_ratio",
    "sm_clock_mhz_seconds": "sm_clock_mhz",
}
"""Column → the field it comes from: whose absence is the column's."""

_TRUST: Final = {"dcgm": 1, "gpm": 2, "cycle_counters": 3}
"""Methods by how far they are trusted: a row is as good as the least of what it counted."""

_COUNTED: Final = ("tensor_active_ratio", "sm_active_ratio", "sm_clock_mhz")
_DERIVED: Final = (
    "sm_active_clock_ms",
    "tensor_active_clock_ms",
    "u_flops",
    "u_lo_flops",
    "u_hi_flops",
    "hardware_lo_flops",
    "hardware_hi_flops",
)


@dataclass(slots=True, kw_only=True)
class Increment:
    """Amounts between two readings.

    Attributes:
        amounts: column (or inner sum, ``_*``) → what the whole span adds.
        maxima: column → value at the newer reading.
        failed: fields whose reading failed.
        covered: the driver answered.
        counted: S, A and the SM clock are all known.
        unknown: tensor pipes whose own share is not known.
        method: of the newer reading.
    """

    amounts: dict[str, float] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    covered: bool = False
    counted: bool = False
    unknown: frozenset[str] = frozenset()
    method: str = "gpm"


def increment(
    before: Mapping[str, Value],
    now: Mapping[str, Value],
    span_ms: float,
    elapsed_seconds: float,
    method: str = "gpm",
) -> Increment:
    """Return what a card did between two readings.

    Args:
        before: values of the older reading; only its counters are looked at.
        now: values of the newer one.
        span_ms: wall-clock time between them, to which activity refers.
        elapsed_seconds: time that really passed (CLOCK_BOOTTIME), to which rates refer.
    """
    step = Increment(covered=True, method=method)
    amounts, failed = step.amounts, step.failed
    for name, value in now.items():
        how = _FIELDS.get(name)
        if how is None:
            continue
        kind, column, factor = how
        largest = _RATIO_MAX if kind == _RATIO else _VALUE_MAX
        if value.__class__ is Absence:
            if value == Absence.FAILED:
                failed.add(name)
        elif kind == _GAUGE:
            # Gauges may be negative: a card in a cold room is at -2 °C.
            if -largest <= value <= largest:
                step.maxima[column] = value
            else:
                failed.add(name)
        elif not 0.0 <= value <= largest:
            failed.add(name)
        elif kind == _RATIO:
            amounts[column] = value * span_ms
        elif kind == _RATE:
            amounts[column] = value * elapsed_seconds
        else:
            start = before.get(name)
            # A fall is a restart of the counter: what it counted in between nobody knows.
            if start is not None and start.__class__ is not Absence and 0.0 <= start <= value:
                amounts[column] = (value - start) * factor
    _activity(step, now, span_ms)
    return step


_PIPES: Final = tuple((pipe, f"{pipe}_active_ms") for pipe in PIPES)
_REAL: Final = frozenset({"energy_joules", "ecc_corrected_count", "ecc_uncorrected_count"})


def probing(step: Increment, span_ms: float) -> Increment:
    """Return what is left of time with a probe of ours on the card: joules, errors, and its length."""
    step.amounts = {name: amount for name, amount in step.amounts.items() if name in _REAL}
    step.amounts["probing_ms"] = span_ms
    step.counted = False
    return step


def _activity(step: Increment, now: Mapping[str, Value], span_ms: float) -> None:
    """Add S, A and the clock, and where all three are known their products."""
    sm = _known(step, now, "sm_active_ratio", _RATIO_MAX)
    tensor = _known(step, now, "tensor_active_ratio", _RATIO_MAX)
    mhz = _known(step, now, "sm_clock_mhz", _VALUE_MAX)
    amounts = step.amounts
    if mhz is not None:
        amounts["sm_clock_mhz_seconds"] = mhz * span_ms / 1e3
    if sm is None or tensor is None or mhz is None:
        if sm is not None:
            amounts["_sm_alone_ms"] = sm * span_ms
        if tensor is not None:
            amounts["_tensor_alone_ms"] = tensor * span_ms
        return
    step.counted = True
    sm = max(sm, tensor)  # a tensor pipe runs only where a warp is
    amounts["sm_active_ms"] = sm * span_ms
    amounts["tensor_active_ms"] = tensor * span_ms
    amounts["_sm_mhz_ms"] = sm * mhz * span_ms
    amounts["_tensor_mhz_ms"] = tensor * mhz * span_ms
    dmma_ms = amounts.get("_dmma_active_ms")
    left_ms = amounts["tensor_active_ms"]
    for pipe, column in _PIPES:
        also_ms = dmma_ms if pipe == "dfma" else None
        if column not in amounts and also_ms is None:
            step.unknown |= {pipe}
        part_ms = min(max(amounts.get(column, 0.0), also_ms or 0.0), left_ms)
        if part_ms > 0.0:
            amounts[f"_{pipe}_ms"] = part_ms
            amounts[f"_{pipe}_mhz_ms"] = part_ms * mhz
            left_ms -= part_ms


def _known(step: Increment, now: Mapping[str, Value], name: str, largest: float) -> float | None:
    value = now.get(name)
    if value is None:
        return None
    if value.__class__ is Absence:
        if value == Absence.FAILED:
            step.failed.add(name)
        return None
    if 0.0 <= value <= largest:
        return value
    step.failed.add(name)
    return None


class Sums:
    """The open row of one card, or of a MIG device: milliseconds, amounts, maxima, and what failed.

    Attributes:
        method: where what was counted comes from; ``none`` while nothing was.
    """

    __slots__ = (
        "counted_ms",
        "covered_ms",
        "duration_ms",
        "failed",
        "maxima",
        "method",
        "resident_ms",
        "silent",
        "totals",
        "unknown",
    )

    def __init__(self) -> None:
        self.duration_ms = 0
        self.covered_ms = 0
        self.counted_ms = 0
        self.resident_ms = 0
        self.totals: dict[str, float] = {}
        self.maxima: dict[str, float] = {}
        self.failed: set[str] = set()
        self.silent = False
        self.method = "none"
        self.unknown: frozenset[str] = frozenset()

    def add(self, step: Increment, part_ms: int, ratio: float, *, resident: bool) -> None:
        """Add a part of an increment.

        Args:
            step: what the whole span did.
            part_ms: wall time of the part.
            ratio: the part's share of the whole span, in (0, 1].
            resident: a compute process was on the card.
        """
        self.duration_ms += part_ms
        if resident:
            self.resident_ms += part_ms
        if not step.covered:
            self.silent = True
            return
        self.covered_ms += part_ms
        totals, maxima = self.totals, self.maxima
        for name, amount in step.amounts.items():
            totals[name] = totals.get(name, 0.0) + amount * ratio
        for name, value in step.maxima.items():
            if name not in maxima or value > maxima[name]:
                maxima[name] = value
        if step.failed:
            self.failed |= step.failed
        if step.counted:
            self.counted_ms += part_ms
            if self.method == "none" or _TRUST.get(step.method, 0) < _TRUST.get(self.method, 0):
                self.method = step.method
            self.unknown |= step.unknown

    def absence(self, name: str, last: Mapping[str, Value]) -> Absence:
        """Return why a field gave no value; `last` is what the driver last said."""
        if last.get(name) is Absence.NOT_SUPPORTED:
            return Absence.NOT_SUPPORTED
        if self.silent or name in self.failed:
            return Absence.FAILED
        return Absence.MISSING

    def values(
        self, rates: Rates, weight: float, *, declared: bool, last: Mapping[str, Value]
    ) -> dict[str, Value]:
        """Return the quantities of one share of the card, without capacity and declarations.

        Args:
            rates: of the row's dtype.
            weight: the share's part of the card; maxima are not divided.
            declared: the dtype is the job's word, so FLOPs need no bounds.
            last: the newest values of an answering driver, for absences.
        """
        totals = self.totals
        result: dict[str, Value] = {
            name: amount * weight for name, amount in totals.items() if name[0] != "_"
        }
        if not self.counted_ms:
            for name, alone in (("sm", "_sm_alone_ms"), ("tensor", "_tensor_alone_ms")):
                if alone in totals:
                    result[f"{name}_active_ms"] = totals[alone] * weight
        else:
            self._efficiency(result, rates, weight, declared=declared)
        result.update(self.maxima)
        for column, name in _ORIGIN.items():
            if column not in result:
                absence = self.absence(name, last)
                if absence is not Absence.MISSING:
                    result[column] = absence
        if not self.counted_ms:
            reasons = [self.absence(n, last) for n in _COUNTED if _absent_column(n, result)]
            worst = max(reasons, default=Absence.MISSING)
            if worst is not Absence.MISSING:
                result.update(dict.fromkeys(_DERIVED, worst))
        return result

    def _efficiency(
        self, result: dict[str, Value], rates: Rates, weight: float, *, declared: bool
    ) -> None:
        totals = self.totals
        tensor_mhz_ms, tensor_ms = totals["_tensor_mhz_ms"] * weight, totals["tensor_active_ms"]
        tensor_ms *= weight
        if rates.ref_mhz:
            result["sm_active_clock_ms"] = totals["_sm_mhz_ms"] * weight / rates.ref_mhz
            result["tensor_active_clock_ms"] = tensor_mhz_ms / rates.ref_mhz
        if rates.peak_flops is None:
            return
        flops_per_ms = rates.peak_flops / 1e3
        if rates.ref_mhz:
            lo = hi = tensor_mhz_ms / rates.ref_mhz * flops_per_ms
            result["u_flops"] = lo
        else:
            # The reference clock is not published, but no clock is above the highest.
            lo = tensor_mhz_ms / rates.max_mhz * flops_per_ms if rates.max_mhz else 0.0
            hi = max(lo, tensor_ms * flops_per_ms)
        result["u_lo_flops"], result["u_hi_flops"] = lo, hi
        # u is a share of the row's own peak and takes no kappa: what a kappa far from 1 tells of (a wrong
        # rate, number of SMs or map of dtypes) is no part of A·f/f_ref, and its spread is in the bounds.
        found = None if rates.kappa is None else (lo * rates.kappa, hi * rates.kappa)
        if not declared:
            found = self._hardware(rates, weight, tensor_mhz_ms, tensor_ms)
        result["hardware_lo_flops"], result["hardware_hi_flops"] = found or _REFUSED

    def _hardware(
        self, rates: Rates, weight: float, other_mhz_ms: float, other_ms: float
    ) -> tuple[float, float] | None:
        """Return bounds; None where a dtype that may have run has a calibration that is refused."""
        lo = hi = 0.0
        for name, pipe in rates.pipes.items():
            active_ms = self.totals.get(f"_{name}_ms", 0.0) * weight
            if active_ms:
                if pipe.refused:
                    return None
                active_mhz_ms = self.totals[f"_{name}_mhz_ms"] * weight
                pipe_lo, pipe_hi = pipe.bounds(active_mhz_ms, active_ms)
                lo, hi = lo + pipe_lo, hi + pipe_hi
                other_ms -= active_ms
                other_mhz_ms -= active_mhz_ms
        rest = rates.other[self.unknown]
        if rest is not None:
            if rest.refused and other_ms > _NOISE_MS:
                return None
            rest_lo, rest_hi = rest.bounds(max(0.0, other_mhz_ms), max(0.0, other_ms))
            lo, hi = lo + rest_lo, hi + rest_hi
        return lo, hi


def _absent_column(name: str, result: Mapping[str, Value]) -> bool:
    columns = {
        "tensor_active_ratio": "tensor_active_ms",
        "sm_active_ratio": "sm_active_ms",
        "sm_clock_mhz": "sm_clock_mhz_seconds",
    }
    value = result.get(columns[name])
    return value is None or value.__class__ is Absence
