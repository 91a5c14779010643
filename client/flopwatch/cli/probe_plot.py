"""Results of probes as one SVG file that reads in light and in dark. Pure.

    bars:  a block per result, a bar per shape: median, whisker p10–p90, a line where the datasheet is
    lines: of a sustained load over its seconds: FLOP/s, and clock, power and temperature as far as known

Every block has a scale of its own, which begins at zero; the lines' scales do not, and are written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final
from xml.sax.saxutils import escape

from flopwatch.cli import number
from flopwatch.cli.probe_table import figures, scale_of
from flopwatch_kernels.messages import Moment, ProbeResult

WIDTH: Final = 760
_MARGIN: Final = 24
_LABEL: Final = 176
_BAR_RIGHT: Final = 600
_ROW: Final = 24
_CHART: Final = 84

_STYLE: Final = """
:root { color-scheme: light dark; --page: #F5F6F8; --line: #D8DCE1; --ink: #15181C; --muted: #535C66;
  --bar: #2F5AA8; --bad: #B3321B }
@media (prefers-color-scheme: dark) { :root { --page: #0E1216; --line: #2A3138; --ink: #E9ECEF;
  --muted: #A5AEB8; --bar: #6A94D0; --bad: #D04E20 } }
text { font: 12px system-ui, "Segoe UI", Roboto, sans-serif; fill: var(--ink);
  font-variant-numeric: tabular-nums }
.title { font-size: 16px; font-weight: 600 } .head { font-weight: 600 } .muted { fill: var(--muted) }
.bad { fill: var(--bad) } .page { fill: var(--page) } .bar { fill: var(--bar) }
.rail { fill: var(--line) } .whisker, .sheet, .curve, .grid { fill: none; stroke-width: 1.5 }
.whisker, .sheet { stroke: var(--ink) } .sheet { stroke-dasharray: 3 2 } .curve { stroke: var(--bar) }
.grid { stroke: var(--line); stroke-width: 1 }
"""


def svg(results: Sequence[ProbeResult]) -> str:
    """Return the drawing of what the probes measured; a page that says so where they measured nothing."""
    y, parts = 40.0, []
    heading = "nothing was measured"
    if results:
        heading = f"{results[0].sku or 'unknown device'} · {results[0].device}"
    parts.append(_text(_MARGIN, y, heading, "title"))
    y += 20
    parts.append(_text(_MARGIN, y, _subtitle(results), "muted"))
    for result in results:
        for draw in (_block, _curves):
            drawn, y = draw(result, y)
            parts += drawn
    body = "\n".join(parts)
    height = round(y + _MARGIN)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" role="img" aria-label="{escape(heading)}">\n<style>{_STYLE}</style>\n'
        f'<rect class="page" width="{WIDTH}" height="{height}"/>\n{body}\n</svg>\n'
    )


def _subtitle(results: Sequence[ProbeResult]) -> str:
    if not results:
        return ""
    at = datetime.fromtimestamp(results[0].started_at_unix_ns / 1e9, UTC)
    return f"{at:%Y-%m-%d %H:%M} UTC · bar: median · whisker: p10–p90 · dashed: datasheet"


def _block(result: ProbeResult, y: float) -> tuple[list[str], float]:
    """The result's heading and its bars."""
    median, low, high, unit = figures(result)
    sheet = _datasheet(result)
    scale, name = scale_of(sheet or median, unit)
    y += 34
    load = "sustained" if result.sustained else "burst"
    words = [result.kind, result.dtype or "", "· wrong results" if result.outcome != "ok" else ""]
    style = "head" if result.outcome == "ok" else "head bad"
    parts = [_text(_MARGIN, y, " ".join(filter(None, words)), style)]
    if sheet is not None:
        told = f"datasheet {number.quantity(sheet, scale)} {name}"
        parts.append(_text(WIDTH - _MARGIN, y, told, "muted", anchor="end"))
    if median is None or unit == "mismatches":
        text = f"{number.cards(median)} wrong elements in {result.iterations} products"
        return [*parts, _text(_LABEL, y, text, style)], y + 4
    rows = [(_shape(s.shape), s.median_flops, s.p10_flops, s.p90_flops) for s in result.shapes]
    if result.sustained or not rows:
        own = load if result.sustained else _shape(result.shape) or load
        rows.append((own, median, low or median, high or median))
    top = max(sheet or 0.0, *(row[3] for row in rows), *(row[1] for row in rows)) * 1.02
    for label, middle, left, right in rows:
        y += _ROW
        parts += _bar(
            y, label, (middle, left, right), top, f"{number.quantity(middle, scale)} {name}"
        )
    if sheet is not None:
        x = _x(sheet, top)
        parts.append(_path(f"M{x} {y - _ROW * (len(rows) - 1) - 15}V{y + 5}", "sheet"))
    return parts, y


def _bar(
    y: float, label: str, values: tuple[float, float, float], top: float, told: str
) -> Iterator[str]:
    middle, low, high = (_x(value, top) for value in values)
    yield _text(_MARGIN, y, label, "muted")
    yield f'<rect class="rail" x="{_LABEL}" y="{y - 11}" width="{_BAR_RIGHT - _LABEL}" height="12"/>'
    yield f'<rect class="bar" x="{_LABEL}" y="{y - 11}" width="{middle - _LABEL:.1f}" height="12"/>'
    yield _path(f"M{low} {y - 9}v8m0 -4H{high}m0 -4v8", "whisker")
    yield _text(WIDTH - _MARGIN, y, told, anchor="end")


def _curves(result: ProbeResult, y: float) -> tuple[list[str], float]:
    """A sustained load over time: one chart per quantity that is known."""
    parts: list[str] = []
    if len(result.moments) < 2:
        return parts, y
    pick: tuple[tuple[str, Callable[[Moment], float | None]], ...] = (
        ("TFLOP/s", lambda moment: moment.flops / 1e12),
        ("MHz", lambda moment: moment.clock_mhz),
        ("W", lambda moment: moment.power_watts),
        ("°C", lambda moment: moment.temperature_celsius),
    )
    for unit, get in pick:
        points = [(m.seconds, v) for m in result.moments if (v := get(m)) is not None]
        if len(points) > 1:
            drawn, y = _chart(points, unit, y + 20)
            parts += drawn
    return parts, y


def _chart(points: Sequence[tuple[float, float]], unit: str, y: float) -> tuple[list[str], float]:
    values = [value for _, value in points]
    low, high = min(values), max(values)
    room = max(0.1 * (high - low), 0.005 * abs(high), 1e-9)
    low, high = max(0.0, low - room), high + room
    last = points[-1][0]
    bottom = y + _CHART

    def place(seconds: float, value: float) -> str:
        x = _LABEL + seconds / last * (_BAR_RIGHT - _LABEL)
        return f"{x:.1f} {bottom - (value - low) / (high - low) * _CHART:.1f}"

    parts = [_text(_MARGIN, y + _CHART / 2, unit, "muted")]
    for level in (low, (low + high) / 2, high):
        at = place(0.0, level).split()[1]
        parts.append(_path(f"M{_LABEL} {at}H{_BAR_RIGHT}", "grid"))
        parts.append(
            _text(_LABEL - 8, float(at) + 4, number.quantity(level), "muted", anchor="end")
        )
    parts.append(_path("M" + "L".join(place(*point) for point in points), "curve"))
    parts.append(_text(_LABEL, bottom + 16, "0 s", "muted"))
    parts.append(_text(_BAR_RIGHT, bottom + 16, f"{last:.0f} s", "muted", anchor="end"))
    return parts, bottom + 16


def _datasheet(result: ProbeResult) -> float | None:
    if result.datasheet_flops is not None:
        return result.datasheet_flops
    if result.of_datasheet and result.median_value is not None:
        return result.median_value / result.of_datasheet
    return None


def _shape(shape: tuple[int, int, int] | None) -> str:
    return "" if shape is None else "×".join(map(str, shape))


def _x(value: float, top: float) -> float:
    return round(_LABEL + value / top * (_BAR_RIGHT - _LABEL), 1)


def _path(data: str, style: str) -> str:
    return f'<path class="{style}" d="{data}"/>'


def _text(x: float, y: float, text: str, style: str = "", *, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'
