"""RULES: every rule with its defaults, in the order in which they are judged.

``blind`` comes first: a mass silence holds the pages of what it would only repeat. So does any rule that
another one's ``said_by`` names: it stands before it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Final

from flopwatch_collector.rules import (
    Observation,
    agent_unhealthy,
    allocation,
    blind,
    card_failed,
    certificate_ending,
    collector_unhealthy,
    coverage,
    data_missing,
    job_regression,
    job_stalled,
    mfu,
    node_silent,
    probe_failed,
    rogue,
    slow_card,
    throttled,
)
from flopwatch_collector.rules.settings import (
    BASES,
    SEVERITIES,
    RuleOverride,
    RulesConfig,
    RuleSettings,
)
from flopwatch_collector.rules.verdict import Verdict
from flopwatch_proto.errors import UsageError

Judge = Callable[[Observation, RuleSettings], Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidBy:
    """A rule whose page says already what another's would.

    Attributes:
        rule: its name.
        causes: leading causes (buckets, steps) with which it does; empty: with any.
    """

    rule: str
    causes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of the listing.

    Attributes:
        name: as in configuration, API and pages.
        short: as on a lock screen.
        owner: who can act where no loss tells: as in the waterfall; empty: nobody in particular.
        reads: the observation it judges: ``allocation``, ``mfu``, or its own where it counts.
        judge: the verdict, pure.
        says: the figure on a page where it is no ratio; None: it is one.
        said_by: rules that it waits for, to whose pages its own would add nothing.
        defaults: what it works with where nothing is configured.
    """

    name: str
    short: str
    reads: str
    judge: Judge
    owner: str = ""
    says: Callable[[Observation], str] | None = None
    said_by: tuple[SaidBy, ...] = ()
    defaults: RuleSettings


_BLIND: Final = (SaidBy(rule="blind"), SaidBy(rule="data_missing"))
_ANY: Final = 1.0
"""Line of rules that count: any share of the whole is one too many."""


RULES: Final = (
    Rule(
        name="blind",
        short="blind",
        reads="allocation",
        judge=blind.judge,
        defaults=RuleSettings(line=0.98, for_s=0, clear_s=120),
    ),
    Rule(
        name="allocation",
        short="alloc",
        reads="allocation",
        judge=allocation.judge,
        defaults=RuleSettings(
            line=0.96,
            for_s=300,
            hysteresis_points=1,
            deep_points=20,
            escalate_points=5,
            cause_s=120,
        ),
    ),
    Rule(
        name="data_missing",
        short="data",
        reads="allocation",
        judge=data_missing.judge,
        said_by=(SaidBy(rule="blind"),),
        defaults=RuleSettings(line=0.96, for_s=300, clear_s=300),
    ),
    Rule(
        name="mfu",
        short="MFU",
        reads="mfu",
        judge=mfu.judge,
        defaults=RuleSettings(
            line=0.60,
            for_s=900,
            hysteresis_points=2,
            deep_points=None,  # most real fleets run below 40 %: that is standing, not a sudden fall
            escalate_relative=0.25,
            cause_s=120,
        ),
    ),
    Rule(
        name="coverage",
        short="coverage",
        reads="mfu",
        judge=coverage.judge,
        said_by=_BLIND,
        defaults=RuleSettings(line=0.90, for_s=600, hysteresis_points=2),
    ),
    Rule(
        name="node_silent",
        short="silent",
        reads="node_silent",
        owner="hardware",
        judge=node_silent.judge,
        says=node_silent.says,
        said_by=(*_BLIND, SaidBy(rule="allocation", causes=frozenset({"MISSING", "FAILED"}))),
        defaults=RuleSettings(line=_ANY, for_s=60, clear_s=300, window_s=600, escalate_times=2),
    ),
    Rule(
        name="card_failed",
        short="failed",
        reads="card_failed",
        owner="hardware",
        judge=card_failed.judge,
        says=card_failed.says,
        said_by=(SaidBy(rule="allocation", causes=frozenset({"FAILED"})),),
        defaults=RuleSettings(line=_ANY, for_s=300, escalate_times=2),
    ),
    Rule(
        name="throttled",
        short="throttled",
        reads="throttled",
        owner="facility",
        judge=throttled.judge,
        says=throttled.says,
        said_by=(SaidBy(rule="mfu", causes=frozenset({"clock"})),),
        defaults=RuleSettings(
            line=0.90, for_s=600, hysteresis_points=2, count_min=8, escalate_times=2
        ),
    ),
    Rule(
        name="rogue",
        short="rogue",
        reads="rogue",
        owner="workload",
        judge=rogue.judge,
        says=rogue.says,
        defaults=RuleSettings(line=_ANY, for_s=600, severity="info"),
    ),
    Rule(
        name="job_stalled",
        short="stalled",
        reads="job_stalled",
        owner="workload",
        judge=job_stalled.judge,
        says=job_stalled.says,
        said_by=(SaidBy(rule="mfu", causes=frozenset({"sm_idle", "no_process"})),),
        defaults=RuleSettings(line=_ANY, for_s=0, clear_s=120, window_s=600, escalate_times=2),
    ),
    Rule(
        name="job_regression",
        short="regressed",
        reads="job_regression",
        owner="workload",
        judge=job_regression.judge,
        says=job_regression.says,
        said_by=(SaidBy(rule="mfu"), SaidBy(rule="job_stalled")),
        defaults=RuleSettings(line=_ANY, for_s=600, clear_s=1800, escalate_times=2),
    ),
    Rule(
        name="slow_card",
        short="slow",
        reads="slow_card",
        owner="hardware",
        judge=slow_card.judge,
        says=slow_card.says,
        defaults=RuleSettings(line=_ANY, for_s=600, clear_s=1800, escalate_times=2),
    ),
    Rule(
        name="probe_failed",
        short="probe",
        reads="probe_failed",
        owner="hardware",
        judge=probe_failed.judge,
        says=probe_failed.says,
        defaults=RuleSettings(line=_ANY, for_s=0, escalate_times=2),
    ),
    Rule(
        name="agent_unhealthy",
        short="unwell",
        reads="agent_unhealthy",
        owner="facility",
        judge=agent_unhealthy.judge,
        says=agent_unhealthy.says,
        said_by=_BLIND,
        defaults=RuleSettings(line=_ANY, for_s=900, count_min=3, escalate_times=2),
    ),
    Rule(
        name="certificate_ending",
        short="ending",
        reads="certificate_ending",
        owner="facility",
        judge=certificate_ending.judge,
        says=certificate_ending.says,
        defaults=RuleSettings(line=_ANY, for_s=3600, escalate_times=2),
    ),
    Rule(
        name="collector_unhealthy",
        short="collector",
        reads="collector_unhealthy",
        owner="facility",
        judge=collector_unhealthy.judge,
        says=collector_unhealthy.says,
        defaults=RuleSettings(line=_ANY, for_s=600),
    ),
)

RULE_NAMES: Final = tuple(rule.name for rule in RULES)


def rule_named(name: str) -> Rule:
    """The rule of that name. Raises: UsageError naming the nearest known one."""
    for rule in RULES:
        if rule.name == name:
            return rule
    nearest = difflib.get_close_matches(name, RULE_NAMES, n=1, cutoff=0.0)[0]
    raise UsageError(f"rule {name!r} is unknown; the nearest known one is {nearest!r}")


def by_default(cluster: str, rule: str) -> RuleSettings:
    """What a rule works with on a cluster where nothing is configured."""
    return rule_named(rule).defaults


def settings_of(rule: Rule, cluster: str, config: RulesConfig) -> RuleSettings:
    """What a rule works with on a cluster: defaults, then ``[rules.RULE]``, then the cluster's own."""
    settings = _merged(rule.defaults, getattr(config, rule.name))
    if rule.name == "data_missing":
        # It asks whether allocation can be judged, so it must ask at allocation's line.
        settings = replace(
            settings, line=settings_of(rule_named("allocation"), cluster, config).line
        )
    if cluster in config.clusters:
        settings = _merged(settings, getattr(config.clusters[cluster], rule.name))
    return settings


def _merged(settings: RuleSettings, override: RuleOverride) -> RuleSettings:
    changes = {
        field.name: getattr(override, field.name)
        for field in fields(settings)
        if getattr(override, field.name) is not None
    }
    return replace(settings, **changes)


def validate(config: RulesConfig) -> None:
    """Check every rule on every configured cluster. Raises: UsageError naming the key and the fix."""
    if config.settle_s < 0:
        raise UsageError("rules.settle_s must be 0 or more seconds")
    if not 0 <= config.onboarded_ratio_min <= 1:
        raise UsageError("rules.onboarded_ratio_min must be a ratio from 0 to 1")
    for cluster in ("", *config.clusters):
        for rule in RULES:
            prefix = f"rules.clusters.{cluster}" if cluster else "rules"
            _validate_one(settings_of(rule, cluster, config), f"{prefix}.{rule.name}")


def _validate_one(settings: RuleSettings, key: str) -> None:
    if not 0 < settings.line <= 1:
        raise UsageError(f"{key}.line must be a ratio above 0 and up to 1: write 0.96 for 96 %")
    if settings.line + settings.hysteresis_points / 100 > 1:
        raise UsageError(
            f"{key}.hysteresis_points lifts the clearing line above 1: nothing could clear"
        )
    for name in ("for_s", "clear_s", "deep_s", "cause_s", "window_s", "hysteresis_points"):
        if (getattr(settings, name) or 0) < 0:
            raise UsageError(f"{key}.{name} must be 0 or more")
    for name in (
        "deep_points",
        "escalate_points",
        "escalate_relative",
        "escalate_times",
        "count_min",
    ):
        if (value := getattr(settings, name)) is not None and value <= 0:
            raise UsageError(f"{key}.{name} must be more than 0")
    if settings.severity not in SEVERITIES:
        known = ", ".join(SEVERITIES)
        raise UsageError(f"{key}.severity is {settings.severity!r}; known are {known}")
    if settings.basis not in BASES:
        raise UsageError(f"{key}.basis is {settings.basis!r}; known are {', '.join(BASES)}")
