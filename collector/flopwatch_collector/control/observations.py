"""Observations as they are kept: what a tick was judged by, so that it can be judged again.

The figures that are asked for by themselves have columns; the rest of the inputs is one JSON object, without
what has its default. Ten-second ticks are kept for eight days, full minutes for as long as raw rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Final

from flopwatch_collector.news import leading_cause
from flopwatch_collector.rules import Cause, Observation

SILENT_NODES_MAX: Final = 1_000
"""Of more nodes that fell silent together, those that spoke last are kept: enough to judge by."""
_COLUMNS: Final = (
    *("rule", "cluster", "tick_unix_ms", "lo", "hi", "value", "coverage"),
    *("in_service_cards", "unseen_cards"),
)
_INPUTS: Final[dict[str, Any]] = {
    field.name: {} if field.default_factory is not MISSING else field.default
    for field in fields(Observation)
    if field.name not in _COLUMNS
}
"""Name → default of every other input; one without a default (MISSING) is always written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An observation with what was said of it. Attributes: condition: of ``rules.verdict``."""

    observation: Observation
    condition: str


def columns_of(judged: Judged) -> dict[str, Any]:
    """Return a row to store."""
    observation = judged.observation
    inputs = {
        name: getattr(observation, name)
        for name, default in _INPUTS.items()
        if getattr(observation, name) != default
    }
    if "causes" in inputs:
        inputs["causes"] = [asdict(cause) for cause in observation.causes]
    if len(observation.silent_nodes) > SILENT_NODES_MAX:
        latest = sorted(observation.silent_nodes.items(), key=lambda word: -word[1])
        inputs["silent_nodes"] = dict(latest[:SILENT_NODES_MAX])
    return {
        **{name: getattr(observation, name) for name in _COLUMNS},
        "condition": judged.condition,
        "leading_cause": leading_cause(observation.lost_points),
        "inputs": inputs,
    }


def observation_of(row: Mapping[str, Any]) -> Observation:
    """Return a stored row as it was observed; of one from before inputs were kept, its figures."""
    inputs = {"simulated": False, "device_kind": "gpu", **(row["inputs"] or {})}
    inputs["causes"] = tuple(Cause(**cause) for cause in inputs.get("causes", ()))
    return Observation(**{name: row[name] for name in _COLUMNS}, **inputs)
