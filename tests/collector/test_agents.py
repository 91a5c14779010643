"""Which agents report, as live state remembers them."""

from __future__ import annotations

from evidence_tables import row
from flopwatch_collector.agents import AGENTS_MAX, FORGET_MS, TOLD_MS, Agents
from flopwatch_collector.live import Live
from flopwatch_collector.rules.registry import rule_named
from flopwatch_collector.trust.identity import Identity
from flopwatch_collector.trust.records import Shown
from flopwatch_collector.web.records import agent as agent_record
from flopwatch_proto import codec
from flopwatch_proto.v1 import telemetry_pb2 as pb

NOW = 1_800_000_000_000


def hello(node: str = "n0", *, skew_ms: int = 0) -> pb.Hello:
    return pb.Hello(
        protocol_revision=1, agent_version="0.1.0", cluster="atlas", node_id=node,
        wall_unix_ns=(NOW + skew_ms) * 1_000_000,
    )  # fmt: skip


def test_an_agent_says_who_it_is_when_it_comes_and_how_far_behind_it_is_later() -> None:
    agents = Agents()
    agents.hello(hello(skew_ms=-1_500), NOW)
    (one,) = agents.listed(NOW)
    assert (one["version"], one["clock_skew_ms"], one["spool_batches"]) == ("0.1.0", -1_500, None)
    said = pb.Status(
        taken_unix_ms=NOW + 4_000, spool_batches=7, spool_bytes=900, driver_state="lost"
    )
    agents.status("atlas", "n0", said, NOW + 5_000)
    (one,) = agents.listed(NOW + 5_000)
    assert (one["spool_batches"], one["driver_state"]) == (7, "lost")
    assert (one["clock_skew_ms"], one["heard_unix_ms"]) == (-1_000, NOW + 5_000)
    (one,) = agents.listed(NOW + 5_000 + TOLD_MS)  # one word in between may be lost
    assert (one["spool_batches"], one["driver_state"]) == (7, "lost")
    (one,) = agents.listed(NOW + 5_001 + TOLD_MS)
    assert (one["spool_batches"], one["driver_state"]) == (None, None)


def test_a_certificate_is_the_one_that_was_shown_last_and_is_counted_when_it_ends() -> None:
    agents, shown, day = Agents(), Shown(), 86_400_000
    agents.certificate_of = shown.of
    agents.hello(hello(), NOW)
    (one,) = agents.listed(NOW)
    assert agent_record(one)["certificate_expires"] is None  # in clear text
    identity = Identity(
        domain="d", cluster="atlas", node="n0", issued_unix_ms=NOW, expires_unix_ms=NOW + 8 * day
    )
    shown.note(identity, NOW)
    (one,) = agents.listed(NOW)
    assert agent_record(one)["certificate_starts"] == "2027-01-15T08:00:00Z"
    assert agent_record(one)["certificate_expires"] == "2027-01-23T08:00:00Z"
    counts = [shown.ending(NOW + at) for at in (0, 6 * day, 6 * day + 1, 9 * day - 1, 9 * day)]
    assert counts == [0, 0, 1, 1, 0]
    assert shown.of("atlas", "n0") is None


def test_words_of_nodes_without_a_hello_make_no_agent() -> None:
    agents = Agents()
    agents.heard("atlas", "n0", NOW)
    agents.status("atlas", "n0", pb.Status(), NOW)
    assert agents.listed(NOW) == []


def test_an_agent_is_forgotten_after_a_week_and_the_longest_silent_at_the_bound() -> None:
    agents = Agents()
    agents.hello(hello("old"), NOW)
    agents.hello(hello("new"), NOW + 1)
    assert [a["node"] for a in agents.listed(NOW + FORGET_MS)] == ["new"]
    for i in range(AGENTS_MAX):
        agents.hello(hello(f"n{i}"), NOW + 2 + i)
    kept = {a["node"] for a in agents.listed(NOW + AGENTS_MAX)}
    assert len(kept) < AGENTS_MAX
    assert f"n{AGENTS_MAX - 1}" in kept
    assert "new" not in kept


def test_live_state_hears_rows_and_leaves() -> None:
    live = Live(NOW, lambda cluster: rule_named("mfu").defaults)
    live.hello(hello(), NOW)
    rows = {name: [value] for name, value in row(NOW).items()}
    live.add("atlas", "n0", False, rows, NOW + 12_000)
    (one,) = live.agents.listed(NOW)
    assert (one["heard_unix_ms"], one["left"]) == (NOW + 12_000, False)
    live.goodbye("atlas", "n0", 1_000, NOW + 13_000)
    (one,) = live.agents.listed(NOW)
    assert (one["heard_unix_ms"], one["left"]) == (NOW + 13_000, True)
    live.hello(hello(), NOW + 20_000)
    assert live.agents.listed(NOW)[0]["left"] is False


def test_an_agent_without_a_backlog_tells_its_driver_and_its_spool_too() -> None:
    live = Live(NOW, lambda cluster: rule_named("mfu").defaults)
    live.hello(hello(), NOW)
    said = pb.Status(taken_unix_ms=NOW, driver_state="unresponsive", rows_dropped=3)
    live.status("atlas", "n0", False, said, codec.decode_rows(said.newest), NOW)
    (one,) = live.agents.listed(NOW + 60_000)
    assert (one["driver_state"], one["spool_batches"]) == ("unresponsive", 0)
    assert one["rows_dropped"] == 3
