"""Player: one cluster's moments, judged by one set of rules, through the machine that pages. Pure.

It repeats what ``watch.Watch`` does at a tick, without a store. Two short cuts change nothing: a rule that is
inactive and not in breach is left as it is, and the medians that standing outages are held against are kept
up to date instead of asked for.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Final

from flopwatch_collector import incident
from flopwatch_collector.incident_state import TOLD, Act, Action, IncidentState, State
from flopwatch_collector.inhibition import said_by
from flopwatch_collector.replay import Moment, Outage, Page
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import RULES, Rule, settings_of
from flopwatch_collector.rules.settings import RulesConfig, RuleSettings
from flopwatch_collector.rules.verdict import UNKNOWN, Condition, Verdict

BASELINE_MS: Final = 7 * 24 * incident.HOUR_MS


class RunningMedian:
    """The median of the figures of the last seven days."""

    def __init__(self) -> None:
        self._figures: deque[tuple[int, float]] = deque()
        self._sorted: list[float] = []

    def add(self, unix_ms: int, figure: float) -> None:
        """Take up a figure; moments never go back."""
        self._figures.append((unix_ms, figure))
        insort(self._sorted, figure)

    def at(self, unix_ms: int) -> float | None:
        """The median at a moment; None where there is nothing."""
        while self._figures and self._figures[0][0] < unix_ms - BASELINE_MS:
            del self._sorted[bisect_left(self._sorted, self._figures.popleft()[1])]
        count = len(self._sorted)
        if not count:
            return None
        return (self._sorted[(count - 1) // 2] + self._sorted[count // 2]) / 2


@dataclass(slots=True)
class Track:
    """One rule on its way. Attributes: unknown_ms: time in which it could not judge; outage: the one that
    holds; outages: those that ended; usual: the median as it was read last."""

    rule: Rule
    settings: RuleSettings
    state: IncidentState
    last_unix_ms: int = 0
    unknown_ms: int = 0
    outage: Outage | None = None
    outages: list[Outage] = field(default_factory=list)
    baseline: RunningMedian = field(default_factory=RunningMedian)
    usual: float | None = None
    usual_unix_ms: int = 0


class Player:
    """Judges one cluster's moments. Attributes: cluster; verdicts: by rule, of the newest moment."""

    def __init__(self, cluster: str, config: RulesConfig) -> None:
        self.cluster = cluster
        self.verdicts: dict[str, Verdict] = {}
        self._config = config
        self._silent_until_unix_ms = 0
        self._tracks = {
            rule.name: Track(
                rule=rule,
                settings=settings_of(rule, cluster, config),
                state=IncidentState(rule=rule.name, cluster=cluster),
            )
            for rule in RULES
        }

    @property
    def outages(self) -> list[Outage]:
        """Every outage so far, oldest first; those that hold have no end."""
        found = [
            outage
            for track in self._tracks.values()
            for outage in (*track.outages, track.outage)
            if outage is not None
        ]
        return sorted(found, key=lambda outage: (outage.began_unix_ms, outage.rule))

    def settings(self, rule: str) -> RuleSettings:
        """What a rule works with."""
        return self._tracks[rule].settings

    def unknown_ms(self, rule: str) -> int:
        """How long a rule could not judge though somebody looked."""
        return self._tracks[rule].unknown_ms

    def play(self, moment: Moment) -> None:
        """Judge one moment; it is newer than every one before."""
        if moment.restarted:
            settle_ms = int(self._config.settle_s * 1000)
            self._silent_until_unix_ms = moment.tick_unix_ms + settle_ms
        for track in self._tracks.values():
            observation = moment.observed.get(track.rule.reads)
            usable = observation is not None and (
                observation.onboarded_ratio >= self._config.onboarded_ratio_min
            )
            verdict = UNKNOWN
            if observation is not None and usable and track.settings.enabled:
                verdict = track.rule.judge(observation, track.settings)
            self.verdicts[track.rule.name] = verdict
            self._move(track, verdict, observation if usable else None, moment)
            track.last_unix_ms = moment.tick_unix_ms

    def _move(
        self, track: Track, verdict: Verdict, observation: Observation | None, moment: Moment
    ) -> None:
        known = verdict.condition is not Condition.UNKNOWN
        if not known and track.settings.enabled:
            track.unknown_ms += moment.step_ms
        state = track.state
        idle = state.state is State.INACTIVE and state.resolved_unix_ms is None
        if not idle or verdict.condition is Condition.BREACH:
            if moment.restarted and track.last_unix_ms:
                state = incident.resume(_awaited(state, track, moment), moment.tick_unix_ms)
            elif known:
                state = _in_steps(state, verdict, track, moment)
            state, actions = incident.advance(
                state,
                verdict,
                observation,
                moment.tick_unix_ms,
                track.settings,
                baseline=self._baseline(track, moment),
                may_fire=self._may_fire(track.rule, moment.tick_unix_ms),
            )
            track.state = state
            _note(track, actions, verdict, moment.tick_unix_ms)
        if moment.tick_unix_ms % incident.MINUTE_MS or track.rule.name != track.rule.reads:
            return
        if known and observation is not None and observation.hi is not None:
            track.baseline.add(moment.tick_unix_ms, observation.hi)

    def _baseline(self, track: Track, moment: Moment) -> float | None:
        """The week's median as the watch reads it: once a minute, and when an outage comes to stand."""
        if track.state.state is not State.STANDING:
            track.usual_unix_ms = 0
            return None
        if not track.usual_unix_ms or moment.tick_unix_ms % incident.MINUTE_MS == 0:
            track.usual_unix_ms = moment.tick_unix_ms
            track.usual = track.baseline.at(moment.tick_unix_ms)
        return track.usual

    def _may_fire(self, rule: Rule, tick_unix_ms: int) -> bool:
        if tick_unix_ms < self._silent_until_unix_ms:
            return False
        return not said_by(rule, {name: track.state for name, track in self._tracks.items()})


def _awaited(state: IncidentState, track: Track, moment: Moment) -> IncidentState:
    """The state as if its last tick had been worth one of the machine's own steps."""
    last_unix_ms = track.last_unix_ms + moment.step_ms - incident.STEP_MS
    return replace(state, last_eval_unix_ms=last_unix_ms)


def _in_steps(
    state: IncidentState, verdict: Verdict, track: Track, moment: Moment
) -> IncidentState:
    """The state, told that ticks lie a minute apart: what lies between two of them was not unknown.

    The machine takes more than two of its own steps without a tick for time that nobody judged.
    """
    passed_ms = moment.tick_unix_ms - track.last_unix_ms
    if moment.step_ms == incident.STEP_MS or passed_ms > 2 * moment.step_ms:
        return state
    state = replace(state, last_eval_unix_ms=moment.tick_unix_ms - incident.STEP_MS)
    if verdict.clears is None and state.clear_since_unix_ms is not None:
        # The hold waits for the whole minute, of which the machine counts one step by itself.
        waits_ms = passed_ms - incident.STEP_MS
        state = replace(state, clear_since_unix_ms=state.clear_since_unix_ms + waits_ms)
    return state


def _note(track: Track, actions: tuple[Action, ...], verdict: Verdict, tick_unix_ms: int) -> None:
    """Write down what the machine did: begin, tell, end an outage."""
    state, figure = track.state, verdict.figure
    told = tuple(
        Page(unix_ms=tick_unix_ms, act=action.act.value, reason=action.reason, figure=figure)
        for action in actions
        if action.act is not Act.RESOLVE
    )
    fired = state.state in TOLD
    if track.outage is None:
        if not (fired or told) or state.began_unix_ms is None:
            return
        track.outage = Outage(
            rule=state.rule,
            cluster=state.cluster,
            episode=state.episode,
            began_unix_ms=state.began_unix_ms,
            severity=state.severity,
            line=track.settings.line,
            worst=figure,
        )
    outage = track.outage
    if figure is not None and (outage.worst is None or figure < outage.worst):
        outage = replace(outage, worst=figure)
    if told or (fired and outage.fired_unix_ms is None):
        stands = outage.standing_unix_ms is None and any(p.reason == "standing" for p in told)
        outage = replace(
            outage,
            fired_unix_ms=tick_unix_ms
            if outage.fired_unix_ms is None and fired
            else outage.fired_unix_ms,
            severity=state.severity,
            standing_unix_ms=tick_unix_ms if stands else outage.standing_unix_ms,
            told=outage.told + told,
        )
    if fired or state.state is State.PENDING:
        track.outage = outage
        return
    track.outages.append(replace(outage, ended_unix_ms=tick_unix_ms))
    track.outage = None


def observed_names() -> tuple[str, ...]:
    """The observations that some rule reads, in the order of the rules."""
    return tuple(dict.fromkeys(rule.reads for rule in RULES))
