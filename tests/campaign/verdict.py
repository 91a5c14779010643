"""The oracle of a kill campaign. Pure: what arrived and what was done to the agent → what is wrong.

A second of a slot is accounted for where a row covers it. Every other second must be *declared*, that is
explained by one of:

- the agent did not run: from `LOST_MS` before a kill of the agent (the interval that was open, and the
  hand-over of the one before, were in its memory) until `FIRST_MS` after it said that it had started;
- a Gap that the agent itself declared: then the lost rows' time lies within the Gap's.

Killing the driver child declares nothing: rows go on and say themselves what they did not watch. So
uncovered time within rows must lie in the `DARK_MS` after a kill of the child or a start of the agent.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flopwatch_proto import codec
from flopwatch_proto.v1 import telemetry_pb2 as pb

INTERVAL_MS: Final = 1_000
LOST_MS: Final = 2 * INTERVAL_MS + 2_000 + 500
"""Open interval, closed interval, what the hand-over may wait for late readings, and an edge."""

FIRST_MS: Final = 2_000
"""From the agent's word that it started to its first reading: a tick, and an edge."""

DARK_MS: Final = 20_000
"""A child's end is seen, the next one waits out its backoff, starts, and lists the cards."""

POWER_WATTS: Final = 72.0
"""What the scripted driver says, always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """What was done. Attributes: target: ``agent`` or ``child``; started_unix_ms: of the next agent."""

    target: str
    at_unix_ms: int
    started_unix_ms: int = 0


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What the oracle found. Attributes: problems: one line each; empty is a pass."""

    problems: list[str] = field(default_factory=list)
    rows: int = 0
    batches: int = 0
    gaps: int = 0
    holes: int = 0
    hole_ms: int = 0
    uncovered_ms: int = 0

    def wrong(self, text: str) -> None:
        self.problems.append(text)


def judge(frames: Sequence[pb.AgentFrame], kills: Sequence[Kill], slots: Iterable[str]) -> Verdict:
    """Return the verdict on everything that a collector acknowledged."""
    verdict = Verdict()
    batches, gaps = _by_seq(frames, verdict)
    _check_numbers(batches, gaps, verdict)
    rows = _rows(batches.values(), verdict)
    for slot in slots:
        mine = sorted((r for r in rows.values() if r["slot"] == slot), key=_start)
        if not mine:
            verdict.wrong(f"{slot}: no rows")
        _check_time(slot, mine, kills, gaps, verdict)
        _check_values(slot, mine, kills, verdict)
    return verdict


def _start(row: dict[str, Any]) -> int:
    return int(row["start_unix_ms"])


def _by_seq(
    frames: Sequence[pb.AgentFrame], verdict: Verdict
) -> tuple[dict[tuple[int, int], pb.Batch], list[pb.Gap]]:
    batches: dict[tuple[int, int], pb.Batch] = {}
    gaps: dict[int, pb.Gap] = {}
    for frame in frames:
        if frame.HasField("gap"):
            gaps[frame.gap.first_seq] = frame.gap
            continue
        batch = frame.batch
        before = batches.setdefault((batch.seq, batch.seq), batch)
        if before.payload != batch.payload:
            verdict.wrong(f"batch {batch.seq} came twice with different contents")
    verdict.batches, verdict.gaps = len(batches), len(gaps)
    return batches, list(gaps.values())


def _check_numbers(
    batches: Iterable[tuple[int, int]], gaps: Iterable[pb.Gap], verdict: Verdict
) -> None:
    spans = sorted([*batches, *((gap.first_seq, gap.last_seq) for gap in gaps)])
    expected = 1
    for first, last in spans:
        if first != expected:
            verdict.wrong(f"numbers {expected} to {first - 1} never came and no gap says so")
        expected = last + 1


def _rows(batches: Iterable[pb.Batch], verdict: Verdict) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the rows by what makes one: a shared card has several of one time."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for batch in batches:
        columns = codec.decode_rows(codec.unpack(batch).intervals)
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            key = tuple(row[name] for name in ("slot", "start_unix_ms", "job", "instance"))
            if rows.setdefault(key, row) != row:
                verdict.wrong(f"row {key} came twice with different values")
    verdict.rows = len(rows)
    return rows


def _check_time(
    slot: str,
    rows: Sequence[dict[str, Any]],
    kills: Sequence[Kill],
    gaps: Sequence[pb.Gap],
    verdict: Verdict,
) -> None:
    away = _away(kills)
    spans_of_rows = sorted({(_start(row), _start(row) + row["duration_ms"]) for row in rows})
    for (_, end), (start, _) in itertools.pairwise(spans_of_rows):
        if start < end:
            verdict.wrong(f"{slot}: rows overlap from {start} to {end}")
        if start <= end:
            continue
        verdict.holes += 1
        verdict.hole_ms += start - end
        spans = [*away, *((gap.first_unix_ms, gap.last_unix_ms) for gap in gaps)]
        if not any(first <= end and start <= last for first, last in spans):
            verdict.wrong(f"{slot}: {start - end} ms from {end} on are declared by nothing")


def _away(kills: Sequence[Kill]) -> list[tuple[int, int]]:
    """Return the spans in which no agent could account for time, merged where they touch."""
    merged: list[tuple[int, int]] = []
    for kill in kills:
        if kill.target != "agent":
            continue
        first, last = kill.at_unix_ms - LOST_MS, kill.started_unix_ms + FIRST_MS
        if merged and first <= merged[-1][1]:
            first = merged.pop()[0]
        merged.append((first, last))
    return merged


def _check_values(
    slot: str, rows: Sequence[dict[str, Any]], kills: Sequence[Kill], verdict: Verdict
) -> None:
    """A number is there and right, or not there; what was not watched has a cause."""
    causes = [kill.at_unix_ms for kill in kills]
    causes += [kill.started_unix_ms for kill in kills]
    for row in rows:
        start, covered_ms = _start(row), row["covered_ms"]
        uncovered_ms = row["card_ms"] - covered_ms
        verdict.uncovered_ms += uncovered_ms
        if uncovered_ms and not any(at - LOST_MS <= start <= at + DARK_MS for at in causes):
            verdict.wrong(
                f"{slot}: {uncovered_ms} ms from {start} on are not watched, for no cause"
            )
        power = row["power_watts_max"]
        if power is not None and power != POWER_WATTS:
            verdict.wrong(f"{slot}: {power} W at {start}, never more or less than {POWER_WATTS}")
        energy, expected = row["energy_joules"], POWER_WATTS * covered_ms / 1e3
        # The counter is read some milliseconds beside the reading's own time.
        if energy is not None and abs(energy - expected) > 0.1 * POWER_WATTS:
            verdict.wrong(f"{slot}: {energy} J at {start}, expected {expected:.1f} J")
