"""Moments from the control store: read a day at a time, beside a collector that runs or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import Text, cast, func, select

from flopwatch_collector.control.observations import observation_of
from flopwatch_collector.control.schema import OBSERVATION
from flopwatch_collector.control.store import DAY_MS, ControlStore
from flopwatch_collector.incident import MINUTE_MS, STEP_MS
from flopwatch_collector.replay import Moment
from flopwatch_collector.replay.player import observed_names
from flopwatch_collector.rules import Observation

WARM_UP_MS: Final = 8 * DAY_MS
"""Before the window: a week of medians, and the day after which an outage stands."""
CHUNK_MS: Final = DAY_MS // 4
STEPS_LATE_MAX: Final = 2
_FIGURES: Final = (
    *("rule", "cluster", "tick_unix_ms", "lo", "hi", "value", "coverage"),
    *("in_service_cards", "unseen_cards"),
)


def clusters(store: ControlStore, since_unix_ms: int, until_unix_ms: int) -> list[str]:
    """Clusters with an observation in a window, by name."""
    query = (
        select(OBSERVATION.c.cluster)
        .where(
            OBSERVATION.c.tick_unix_ms >= since_unix_ms,
            OBSERVATION.c.tick_unix_ms < until_unix_ms,
        )
        .distinct()
        .order_by(OBSERVATION.c.cluster)
    )
    with store.reading() as connection:
        return list(connection.execute(query).scalars())


def moments(
    store: ControlStore, cluster: str, since_unix_ms: int, until_unix_ms: int
) -> Iterator[Moment]:
    """Yield the moments of ``[since, until)``, oldest first. Raises: RetryableError."""
    fine_from_unix_ms = _first_between_minutes(store, cluster, since_unix_ms, until_unix_ms)
    ticks = _ticks(store, cluster, since_unix_ms, until_unix_ms)
    return stepped(ticks, fine_from_unix_ms)


def stepped(
    ticks: Iterable[tuple[int, dict[str, Observation]]], fine_from_unix_ms: int
) -> Iterator[Moment]:
    """Yield moments of ticks, oldest first: how far apart they lie, and where nobody looked.

    Args:
        ticks: with what was observed at each.
        fine_from_unix_ms: before this moment only full minutes are kept.
    """
    last_unix_ms: int | None = None
    for tick_unix_ms, observed in ticks:
        step_ms = STEP_MS if tick_unix_ms >= fine_from_unix_ms else MINUTE_MS
        yield Moment(
            tick_unix_ms=tick_unix_ms,
            step_ms=step_ms,
            observed=observed,
            restarted=last_unix_ms is None
            or tick_unix_ms - last_unix_ms > STEPS_LATE_MAX * step_ms,
        )
        last_unix_ms = tick_unix_ms


def _first_between_minutes(
    store: ControlStore, cluster: str, since_unix_ms: int, until_unix_ms: int
) -> int:
    query = select(func.min(OBSERVATION.c.tick_unix_ms)).where(
        OBSERVATION.c.rule.in_(observed_names()),
        OBSERVATION.c.cluster == cluster,
        OBSERVATION.c.tick_unix_ms >= since_unix_ms,
        OBSERVATION.c.tick_unix_ms < until_unix_ms,
        OBSERVATION.c.tick_unix_ms % MINUTE_MS != 0,
    )
    with store.reading() as connection:
        found: int | None = connection.execute(query).scalar_one()
    return until_unix_ms if found is None else found


def _ticks(
    store: ControlStore, cluster: str, since_unix_ms: int, until_unix_ms: int
) -> Iterator[tuple[int, dict[str, Observation]]]:
    for begin in range(since_unix_ms, until_unix_ms, CHUNK_MS):
        end = min(begin + CHUNK_MS, until_unix_ms)
        by_tick: dict[int, dict[str, Observation]] = {}
        for name in observed_names():
            for observation in _observations(store, name, cluster, begin, end):
                by_tick.setdefault(observation.tick_unix_ms, {})[name] = observation
        yield from sorted(by_tick.items())


def _observations(
    store: ControlStore, rule: str, cluster: str, since_unix_ms: int, until_unix_ms: int
) -> Iterator[Observation]:
    """Observations of one name, as ``control.observations`` keeps them."""
    of = OBSERVATION.c
    figures = (of.tick_unix_ms, of.lo, of.hi, of.value, of.coverage)
    query = select(*figures, of.in_service_cards, of.unseen_cards, cast(of.inputs, Text)).where(
        of.rule == rule,
        of.cluster == cluster,
        of.tick_unix_ms >= since_unix_ms,
        of.tick_unix_ms < until_unix_ms,
    )
    with store.reading() as connection:
        rows = connection.execute(query).all()
    for tick_unix_ms, lo, hi, value, coverage, in_service_cards, unseen_cards, inputs in rows:
        yield Observation(
            rule=rule,
            cluster=cluster,
            tick_unix_ms=tick_unix_ms,
            lo=lo,
            hi=hi,
            value=value,
            coverage=coverage,
            in_service_cards=in_service_cards,
            unseen_cards=unseen_cards,
            **_inputs(inputs),
        )


@lru_cache(maxsize=1024)
def _inputs(text: str | None) -> dict[str, Any]:
    """What stands in the JSON column: of most rules the same from tick to tick."""
    none = dict.fromkeys(_FIGURES)
    made = observation_of({**none, "inputs": None if text is None else msgspec.json.decode(text)})
    return {
        field.name: getattr(made, field.name)
        for field in fields(made)
        if field.name not in _FIGURES
    }
