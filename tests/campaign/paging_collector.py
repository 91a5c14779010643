"""What of a collector decides and sends pages, as a process: lease, watch and desk, wired as `app` does.

What it observes is the plan's; the rest, store, rules, machine, outbox, channels and lease, is the product.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import CollectorRegistry

from campaign import points
from campaign.paging_clock import Clock, run
from campaign.paging_plan import Plan
from flopwatch_collector import watch
from flopwatch_collector.control import engine, leases
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.paging.desk import Desk
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.paging.turn import TRY_SECONDS_MAX, LeaseTurn
from flopwatch_collector.rules import Observation, registry
from flopwatch_collector.rules.settings import RuleOverride, RulesConfig
from flopwatch_collector.shared_metrics import SharedMetrics
from flopwatch_collector.watch import Watch, WatchSettings

FALLBACK: Final = "fallback"
RULES: Final = RulesConfig(
    settle_s=0,
    allocation=RuleOverride(for_s=30, clear_s=60),
)


def paging(urls: dict[str, str]) -> PagingConfig:
    """Return the routes. Args: urls: of PagerDuty, the fallback and both Alertmanagers."""
    return PagingConfig(
        deployment="lab",
        fallback=FALLBACK,
        route=(
            RouteConfig(name="pd", kind="pagerduty", url=urls["pd"], secret_env="KEY"),
            RouteConfig(name="am", kind="alertmanager", url=urls["am0"], peers=(urls["am1"],)),
            # It takes only what others could not deliver.
            RouteConfig(
                name=FALLBACK,
                kind="pagerduty",
                url=urls[FALLBACK],
                secret_env="KEY",
                rules=("none",),
            ),
        ),
    )


def main(home: str, dsn: str, planned: str, urls: str, armed: str) -> None:
    """Watch and send until killed.

    Args:
        planned: what a plan is drawn from, urls: as of `paging`, both as JSON.
        armed: where to die, as of `points.arm`.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    os.environ["KEY"] = "canary-key"
    # The others observe nothing here, and would only take their time.
    rules = tuple(rule for rule in registry.RULES if rule.reads == "allocation")
    setattr(watch, "RULES", rules)  # noqa: B010 - of fewer rules than it stands for
    clock = Clock(Path(home) / "clock")
    # The database's patience with who is frozen in a transaction is of this machine's time.
    patience = "idle_in_transaction_session_timeout"
    options = str(engine.POSTGRESQL["options"]).replace(f"{patience}=10s", f"{patience}=1s")
    engine.POSTGRESQL["options"] = options
    take = leases.take

    def taken(store: ControlStore, name: str, holder: str, ttl_ms: int) -> int | None:
        """Take a lease by the campaign's clock and not by the store's."""
        return take(store, name, holder, ttl_ms, clock.now())

    setattr(leases, "take", taken)  # noqa: B010 - of another type than what it stands for
    points.arm(armed)
    run(clock, _live(clock, dsn, Plan(*json.loads(planned)), paging(json.loads(urls))))


async def _live(clock: Clock, dsn: str, plan: Plan, config: PagingConfig) -> None:
    control = ControlStore.open(dsn)
    metrics = SharedMetrics(CollectorRegistry())
    lease = leases.Lease(control, leases.PAGER, leases.this_collector(), metrics, clock.now)
    watching = Watch(
        _Live(plan, clock),
        control,
        WatchSettings(rules=RULES, paging=config),
        clock.now,
        clock.now(),
        lambda: desk.sender.wake(),
        clock.judged,
    )
    desk = Desk(
        control,
        config,
        os.environ,
        clock=clock.now,
        judged_unix_ms=lambda: watching.counters.judged_unix_ms,
        turn=LeaseTurn(lease),
        try_seconds_max=TRY_SECONDS_MAX,
    )
    await asyncio.gather(lease.run(), lease.while_held(watching.run), desk.run())


class _Live:
    """The plan, to a watch that is seen to work."""

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self.clusters = plan.clusters
        self._plan, self._clock = plan, clock

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        self._clock.works()
        return self._plan.observe(cluster, tick_unix_ms)
