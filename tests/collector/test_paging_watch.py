"""The watch over real stores, with live state that the test tells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from flopwatch_collector.control.response import Kind, Response, respond
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import State, outage
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.rules import Cause, Observation
from flopwatch_collector.rules.settings import ClusterRules, RuleOverride, RulesConfig
from flopwatch_collector.watch import Watch, WatchSettings

START_MS = 1_800_000_000_000
CARDS = 1000


class ToldLive:
    """Live state as the test says it. Attributes: allocated, unseen, missing: cards by cluster."""

    def __init__(self) -> None:
        self.allocated: dict[str, float] = {"atlas": 980.0}
        self.unseen: dict[str, float] = {}
        self.mfu: float | None = 0.65
        self.simulated = False
        self.device_kind = "gpu"
        self.onboarded_ratio = 1.0
        self.silent_nodes: dict[str, int] = {}
        self.broken: set[str] = set()
        self.ticks: list[int] = []

    def clusters(self) -> Sequence[str]:
        return list(self.allocated)

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        self.ticks.append(tick_unix_ms)
        if cluster in self.broken:
            raise ValueError("no figures today")
        unseen = self.unseen.get(cluster, 0.0)
        lo = self.allocated.get(cluster, 0.0) / CARDS
        hi = lo + unseen / CARDS
        return [
            self._observation(cluster, "allocation", tick_unix_ms, lo, hi, unseen),
            self._observation(cluster, "mfu", tick_unix_ms, self.mfu, self.mfu, unseen),
        ]

    def _observation(
        self,
        cluster: str,
        rule: str,
        tick_unix_ms: int,
        lo: float | None,
        hi: float | None,
        unseen: float,
    ) -> Observation:
        lost = 0.0 if hi is None else round(100 * (1 - hi), 6)
        return Observation(
            cluster=cluster,
            rule=rule,
            simulated=self.simulated,
            device_kind=self.device_kind,
            tick_unix_ms=tick_unix_ms,
            lo=lo,
            hi=hi,
            value=hi,
            coverage=1 - unseen / CARDS,
            in_service_cards=CARDS,
            unseen_cards=unseen,
            onboarded_ratio=self.onboarded_ratio,
            lost_points={"FREE": lost, "UNSEEN": unseen / CARDS * 100},
            causes=(Cause(kind="node", name="n1", cards=8, points=0.8),),
            silent_nodes=self.silent_nodes,
            in_service_nodes=125,
        )


class Shift:
    """A watch whose hours pass at once."""

    def __init__(self, dsn: str, **rules: object) -> None:
        self.dsn = dsn
        self.live = ToldLive()
        self.now_ms = START_MS
        self.settings = WatchSettings(
            rules=RulesConfig(**({"settle_s": 0.0} | rules)),  # type: ignore[arg-type]
            paging=PagingConfig(
                deployment="lab",
                route=(RouteConfig(name="ops", url="https://x", secret_env="S"),),
            ),
        )
        self.start()

    def start(self) -> None:
        """Start, as after a crash: nothing but the store is left."""
        self.control = ControlStore.open(self.dsn)
        self.watch = Watch(
            self.live,
            self.control,
            self.settings,
            lambda: self.now_ms,
            self.now_ms,
        )

    def restart(self, after_s: int = 0) -> None:
        self.control.close()
        self.now_ms += after_s * 1000
        self.start()

    def go(self, seconds: int) -> None:
        for _ in range(seconds // 10):
            self.now_ms += 10_000
            self.watch.tick(self.now_ms)

    def state(self, rule: str = "allocation", cluster: str = "atlas") -> State:
        found = [s for s in self.control.incidents() if (s.rule, s.cluster) == (rule, cluster)]
        return found[0].state if found else State.INACTIVE

    def pages(self) -> list[tuple[str, str]]:
        return [(row.rule, row.action) for row in self.control.outbox_all()]


@pytest.fixture
def dsn(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/control.db"


@pytest.fixture
def shift(dsn: str) -> Iterator[Shift]:
    made = Shift(dsn)
    yield made
    made.control.close()


def test_an_outage_is_one_trigger_with_its_losses_and_one_resolve_with_its_repeats(
    shift: Shift,
) -> None:
    shift.go(600)
    assert shift.pages() == []
    shift.live.allocated["atlas"] = 950
    shift.go(300)
    assert shift.state() is State.PENDING
    shift.go(10)
    assert shift.state() is State.FIRING
    (row,) = shift.control.outbox_all()
    body = json.loads(row.body)
    assert body["lost_points"] == {"FREE": 5.0, "UNSEEN": 0.0}
    assert body["summary"] == "atlas alloc 95.0% (<96.0) 5m: cards free -5.0pt"
    assert (body["episode"], body["threshold"]) == ("2027-01-15T08:09Z", 0.96)
    shift.go(600)
    shift.live.allocated["atlas"] = 980
    shift.go(600)
    assert shift.state() is State.CLEARING
    shift.go(10)
    assert shift.state() is State.RESOLVED
    shift.go(1200)
    assert shift.state() is State.INACTIVE
    assert shift.pages() == [("allocation", "trigger"), *[("allocation", "resolve")] * 4]
    assert len({row.dedup_key for row in shift.control.outbox_all()}) == 1


def test_silence_never_resolves_and_is_told_as_missing_data(shift: Shift) -> None:
    shift.live.allocated["atlas"] = 950
    shift.go(400)
    shift.live.allocated["atlas"], shift.live.unseen["atlas"] = 0, 1000
    shift.go(310)
    assert shift.pages() == [("allocation", "trigger"), ("data_missing", "trigger")]
    shift.go(1800)
    assert shift.state() is State.FIRING
    assert len(shift.pages()) == 2
    shift.live.allocated["atlas"], shift.live.unseen["atlas"] = 980, 0
    shift.go(700)
    assert shift.state() is State.RESOLVED
    assert shift.state("data_missing") is State.RESOLVED


def test_a_cluster_that_the_collector_no_longer_knows_keeps_its_outage(shift: Shift) -> None:
    shift.live.allocated["atlas"] = 950
    shift.go(400)
    del shift.live.allocated["atlas"]
    shift.live.broken.add("atlas")
    shift.go(3600)
    assert shift.state() is State.FIRING


def test_a_restart_in_the_middle_of_a_hold_does_not_start_it_again(shift: Shift) -> None:
    shift.live.allocated["atlas"] = 950
    shift.go(200)
    shift.restart(after_s=1800)
    shift.go(100)
    assert shift.state() is State.PENDING
    shift.go(20)
    assert shift.state() is State.FIRING
    shift.restart(after_s=7200)
    shift.go(600)
    assert shift.pages() == [("allocation", "trigger")]
    shift.live.allocated["atlas"] = 980
    shift.go(500)
    shift.restart()
    shift.go(550)
    assert shift.state() is State.CLEARING
    shift.go(100)
    assert shift.pages()[1:] == [("allocation", "resolve")]


def test_a_tick_whose_write_failed_is_judged_again_by_the_next_one(shift: Shift) -> None:
    shift.live.allocated["atlas"] = 950
    shift.go(300)
    with shift.control.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE outbox RENAME TO gone")
    shift.go(60)
    assert shift.state() is State.PENDING
    assert shift.watch.counters.failed > 0
    with shift.control.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO outbox")
    shift.go(10)
    assert shift.state() is State.FIRING
    assert shift.pages() == [("allocation", "trigger")]


def test_a_cluster_that_cannot_be_evaluated_stops_no_other(shift: Shift) -> None:
    shift.live.allocated = {"atlas": 980, "boreas": 950}
    shift.live.broken.add("atlas")
    shift.go(320)
    assert shift.state(cluster="boreas") is State.FIRING


def test_nothing_fires_while_the_collector_settles(dsn: str) -> None:
    shift = Shift(dsn, settle_s=600)
    shift.live.allocated["atlas"] = 700
    shift.go(590)
    assert shift.state() is State.PENDING
    assert shift.pages() == []
    shift.go(10)
    assert shift.pages() == [("allocation", "trigger")]
    shift.control.close()


def test_a_cluster_that_is_not_on_board_yet_is_left_alone(shift: Shift) -> None:
    shift.live.allocated["atlas"], shift.live.onboarded_ratio = 500, 0.94
    shift.go(1200)
    assert shift.control.incidents() == []
    shift.live.onboarded_ratio = 0.95
    shift.go(400)
    assert shift.state() is State.FIRING


def test_processors_are_never_judged(shift: Shift) -> None:
    shift.live.allocated["atlas"], shift.live.device_kind = 0, "cpu"
    shift.go(1200)
    assert shift.control.incidents() == []


def test_simulated_clusters_show_their_outages_and_page_only_when_asked_to(dsn: str) -> None:
    for page_simulated, pages in ((False, []), (True, [("allocation", "trigger")])):
        shift = Shift(f"{dsn}{page_simulated}", page_simulated=page_simulated)
        shift.live.simulated = True
        shift.live.allocated["atlas"] = 950
        shift.go(320)
        assert shift.state() is State.FIRING
        assert shift.pages() == pages
        shift.control.close()


def test_a_mass_silence_is_one_page_and_not_one_of_missing_data_too(shift: Shift) -> None:
    shift.go(60)
    shift.live.allocated["atlas"], shift.live.unseen["atlas"] = 0, 1000
    shift.live.silent_nodes = {f"n{i}": shift.now_ms for i in range(125)}
    shift.go(14 * 60)
    assert shift.pages() == [("blind", "trigger")]
    body = json.loads(shift.control.outbox_all()[0].body)
    assert body["summary"].startswith("atlas blind 0.0% (<98.0) 0s: agents silent")


def test_lines_and_holds_may_be_set_for_one_cluster(dsn: str) -> None:
    override = ClusterRules(allocation=RuleOverride(line=0.90, for_s=60))
    shift = Shift(dsn, clusters={"boreas": override})
    shift.live.allocated = {"atlas": 890, "boreas": 890}
    shift.go(70)
    assert shift.state(cluster="boreas") is State.FIRING
    assert shift.state() is State.PENDING
    shift.control.close()


def test_a_rule_that_is_switched_off_is_not_judged(dsn: str) -> None:
    shift = Shift(dsn, allocation=RuleOverride(enabled=False))
    shift.live.allocated["atlas"] = 500
    shift.go(1200)
    assert shift.state() is State.INACTIVE
    shift.control.close()


def test_every_tick_that_was_judged_is_stored_once(shift: Shift) -> None:
    shift.live.allocated["atlas"], shift.live.unseen["atlas"] = 950, 20
    shift.go(60)
    shift.watch.tick(shift.now_ms)
    found = shift.control.observations("allocation", "atlas", 0, shift.now_ms)
    assert [row["tick_unix_ms"] for row in found] == shift.live.ticks
    assert all(tick % 10_000 == 0 and tick <= shift.now_ms - 11_000 for tick in shift.live.ticks)
    assert {(row["condition"], row["lo"], row["hi"]) for row in found} == {("unknown", 0.95, 0.97)}
    assert len(shift.control.observations("mfu", "atlas", 0, shift.now_ms)) == len(found)


def test_an_acknowledgement_from_another_process_stands_until_the_outage_is_worse(
    shift: Shift, dsn: str
) -> None:
    shift.live.allocated["atlas"] = 950
    shift.go(320)
    web = ControlStore.open(dsn, migrate=False)
    respond(
        web,
        Response(rule="allocation", cluster="atlas", kind=Kind.ACKNOWLEDGE, by="kim"),
        shift.now_ms,
    )
    web.close()
    shift.go(320)
    (state,) = shift.control.incidents([State.FIRING])
    shown = outage(state)
    assert shown is not None
    assert shown["acked_by"] == "kim"
    shift.live.allocated["atlas"] = 890
    shift.go(20)
    assert shift.pages()[-1] == ("allocation", "escalate")
    assert shift.control.incidents([State.FIRING])[0].ack_by is None


def test_a_standing_outage_is_measured_against_its_own_week(shift: Shift) -> None:
    shift.settings = WatchSettings(
        rules=RulesConfig(settle_s=0, mfu=RuleOverride(enabled=False)), paging=shift.settings.paging
    )
    shift.restart()
    shift.live.allocated["atlas"] = 950
    shift.go(400)
    (state,) = shift.control.incidents([State.FIRING])
    yesterday_ms = shift.now_ms - 24 * 3600 * 1000
    shift.control.save(states=[replace(state, quiet_since_unix_ms=yesterday_ms)])
    shift.go(30)
    assert shift.state() is State.STANDING
    shift.live.allocated["atlas"] = 899
    shift.go(60)
    assert shift.state() is State.FIRING
    assert [action for _, action in shift.pages()] == ["trigger", "notice", "escalate"]
