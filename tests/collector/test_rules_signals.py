"""What rules are told that rows of now do not say: agents, the collector itself, probes, hours of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry, Gauge

from evidence_tables import H100, row
from flopwatch_collector.agents import Agents
from flopwatch_collector.config import CollectorConfig
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.ingest_metrics import IngestMetrics
from flopwatch_collector.live import Live
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.rules.verdict import Condition
from flopwatch_collector.signals import OWN, Answer, Found
from flopwatch_collector.signals.agents import AgentSignal, unwell
from flopwatch_collector.signals.every import authorities, observing
from flopwatch_collector.signals.keeper import Observed, SignalMetrics, Signals
from flopwatch_collector.signals.own import OwnSignal
from flopwatch_collector.signals.probes import ProbeSignal, slow_cards
from flopwatch_collector.signals.regressions import Hour, RegressionSignal, fall, hours_of
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_collector.tls import authorities_directory
from flopwatch_collector.trust.authority import Authorities
from flopwatch_proto.errors import RetryableError
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb
from stored import put

NOW: Final = 1_800_000_000_000 // 3_600_000 * 3_600_000 + 600_000
HOUR: Final = 3_600_000
DAY: Final = 24 * HOUR


def base(cluster: str = "atlas") -> Observation:
    return Observation(
        cluster=cluster, rule="allocation", simulated=False, device_kind="gpu", tick_unix_ms=NOW,
        lo=1.0, hi=1.0, value=1.0, coverage=1.0, in_service_cards=16, unseen_cards=0,
    )  # fmt: skip


@dataclass
class Told:
    """A signal as the test says it."""

    name: str
    answer: Answer | None = field(default_factory=dict)
    every_s: float = 300.0
    asked: int = 0

    def read(self, now_unix_ms: int) -> Answer:
        self.asked += 1
        if self.answer is None:
            raise RetryableError("too busy")
        return self.answer


class Keeper:
    """Signals at a time that the test tells."""

    def __init__(self, *told: Told) -> None:
        self.now_ms = NOW
        self.registry = CollectorRegistry()
        self.signals = Signals(told, SignalMetrics(self.registry), lambda: self.now_ms)

    def go(self, seconds: float) -> dict[str, Observation]:
        self.now_ms += round(1000 * seconds)
        self.signals.look()
        return {o.rule: o for o in self.signals.of(base())}


def test_a_signal_is_read_when_it_is_due_and_its_answer_is_told_at_every_tick() -> None:
    probes = Told("probes", {("atlas", "slow_card"): Found(count=1, whole=16, cards={"n0/s0": 1})})
    keeper = Keeper(probes)
    for _ in range(3):
        told = keeper.go(10)["slow_card"]
    assert probes.asked == 1
    assert (told.subjects, told.subjects_in_all, told.value) == (1, 16, 0.9375)
    assert told.causes[0].name == "n0/s0"
    assert told.lost_points == {}
    keeper.go(300)
    assert probes.asked == 2


def test_a_signal_that_fails_stops_no_other_one_and_its_answer_is_forgotten_when_old() -> None:
    good = Told("good", {("atlas", "slow_card"): Found(count=0, whole=16)})
    bad = Told("bad", {("atlas", "probe_failed"): Found(count=1, whole=16)})
    keeper = Keeper(bad, good)
    assert keeper.go(10).keys() == {"slow_card", "probe_failed"}
    bad.answer = None
    assert keeper.go(890).keys() == {"slow_card", "probe_failed"}
    assert keeper.go(11).keys() == {"slow_card"}
    failures = keeper.registry.get_sample_value(
        "flopwatch_signal_failures_total", {"signal": "bad"}
    )
    assert failures == bad.asked - 1 == 1


def record(node: str = "n0", **more: Any) -> dict[str, Any]:
    return {
        "cluster": "atlas", "node": node, "heard_unix_ms": NOW, "left": False, "driver_state": "ok",
        "rows_dropped": 0, "spool_batches": 1, "clock_skew_ms": 3,
        "certificate_starts_unix_ms": NOW - 2 * DAY, "certificate_expires_unix_ms": NOW + DAY,
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, ""),
        ({"driver_state": "unresponsive"}, "driver hangs"),
        ({"driver_state": "mismatch"}, "driver does not match"),
        ({"driver_state": "lost"}, ""),  # a card that failed, which is another rule's
        ({"rows_dropped": 8}, "spool drops rows"),
        ({"spool_batches": 361}, "spool fills"),
        ({"clock_skew_ms": -30_000}, "clock is off"),
        (dict.fromkeys(("driver_state", "rows_dropped", "spool_batches", "clock_skew_ms")), ""),
    ],
)
def test_an_agent_is_unwell_for_a_reason(more: dict[str, Any], why: str) -> None:
    assert unwell(record(**more), dropped_before=7) == why


def test_unwell_agents_are_counted_of_those_that_report_and_silence_makes_none_well() -> None:
    records = [record("n0"), record("n1", clock_skew_ms=60_000), record("n2", left=True)]
    signal = AgentSignal(lambda now: records)
    found = signal.read(NOW)["atlas", "agent_unhealthy"]
    assert (found.count, found.whole, found.unseen) == (1, 2, 0)
    assert list(found.cards) == ["n1: clock is off"]
    records[0]["heard_unix_ms"] = NOW + 300_000
    silent = signal.read(NOW + 300_000)["atlas", "agent_unhealthy"]
    assert (silent.count, silent.whole, silent.unseen) == (0, 2, 1)
    assert signal.read(NOW + 1_000_000)["atlas", "agent_unhealthy"].unseen == 0


def test_certificates_of_nodes_end_with_a_quarter_of_their_life_left() -> None:
    ending = record("n1", certificate_expires_unix_ms=NOW + DAY // 2)
    bare = record("n2", certificate_starts_unix_ms=None, certificate_expires_unix_ms=None)
    found = AgentSignal(lambda now: [record(), ending, bare]).read(NOW)
    certificates = found["atlas", "certificate_ending"]
    assert (certificates.count, certificates.whole) == (1, 2)
    assert list(certificates.cards) == ["n1"]


def test_agents_as_live_state_keeps_them_are_read(tmp_path: Path) -> None:
    agents = Agents()
    agents.hello(pb.Hello(cluster="atlas", node_id="n0", wall_unix_ns=NOW * 1_000_000), NOW)
    agents.status("atlas", "n0", pb.Status(taken_unix_ms=NOW, driver_state="mismatch"), NOW)
    found = AgentSignal(agents.listed).read(NOW)["atlas", "agent_unhealthy"]
    assert list(found.cards) == ["n0: driver does not match"]


@dataclass
class Own:
    """A collector that is well, until the test says otherwise."""

    dirty_minutes: int = 0
    rollup_unix_ms: int = NOW
    rollup_failures: int = 0
    failures: int = 0
    pages: list[OutboxRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ingest = IngestMetrics(self.registry)
        self.life = Gauge("flopwatch_trust_certificate_life_ratio", ".", registry=self.registry)
        self.life.set(0.9)
        self.signal = OwnSignal(self.registry, self, self, lambda: self.failures)

    def outbox_open(self) -> Sequence[OutboxRow]:
        return self.pages

    def faults(self) -> list[str]:
        return list(self.signal.read(NOW)[OWN, "collector_unhealthy"].cards)


def page(**more: Any) -> OutboxRow:
    said: dict[str, Any] = dict.fromkeys(
        ("id", "rule", "cluster", "episode", "route", "action", "dedup_key", "body"), ""
    )
    return OutboxRow(**said | {"repeat_no": 0, "created_unix_ms": NOW - 600_001} | more)


def test_faults_of_the_collector_are_named_and_what_rose_once_is_over_at_the_next_reading() -> None:
    own = Own()
    own.ingest.commit_failures.inc(3)
    assert own.faults() == []  # what was before the first reading is no news
    own.ingest.commit_failures.inc()
    own.failures = own.rollup_failures = 1
    own.dirty_minutes = 61
    own.pages = [page(attempts=1)]
    assert own.faults() == [
        "the store refuses commits",
        "rollups fail",
        "rollups late",
        "rules not evaluated",
        "pages not delivered",
    ]
    own.rollup_unix_ms = NOW - 600_001
    own.pages = [page(), page(attempts=9, held_reason="a silence")]
    assert own.faults() == ["rollups stand still"]


def test_the_collectors_own_certificates_end(tmp_path: Path) -> None:
    own = Own()
    folder = authorities_directory(tmp_path)
    assert authorities(tmp_path) == {}
    Authorities(folder).init(NOW)
    ends = authorities(tmp_path)["authority 1"]
    signal = OwnSignal(own.registry, own, own, authorities=lambda: authorities(tmp_path))
    assert signal.read(NOW)[OWN, "certificate_ending"].count == 0
    own.life.set(0.25)
    found = signal.read(ends - 30 * DAY)[OWN, "certificate_ending"]
    assert (found.count, found.whole) == (2, 2)


def test_hours_that_fell_a_fifth_below_their_own_week_are_a_regression() -> None:
    def hours(*ratios: float, declared: bool = True) -> list[Hour]:
        return [
            Hour(start_unix_ms=NOW - i * HOUR, done=ratio, capacity=1.0, declared=declared)
            for i, ratio in enumerate(ratios)
        ]

    week = [0.5] * 6
    assert fall(hours(0.4, 0.4, *week)) == pytest.approx(0.2)
    assert fall(hours(0.5, 0.4, *week)) == pytest.approx(0.1)
    assert fall(hours(0.4, 0.4, *week[1:])) is None  # too short a past
    assert fall([]) is None
    # Counters of the hours before it declared its FLOPs are another measure.
    before = [
        Hour(start_unix_ms=NOW - (9 + i) * HOUR, done=0.9, capacity=1.0, declared=False)
        for i in range(9)
    ]
    assert fall([*hours(0.4, 0.4, *week), *before]) == pytest.approx(0.2)
    assert fall([*hours(0.4, 0.4), *before]) is None


def test_an_hour_is_of_declared_flops_only_where_all_of_it_is_declared() -> None:
    made = hours_of(
        {
            "starts": [0, 1, 2],
            "u": [3.0, 3.0, None],
            "counted": [10.0, 10.0, None],
            "model": [4.0, 1.0, None],
            "measured": [10.0, 10.0, None],
            "declared": [10.0, 5.0, None],
        }
    )
    assert [(h.start_unix_ms, h.done, h.declared) for h in made] == [
        (0, 4.0, True),
        (1, 3.0, False),
    ]


def test_cards_slower_than_their_fleet_are_counted_by_cluster() -> None:
    def probed(card: int, flops: float) -> Mapping[str, Any]:
        return {
            "cluster": "atlas", "node": "n0", "slot": f"s{card}", "start_unix_ms": NOW,
            "kind": "gemm", "dtype": "bf16", "sku": H100, "device_uuid": f"GPU-{card}",
            "serial": f"{card}", "driver_version": "", "sustained": True, "median_flops": flops,
            "median_value": 0.0, "unit": "", "outcome": "", "reason": "", "simulated": False,
        }  # fmt: skip

    answer = slow_cards([*(probed(card, 7e14 + card * 1e11) for card in range(8)), probed(9, 6e14)])
    found = answer["atlas", "slow_card"]
    assert (found.count, found.whole, list(found.cards)) == (1, 9, ["n0/s9"])


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlStore]:
    opened = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    yield opened
    opened.close()


def test_everything_is_read_from_real_stores(
    store: TelemetryStore, control: ControlStore, tmp_path: Path
) -> None:
    probe = {"kind": "sdc", "dtype": "bf16", "sku": H100, "outcome": "ok", "sustained": True}
    probes = [
        probe | {"node": "n0", "slot": "s0", "start_unix_ms": NOW - DAY, "outcome": "corrupt"},
        probe | {"node": "n0", "slot": "s0", "start_unix_ms": NOW - HOUR},
        probe | {"node": "n0", "slot": "s1", "start_unix_ms": NOW - DAY, "outcome": "failed"},
        probe | {"node": "n0", "slot": "s1", "start_unix_ms": NOW - HOUR},
        probe | {"node": "n0", "slot": "s2", "start_unix_ms": NOW - HOUR, "outcome": "failed"},
        probe | {"node": "n0", "slot": "s3", "start_unix_ms": NOW - HOUR, "outcome": "aborted"},
    ]
    put(store, "probe", probes, NOW)
    this_hour = NOW // HOUR * HOUR
    lines = [
        {
            "start_unix_ms": this_hour - back * HOUR, "generation": 1, "bucket": int(Bucket.ACTIVE),
            "job": job, "card_ms": 8 * HOUR, "u_flops": u, "counted_capacity_flops": 1.0,
            "workload_class": "inference" if job == "serves" else "training",
        }
        for back in range(1, 10)
        for job, u in (
            ("falls", 0.3 if back < 3 else 0.5), ("holds", 0.5), ("over", 0.1),
            ("serves", 0.1 if back < 3 else 0.5),
        )
    ]  # fmt: skip
    put(store, "fleet_hour", lines, NOW)
    hours = [{"grain": "fleet_hour", "start_unix_ms": line["start_unix_ms"], "generation": 1}
             for line in lines[::4]]  # fmt: skip
    store.append("written", {
        "cluster": ["atlas"] * len(hours), "lines": [4] * len(hours),
        "stored_unix_ms": [NOW] * len(hours),
        **{name: [hour[name] for hour in hours] for name in hours[0]},
    })  # fmt: skip
    put(
        store, "interval", [row(NOW - 60_000, job=job) for job in ("falls", "holds", "serves")], NOW
    )

    probed = ProbeSignal(store).read(NOW)
    failed = probed["atlas", "probe_failed"]
    assert (failed.count, failed.whole, set(failed.cards)) == (2, 3, {"n0/s0", "n0/s2"})
    fallen = RegressionSignal(store, lambda: ["atlas", "bare"]).read(NOW)
    found = fallen["atlas", "job_regression"]
    assert (found.count, found.whole, dict(found.cards)) == (1, 2, {"falls": 8.0})
    assert (fallen["bare", "job_regression"].count, fallen["bare", "job_regression"].whole) == (
        0,
        0,
    )

    live = Live(NOW, lambda cluster: rule_named("mfu").defaults)
    config = CollectorConfig(data=str(tmp_path))
    whole = SimpleNamespace(config=config, registry=CollectorRegistry(), health=Own())
    base_of = SimpleNamespace(store=store, control=control, live=live)
    with observing(whole, base_of, lambda: 0, lambda: NOW) as observed:
        observed.signals.look()
        own = {o.rule: o for o in observed.observe(OWN, NOW)}
        assert observed.clusters() == [OWN]
        told = {o.rule for o in observed.signals.of(base())}
        assert told == {"probe_failed"}  # nothing but a screen, no agent, and no cluster in service
    verdict = rule_named("collector_unhealthy").judge(
        own["collector_unhealthy"], rule_named("collector_unhealthy").defaults
    )
    assert verdict.condition is Condition.OK


def test_signals_are_told_beside_rows_and_not_of_a_cluster_without_cards() -> None:
    class Rows:
        def clusters(self) -> Sequence[str]:
            return ["atlas", "empty"]

        def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
            return [base()] if cluster == "atlas" else []

    answer = {(name, "slow_card"): Found(count=1, whole=2) for name in ("atlas", "empty")}
    keeper = Keeper(Told("probes", answer))
    keeper.go(0)
    observed = Observed(Rows(), keeper.signals)
    assert observed.clusters() == ["atlas", "empty", OWN]
    assert [o.rule for o in observed.observe("atlas", NOW)] == ["allocation", "slow_card"]
    assert observed.observe("empty", NOW) == []
