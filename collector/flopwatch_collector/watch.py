"""The watch: every 10 s each cluster is observed, judged, and its incidents moved on.

Per cluster and tick: observations from live state → verdicts → incident states → one transaction with the
states, the observations and the pages. States are read from the store on every tick, never kept: the
store is what a restart and an acknowledgement from another process have in common.

Where several collectors share their stores, one of them watches: the holder of the pager's lease. It brings
its live state up to what the others stored before each tick (`shared.py`), and every write names its fence.

A cluster that cannot be evaluated stops no other one, and its holds do not run on (``incident.advance``
takes time without an evaluation for unknown time).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec
import structlog

from flopwatch_collector import incident
from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.observations import Judged
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import Action, IncidentState, State
from flopwatch_collector.inhibition import said_by
from flopwatch_collector.paging import page
from flopwatch_collector.paging.background import NOTHING, Backgrounds
from flopwatch_collector.paging.settings import PagingConfig
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import RULES, Rule, settings_of
from flopwatch_collector.rules.settings import RulesConfig, RuleSettings
from flopwatch_collector.rules.verdict import UNKNOWN, Verdict
from flopwatch_proto.errors import FlopwatchError

TICK_MS: Final = 10_000
# Rows arrive at most this long after their interval: agents spread their batches over it.
ARRIVAL_MS: Final = 11_000
STALE_MS: Final = 15 * 60_000
PRUNE_EVERY_MS: Final = 60 * 60_000

log = structlog.get_logger()


class Live(Protocol):
    """What the watch needs of live state."""

    def clusters(self) -> Sequence[str]:
        """Clusters that are known now."""

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        """Observations of a cluster at a tick, one per rule that reads."""


class WatchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the watch works with. Attributes: the sections of the configuration."""

    rules: RulesConfig = RulesConfig()
    paging: PagingConfig = PagingConfig()


@dataclass(slots=True)
class WatchCounters:
    """What happened since the start. Attributes: judged_unix_ms: when a cluster was last evaluated, or
    none was there to be."""

    judged_unix_ms: int = 0
    ticks: int = 0
    evaluated: int = 0
    failed: int = 0
    pages: int = 0


@dataclass(slots=True)
class _Outcome:
    """What one cluster's tick leads to."""

    states: list[IncidentState]
    pages: list[OutboxRow]
    judged: list[Judged]


class Watch:
    """Evaluates every rule of every cluster.

    Args:
        live: where observations come from.
        control: where states live and pages are put.
        settings: rules and paging.
        clock: Unix ms now.
        started_unix_ms: when the collector started: nothing fires for ``settle_s`` after it.
        on_pages: called on the event loop when pages were stored, for the sender to wake.
        catch_up: brings live state up to a moment, before each tick; None: it is so anyway.
        backgrounds: finds what pages tell beside the incident; None: they tell what it kept.
    """

    def __init__(
        self,
        live: Live,
        control: ControlStore,
        settings: WatchSettings,
        clock: Callable[[], int],
        started_unix_ms: int,
        on_pages: Callable[[], None] | None = None,
        catch_up: Callable[[int], None] | None = None,
        backgrounds: Backgrounds | None = None,
    ) -> None:
        self.counters = WatchCounters()
        self._live = live
        self._control = control
        self._settings = settings
        self._clock = clock
        self._started_unix_ms = started_unix_ms
        self._on_pages = on_pages
        self._catch_up = catch_up
        self._backgrounds = backgrounds
        self._fence: int | None = None
        self._tick_unix_ms = 0
        self._resumed: set[tuple[str, str]] = set()
        self._failing: set[str] = set()
        self._baselines: dict[tuple[str, str], float | None] = {}
        self._pruned_unix_ms = 0

    async def run(self, fence: int = 0) -> None:
        """Tick for ever, a little after each boundary, in a thread; ends when cancelled.

        Args:
            fence: of the pager's lease; 0: there is none.
        """
        self._fence = fence or None
        # While somebody else had the lease it moved the states on: take up what it left.
        self._resumed.clear()
        aside = Aside("watch")
        try:
            while True:
                pages = self.counters.pages
                await aside(self.tick, self._clock())
                if self.counters.pages > pages and self._on_pages is not None:
                    self._on_pages()
                due_unix_ms = self._tick_unix_ms + TICK_MS + ARRIVAL_MS
                await asyncio.sleep(max(50, due_unix_ms - self._clock()) / 1000)
        finally:
            await aside.end()

    def tick(self, now_unix_ms: int) -> None:
        """Evaluate the newest boundary that is due; one that was evaluated is not again."""
        tick_unix_ms = (now_unix_ms - ARRIVAL_MS) // TICK_MS * TICK_MS
        if tick_unix_ms <= self._tick_unix_ms:
            return
        self._tick_unix_ms = tick_unix_ms
        self.counters.ticks += 1
        try:
            if self._catch_up is not None:
                self._catch_up(now_unix_ms)
            stored = self._control.incidents()
            clusters = sorted({*self._live.clusters(), *(state.cluster for state in stored)})
        except Exception as exc:
            # A shell: the next tick tries again, and holds do not run on until one succeeds.
            self.counters.failed += 1
            log.warning("watch_failed", reason=str(exc))
            return
        failed = self.counters.failed
        for cluster in clusters:
            states = {state.rule: state for state in stored if state.cluster == cluster}
            self._guarded(cluster, states, now_unix_ms)
        if self.counters.failed - failed < max(1, len(clusters)):
            self.counters.judged_unix_ms = now_unix_ms
        self._prune(now_unix_ms)

    def _guarded(self, cluster: str, states: Mapping[str, IncidentState], now_unix_ms: int) -> None:
        try:
            self._evaluate(cluster, states, now_unix_ms)
        except Exception as exc:
            # A shell: one cluster's fault must not stop the others' pages.
            self.counters.failed += 1
            if cluster not in self._failing:
                self._failing.add(cluster)
                log.exception("watch_failed", cluster=cluster, reason=str(exc))
        else:
            self.counters.evaluated += 1
            if cluster in self._failing:
                self._failing.discard(cluster)
                log.info("watch_recovered", cluster=cluster)

    def _evaluate(
        self, cluster: str, states: Mapping[str, IncidentState], now_unix_ms: int
    ) -> None:
        observed = {
            observation.rule: observation
            for observation in self._live.observe(cluster, self._tick_unix_ms)
            if observation.device_kind != "cpu"
        }
        current = dict(states)
        outcome = _Outcome(states=[], pages=[], judged=[])
        for rule in RULES:
            self._judge(rule, cluster, observed, current, now_unix_ms, outcome)
        if not (outcome.states or outcome.judged):
            return
        self._control.save(
            states=outcome.states,
            pages=outcome.pages,
            observations=outcome.judged,
            fence=self._fence,
        )
        # Only what is on disk has been resumed: after a failed write the next tick does it again.
        self._resumed.update((state.rule, cluster) for state in outcome.states)
        self.counters.pages += len(outcome.pages)

    def _judge(
        self,
        rule: Rule,
        cluster: str,
        observed: Mapping[str, Observation],
        current: dict[str, IncidentState],
        now_unix_ms: int,
        outcome: _Outcome,
    ) -> None:
        settings = settings_of(rule, cluster, self._settings.rules)
        before = current.get(rule.name)
        if before is None:
            before = IncidentState(rule=rule.name, cluster=cluster)
        observation = observed.get(rule.reads)
        if observation is not None and self._usable(observation, now_unix_ms):
            verdict = rule.judge(observation, settings) if settings.enabled else UNKNOWN
            if rule.name == rule.reads:
                outcome.judged.append(
                    Judged(observation=observation, condition=verdict.condition.value)
                )
        else:
            observation, verdict = None, UNKNOWN
        said = said_by(rule, current)
        state, actions = incident.advance(
            self._resume(before),
            verdict,
            observation,
            self._tick_unix_ms,
            settings,
            baseline=self._baseline(before),
            may_fire=not said and self._may_fire(now_unix_ms),
        )
        state = replace(state, said_by=said if state.state is State.PENDING else "")
        if before.state is State.INACTIVE and state.state is State.INACTIVE and not actions:
            return
        current[rule.name] = state
        outcome.states.append(state)
        others = [other for name, other in current.items() if name != rule.name]
        outcome.pages.extend(self._pages(state, actions, others, observation, settings))
        self._log(before, state, verdict, actions)

    def _usable(self, observation: Observation, now_unix_ms: int) -> bool:
        """Whether rules may look: the cluster is on board and the observation is of the present."""
        on_board = observation.onboarded_ratio >= self._settings.rules.onboarded_ratio_min
        return on_board and now_unix_ms - observation.tick_unix_ms < STALE_MS

    def _resume(self, state: IncidentState) -> IncidentState:
        """A state at the first tick after a start takes up where it was left."""
        if not state.version or (state.rule, state.cluster) in self._resumed:
            return state
        return incident.resume(state, self._tick_unix_ms)

    def _baseline(self, state: IncidentState) -> float | None:
        # Seven days of ticks are read only for an outage that stands, and once a minute.
        key = state.rule, state.cluster
        if state.state is not State.STANDING:
            self._baselines.pop(key, None)
            return None
        if key not in self._baselines or self._tick_unix_ms % incident.MINUTE_MS == 0:
            self._baselines[key] = self._control.baseline(*key, self._tick_unix_ms)
        return self._baselines[key]

    def _may_fire(self, now_unix_ms: int) -> bool:
        return now_unix_ms - self._started_unix_ms >= self._settings.rules.settle_s * 1000

    def _pages(
        self,
        state: IncidentState,
        actions: Sequence[Action],
        others: Sequence[IncidentState],
        observation: Observation | None,
        settings: RuleSettings,
    ) -> list[OutboxRow]:
        if not actions or (state.simulated and not self._settings.rules.page_simulated):
            return []
        tick, paging = self._tick_unix_ms, self._settings.paging
        background = NOTHING
        if self._backgrounds is not None:
            background = self._backgrounds.of(state, actions, observation, settings, tick)
        return page.rows(state, actions, tick, paging, others, background)

    def _log(
        self,
        before: IncidentState,
        state: IncidentState,
        verdict: Verdict,
        actions: Sequence[Action],
    ) -> None:
        if before.state is state.state and not actions:
            return
        log.info(
            "incident",
            rule=state.rule,
            cluster=state.cluster,
            state=state.state.value,
            was=before.state.value,
            episode=state.episode,
            figure=verdict.figure,
            actions=[f"{action.act.value}:{action.reason}" for action in actions],
        )

    def _prune(self, now_unix_ms: int) -> None:
        if now_unix_ms - self._pruned_unix_ms < PRUNE_EVERY_MS:
            return
        self._pruned_unix_ms = now_unix_ms
        try:
            self._control.prune(now_unix_ms)
        except FlopwatchError as exc:
            log.warning("control_prune_failed", reason=str(exc))
