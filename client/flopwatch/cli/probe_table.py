"""How results of probes are printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from flopwatch.cli import number
from flopwatch_kernels.calibration import Calibration
from flopwatch_kernels.messages import ProbeResult

_SCALES: Final[dict[str, tuple[tuple[float, str], ...]]] = {
    "FLOP/s": ((1e12, "TFLOP/s"),),
    "bytes/s": ((1e12, "TB/s"), (1e9, "GB/s")),
    "s": ((1e-3, "ms"), (1e-6, "µs")),
    "mismatches": ((1.0, "wrong"),),
}
"""Unit → scales from large to small."""

_COLUMNS: Final = ("kind", "dtype", "median", "p10–p90", "± %", "of peak %", "at MHz %", "MHz", "W")
_LEFT: Final = ("kind", "dtype")


def figures(result: ProbeResult) -> tuple[float | None, float | None, float | None, str]:
    """Median, p10 and p90 of a result, and their unit."""
    if result.median_flops is not None:
        return result.median_flops, result.p10_flops, result.p90_flops, "FLOP/s"
    return result.median_value, result.p10_value, result.p90_value, result.unit or ""


def scale_of(value: float | None, unit: str) -> tuple[float, str]:
    """The scale in which a value of a unit is written, and its name."""
    scales = _SCALES.get(unit, ((1.0, unit),))
    if value:
        for scale, name in scales:
            if value >= scale:
                return scale, name
    return scales[-1]


def quantity(value: float | None, scale: float) -> str:
    """Three significant digits; a count as it is."""
    return number.cards(value) if scale == 1.0 else number.quantity(value, scale)


def shown(
    results: Sequence[ProbeResult],
    calibrations: Sequence[Calibration],
    left_out: Sequence[tuple[str, str]],
) -> Group:
    """Everything that a run of probes found, for a terminal of 80 columns."""
    parts: list[Table | Text] = []
    if results:
        parts.append(_results(results))
    if calibrations:
        parts.append(_calibrations(calibrations))
    parts += [
        Text(f"{result.kind} {result.dtype or ''}: {result.outcome}: {result.reason}")
        for result in results
        if result.outcome != "ok"
    ]
    parts += [
        Text(f"calibrate {each.dtype}: refused: {each.refused}")
        for each in calibrations
        if each.refused is not None
    ]
    parts += [Text(line) for line in left_out_lines(left_out)]
    return Group(*parts)


def left_out_lines(left_out: Sequence[tuple[str, str]]) -> list[str]:
    """A line per reason, with all that was left out for it."""
    reasons: dict[str, list[str]] = {}
    for what, why in left_out:
        reasons.setdefault(why, []).append(what)
    return [f"left out: {', '.join(whats)}: {why}" for why, whats in reasons.items()]


def _results(results: Sequence[ProbeResult]) -> Table:
    first = results[0]
    load = "sustained" if first.sustained else "burst"
    table = Table(
        title=f"{first.sku or 'unknown device'} · {first.device} · {load}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
    )
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _LEFT else "right", no_wrap=True)
    for result in results:
        median, low, high, unit = figures(result)
        scale, name = scale_of(median, unit)
        spread = number.UNKNOWN
        if low is not None and high is not None:
            spread = f"{number.quantity(low, scale)}–{number.quantity(high, scale)}"
        table.add_row(
            result.kind,
            result.dtype or number.UNKNOWN,
            f"{quantity(median, scale)} {name}",
            spread,
            _precision(result.precision),
            number.percent(result.of_datasheet),
            number.percent(result.of_peak_at_clock),
            number.quantity(result.sm_clock_mhz),
            number.quantity(result.power_watts),
        )
    return table


def _precision(ratio: float | None) -> str:
    return number.percent(ratio) if ratio is None or ratio < 1 else ">100"


def _calibrations(calibrations: Sequence[Calibration]) -> Table:
    first = calibrations[0]
    table = Table(
        title=f"{first.sku or 'unknown device'} · {first.device} · driver {first.driver}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("dtype", "kappa", "pipes that move", "active at no work %", "use"):
        table.add_column(column, no_wrap=True)
    for each in calibrations:
        table.add_row(
            each.dtype,
            number.UNKNOWN if each.kappa is None else f"{each.kappa:.3f}",
            ", ".join(each.pipes) or "none",
            number.percent(each.intercept),
            "refused" if each.refused else "yes",
        )
    return table
