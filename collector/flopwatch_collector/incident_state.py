"""What an incident is: its states, the table of their transitions, and what it remembers.

``TRANSITIONS`` is the machine: (state, event) → state. ``incident.advance`` drives it, and
``incident_diagram`` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from flopwatch_collector.rules import Cause


class State(StrEnum):
    """States of an incident."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"
    CLEARING = "clearing"
    RESOLVED = "resolved"
    STANDING = "standing"


TOLD: Final = (State.FIRING, State.STANDING, State.CLEARING)
"""States of an outage that people were told of and that is not over."""


class Event(StrEnum):
    """What one tick's verdict means for an incident in its state."""

    BREACH = "breach"
    OK = "not in breach"
    HELD = "breach held"
    DEEP = "deep failure held 2 min"
    CLEARS = "above the hysteresis line"
    RELAPSE = "back under the hysteresis line"
    CLEARED = "held above the hysteresis line"
    WORSE = "worse than paged, new leading cause or severity up"
    STALE = "below its line for 24 h without escalation"
    WORSE_THAN_USUAL = "below its own 7-day median"
    EXPIRED = "15 min"


class Act(StrEnum):
    """What is sent."""

    TRIGGER = "trigger"
    RESOLVE = "resolve"
    ESCALATE = "escalate"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class Transition:
    """A row of the table. Attributes: to: the next state; effect: as in the diagram."""

    to: State
    effect: str = ""


TRANSITIONS: Final[Mapping[tuple[State, Event], Transition]] = {
    (State.INACTIVE, Event.BREACH): Transition(State.PENDING),
    (State.PENDING, Event.OK): Transition(State.INACTIVE),
    (State.PENDING, Event.HELD): Transition(State.FIRING, "trigger"),
    (State.PENDING, Event.DEEP): Transition(State.FIRING, "trigger, critical"),
    (State.FIRING, Event.CLEARS): Transition(State.CLEARING),
    (State.FIRING, Event.WORSE): Transition(State.FIRING, "escalate"),
    (State.FIRING, Event.STALE): Transition(State.STANDING, "notice"),
    (State.CLEARING, Event.RELAPSE): Transition(State.FIRING, "flap"),
    (State.CLEARING, Event.CLEARED): Transition(State.RESOLVED, "resolve"),
    (State.STANDING, Event.CLEARS): Transition(State.CLEARING),
    (State.STANDING, Event.WORSE_THAN_USUAL): Transition(State.FIRING, "escalate"),
    (State.RESOLVED, Event.EXPIRED): Transition(State.INACTIVE),
    (State.RESOLVED, Event.BREACH): Transition(State.PENDING),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something to send. Attributes: repeat_no: counts the kind within the episode; reason: why."""

    act: Act
    episode: str
    repeat_no: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentState:
    """Everything that a rule remembers of a cluster. Moments are Unix ms, None where not set.

    Attributes:
        began_unix_ms: first breach of the episode.
        pending_since_unix_ms, clear_since_unix_ms: what holds are counted from, without unknown time.
        deep_since_unix_ms, no_demand_since_unix_ms, cause_since_unix_ms: the same for deep deficits and
            for ``cause_candidate``, a leading cause that was not paged yet.
        quiet_since_unix_ms: the last page of the episode: 24 h after it the outage is standing.
        episode: UTC minute of the first breach.
        last_eval_unix_ms: the newest tick that was evaluated.
        lo, hi, value, coverage: the last known figures; line: what they were judged by.
        paged_value: the judged figure of the last page; paged_causes: leading causes paged so far.
        leading_cause: the bucket or step that leads the loss now, ``no_demand`` where nobody wants the
            cards; subjects: how many nodes, cards or jobs a counting rule found, None of a ratio.
        severity: ``info``, ``warning`` or ``critical``.
        resolved_episode, resolve_repeat_no: the resolve that is still repeated.
        closed_by, closed_unix_ms, closed_value: who resolved it by hand while it held, when, and at which
            figure (`closure`).
        said_by: the outage that says already what this one would, while it pends for that alone.
        version: counts the writes to the control store.
    """

    rule: str
    cluster: str
    state: State = State.INACTIVE
    simulated: bool = False
    episode: str = ""
    began_unix_ms: int | None = None
    pending_since_unix_ms: int | None = None
    fired_unix_ms: int | None = None
    clear_since_unix_ms: int | None = None
    standing_since_unix_ms: int | None = None
    quiet_since_unix_ms: int | None = None
    deep_since_unix_ms: int | None = None
    no_demand_since_unix_ms: int | None = None
    cause_since_unix_ms: int | None = None
    cause_candidate: str = ""
    last_eval_unix_ms: int = 0
    lo: float | None = None
    hi: float | None = None
    value: float | None = None
    coverage: float | None = None
    line: float | None = None
    lost_points: Mapping[str, float] = field(default_factory=dict)
    causes: tuple[Cause, ...] = ()
    leading_cause: str = ""
    subjects: int | None = None
    severity: str = "warning"
    paged_value: float | None = None
    paged_causes: tuple[str, ...] = ()
    flap_times: tuple[int, ...] = ()
    flapping: bool = False
    noticed: tuple[str, ...] = ()
    escalate_no: int = 0
    notice_no: int = 0
    resolved_episode: str = ""
    resolved_unix_ms: int | None = None
    resolve_repeat_no: int = 0
    ack_by: str | None = None
    ack_unix_ms: int | None = None
    closed_by: str | None = None
    closed_unix_ms: int | None = None
    closed_value: float | None = None
    said_by: str = ""
    version: int = 0


HOLDS: Final = (
    "pending_since_unix_ms",
    "clear_since_unix_ms",
    "deep_since_unix_ms",
    "no_demand_since_unix_ms",
    "cause_since_unix_ms",
    "quiet_since_unix_ms",
)


def acknowledged(state: IncidentState, by: str, now_unix_ms: int) -> IncidentState:
    """The state with a name on it: the first one, of an outage that paged."""
    if state.state not in TOLD or state.ack_by is not None:
        return state
    return replace(state, ack_by=by, ack_unix_ms=now_unix_ms)


def outage(state: IncidentState) -> dict[str, Any] | None:
    """The outage as the API shows it; None when there is none."""
    if state.state in (State.INACTIVE, State.RESOLVED) or state.began_unix_ms is None:
        return None
    return {
        "rule": state.rule,
        "state": state.state.value,
        "since": rfc3339(state.began_unix_ms),
        "value": figure_of(state),
        "threshold": state.line,
        "lost_points": dict(state.lost_points),
        "acked_by": state.ack_by,
    }


def figure_of(state: IncidentState) -> float | None:
    """The value of an incident, or where only bounds are known the upper one: the judged figure."""
    return state.value if state.value is not None else state.hi


def minute_of(unix_ms: int) -> str:
    """The UTC minute of a moment: the name of an episode."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%MZ")


def minute_ms(minute: str) -> int:
    """The first moment of an episode's minute."""
    return int(datetime.fromisoformat(minute).timestamp() * 1000)


def rfc3339(unix_ms: int) -> str:
    """A moment in UTC, with milliseconds where it has any."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    spec = "milliseconds" if unix_ms % 1000 else "seconds"
    return moment.isoformat(timespec=spec).replace("+00:00", "Z")
