"""The reconnect storm in small: everybody comes back, and the spread keeps the peak down."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
try:
    spec = importlib.util.spec_from_file_location("storm", BENCH / "storm.py")
    assert spec is not None
    assert spec.loader is not None
    storm = importlib.util.module_from_spec(spec)
    sys.modules["storm"] = storm
    spec.loader.exec_module(storm)
finally:
    sys.path.remove(str(BENCH))


def test_a_fleet_comes_back_no_faster_than_handshakes_go_and_gently_where_it_was_told_when() -> (
    None
):
    told = storm.simulate(1_000, storm.drained, down_seconds=0.0, rate=34.0)
    untold = storm.simulate(1_000, storm.without_jitter, down_seconds=0.0, rate=34.0)
    for each in (told, untold):
        assert each.back_99_seconds >= 990 / 34.0
    assert told.knocks_per_s_max < untold.knocks_per_s_max == 1_000
    assert told.back_99_seconds < untold.back_99_seconds
    assert told == storm.simulate(1_000, storm.drained, down_seconds=0.0, rate=34.0)


def test_nobody_comes_back_before_the_collector_does() -> None:
    storm_ = storm.simulate(50, storm.killed, down_seconds=100.0)
    assert 100.0 < storm_.back_99_seconds <= storm_.back_seconds
    assert storm_.knocks > 50
