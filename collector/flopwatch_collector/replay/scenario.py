"""Scenarios: what a cluster is said to have looked like, in a file, for rules to be tried on.

TOML says phases. Each lasts ``for`` and has a table per observation that rules read; one that is left out is
not observed, as if its data were missing. Keys are the fields of ``rules.Observation``:

    cluster = "atlas"                  # left out: "scenario"
    start = 2026-11-01T00:00:00Z       # left out: 2026-01-01
    step = "10s"                       # or "1m", as old history is kept
    cards = 1000                       # in service, where a table does not say otherwise

    [[phase]]
    for = "6h"
    allocation = { hi = 0.97 }         # lo: as hi, unless said; coverage: 1
    mfu = { lo = 0.41, hi = 0.45 }

    [[phase]]
    for = "90m"
    allocation = { hi = 0.91, lost_points = { MISSING = 9 }, witnessed_missing_points = 9 }

JSON lines (any name but ``*.toml``) say one observation each, oldest first, with the same keys and defaults:

    {"tick": "2026-11-01T00:00:10Z", "rule": "allocation", "hi": 0.97}

``silent_nodes`` may be a list of names: nodes that fell silent when the phase began. Times
are whole steps. Silence between lines of more than two steps is a collector that was down.
"""

from __future__ import annotations

import difflib
import itertools
import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from flopwatch_collector.incident import MINUTE_MS, STEP_MS
from flopwatch_collector.replay import Moment
from flopwatch_collector.replay.history import stepped
from flopwatch_collector.replay.player import observed_names
from flopwatch_collector.rules import Observation
from flopwatch_proto.errors import UsageError
from flopwatch_proto.settings import Duration

CLUSTER: Final = "scenario"
START_UNIX_MS: Final = 1_767_225_600_000
_KEYS: Final = ("cluster", "start", "step", "cards", "phase")
_STEPS: Final = {"10s": STEP_MS, "1m": MINUTE_MS}
_TOLD: Final = frozenset({"cluster", "rule", "tick_unix_ms", "device_kind"})
_FIGURES: Final = tuple(f.name for f in fields(Observation) if f.name not in _TOLD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What a file says. Attributes: moments: read as they are asked for, once."""

    cluster: str
    since_unix_ms: int
    until_unix_ms: int
    moments: Iterator[Moment]


def read(path: Path) -> Scenario:
    """Return the scenario of a file. Raises: UsageError naming the file, the place and the fix."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--scenario: {path} cannot be read: {exc}") from exc
    return _phases(path, text) if path.suffix == ".toml" else _lines(path, text)


def _phases(path: Path, text: str) -> Scenario:
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{path}: not TOML: {exc}") from exc
    _known(path, told, _KEYS)
    step_ms = _STEPS.get(told.get("step", "10s"))
    if step_ms is None:
        raise UsageError(f"{path}: step is {told['step']!r}; write one of {', '.join(_STEPS)}")
    start = _moment(told.get("start"), f"{path}: start", step_ms)
    cluster = str(told.get("cluster", CLUSTER))
    phases: list[tuple[int, dict[str, Observation]]] = []
    until = start
    given = told.get("phase", [])
    if not isinstance(given, list) or not given:
        raise UsageError(f"{path}: nothing happens; write at least one [[phase]]")
    for number, phase in enumerate(given):
        at = f"{path}: phase.{number}"
        _known(at, phase, ("for", *observed_names()))
        lasts_ms = _length(phase.get("for"), at, step_ms)
        observed = {
            name: _observation(
                phase[name],
                f"{at}.{name}",
                cluster=cluster,
                rule=name,
                tick_unix_ms=until,
                cards=told.get("cards", 1),
            )
            for name in observed_names()
            if name in phase
        }
        until += lasts_ms
        phases.append((until, observed))
    moments = _played(phases, start, step_ms)
    return Scenario(cluster=cluster, since_unix_ms=start, until_unix_ms=until, moments=moments)


def _played(
    phases: list[tuple[int, dict[str, Observation]]], start_unix_ms: int, step_ms: int
) -> Iterator[Moment]:
    begin = start_unix_ms
    for end, observed in phases:
        told = {name: _without_tick(of) for name, of in observed.items()}
        for tick in range(begin, end, step_ms):
            yield Moment(
                tick_unix_ms=tick,
                step_ms=step_ms,
                observed={
                    name: Observation(tick_unix_ms=tick, **values) for name, values in told.items()
                },
            )
        begin = end


def _without_tick(observation: Observation) -> dict[str, Any]:
    names = (field.name for field in fields(Observation) if field.name != "tick_unix_ms")
    return {name: getattr(observation, name) for name in names}


def _lines(path: Path, text: str) -> Scenario:
    found: list[Observation] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        at = f"{path}: line {number}"
        try:
            told = json.loads(line)
        except ValueError as exc:
            raise UsageError(f"{at}: not a line of JSON: {exc}") from exc
        if not isinstance(told, dict):
            raise UsageError(f'{at}: write one object: {{"tick": …, "rule": …, "hi": …}}')
        found.append(_of_line(told, at))
        if found[-1].cluster != found[0].cluster:
            raise UsageError(f"{at}: cluster is {told['cluster']!r}; one file is of one cluster")
        if found[-1].tick_unix_ms < found[max(0, len(found) - 2)].tick_unix_ms:
            raise UsageError(f"{at}: tick goes back; write the oldest first")
    if not found:
        raise UsageError(f"{path}: nothing happens; write a line for each observation")
    ticks = (
        (tick, {o.rule: o for o in of})
        for tick, of in itertools.groupby(found, key=lambda o: o.tick_unix_ms)
    )
    last = found[-1].tick_unix_ms
    fine = next((o.tick_unix_ms for o in found if o.tick_unix_ms % MINUTE_MS), last + 1)
    return Scenario(
        cluster=found[0].cluster,
        since_unix_ms=found[0].tick_unix_ms,
        until_unix_ms=last + STEP_MS,
        moments=stepped(ticks, fine),
    )


def _of_line(told: dict[str, Any], at: str) -> Observation:
    values = dict(told)
    rule = values.pop("rule", None)
    if rule not in observed_names():
        raise UsageError(f"{at}: rule is {rule!r}; write one of {', '.join(observed_names())}")
    tick = values.pop("tick", None)
    if tick is None:
        raise UsageError(f'{at}: no tick; write "tick": "2026-11-01T00:00:10Z"')
    return _observation(
        values,
        at,
        cluster=str(values.pop("cluster", CLUSTER)),
        rule=rule,
        tick_unix_ms=_moment(tick, f"{at}: tick", STEP_MS),
        cards=1,
    )


def _observation(
    values: Any, at: str, *, cluster: str, rule: str, tick_unix_ms: int, cards: Any
) -> Observation:
    _known(at, values, _FIGURES)
    silent = values.get("silent_nodes", {})
    told = {
        "simulated": False,
        "lo": values.get("hi"),
        "hi": None,
        "value": values.get("hi") if values.get("lo") in (None, values.get("hi")) else None,
        "coverage": 1.0,
        "in_service_cards": cards,
        "unseen_cards": 0.0,
        **values,
        "cluster": cluster,
        "rule": rule,
        "device_kind": "gpu",
        "tick_unix_ms": tick_unix_ms,
    }
    if isinstance(silent, list):
        told["silent_nodes"] = dict.fromkeys(silent, tick_unix_ms)
    try:
        made: Observation = msgspec.convert(told, Observation)
    except msgspec.ValidationError as exc:
        text, _, place = str(exc).partition(" - at `$")
        raise UsageError(f"{at}{place.rstrip('`')}: {text.replace('`', '')}") from exc
    for name in ("lo", "hi", "value", "coverage", "onboarded_ratio"):
        ratio = getattr(made, name)
        if ratio is not None and not 0 <= ratio <= 1:
            raise UsageError(f"{at}.{name} is {ratio:g}; write a ratio from 0 to 1: 0.96 for 96 %")
    if made.lo is not None and made.hi is not None and made.lo > made.hi:
        raise UsageError(f"{at}.lo is above hi; write the lower bound as lo")
    return made


def _known(at: object, told: Any, names: Collection[str]) -> None:
    if not isinstance(told, Mapping):
        raise UsageError(f"{at}: write a table: {{ hi = 0.97 }}")
    for key in told:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            raise UsageError(f"{at}: unknown key {key}; the nearest known is {near}")


def _length(told: Any, at: str, step_ms: int) -> int:
    try:
        length_ms = Duration.parse(told if isinstance(told, str) else "").milliseconds
    except ValueError:
        raise UsageError(f"{at}: for is {told!r}; write how long it lasts: 90m, 6h, 2d") from None
    if length_ms <= 0 or length_ms % step_ms:
        raise UsageError(f"{at}: for is {told!r}; write whole steps of {step_ms // 1000} s")
    return length_ms


def _moment(told: Any, at: str, step_ms: int) -> int:
    if told is None:
        return START_UNIX_MS
    try:
        moment = told if isinstance(told, datetime) else datetime.fromisoformat(told)
    except (TypeError, ValueError):
        raise UsageError(f"{at} is {told!r}; write a moment: 2026-11-01T00:00:10Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    unix_ms = round(moment.timestamp() * 1000)
    if unix_ms % step_ms:
        raise UsageError(f"{at} is {told}; ticks are whole steps of {step_ms // 1000} s")
    return unix_ms
