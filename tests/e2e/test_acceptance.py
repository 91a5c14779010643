"""The acceptance scenario over the real wire, against figures worked out by hand.

512 H100 for half an hour: 921,600 card-seconds. What each group of cards does is said once more below,
in card-seconds and shares, and every figure follows from that by the formulas of the definitions; nothing
here is computed by code of the collector.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from evidence_tables import GPM_SPREAD
from flopwatch_agent.clock import SystemClock, wall_unix_ms
from processes import Collector, awaited, backfill, collector, running

SCENARIO: Final = Path(__file__).resolve().parent.parent / "scenarios/acceptance.toml"
POINT: Final = 0.001  # a tenth of a point of 100
EXACT: Final = 1e-9

WINDOW_S: Final = 1_800
IN_SERVICE: Final = 64 * 8 * WINDOW_S  # 921,600
PEAK: Final = 989.4e12  # dense bf16 of an H100 SXM, FLOP/s
REFERENCE_MHZ: Final = 1830.0  # the clock of that peak


@dataclass(frozen=True, kw_only=True)
class Work:
    """Card-time with counters. Attributes: seconds; sm, tensor: shares; mhz; declared: of the peak."""

    seconds: float
    sm: float
    tensor: float
    mhz: float
    declared: float | None = None

    @property
    def u(self) -> float:
        return self.tensor * self.mhz / REFERENCE_MHZ


# Nodes 0-24: without node 1's 5 and node 2's and 4's 20 silent minutes, without node 5's 5 and node 6's
# 20 unwatched ones, without the failed card's last 18; and the seven whole cards of node 53.
UNDECLARED: Final = Work(
    seconds=25 * 8 * 1_800 - 8 * (300 + 1_200 + 1_200) - 8 * (300 + 1_200) - 18 * 60 + 7 * 1_800,
    sm=0.90,
    tensor=0.45,
    mhz=1650,
)
DECLARED: Final = Work(seconds=25 * 8 * 1_800, sm=0.90, tensor=0.45, mhz=1650, declared=0.38)
SHARED: Final = Work(seconds=0.75 * 1_800, sm=0.60, tensor=0.20, mhz=REFERENCE_MHZ)
WORK: Final = (UNDECLARED, DECLARED, SHARED)

IDLE_ALLOC: Final = 3 * 8 * 1_800  # a job, no process
BY_WORD: Final = 8 * (300 + 1_200)  # allocated says the roster, nobody watches
FAILED: Final = 18 * 60 + 2 * 1_800
MAINT: Final = 8 * 1_800
HELD: Final = 8 * 1_800
MISSING: Final = 8 * (1_200 + 1_200)  # silent for 20 minutes, and down by the roster's word
UNSEEN: Final = 8 * 300
FREE: Final = 6 * 1_800 + 7 * 8 * 1_800 + 0.25 * 1_800

ACTIVE: Final = sum(w.seconds for w in WORK)
ALLOCATED: Final = ACTIVE + IDLE_ALLOC + BY_WORD
SEEN: Final = IN_SERVICE - UNSEEN
USABLE: Final = SEEN - MISSING - FAILED - MAINT

COUNTED: Final = ACTIVE + IDLE_ALLOC
HFU: Final = sum(w.seconds * w.u for w in WORK) / COUNTED
MODEL: Final = DECLARED.seconds * 0.38
OPEN: Final = UNDECLARED.seconds * UNDECLARED.u + SHARED.seconds * SHARED.u

WATERFALL: Final[dict[str, float | None]] = {
    "missing": MISSING,
    "failed": FAILED,
    "maint": MAINT,
    "unseen": UNSEEN,
    "held": HELD,
    "stranded": 0,
    "free": FREE,
    "no_process": IDLE_ALLOC,
    "sm_idle": sum(w.seconds * (1 - w.sm) for w in WORK),
    "clock": sum(w.seconds * w.sm * (1 - w.mhz / REFERENCE_MHZ) for w in WORK),
    "tensor_gap": sum(w.seconds * (w.sm - w.tensor) * w.mhz / REFERENCE_MHZ for w in WORK),
    "unattributed": BY_WORD,
    "dtype": None,
    "tile": None,
    "recompute": DECLARED.seconds * DECLARED.u - MODEL,
    "eval_checkpoint": None,
    "rework": None,
    "hardware_flops": OPEN,
    "model_flops": MODEL,
}

# One row per card and 10 s it was watched; the shared card has three (two jobs and its free quarter).
WATCHED: Final = IN_SERVICE - MISSING - UNSEEN - BY_WORD
ROWS: Final = WATCHED // 10 + 2 * WINDOW_S // 10


@dataclass(frozen=True, kw_only=True)
class Sent:
    """The scenario, moved to two days ago. Attributes: start, end: as the API takes them."""

    file: Path
    start: str
    end: str


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    start = datetime.fromtimestamp(wall_unix_ms(SystemClock()) / 1000, UTC) - timedelta(days=2)
    start = start.replace(minute=0, second=0, microsecond=0)
    text, count = re.subn(
        r'start = "[^"]*"', f'start = "{_text(start)}"', SCENARIO.read_text(encoding="utf-8")
    )
    assert count == 1
    file = tmp_path_factory.mktemp("acceptance") / "acceptance.toml"
    file.write_text(text, encoding="utf-8")
    return Sent(file=file, start=_text(start), end=_text(start + timedelta(seconds=WINDOW_S)))


@pytest.fixture(scope="module")
def fleet(shared: Collector, scenario: Sent) -> Any:
    """What the API answers after the scenario was sent once."""
    sent = backfill(shared, scenario.file)
    assert sent.returncode == 0, sent.stderr
    return shared.get("/api/v1/clusters/atlas", start=scenario.start, end=scenario.end)


def has_rows(of: Collector, count: float) -> bool:
    return of.rows("atlas") >= count


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def assert_same(one: Any, other: Any, at: str = "") -> None:
    """Two answers are the same; only the last bits of a sum depend on the order of its parts."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for name in one:
            assert_same(one[name], other[name], f"{at}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), at
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{at}[{i}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-12, abs=0), at
    else:
        assert one == other, at


def check(figures: Any) -> None:
    """Every figure of the cluster equals its closed form."""
    assert figures["simulated"] is True
    assert figures["status"] == "final"
    for name, seconds in (
        ("in_service", IN_SERVICE),
        ("allocated", ALLOCATED),
        ("active", ACTIVE),
        ("unseen", UNSEEN),
    ):
        assert figures["cards"][name] == pytest.approx(seconds / WINDOW_S, rel=EXACT), name
    allocation, hfu, mfu = figures["allocation"], figures["hfu"], figures["mfu"]
    wanted = {
        "allocation": (allocation["value"], ALLOCATED / SEEN),
        "allocation.lo": (allocation["lo"], ALLOCATED / IN_SERVICE),
        "allocation.hi": (allocation["hi"], (ALLOCATED + UNSEEN) / IN_SERVICE),
        "allocation.coverage": (allocation["coverage"], WATCHED / IN_SERVICE),
        "active_allocation": (figures["active_allocation"]["value"], ACTIVE / SEEN),
        "availability": (figures["availability"]["value"], USABLE / SEEN),
        "schedulable_allocation": (figures["schedulable_allocation"]["value"], ALLOCATED / USABLE),
        "hfu": (hfu["value"], HFU),
        "hfu.coverage": (hfu["coverage"], COUNTED / ALLOCATED),
        "mfu.lo": (mfu["lo"], (MODEL + 0.72 * (1 - GPM_SPREAD) * OPEN) / COUNTED),
        "mfu.hi": (mfu["hi"], (MODEL + (1 + GPM_SPREAD) * OPEN) / COUNTED),
        "mfu.declared_share": (mfu["declared_share"], (DECLARED.seconds + IDLE_ALLOC) / COUNTED),
        "yield": (figures["yield"]["value"], ALLOCATED / SEEN * HFU),
    }
    wrong = {name: pair for name, pair in wanted.items() if abs(pair[0] - pair[1]) > POINT}
    assert wrong == {}
    assert mfu["value"] is None
    spread = (hfu["hi"] - hfu["lo"]) / 2 / HFU
    assert spread == pytest.approx(GPM_SPREAD, rel=0.01)
    check_waterfall(figures["waterfall"])


def check_waterfall(waterfall: Any) -> None:
    assert [step["step"] for step in waterfall] == list(WATERFALL)
    for step in waterfall:
        seconds = WATERFALL[step["step"]]
        if seconds is None:
            assert step["share"] is step["card_seconds"] is step["flops"] is None
            continue
        assert step["share"] == pytest.approx(seconds / IN_SERVICE, abs=POINT), step["step"]
        assert step["card_seconds"] == pytest.approx(seconds, abs=POINT * IN_SERVICE)
        assert step["flops"] == pytest.approx(seconds * PEAK, abs=POINT * IN_SERVICE * PEAK)


def test_the_closed_form_fills_the_time_in_service() -> None:
    assert sum(seconds or 0 for seconds in WATERFALL.values()) == pytest.approx(IN_SERVICE)


def test_every_figure_of_the_scenario_equals_its_closed_form(fleet: Any) -> None:
    check(fleet)


def test_the_fleet_answers_what_the_cluster_answers(
    shared: Collector, scenario: Sent, fleet: Any
) -> None:
    listed = shared.cluster("atlas", scenario.start, scenario.end)
    assert_same(listed, {name: fleet[name] for name in listed})


def test_shares_sum_to_one(fleet: Any) -> None:
    waterfall = fleet["waterfall"]
    assert sum(s["share"] or 0 for s in waterfall) == pytest.approx(1, abs=EXACT)
    assert sum(s["card_seconds"] or 0 for s in waterfall) == pytest.approx(IN_SERVICE, rel=EXACT)


def test_allocation_is_availability_times_schedulable_allocation(fleet: Any) -> None:
    product = fleet["availability"]["value"] * fleet["schedulable_allocation"]["value"]
    assert fleet["allocation"]["value"] == pytest.approx(product, abs=EXACT)


def test_every_row_that_was_produced_is_stored_once(shared: Collector, fleet: Any) -> None:
    assert fleet["simulated"] is True
    assert shared.rows("atlas") == ROWS


def test_the_same_file_sent_twice_changes_nothing(
    shared: Collector, scenario: Sent, fleet: Any
) -> None:
    sent = backfill(shared, scenario.file)
    assert sent.returncode == 0, sent.stderr
    again = shared.get("/api/v1/clusters/atlas", start=scenario.start, end=scenario.end)
    assert_same(again, fleet)
    assert shared.rows("atlas") == ROWS


def test_five_kills_on_the_way_lose_nothing_and_double_nothing(
    tmp_path: Path, scenario: Sent
) -> None:
    with collector(tmp_path / "data") as killed:
        arguments = (
            *("simulate", "--collector", killed.grpc, "--scenario", str(scenario.file)),
            *("--backfill", "--api", killed.url),
        )
        with running(*arguments, log=tmp_path / "simulate.log") as simulate:
            for part in (0.05, 0.2, 0.4, 0.6, 0.8):
                enough = partial(has_rows, killed, part * ROWS)
                awaited(enough, f"{part} of the rows")
                assert simulate.running, simulate.said()
                killed.kill()
                killed.restart()
            assert simulate.wait(200) == 0, simulate.said()
        assert killed.rows("atlas") == ROWS
        figures = killed.get("/api/v1/clusters/atlas", start=scenario.start, end=scenario.end)
        check(figures)
