"""What rules say of their newest observations, as gauges; the ready-made Prometheus rules read these.

Each rule is judged as the pager judges it, by the same code and settings. What is not known has no sample,
so an alert on ``hi < line`` is silent on missing data and must not be taken as resolved by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import select

from flopwatch_collector.control.observations import observation_of
from flopwatch_collector.control.schema import OBSERVATION
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import IncidentState
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import RULES, Rule, settings_of
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.rules.verdict import UNKNOWN, Condition, Verdict
from flopwatch_collector.web.outages import OPEN_STATES

NEWEST_MS: Final = 90_000
"""What was observed longer ago is not now: its rule has no sample."""
_LABELS: Final = ("cluster", "simulated", "rule")
_GAUGES: Final = (
    ("lo_ratio", "Lower bound of the judged figure: all is well where it reaches the line."),
    ("hi_ratio", "Upper bound of the judged figure: a breach where it is below the line."),
    ("line_ratio", "The line of the rule, of its settings for the cluster."),
    ("clears_ratio", "The line above which an outage clears: the rule's line and its hysteresis."),
    ("coverage_ratio", "Card-time behind the judged figure that was measured."),
    ("deep_breach", "1 where the deficit is deep, proven, and not explained by a lack of demand."),
    ("breach", "1 in breach, 0 not; no sample where the rule cannot say."),
    ("clears", "1 where an outage clears, 0 not; no sample where the rule cannot say."),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """One rule's word on a cluster now. Attributes: figures: by the name of the gauge; None: not known."""

    cluster: str
    simulated: bool
    rule: str
    figures: Mapping[str, float | None]


def newest(store: ControlStore, now_unix_ms: int) -> list[Observation]:
    """Return the newest observation of each cluster and name. Raises: RetryableError."""
    query = (
        select(OBSERVATION)
        .where(OBSERVATION.c.tick_unix_ms >= now_unix_ms - NEWEST_MS)
        .order_by(OBSERVATION.c.tick_unix_ms)
    )
    with store.reading() as connection:
        rows = [found._asdict() for found in connection.execute(query)]
    return [observation_of(row) for row in {(r["cluster"], r["rule"]): r for r in rows}.values()]


def judgements(observations: Iterable[Observation], config: RulesConfig) -> list[Judgement]:
    """Judge what was observed, by cluster and in the order of the rules; nothing of a rule that is off."""
    observed = {(of.cluster, of.rule): of for of in observations}
    clusters = {of.cluster: of.simulated for of in observed.values()}
    return [
        found
        for cluster in sorted(clusters, key=lambda name: (clusters[name], name))
        for rule in RULES
        if (found := _judged(rule, cluster, observed.get((cluster, rule.reads)), config))
    ]


def _judged(
    rule: Rule, cluster: str, observation: Observation | None, config: RulesConfig
) -> Judgement | None:
    settings = settings_of(rule, cluster, config)
    if observation is None or not settings.enabled:
        return None
    verdict = UNKNOWN
    if observation.onboarded_ratio >= config.onboarded_ratio_min:
        verdict = rule.judge(observation, settings)
    own = rule.name == rule.reads and observation.hi is not None
    known = verdict.condition is not Condition.UNKNOWN and verdict.clears is not None
    return Judgement(
        cluster=cluster,
        simulated=observation.simulated,
        rule=rule.name,
        figures={
            "lo_ratio": observation.lo if own else verdict.figure,
            "hi_ratio": verdict.figure,
            "line_ratio": settings.line,
            "clears_ratio": settings.line + settings.hysteresis_points / 100,
            "coverage_ratio": observation.coverage,
            "deep_breach": float(verdict.deep),
            "breach": _breach(verdict),
            "clears": float(bool(verdict.clears)) if known else None,
        },
    )


def _breach(verdict: Verdict) -> float | None:
    """What nobody waits for is a notice, and no breach that wakes anybody."""
    if verdict.condition is Condition.UNKNOWN:
        return None
    return float(verdict.condition is Condition.BREACH and not verdict.unwanted)


class RuleGauges(Collector):
    """The gauges. Args: judged: of at most as many clusters as have any; incidents: those that hold."""

    def __init__(self, judged: Sequence[Judgement], incidents: Sequence[IncidentState]) -> None:
        self._judged = judged
        self._incidents = incidents

    def collect(self) -> Iterator[Metric]:
        """Yield a family per gauge, with or without a sample."""
        for name, meaning in _GAUGES:
            family = GaugeMetricFamily(f"flopwatch_rule_{name}", meaning, labels=_LABELS)
            for of in self._judged:
                value = of.figures[name]
                if value is not None:
                    family.add_metric([*_place(of), of.rule], value)
            yield family
        state = GaugeMetricFamily(
            "flopwatch_incident_state",
            "1 for the state in which an outage is (pending, firing, standing, clearing), 0 for the others.",
            labels=(*_LABELS, "state"),
        )
        for incident in self._incidents:
            for of_all in OPEN_STATES:
                labels = [*_place(incident), incident.rule, of_all.value]
                state.add_metric(labels, float(incident.state is of_all))
        yield state


def _place(of: Judgement | IncidentState) -> list[str]:
    return [of.cluster, "true" if of.simulated else "false"]
