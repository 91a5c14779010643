"""A short kill campaign, and the oracle held against histories that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.kills import SLOTS, campaign
from campaign.verdict import DARK_MS, FIRST_MS, LOST_MS, POWER_WATTS, Kill, judge
from fakenvml import build
from flopwatch_proto import codec
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.rows import Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

KILLS = 8
SLOT = "0000:18:00.0"
NOON = 1_790_000_000_000


def batch(seq: int, start_unix_ms: int, covered_ms: int = 1_000) -> pb.AgentFrame:
    row = IntervalRow(
        slot=SLOT,
        start_unix_ms=start_unix_ms,
        duration_ms=1_000,
        bucket=Bucket.FREE,
        card_times={"card_ms": 1_000, "covered_ms": covered_ms},
        values={"energy_joules": POWER_WATTS * covered_ms / 1e3, "power_watts_max": POWER_WATTS},
    )
    packed = codec.pack(pb.Payload(intervals=codec.encode_rows([row])))
    packed.seq = seq
    return pb.AgentFrame(batch=packed)


WHOLE = [batch(seq, NOON + seq * 1_000) for seq in range(1, 61)]


def test_whole_history_is_right() -> None:
    verdict = judge([*WHOLE, WHOLE[3]], [], [SLOT])
    assert (verdict.problems, verdict.rows, verdict.holes) == ([], 60, 0)


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        (WHOLE[:30] + WHOLE[31:], "never came"),
        ([*WHOLE, batch(61, NOON + 62_000)], "declared by nothing"),
        ([*WHOLE, batch(61, NOON + 60_500)], "overlap"),
        ([*WHOLE, batch(61, NOON + 61_000, covered_ms=400)], "for no cause"),
        ([*WHOLE, batch(9, NOON + 61_000)], "different contents"),
        ([], "no rows"),
    ],
)
def test_a_history_with_a_fault_is_found_out(frames: list[pb.AgentFrame], problem: str) -> None:
    assert any(problem in line for line in judge(frames, [], [SLOT]).problems)


def test_a_hole_must_fit_the_kills_that_explain_it() -> None:
    kill = Kill(target="agent", at_unix_ms=NOON + 61_000 + LOST_MS, started_unix_ms=NOON + 80_000)
    late = batch(61, NOON + 80_000 + FIRST_MS)
    assert judge([*WHOLE, late], [kill], [SLOT]).problems == []
    later = batch(61, NOON + 80_000 + FIRST_MS + 1)
    assert "declared by nothing" in judge([*WHOLE, later], [kill], [SLOT]).problems[0]
    of_a_child = Kill(target="child", at_unix_ms=kill.at_unix_ms)
    assert "declared by nothing" in judge([*WHOLE, late], [of_a_child], [SLOT]).problems[0]


def test_unwatched_time_must_follow_a_kill() -> None:
    kill = Kill(target="child", at_unix_ms=NOON + 61_000)
    frames = [*WHOLE, batch(61, NOON + 61_000, covered_ms=0)]
    assert judge(frames, [kill], [SLOT]).problems == []
    early = Kill(target="child", at_unix_ms=NOON + 61_000 - DARK_MS - 1)
    assert "for no cause" in judge(frames, [early], [SLOT]).problems[0]


def test_a_number_that_the_driver_never_said_is_found_out() -> None:
    wrong = batch(61, NOON + 61_000)
    payload = codec.unpack(wrong.batch)
    payload.intervals.energy_joules[0] = 0.0
    packed = codec.pack(payload)
    packed.seq = 61
    problems = judge([*WHOLE, pb.AgentFrame(batch=packed)], [], [SLOT]).problems
    assert "0.0 J" in problems[0]


def test_no_gap_is_undeclared_after_kills_of_agent_and_child(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lib = build(tmp_path_factory.getbasetemp() / "fakenvml")
    with campaign(tmp_path, lib, seed=7) as running:
        verdict = running.run(KILLS)
        assert verdict.problems == []
        assert verdict.rows > len(SLOTS)
        assert {kill.target for kill in running.kills} == {"agent", "child"}
