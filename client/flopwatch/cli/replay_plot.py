"""The plot of a replay in a terminal: when each rule was in outage, and how low its figure went. Pure.

allocation  today  ░░░▓▓▓░░░░░░     a column is a part of the window: ▓ in outage, ▲ paged, · nothing
            file   ░░░░░░░░░░░░
98.0 ┤ •••  ••••••                  the lowest figure of each part, with the lines of both sets
96.0 ┼─────────────
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

PARTS: Final = 54
WIDTH_MAX: Final = 80
_HEIGHT: Final = 8
_LABEL: Final = 26

Json = Mapping[str, Any]


def plots(answer: Json, width: int) -> Iterator[str]:
    """Yield the lines of the plot, none wider than the terminal (80 at most); nothing where nothing paged."""
    rules = [of["rule"] for of in answer["today"]["rules"]]
    sets = [(name, answer[name]) for name in ("today", "tried") if name in answer]
    shown = [r for r in rules if any(o["rule"] == r for _, of in sets for o in of["outages"])]
    if not shown:
        return
    yield from (line[:width].rstrip() for line in _strips(answer, sets, shown))
    for rule in shown:
        if rule in answer["lowest"]:
            yield from (line[:width].rstrip() for line in _figure(answer, sets, rule))


def _strips(answer: Json, sets: Sequence[tuple[str, Json]], rules: Sequence[str]) -> Iterator[str]:
    yield "when: ▲ paged, ▓ in outage, · nothing"
    for rule in rules:
        for name, of in sets:
            label = {"today": "today", "tried": "file"}[name] if len(sets) > 1 else ""
            head = f"{rule if name == 'today' else '':<19} {label:<5} "
            yield head.ljust(_LABEL) + _strip(
                answer, [o for o in of["outages"] if o["rule"] == rule]
            )
    yield " " * _LABEL + _axis(answer)


def _strip(answer: Json, outages: Sequence[Json]) -> str:
    since, until = answer["since_unix_ms"], answer["until_unix_ms"]
    part_ms = -(-(until - since) // PARTS)
    row = ["·"] * PARTS
    for outage in outages:
        ended = outage["ended_unix_ms"] or until
        first = max(0, (outage["began_unix_ms"] - since) // part_ms)
        for part in range(first, min(PARTS, -(-(ended - since) // part_ms))):
            row[part] = "▓" if row[part] == "·" else row[part]
        for told in outage["told"]:
            if told["act"] != "notice" and since <= told["unix_ms"] < until:
                row[(told["unix_ms"] - since) // part_ms] = "▲"
    return "".join(row)


def _axis(answer: Json) -> str:
    first, last = (_day(answer[name]) for name in ("since_unix_ms", "until_unix_ms"))
    return first + last.rjust(PARTS - len(first))


def _figure(answer: Json, sets: Sequence[tuple[str, Json]], rule: str) -> Iterator[str]:
    """Rows of the lowest figure; today's line is drawn ─, the file's ┄."""
    figures = answer["lowest"][rule]
    known = [figure for figure in figures if figure is not None]
    lines = [next(o["line"] for o in of["rules"] if o["rule"] == rule) for _, of in sets]
    if not known:
        return
    low, high = min(*known, *lines), max(*known, *lines)
    step = max((high - low) / (_HEIGHT - 1), 0.0005)

    def row_of(figure: float) -> int:
        return round(float((high - figure) / step))

    drawn = [[" "] * PARTS for _ in range(_HEIGHT)]
    for line, mark in zip(reversed(lines), "┄─" if len(lines) > 1 else "─", strict=True):
        drawn[row_of(line)] = [mark] * PARTS
    for part, figure in enumerate(figures):
        if figure is not None:
            drawn[row_of(figure)][part] = "•"
    unlike = len(lines) > 1 and lines[0] != lines[1]
    yield f"{rule}, %: lowest (•), line (─){', line of the file (┄)' if unlike else ''}"
    for number, row in enumerate(drawn):
        yield f"{100 * (high - number * step):.1f} ┤".rjust(_LABEL) + "".join(row)
    yield " " * _LABEL + _axis(answer)


def _day(unix_ms: int) -> str:
    return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%m-%d %H:%M}"
