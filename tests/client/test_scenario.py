"""The scenario file: what it may say, and one clear line for everything else."""

from __future__ import annotations

from importlib import resources

import pytest

from flopwatch.simulate import scenario
from flopwatch.simulate.card import Segment
from flopwatch_proto.errors import UsageError

GOOD = """
[scenario]
duration = "30m"

[[cluster]]
name = "atlas"
sku = "NVIDIA H100 80GB HBM3"
nodes = 4

[[cluster.phase]]
nodes = "0-2"
sm_active = 0.9
tensor_active = 0.4
throttle = { power = 0.1 }

[[cluster.phase]]
nodes = "1"
from = "5m"
to = "10m"
state = "silent"

[[cluster.xid]]
at = "12m"
node = 0
card = 1
code = 79
"""


def spans(segments: tuple[Segment, ...]) -> list[tuple[int, int, str]]:
    return [(s.start_ms // 60_000, s.end_ms // 60_000, s.state.state) for s in segments]


def test_later_phases_win_and_a_card_without_a_phase_is_free() -> None:
    cluster = scenario.parse(GOOD).clusters[0]
    assert spans(cluster.timelines[1][0]) == [
        (0, 5, "active"),
        (5, 10, "silent"),
        (10, 30, "active"),
    ]
    assert spans(cluster.timelines[3][0]) == [(0, 30, "free")]
    assert cluster.edges_ms == (300_000, 600_000, 720_000)


def test_a_fatal_xid_fails_the_card_until_its_next_phase() -> None:
    text = GOOD + '\n[[cluster.xid]]\nat = "2m"\nnode = 1\ncard = 0\ncode = 48\n'
    cluster = scenario.parse(text).clusters[0]
    assert spans(cluster.timelines[0][1]) == [(0, 12, "active"), (12, 30, "failed")]
    assert spans(cluster.timelines[0][2]) == [(0, 30, "active")]
    assert spans(cluster.timelines[1][0])[:3] == [
        (0, 2, "active"),
        (2, 5, "failed"),
        (5, 10, "silent"),
    ]


def test_an_xid_that_is_not_fatal_changes_no_state() -> None:
    cluster = scenario.parse(GOOD.replace("code = 79", "code = 13")).clusters[0]
    assert spans(cluster.timelines[0][1]) == [(0, 30, "active")]
    assert cluster.xids[0].code == 13


def test_defaults_are_those_that_the_format_promises() -> None:
    parsed = scenario.parse(GOOD)
    cluster = parsed.clusters[0]
    assert (parsed.seed, parsed.interval_ms, parsed.start_unix_ms) == (0, 10_000, None)
    assert (cluster.dtype, cluster.cards_per_node) == ("bf16", 8)
    active, free = cluster.timelines[0][0][0].state, cluster.timelines[3][0][0].state
    assert active.sm_clock_mhz == cluster.sku.peaks["bf16"].ref_clock_mhz
    assert active.power_watts == pytest.approx(700 * 0.4)
    assert free.power_watts == pytest.approx(700 * 0.1)
    assert active.dram_active == 0.0


def test_a_shared_cards_rest_is_free() -> None:
    text = GOOD.replace(
        "throttle = { power = 0.1 }",
        'jobs = [{ job = "a", team = "t", weight = 0.5 }, { job = "b", weight = 0.25 }]',
    )
    state = scenario.parse(text).clusters[0].timelines[0][0][0].state
    assert [(t.job, t.weight, t.bucket.name) for t in state.tenants] == [
        ("a", 0.5, "ACTIVE"),
        ("b", 0.25, "ACTIVE"),
        (None, 0.25, "FREE"),
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("nodes = 4", "nodess = 4", "cluster[0].nodess: unknown key; nearest known: nodes"),
        ("nodes = 4", 'nodes = "4"', "cluster[0].nodes: expected int, got str"),
        ("nodes = 4", "nodes = 0", "cluster[0].nodes: 0 is not 1 or more"),
        ("nodes = 4", "nodes = 4\npending_cards = -1", "cluster[0].pending_cards: -1 is not 0 to"),
        ("nodes = 4", "", "cluster[0].nodes: this key is required"),
        ('duration = "30m"', "", "scenario.duration: this key is required"),
        ('"30m"', '"30 minutes"', "scenario.duration: '30 minutes' is no duration"),
        ('"30m"', '"0s"', "scenario.duration: more than nothing is wanted"),
        ('"30m"', '"30m"\nintervall = "1s"', "scenario.intervall: unknown key; nearest known:"),
        ('"30m"', '"30m"\ninterval = "7s"', "scenario.interval: a divisor of a minute"),
        ('"30m"', '"30m"\nstart = "soon"', "scenario.start: 'soon' is no moment"),
        ("HBM3", "HBM4", "nearest known: NVIDIA H100 80GB HBM3"),
        ("nodes = 4", 'nodes = 4\ndtype = "bf17"', "cluster[0].dtype: NVIDIA H100 80GB HBM3 has"),
        ('"atlas"', '"At las"', "cluster[0].name: 'At las' is no name"),
        ('"0-2"', '"0-4"', "cluster[0].phase[0].nodes: 4 does not exist; the last one is 3"),
        ('"0-2"', '"2-0"', "cluster[0].phase[0].nodes: '2-0' runs backwards"),
        ('"0-2"', '"a"', "cluster[0].phase[0].nodes: 'a' is no range"),
        ("sm_active = 0.9", "sm_actve = 0.9", "phase[0].sm_actve: unknown key; nearest known: sm_"),
        ("sm_active = 0.9", "sm_active = 90", "phase[0].sm_active: 90 is not between 0 and 1"),
        ("{ power = 0.1 }", "{ heat = 0.1 }", "phase[0].throttle.heat: unknown reason"),
        ('"silent"', '"silnt"', "phase[1].state: unknown state 'silnt'; nearest known: silent"),
        ('from = "5m"', 'from = "11m"', "phase[1].from: 11m is not before the phase's end"),
        ('to = "10m"', 'to = "31m"', "phase[1].to: 31m is after the scenario's end"),
        ("card = 1", "card = 8", "xid[0].card: 8 does not exist; the last one is 7"),
        ('at = "12m"', 'at = "30m"', "xid[0].at: 30m is after the scenario's end"),
        ("[scenario]", "[scenario", "not a TOML file"),
        ("[scenario]", "[[scenario]]", "scenario: a table is wanted here"),
        ("[[cluster]]", "[cluster]", "cluster: a list of tables is wanted"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(right: str, wrong: str, message: str) -> None:
    assert right in GOOD
    with pytest.raises(UsageError) as caught:
        scenario.parse(GOOD.replace(right, wrong, 1))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_more_than_a_card_are_refused() -> None:
    jobs = 'jobs = [{ job = "a", weight = 0.7 }, { job = "b", weight = 0.7 }]'
    with pytest.raises(UsageError, match=r"phase\[0\]\.jobs: weights sum to 1\.4"):
        scenario.parse(GOOD.replace("throttle = { power = 0.1 }", jobs))


def test_two_clusters_of_one_name_are_refused() -> None:
    second = '\n[[cluster]]\nname = "atlas"\nsku = "H100-SXM5"\nnodes = 1\n'
    with pytest.raises(UsageError, match=r"cluster\[1\]\.name: 'atlas' was taken before"):
        scenario.parse(GOOD + second)


def test_the_packaged_scenario_is_valid_and_endless() -> None:
    text = (resources.files("flopwatch.simulate") / "default.toml").read_text(encoding="utf-8")
    parsed = scenario.parse(text)
    assert parsed.endless
    assert [(c.name, c.nodes, c.cards_per_node) for c in parsed.clusters] == [("sim", 16, 8)]
    states = {
        segment.state.state
        for node in parsed.clusters[0].timelines
        for card in node
        for segment in card
    }
    assert states == {"active", "idle_alloc", "free", "failed"}
