"""Incidents: what verdicts over time amount to. A table-driven state machine per rule and cluster; pure.

``advance`` finds the events that one tick's verdict means, follows ``incident_state.TRANSITIONS`` and
returns the new state with the actions that must be sent for it.

Invariants:

- UNKNOWN moves no state and stops every timer: the time it lasts is added to the moments that holds are
  counted from. So is time that nobody evaluated. An outage never resolves on missing data.
- One episode has one ``trigger``, or none where nobody waits for the cards: then a notice says so, and what
  comes to lead later pages as an ``escalate``. An episode that never paged has no ``resolve``. Its
  name is the UTC minute of the first breach, so a late ``resolve`` can never close a newer outage.
- A ``resolve`` is repeated every 5 minutes for 15 minutes, whatever the rule sees next. A breach within
  these 15 minutes starts a new episode at once: it would be found 15 minutes late otherwise.
- Pages repeat only for news: ``escalate`` when the judged figure fell well below the last paged one, a new
  leading cause has led for ``cause_s`` and was not paged in this episode, or the severity rose.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from flopwatch_collector import closure
from flopwatch_collector.incident_state import (
    HOLDS,
    TRANSITIONS,
    Act,
    Action,
    Event,
    IncidentState,
    State,
    minute_ms,
    minute_of,
)
from flopwatch_collector.news import (
    NO_DEMAND,
    Tick,
    cause_at,
    deep_held,
    held,
    news,
    worse_than_usual,
)
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RuleSettings
from flopwatch_collector.rules.verdict import Condition, Verdict

STEP_MS: Final = 10_000
# With holds of zero a tick may open, fire, clear and resolve; there is no longer way through the table.
EVENTS_PER_TICK_MAX: Final = 4
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
RESOLVED_MS: Final = 15 * MINUTE_MS
RESOLVE_REPEAT_MS: Final = 5 * MINUTE_MS
FLAPS_MIN: Final = 4
FLAP_WINDOW_MS: Final = HOUR_MS
FLAPPING_CLEAR_MS: Final = HOUR_MS
STANDING_MS: Final = 24 * HOUR_MS
DOWNTIME_MS_MAX: Final = HOUR_MS
# What outlives an episode: the figures, and a resolve that is still repeated.
KEPT: Final = (
    *("closed_by", "closed_unix_ms", "closed_value"),
    *("simulated", "last_eval_unix_ms", "lo", "hi", "value", "coverage", "line"),
    *("lost_points", "causes", "leading_cause", "subjects"),
    *("resolved_episode", "resolved_unix_ms", "resolve_repeat_no"),
    "version",
)


def advance(
    state: IncidentState,
    verdict: Verdict,
    observation: Observation | None,
    now_unix_ms: int,
    settings: RuleSettings,
    *,
    baseline: float | None = None,
    may_fire: bool = True,
) -> tuple[IncidentState, tuple[Action, ...]]:
    """The state after one tick, and what to send for it.

    Args:
        state: before; a tick not newer than its last changes nothing.
        verdict: the rule's word on ``observation``.
        observation: figures to keep with the state; None where nothing was observed.
        now_unix_ms: the tick, a multiple of the interval.
        settings: of the rule on this cluster.
        baseline: 7-day median of the judged figure, for standing outages.
        may_fire: False: neither fires nor escalates now.
    """
    if now_unix_ms <= state.last_eval_unix_ms:
        return state, ()
    tick = Tick(
        verdict=verdict,
        unix_ms=now_unix_ms,
        settings=settings,
        baseline=baseline,
        before=state.hi,
        may_fire=may_fire,
    )
    state = _frozen(state, tick)
    actions: list[Action] = []
    if verdict.condition is not Condition.UNKNOWN:
        state = _timed(_with_figures(state, observation, tick), tick)
        state = _notice_no_demand(state, tick, actions)
    for _ in range(EVENTS_PER_TICK_MAX):
        event = _event(state, tick)
        if event is None:
            break
        state = _follow(state, event, tick, actions)
    return _repeat_resolve(state, now_unix_ms, actions), tuple(actions)


def _frozen(state: IncidentState, tick: Tick) -> IncidentState:
    """The state at a tick, with every hold moved by the time that says nothing."""
    step_ms = tick.unix_ms - state.last_eval_unix_ms if state.last_eval_unix_ms else 0
    if tick.verdict.condition is Condition.UNKNOWN:
        silent_ms = step_ms
    else:
        # A late tick is no gap; from two steps on, the time between was not evaluated.
        silent_ms = step_ms - STEP_MS if step_ms > 2 * STEP_MS else 0
    state = replace(_shifted(state, silent_ms), last_eval_unix_ms=tick.unix_ms)
    if tick.verdict.clears is None and state.clear_since_unix_ms is not None:
        # Above the line, yet unseen cards leave the hysteresis line open: the hold waits.
        known_ms = step_ms - silent_ms
        state = replace(state, clear_since_unix_ms=state.clear_since_unix_ms + known_ms)
    return state


def _shifted(state: IncidentState, by_ms: int) -> IncidentState:
    if by_ms <= 0:
        return state
    moved = {name: moment + by_ms for name in HOLDS if (moment := getattr(state, name)) is not None}
    return replace(state, **moved)


def _with_figures(
    state: IncidentState, observation: Observation | None, tick: Tick
) -> IncidentState:
    if observation is None:
        return state
    # A rule that reads another rule's observation judges a figure of its own.
    own = observation.rule == state.rule
    return replace(
        state,
        simulated=observation.simulated,
        lo=observation.lo if own else tick.verdict.figure,
        hi=observation.hi if own else tick.verdict.figure,
        value=observation.value if own else tick.verdict.figure,
        coverage=observation.coverage,
        line=tick.settings.line,
        lost_points=dict(observation.lost_points),
        causes=observation.causes,
        leading_cause=cause_at(observation.lost_points, tick.verdict),
        subjects=tick.verdict.subjects,
    )


def _timed(state: IncidentState, tick: Tick) -> IncidentState:
    """Start or stop the holds of deep deficits and of a new leading cause."""
    cause = state.leading_cause
    breach = tick.verdict.condition is Condition.BREACH
    known = not breach or not cause or cause in state.paged_causes
    candidate = "" if known else cause
    since = state.cause_since_unix_ms if candidate == state.cause_candidate else tick.unix_ms
    return replace(
        state,
        deep_since_unix_ms=_running(tick.verdict.deep, state.deep_since_unix_ms, tick),
        no_demand_since_unix_ms=_running(
            tick.verdict.no_demand, state.no_demand_since_unix_ms, tick
        ),
        cause_candidate=candidate,
        cause_since_unix_ms=since if candidate else None,
    )


def _running(holds: bool, since_unix_ms: int | None, tick: Tick) -> int | None:
    if not holds:
        return None
    return tick.unix_ms if since_unix_ms is None else since_unix_ms


def _event(state: IncidentState, tick: Tick) -> Event | None:
    """The next row of the table that applies, None when the tick has no more to say."""
    if state.state is State.RESOLVED and held(state.resolved_unix_ms, RESOLVED_MS, tick):
        return Event.EXPIRED
    verdict = tick.verdict
    if verdict.condition is Condition.UNKNOWN:
        return None
    breach = verdict.condition is Condition.BREACH
    match state.state:
        case State.INACTIVE | State.RESOLVED:
            return Event.BREACH if breach else None
        case State.PENDING:
            return _event_when_pending(state, tick) if breach else Event.OK
        case State.FIRING | State.STANDING if verdict.clears and not breach:
            return Event.CLEARS
        case State.FIRING:
            return _event_when_firing(state, tick) if breach else None
        case State.STANDING:
            usual = breach and tick.may_fire and worse_than_usual(state, tick)
            return Event.WORSE_THAN_USUAL if usual else None
        case State.CLEARING:
            if breach or verdict.clears is False:
                return Event.RELAPSE
            clear_ms = FLAPPING_CLEAR_MS if state.flapping else int(tick.settings.clear_s * 1000)
            cleared = verdict.clears and held(state.clear_since_unix_ms, clear_ms, tick)
            return Event.CLEARED if cleared else None
    return None


def _event_when_pending(state: IncidentState, tick: Tick) -> Event | None:
    if not tick.may_fire:
        return None
    if deep_held(state, tick):
        return Event.DEEP
    if held(state.pending_since_unix_ms, int(tick.settings.for_s * 1000), tick):
        return Event.HELD
    return None


def _event_when_firing(state: IncidentState, tick: Tick) -> Event | None:
    if tick.may_fire and news(state, tick):
        return Event.WORSE
    if held(state.quiet_since_unix_ms, STANDING_MS + 1, tick):
        return Event.STALE
    return None


def _follow(state: IncidentState, event: Event, tick: Tick, actions: list[Action]) -> IncidentState:
    """One row of the table: the next state with what the row does."""
    to = TRANSITIONS[state.state, event].to
    match event:
        case Event.BREACH:
            state = _begun(state, tick)
        case Event.OK | Event.EXPIRED:
            state = _forgotten(state)
        case Event.HELD | Event.DEEP:
            state = replace(state, fired_unix_ms=tick.unix_ms)
            state = _told(state, tick, actions)
        case Event.WORSE:
            state = _escalated(state, news(state, tick), tick, actions)
        case Event.WORSE_THAN_USUAL:
            state = _escalated(state, "baseline", tick, actions)
        case Event.STALE:
            state = replace(state, standing_since_unix_ms=tick.unix_ms)
            state = _noticed(state, "standing", actions)
        case Event.CLEARS:
            state = replace(state, clear_since_unix_ms=tick.unix_ms)
        case Event.RELAPSE:
            state = _flapped(state, tick, actions)
        case Event.CLEARED:
            if paged := closure.paged(state):
                actions.append(Action(act=Act.RESOLVE, episode=state.episode))
            state = replace(
                state,
                resolved_episode=state.episode,
                resolved_unix_ms=tick.unix_ms,
                resolve_repeat_no=0 if paged else RESOLVED_MS // RESOLVE_REPEAT_MS,
            )
    return replace(state, state=to)


def _told(state: IncidentState, tick: Tick, actions: list[Action]) -> IncidentState:
    """An outage that fires: paged, unless nobody waits for the cards or a person closed it before."""
    if tick.verdict.unwanted:
        return _paged(_noticed(state, NO_DEMAND, actions), tick)
    if closure.respected(state, tick):
        return closure.unpaged(state, tick)
    actions.append(Action(act=Act.TRIGGER, episode=state.episode))
    return _paged(closure.reopened(state), tick)


def _begun(state: IncidentState, tick: Tick) -> IncidentState:
    began = tick.unix_ms
    episode = minute_of(began)
    while state.resolved_episode and episode <= state.resolved_episode:
        # Two episodes within one minute: the younger takes the next name.
        episode = minute_of(minute_ms(episode) + MINUTE_MS)
    fresh = _forgotten(state)
    return replace(
        fresh,
        began_unix_ms=began,
        pending_since_unix_ms=began,
        episode=episode,
        deep_since_unix_ms=began if tick.verdict.deep else None,
        no_demand_since_unix_ms=began if tick.verdict.no_demand else None,
        severity=tick.settings.severity,
        cause_candidate=state.cause_candidate,
        cause_since_unix_ms=state.cause_since_unix_ms,
    )


def _forgotten(state: IncidentState) -> IncidentState:
    """The state without its episode; the last figures and a resolve under way stay."""
    return IncidentState(
        rule=state.rule, cluster=state.cluster, **{name: getattr(state, name) for name in KEPT}
    )


def _paged(state: IncidentState, tick: Tick) -> IncidentState:
    """The state after a page that names the figures, leading cause and severity of this tick."""
    cause, causes = state.leading_cause, state.paged_causes
    return replace(
        state,
        paged_value=tick.verdict.figure,
        paged_causes=(*causes, cause) if cause and cause not in causes else causes,
        cause_candidate="",
        cause_since_unix_ms=None,
        severity="critical" if deep_held(state, tick) else state.severity,
        quiet_since_unix_ms=tick.unix_ms,
    )


def _escalated(
    state: IncidentState, reason: str, tick: Tick, actions: list[Action]
) -> IncidentState:
    number = state.escalate_no + 1
    actions.append(Action(act=Act.ESCALATE, episode=state.episode, repeat_no=number, reason=reason))
    # A page that says something new is not acknowledged yet; a standing outage may stand again.
    state = replace(
        state,
        escalate_no=number,
        ack_by=None,
        ack_unix_ms=None,
        standing_since_unix_ms=None,
        noticed=tuple(name for name in state.noticed if name != "standing"),
    )
    return _paged(closure.reopened(state), tick)


def _noticed(state: IncidentState, reason: str, actions: list[Action]) -> IncidentState:
    """One notice of each reason, no more."""
    if reason in state.noticed:
        return state
    number = state.notice_no + 1
    actions.append(Action(act=Act.NOTICE, episode=state.episode, repeat_no=number, reason=reason))
    return replace(state, notice_no=number, noticed=(*state.noticed, reason))


def _notice_no_demand(state: IncidentState, tick: Tick, actions: list[Action]) -> IncidentState:
    lasting = held(state.no_demand_since_unix_ms, int(tick.settings.deep_s * 1000), tick)
    if lasting and tick.may_fire and state.state in (State.PENDING, State.FIRING):
        return _noticed(state, NO_DEMAND, actions)
    return state


def _flapped(state: IncidentState, tick: Tick, actions: list[Action]) -> IncidentState:
    recent = tuple(moment for moment in state.flap_times if tick.unix_ms - moment < FLAP_WINDOW_MS)
    state = replace(state, clear_since_unix_ms=None, flap_times=(*recent, tick.unix_ms))
    if len(state.flap_times) < FLAPS_MIN or state.flapping:
        return state
    return _noticed(replace(state, flapping=True), "flapping", actions)


def _repeat_resolve(state: IncidentState, now_unix_ms: int, actions: list[Action]) -> IncidentState:
    if state.resolved_unix_ms is None:
        return state
    age_ms = now_unix_ms - state.resolved_unix_ms
    due_no = min(age_ms, RESOLVED_MS) // RESOLVE_REPEAT_MS
    if due_no > state.resolve_repeat_no:
        # After a pause one repeat stands for those that fell into it.
        actions.append(
            Action(
                act=Act.RESOLVE,
                episode=state.resolved_episode,
                repeat_no=due_no,
                reason="repeat",
            )
        )
        state = replace(state, resolve_repeat_no=due_no)
    if age_ms >= RESOLVED_MS:
        state = replace(state, resolved_unix_ms=None)
    return state


def resume(state: IncidentState, now_unix_ms: int) -> IncidentState:
    """A stored state at the first tick after a start.

    PENDING goes on as if the downtime had not been, if that was at most an hour, else it is forgotten;
    CLEARING starts its hold again; the others stay as they are.
    """
    if state.state is State.CLEARING:
        state = replace(state, clear_since_unix_ms=now_unix_ms)
    downtime_ms = now_unix_ms - STEP_MS - state.last_eval_unix_ms
    if downtime_ms <= 0:
        return state
    if state.state is State.PENDING and downtime_ms > DOWNTIME_MS_MAX:
        state = _forgotten(state)
    elif state.state is State.PENDING:
        state = _shifted(state, downtime_ms)
    else:
        state = replace(
            state, deep_since_unix_ms=None, cause_since_unix_ms=None, cause_candidate=""
        )
    return replace(state, last_eval_unix_ms=now_unix_ms - STEP_MS)
