"""The state machine against a small model that counts held seconds instead of moving moments."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from flopwatch_collector import incident
from flopwatch_collector.incident_state import Act, Action, IncidentState, State
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named

START_S = 1_800_000_000
STEP_S = 10
# Short holds, so that stories of an hour or two reach every state.
SETTINGS = replace(rule_named("allocation").defaults, for_s=60, clear_s=120, cause_s=None)
RATIOS = {"well": 0.98, "between": 0.965, "low": 0.95, "lower": 0.89, "deep": 0.70}

segments = st.lists(
    st.tuples(
        st.sampled_from([*RATIOS, "low", "well", "unknown", "unknown", "down"]),
        st.sampled_from([1, 2, 5, 6, 7, 11, 12, 13, 14, 30, 31, 90, 91, 400]),
    ),
    min_size=1,
    max_size=14,
)


@dataclass
class Model:
    """What must be sent, told from held seconds. Attributes: *_s: seconds held so far."""

    state: str = "inactive"
    pending_s: int = 0
    clear_s: int = 0
    deep_s: int | None = None
    paged: float = 1.0
    critical: bool = False
    flaps: list[int] = field(default_factory=list)
    flapping: bool = False
    resolved_at_s: int | None = None
    repeats: int = 0
    sent: list[str] = field(default_factory=list)

    def tick(self, kind: str, now_s: int) -> None:
        if self.state == "resolved" and now_s - (self.resolved_at_s or now_s) >= 900:
            self.state = "inactive"
        if kind != "unknown":
            self._known(RATIOS[kind], now_s)
        self._repeat(now_s)

    def _known(self, ratio: float, now_s: int) -> None:
        breach, clear = ratio < 0.96, ratio >= 0.97
        deep = ratio <= 0.76
        self.deep_s = None if not deep else 0 if self.deep_s is None else self.deep_s + STEP_S
        if self.state in ("inactive", "resolved"):
            if breach:
                self.state, self.pending_s, self.critical = "pending", 0, False
                self.flaps, self.flapping = [], False
            return
        if self.state == "pending":
            self.pending_s += STEP_S
            if not breach:
                self.state = "inactive"
            elif self.pending_s >= 60 or (deep and (self.deep_s or 0) >= 120):
                self.state, self.paged = "firing", ratio
                self.critical = (self.deep_s or 0) >= 120 and deep
                self.sent.append("trigger")
            return
        if self.state == "clearing":
            self.clear_s += STEP_S
            if not clear:
                self._flap(now_s)
            elif self.clear_s >= (3600 if self.flapping else 120):
                self.state, self.resolved_at_s, self.repeats = "resolved", now_s, 0
                self.sent.append("resolve 0")
                return
        elif clear:
            self.state, self.clear_s = "clearing", 0
        if self.state == "firing" and breach:
            self._escalate(ratio)

    def _escalate(self, ratio: float) -> None:
        severer = not self.critical and (self.deep_s or 0) >= 120
        if severer or self.paged - ratio >= 0.05 - 1e-9:
            self.sent.append("escalate")
            self.paged = ratio
            self.critical = self.critical or (self.deep_s or 0) >= 120

    def _flap(self, now_s: int) -> None:
        self.state = "firing"
        self.flaps = [at for at in self.flaps if now_s - at < 3600] + [now_s]
        if len(self.flaps) >= 4 and not self.flapping:
            self.flapping = True
            self.sent.append("notice")

    def _repeat(self, now_s: int) -> None:
        if self.resolved_at_s is None:
            return
        due = min(now_s - self.resolved_at_s, 900) // 300
        if due > self.repeats:
            self.repeats = due
            self.sent.append(f"resolve {due}")
        if now_s - self.resolved_at_s >= 900:
            self.resolved_at_s = None

    def restart(self, downtime_s: int) -> None:
        if self.state == "pending" and downtime_s > 3600:
            self.state = "inactive"
        elif self.state == "clearing":
            # The first tick after the start begins the hold again.
            self.clear_s = -STEP_S
        elif self.state != "pending":
            self.deep_s = None


def observation(kind: str, now_s: int) -> Observation:
    ratio = RATIOS.get(kind)
    return Observation(
        cluster="atlas",
        rule="allocation",
        simulated=False,
        device_kind="gpu",
        tick_unix_ms=now_s * 1000,
        lo=0.90 if ratio is None else ratio,
        hi=1.0 if ratio is None else ratio,
        value=ratio,
        coverage=1.0,
        in_service_cards=1000,
        unseen_cards=100 if ratio is None else 0,
    )


def stored_and_loaded(state: IncidentState) -> IncidentState:
    """The state after a trip through JSON, which forgets tuples and enums."""
    columns = json.loads(json.dumps(asdict(state)))
    for name in ("paged_causes", "flap_times", "noticed", "causes"):
        columns[name] = tuple(columns[name])
    return IncidentState(**(columns | {"state": State(columns["state"])}))


def told(action: Action) -> str:
    return f"resolve {action.repeat_no}" if action.act is Act.RESOLVE else action.act.value


@given(story=segments)
@settings(max_examples=200, deadline=None)
def test_every_story_sends_what_the_model_sends(story: list[tuple[str, int]]) -> None:
    state, model = IncidentState(rule="allocation", cluster="atlas"), Model()
    sent: list[Action] = []
    now_s = START_S
    for kind, ticks in story:
        if kind == "down":
            now_s += ticks * STEP_S
            state = incident.resume(stored_and_loaded(state), (now_s + STEP_S) * 1000)
            if state.last_eval_unix_ms:
                model.restart(ticks * STEP_S)
            continue
        for _ in range(ticks):
            now_s += STEP_S
            seen = observation(kind, now_s)
            verdict = rule_named("allocation").judge(seen, SETTINGS)
            was = state.state
            state, actions = incident.advance(state, verdict, seen, now_s * 1000, SETTINGS)
            model.tick(kind, now_s)
            sent.extend(actions)
            assert [told(action) for action in sent] == model.sent
            assert state.state.value == model.state
            if kind == "unknown":
                assert state.state in (was, State.INACTIVE)
                assert all(action.act is Act.RESOLVE and action.repeat_no for action in actions)
    _check_episodes(sent)


def _check_episodes(sent: list[Action]) -> None:
    """One trigger per episode, before anything else of it but a notice; nothing sent twice."""
    keys = [(action.episode, action.act, action.repeat_no) for action in sent]
    assert len(set(keys)) == len(keys)
    open_episodes: set[str] = set()
    for action in sent:
        if action.act is Act.TRIGGER:
            assert action.episode not in open_episodes
            open_episodes.add(action.episode)
        else:
            assert action.episode in open_episodes
