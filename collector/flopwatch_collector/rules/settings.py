"""Settings of the rules: lines, hold times and hysteresis, with overrides per cluster.

``[rules.allocation]`` changes a rule everywhere, ``[rules.clusters.atlas.allocation]`` for one cluster;
what neither names keeps the default that stands beside the rule in ``registry.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

BASES: Final = ("datasheet", "achievable")
SEVERITIES: Final = ("info", "warning", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings:
    """What one rule works with on one cluster.

    Attributes:
        enabled: whether the rule is judged at all.
        line: the ratio, 0..1, below which the rule breaches; of a rule that counts, the share that is well
            at which it does: 1 for any count.
        for_s: seconds that a breach must hold before it fires.
        clear_s: seconds that the figure must hold above the hysteresis line before it resolves.
        hysteresis_points: points of 100 above the line that clear an outage.
        deep_points: points of 100 below the line that fire at once; None: never.
        deep_s: seconds that a deep deficit must hold.
        escalate_points: fall below the last paged figure, in points of 100, that pages again.
        escalate_relative: the same as a share of the last paged figure; None where points are used.
        escalate_times: for rules that count: this many times as many subjects as were paged page again.
        count_min: for rules that count: subjects that breach.
        severity: of a page: ``info``, ``warning`` or ``critical``; a deep failure is critical in any case.
        cause_s: seconds that a new leading cause must lead before it pages again; None: never.
        basis: ``datasheet`` or ``achievable``: the peak that MFU is a share of.
        workload_classes: classes that the MFU rule counts.
        nodes_min, nodes_ratio_min, window_s: mass silence: this many nodes, or this share of them
            (the larger of both), that fell silent within the window; of a silent node and a stalled job:
            how long it has been so before it counts.
    """

    enabled: bool = True
    line: float
    for_s: float
    clear_s: float = 600.0
    hysteresis_points: float = 0.0
    deep_points: float | None = None
    deep_s: float = 120.0
    escalate_points: float | None = None
    escalate_relative: float | None = None
    escalate_times: float | None = None
    count_min: int = 1
    severity: str = "warning"
    cause_s: float | None = None
    basis: str = "datasheet"
    workload_classes: tuple[str, ...] = ("training",)
    nodes_min: int = 10
    nodes_ratio_min: float = 0.02
    window_s: float = 120.0


class RuleOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of ``[rules.RULE]``: what is left out keeps its default. Fields as in RuleSettings."""

    enabled: bool | None = None
    line: float | None = None
    for_s: float | None = None
    clear_s: float | None = None
    hysteresis_points: float | None = None
    deep_points: float | None = None
    deep_s: float | None = None
    escalate_points: float | None = None
    escalate_relative: float | None = None
    escalate_times: float | None = None
    count_min: int | None = None
    severity: str | None = None
    cause_s: float | None = None
    basis: str | None = None
    workload_classes: tuple[str, ...] | None = None
    nodes_min: int | None = None
    nodes_ratio_min: float | None = None
    window_s: float | None = None


class ClusterRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Overrides for one cluster, one per rule."""

    allocation: RuleOverride = RuleOverride()
    mfu: RuleOverride = RuleOverride()
    coverage: RuleOverride = RuleOverride()
    data_missing: RuleOverride = RuleOverride()
    blind: RuleOverride = RuleOverride()
    node_silent: RuleOverride = RuleOverride()
    card_failed: RuleOverride = RuleOverride()
    throttled: RuleOverride = RuleOverride()
    rogue: RuleOverride = RuleOverride()
    job_stalled: RuleOverride = RuleOverride()
    job_regression: RuleOverride = RuleOverride()
    slow_card: RuleOverride = RuleOverride()
    probe_failed: RuleOverride = RuleOverride()
    agent_unhealthy: RuleOverride = RuleOverride()
    certificate_ending: RuleOverride = RuleOverride()
    collector_unhealthy: RuleOverride = RuleOverride()


class RulesConfig(ClusterRules, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``[rules]``.

    Attributes:
        page_simulated: whether simulated clusters page; their outages are shown either way.
        settle_s: seconds after the collector's start in which nothing fires.
        onboarded_ratio_min: rules leave a cluster alone below this share of its inventory in service.
        clusters: overrides by cluster name.
    """

    page_simulated: bool = False
    settle_s: float = 300.0
    onboarded_ratio_min: float = 0.95
    clusters: dict[str, ClusterRules] = {}
