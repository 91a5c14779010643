"""Prometheus text: the collector's own metrics, and the figures of every cluster as gauges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flopwatch_collector.audit.books import Books
from flopwatch_collector.audit.losses import CAUSES, GAP, OTHER, QUARANTINE
from flopwatch_collector.incident_state import IncidentState
from flopwatch_collector.web.rule_gauges import Judgement, RuleGauges

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
CLUSTERS_MAX: Final = 200
"""Beyond these (by name, real ones first) a cluster has no gauges; the API has it all the same."""

_FIGURES: Final[tuple[tuple[str, str, tuple[str, str]], ...]] = (
    ("in_service_cards", "Cards in service, averaged over the window.", ("cards", "in_service")),
    ("allocated_cards", "Cards allocated, averaged over the window.", ("cards", "allocated")),
    ("active_cards", "Cards allocated with work on them.", ("cards", "active")),
    ("unseen_cards", "Cards nobody speaks for and that are not missing yet.", ("cards", "unseen")),
    ("free_demand_cards", "Free cards that a queue waits for.", ("cards", "free_demand")),
    ("free_no_demand_cards", "Free cards that no queue waits for.", ("cards", "free_no_demand")),
    (
        "allocation_ratio",
        "Allocated card-time of card-time in service that is seen.",
        ("allocation", "value"),
    ),
    (
        "allocation_lo_ratio",
        "Allocation if all unseen card-time is not allocated.",
        ("allocation", "lo"),
    ),
    (
        "allocation_hi_ratio",
        "Allocation if all unseen card-time is allocated.",
        ("allocation", "hi"),
    ),
    (
        "allocation_coverage_ratio",
        "Card-time with a row of card-time in service.",
        ("allocation", "coverage"),
    ),
    (
        "active_allocation_ratio",
        "Active card-time of card-time seen.",
        ("active_allocation", "value"),
    ),
    (
        "availability_ratio",
        "Card-time that is neither missing, failed nor in maintenance.",
        ("availability", "value"),
    ),
    (
        "hfu_ratio",
        "What the tensor pipes did, of the datasheet peak of allocated cards.",
        ("hfu", "value"),
    ),
    ("hfu_coverage_ratio", "Allocated capacity that has counters.", ("hfu", "coverage")),
    ("mfu_ratio", "Model FLOPs utilisation where all of it is declared.", ("mfu", "value")),
    ("mfu_lo_ratio", "Lower bound of model FLOPs utilisation.", ("mfu", "lo")),
    ("mfu_hi_ratio", "Upper bound of model FLOPs utilisation.", ("mfu", "hi")),
    (
        "mfu_declared_ratio",
        "Capacity whose model FLOPs are declared.",
        ("mfu", "declared_share"),
    ),
    (
        "mfu_achievable_hi_ratio",
        "Upper bound of model FLOPs utilisation of the measured ceiling.",
        ("mfu_achievable", "hi"),
    ),
    ("yield_ratio", "Allocation times HFU.", ("yield", "value")),
)


class _Figures(Collector):
    def __init__(self, fleet: Mapping[str, Any] | None) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "flopwatch_web_answers",
            "1 where the figures of the clusters could be computed for this scrape.",
            value=0.0 if self._fleet is None else 1.0,
        )
        clusters = [] if self._fleet is None else self._fleet["clusters"][:CLUSTERS_MAX]
        for name, meaning, (group, part) in _FIGURES:
            family = GaugeMetricFamily(
                f"flopwatch_cluster_{name}", meaning, labels=("cluster", "simulated")
            )
            for cluster in clusters:
                value = cluster[group].get(part)
                if value is not None:  # what is unknown has no sample, and is never 0
                    family.add_metric(_labels(cluster), value)
            yield family
        yield from _losses(clusters)


def _losses(clusters: list[dict[str, Any]]) -> Iterator[Metric]:
    lost = GaugeMetricFamily(
        "flopwatch_cluster_step_ratio",
        "Share of card-time in service that a step of the waterfall took.",
        labels=("cluster", "simulated", "step", "owner"),
    )
    firing = GaugeMetricFamily(
        "flopwatch_cluster_outages",
        "Open outages.",
        labels=("cluster", "simulated", "rule", "state"),
    )
    for cluster in clusters:
        for step in cluster["waterfall"]:
            if step["share"] is not None:
                lost.add_metric([*_labels(cluster), step["step"], step["owner"]], step["share"])
        for outage in cluster["outages"]:
            firing.add_metric([*_labels(cluster), outage["rule"], outage["state"]], 1)
    yield lost
    yield firing


_LOST: Final = (
    ("gap_rows", GAP, "rows", "Interval rows that agents declared lost in the last 24 h."),
    (
        "quarantined_rows",
        QUARANTINE,
        "rows",
        "Interval rows of batches set aside in the last 24 h.",
    ),
    ("quarantined_batches", QUARANTINE, "times", "Batches set aside in the last 24 h."),
)


class _Data(Collector):
    """What is lost and whether the audit balances, as it was last looked at; no sample before that."""

    def __init__(self, books: Sequence[Books]) -> None:
        self._books = books[:CLUSTERS_MAX]

    def collect(self) -> Iterator[Metric]:
        for name, kind, part, meaning in _LOST:
            family = GaugeMetricFamily(
                f"flopwatch_cluster_{name}", meaning, labels=("cluster", "simulated", "cause")
            )
            for of in self._books:
                lost = dict.fromkeys((*CAUSES[kind], OTHER), 0)
                lost |= {x.cause: getattr(x, part) for x in of.losses if x.kind == kind}
                for cause, count in lost.items():
                    family.add_metric([*_place(of), cause], count)
            yield family
        yield from self._audit()

    def _audit(self) -> Iterator[Metric]:
        nodes = GaugeMetricFamily(
            "flopwatch_cluster_audited_nodes",
            "Nodes by verdict of the audit: balanced, missing (rows), cloned, unspoken (proves nothing yet).",
            labels=("cluster", "simulated", "verdict"),
        )
        missing = GaugeMetricFamily(
            "flopwatch_cluster_audit_missing_rows",
            "Interval rows of nodes that do not balance that nobody can account for.",
            labels=("cluster", "simulated"),
        )
        when = GaugeMetricFamily(
            "flopwatch_cluster_audit_timestamp_seconds",
            "When the books of a cluster were last looked at; every 5 minutes, while somebody asks.",
            labels=("cluster", "simulated"),
        )
        for of in self._books:
            when.add_metric(_place(of), of.audited_unix_ms / 1000)
            if of.nodes is not None:
                missing.add_metric(_place(of), of.missing_rows)
                for verdict, count in of.nodes.items():
                    nodes.add_metric([*_place(of), verdict], count)
        yield from (nodes, missing, when)


def _place(books: Books) -> list[str]:
    return _labels({"name": books.cluster, "simulated": books.simulated})


def _labels(cluster: Mapping[str, Any]) -> list[str]:
    return [cluster["name"], "true" if cluster["simulated"] else "false"]


def _bounded(
    judged: Sequence[Judgement], incidents: Sequence[IncidentState]
) -> tuple[list[Judgement], list[IncidentState]]:
    named = {(of.simulated, of.cluster) for of in judged}
    named |= {(of.simulated, of.cluster) for of in incidents}
    shown = {cluster for _, cluster in sorted(named)[:CLUSTERS_MAX]}
    return [of for of in judged if of.cluster in shown], [
        of for of in incidents if of.cluster in shown
    ]


def exposition(
    collector_metrics: str | None,
    fleet: Mapping[str, Any] | None,
    books: Sequence[Books] | None = None,
    judged: Sequence[Judgement] = (),
    incidents: Sequence[IncidentState] = (),
) -> str:
    """Return the text of `/metrics`; None for what did not answer."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(fleet))
    registry.register(_Data(books or ()))
    registry.register(RuleGauges(*_bounded(judged, incidents)))
    up = (
        "# HELP flopwatch_web_collector_up 1 where the collector answered this scrape.\n"
        "# TYPE flopwatch_web_collector_up gauge\n"
        f"flopwatch_web_collector_up {0.0 if collector_metrics is None else 1.0}\n"
    )
    return (collector_metrics or "") + up + generate_latest(registry).decode()
