"""What the collector itself lacks: from its own counters, its health and its outbox."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from prometheus_client import CollectorRegistry

from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.signals import OWN, Answer, Found
from flopwatch_collector.trust.records import LIFE_LEFT_MIN

DIRTY_MINUTES_MAX: Final = 60
ROLLUP_LATE_MS: Final = 10 * 60_000
UNSENT_MS: Final = 10 * 60_000
AUTHORITY_LEFT_MS: Final = 30 * 86_400_000
RISING: Final = {
    "flopwatch_ingest_commit_failures_total": "the store refuses commits",
    "flopwatch_ingest_quarantined_total": "batches set aside",
    "flopwatch_trust_refusals_total": "agents refused",
    "flopwatch_signal_failures_total": "signals not read",
    "flopwatch_presence_failures_total": "agents not told to other collectors",
}
"""Counters that stand still in a healthy collector → what it means that one rises."""
_FAULTS: Final = len(RISING) + 5
_LIFE: Final = "flopwatch_trust_certificate_life_ratio"


class Health(Protocol):
    """What the rollup says of itself."""

    dirty_minutes: int
    rollup_unix_ms: int
    rollup_failures: int


class Pages(Protocol):
    """Where pages wait."""

    def outbox_open(self) -> Sequence[OutboxRow]:
        """Return every page that is neither sent nor dropped."""


class OwnSignal:
    """Reads this collector.

    Args:
        failures: ticks of the rules that failed, since the start.
        authorities: name of each authority → when it ends, unix ms.
    """

    name = "collector"
    every_s = 60.0

    def __init__(
        self,
        registry: CollectorRegistry,
        health: Health,
        pages: Pages,
        failures: Callable[[], int] = lambda: 0,
        authorities: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._registry = registry
        self._health = health
        self._pages = pages
        self._failures = failures
        self._authorities = authorities
        self._before: dict[str, float] = {}

    def read(self, now_unix_ms: int) -> Answer:
        """Return what is wrong, and which certificates of its own end."""
        faults = self._faults(now_unix_ms)
        lives = dict(self._lives(now_unix_ms))
        ending = {name: 0.0 for name, ends in lives.items() if ends}
        return {
            (OWN, "collector_unhealthy"): Found(
                count=len(faults), whole=_FAULTS, kind="fault", cards=dict.fromkeys(faults, 0.0)
            ),
            (OWN, "certificate_ending"): Found(
                count=len(ending), whole=len(lives), kind="certificate", cards=ending
            ),
        }

    def _faults(self, now_unix_ms: int) -> list[str]:
        totals = self._totals()
        faults = [words for name, words in RISING.items() if self._rose(name, totals.get(name, 0))]
        if self._rose("rollup", self._health.rollup_failures):
            faults.append("rollups fail")
        rolled_unix_ms = self._health.rollup_unix_ms
        if rolled_unix_ms and now_unix_ms - rolled_unix_ms > ROLLUP_LATE_MS:
            faults.append("rollups stand still")
        elif self._health.dirty_minutes > DIRTY_MINUTES_MAX:
            faults.append("rollups late")
        if self._rose("watch", self._failures()):
            faults.append("rules not evaluated")
        if any(_stuck(row, now_unix_ms) for row in self._pages.outbox_open()):
            faults.append("pages not delivered")
        return faults

    def _rose(self, name: str, value: float) -> bool:
        before = self._before.get(name)
        self._before[name] = value
        return before is not None and value > before

    def _totals(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name in RISING:
                    totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals

    def _lives(self, now_unix_ms: int) -> list[tuple[str, bool]]:
        """Name of each certificate of the collector's own, with whether it ends."""
        life = self._registry.get_sample_value(_LIFE)
        own = [] if life is None or math.isnan(life) else [("listener", life <= LIFE_LEFT_MIN)]
        ends = self._authorities().items()
        return own + [(name, at - now_unix_ms <= AUTHORITY_LEFT_MS) for name, at in ends]


def _stuck(row: OutboxRow, now_unix_ms: int) -> bool:
    """Whether a page was tried, and has found no receiver for a while."""
    tried = row.attempts > 0 and row.held_reason is None
    return tried and now_unix_ms - row.created_unix_ms > UNSENT_MS
