"""An incident told in ratios over time, for tests of the machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from flopwatch_collector import incident
from flopwatch_collector.incident_state import Action, IncidentState, State
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.rules.settings import RuleSettings

START_MS = 1_800_000_000_000  # 2027-01-15T08:00:00Z
STEP_MS = 10_000
ALLOCATION = rule_named("allocation")


@dataclass
class Story:
    """An incident that is told in ratios over time."""

    settings: RuleSettings = ALLOCATION.defaults
    rule: str = "allocation"
    now_ms: int = START_MS
    state: IncidentState = field(
        default_factory=lambda: IncidentState(rule="allocation", cluster="atlas")
    )
    sent: list[tuple[int, Action]] = field(default_factory=list)
    baseline: float | None = None
    may_fire: bool = True

    def see(
        self,
        ratio: float | None,
        seconds: float = 10,
        *,
        unseen: float = 0.0,
        lost: dict[str, float] | None = None,
        idle_points: float = 0.0,
    ) -> State:
        """Evaluate every 10 s for a while; the state after it."""
        for _ in range(int(seconds * 1000) // STEP_MS):
            self.now_ms += STEP_MS
            points = 0.0 if ratio is None else 100 * (1 - ratio)
            observation = Observation(
                cluster="atlas",
                rule=self.rule,
                simulated=False,
                device_kind="gpu",
                tick_unix_ms=self.now_ms,
                lo=ratio,
                hi=None if ratio is None else ratio + unseen,
                value=ratio,
                coverage=1.0,
                in_service_cards=1000,
                unseen_cards=1000 * unseen,
                lost_points={"FREE": points} if lost is None else lost,
                free_without_demand_points=idle_points,
            )
            verdict = rule_named(self.rule).judge(observation, self.settings)
            self.state, actions = incident.advance(
                self.state,
                verdict,
                observation,
                self.now_ms,
                self.settings,
                baseline=self.baseline,
                may_fire=self.may_fire,
            )
            self.sent.extend((self.now_ms, action) for action in actions)
        return self.state.state

    def acts(self) -> list[str]:
        """What was sent, in order, with its reason."""
        return [f"{a.act.value} {a.reason}".strip() for _, a in self.sent]


def firing() -> Story:
    story = Story()
    assert story.see(0.95, 310) is State.FIRING
    return story
