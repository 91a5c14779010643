"""The agent's part of probing: what it starts, what it ends, and what it leaves out of every figure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flopwatch_agent import calibrations
from flopwatch_agent.clock import SystemClock
from flopwatch_agent.config import AgentConfig, JobsConfig
from flopwatch_agent.interval import Fold
from flopwatch_agent.probing.budget import Accounts
from flopwatch_agent.probing.guard import Order
from flopwatch_agent.probing.inbox import Inbox, Record
from flopwatch_agent.probing.lock import Lock
from flopwatch_agent.probing.schedule import Probing, Unit, take_wanted
from flopwatch_agent.probing.settings import ProbingConfig
from flopwatch_agent.probing.tags import Tags
from flopwatch_agent.reading import Device, Process, Reading, Share
from flopwatch_agent.release import Window
from flopwatch_kernels.calibration import Calibration
from flopwatch_proto.codec import IntervalRow
from flopwatch_proto.rows import Absence, Bucket

NOON = 1_793_534_400_000
CARD = Device(slot="0000:18:00.0", kind="gpu", sku="NVIDIA H100 80GB HBM3", uuid="GPU-1")
FREE = (Share(bucket=Bucket.FREE, source="slurm", resident=False),)
HELD = (Share(bucket=Bucket.IDLE_ALLOC, job="81", source="slurm"),)
BUSY = {
    "sm_active_ratio": 0.9,
    "tensor_active_ratio": 0.5,
    "gpu_utilization_ratio": 1.0,
    "sm_clock_mhz": 1650.0,
    "pcie_tx_bytes_per_second": 1e9,
}


class Clock(SystemClock):
    """Time as the test says; sleeping passes it."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def wall_unix_ns(self) -> int:
        return (NOON + self.now_ms) * 1_000_000

    def boottime_ns(self) -> int:
        return self.now_ms * 1_000_000

    def monotonic_seconds(self) -> float:
        return self.now_ms / 1e3


class Probe:
    """A probe that only says that it was started."""

    def __init__(self) -> None:
        self.over = False

    def stop(self) -> None:
        self.over = True

    async def close(self) -> None:
        self.over = True


class Node:
    """Readings of a card, once a second, and what the agent makes of them."""

    def __init__(self, tmp_path: Path, **probing: Any) -> None:
        self.clock = Clock()
        self.orders: list[Order] = []
        self.probes: list[Probe] = []
        self.config = AgentConfig(
            data=tmp_path / "data",
            node="n1",
            jobs=JobsConfig(socket=str(tmp_path / "jobs.sock")),
            probing=ProbingConfig(**{"enabled": True, "turns": 1, **probing}),
        )
        self.probing = Probing(self.config, self.clock, self._start)

    async def _start(self, order: Order) -> Probe:
        self.orders.append(order)
        self.probes.append(Probe())
        return self.probes[-1]

    async def passes(self, seconds: int, shares: Sequence[Share] = FREE, **more: Any) -> None:
        for _ in range(seconds):
            self.clock.now_ms += 1_000
            self.probing.see(self.reading(**more), shares)
            await self.probing._tick()

    def reading(self, **more: Any) -> Reading:
        fields = {"device": CARD, "processes": (), "values": BUSY, **more}
        return Reading(
            taken_unix_ms=NOON + self.clock.now_ms, boottime_ns=self.clock.boottime_ns(), **fields
        )


async def test_a_card_is_probed_once_it_was_free_for_long_enough(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await node.passes(300)
    assert node.orders == []
    await node.passes(30)  # the first half of a turn comes every 50 s
    (order,) = node.orders
    assert (order.device, order.policy, order.wall_seconds) == ("GPU-1", "idle", 25.0)
    assert order.kind in ("gemm", "sdc")
    await node.passes(200)  # it goes on: nothing else is started beside it
    assert len(node.orders) == 1


async def test_a_card_is_calibrated_once_under_each_driver(tmp_path: Path) -> None:
    node = Node(tmp_path, kinds=("calibrate",))

    async def passes(driver: str | None) -> list[tuple[str, str | None]]:
        """What was ordered in ten minutes under a driver."""
        before = len(node.orders)
        for _ in range(60):
            await node.passes(10, device=replace(CARD, driver_version=driver))
            for probe in node.probes:
                probe.over = True
        return [(order.kind, order.dtype) for order in node.orders[before:]]

    def calibrated(device: str, driver: str, dtype: str) -> None:
        made = Calibration(
            device=device,
            driver=driver,
            sku=CARD.sku,
            dtype=dtype,
            kappa=2.0,
            refused="kappa 2 is outside of 0.9 to 1.05",
            pipes=(),
            intercept=None,
            points=(),
            taken_unix_ns=1,
        )
        calibrations.save(node.config.data, made)

    assert await passes(None) == []  # nobody could say what it is of
    wanted = await passes("595.58.03")
    assert set(wanted) == {("calibrate", "bf16")}
    for other in (("GPU-2", "595.58.03", "bf16"), ("GPU-1", "595.58.03", "fp8")):
        calibrated(*other)
    assert await passes("595.58.03")
    calibrated("GPU-1", "595.58.03", "bf16")  # one that is refused is known too
    assert await passes("595.58.03") == []
    assert await passes("595.71.05")


@pytest.mark.parametrize("shares", [HELD, (Share(bucket=Bucket.MAINT),)])
async def test_a_card_that_is_given_to_somebody_is_left_at_once(
    tmp_path: Path, shares: tuple[Share, ...]
) -> None:
    node = Node(tmp_path)
    await node.passes(330)
    assert [probe.over for probe in node.probes] == [False]
    await node.passes(1, shares)
    assert [probe.over for probe in node.probes] == [True]


async def test_no_probe_while_the_cards_are_released_or_held_or_the_budget_is_spent(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    window = Window(node.config.release_file)
    window.ask(600)
    await node.passes(400)
    window.end()
    await node.passes(400, HELD)
    await node.passes(400, processes=(Process(pid=7),))
    assert node.orders == []
    accounts = Accounts(node.config.data)
    await node.passes(330)
    assert len(node.orders) == 1
    (tmp_path / "data").mkdir(exist_ok=True)
    assert accounts.load("GPU-1").runs == ()


async def test_switched_off_it_starts_nothing_and_still_hands_on_results(tmp_path: Path) -> None:
    node = Node(tmp_path, enabled=False)
    await node.probing.run()
    assert node.orders == []
    assert (tmp_path / "probing").is_dir()
    corrupt = Record(
        slot=CARD.slot, start_unix_ms=NOON, kind="sdc", outcome="corrupt", reason="2 of 8"
    )
    Inbox(node.config.data).put(corrupt)
    (probe,) = node.probing.results()
    assert (probe.kind, probe.outcome, probe.slot) == ("sdc", "corrupt", CARD.slot)
    (event,) = node.probing.events()
    assert (event.kind, event.severity, event.text) == ("probe_corrupt", "error", "sdc : 2 of 8")
    assert len(node.probing.results()) == 1  # not in the spool yet
    node.probing.kept()
    assert node.probing.results() == []


async def test_an_order_for_the_unit_is_taken_once_and_taken_back(tmp_path: Path) -> None:
    order = Order(device="GPU-1", locks=str(tmp_path / "locks"))
    unit = await Unit.start(order)
    assert not unit.over
    assert take_wanted(tmp_path / "locks") == [order]
    assert take_wanted(tmp_path / "locks") == []
    assert unit.over
    again = await Unit.start(order)
    again.stop()
    assert take_wanted(tmp_path / "locks") == []


# ---- what is left out of every figure


@pytest.fixture
def child() -> Iterator[int]:
    """A process that this one started, as a probe is started by its guard."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def values(row: IntervalRow, name: str) -> float | None:
    value = row.values.get(name)
    return None if value is None or isinstance(value, Absence) else value


async def test_time_with_a_probe_of_ours_counts_for_nobody(tmp_path: Path, child: int) -> None:
    node, tags = Node(tmp_path), Tags(tmp_path / "probing")
    fold = Fold(interval_ms=10_000)
    lock = Lock(tmp_path / "probing", "GPU-1")
    rows = []
    for second in range(30):
        if second == 12:
            lock.take("gemm bf16 burst", node.clock.boottime_ns() + 300_000_000)
        on_it = (Process(pid=child),) if 12 < second <= 15 else ()
        energy = {"energy_joules_total": 100.0 * second}
        reading = node.reading(processes=on_it, values=BUSY | energy)
        seen = tags.tagged(reading)
        if on_it:
            assert seen.processes == ()
        assert ("sm_active_ratio" in seen.values) == (second not in range(13, 18))
        rows += fold.add(seen, FREE)
        if second == 15:
            lock.release(node.clock.boottime_ns() + 100_000_000)
        node.clock.now_ms += 1_000
    rows += fold.close(NOON + node.clock.now_ms)
    assert {(row.bucket, row.card_times["resident_ms"]) for row in rows} == {(Bucket.FREE, 0)}
    probing = [values(row, "probing_ms") or 0.0 for row in rows]
    assert sum(probing) == 5_000.0
    assert [row.card_times["counted_ms"] for row in rows] == [
        row.duration_ms - spent for row, spent in zip(rows, probing, strict=True)
    ]
    for row, spent in zip(rows, probing, strict=True):
        active = row.duration_ms - spent
        assert values(row, "sm_active_ms") == pytest.approx(0.9 * active)
        assert values(row, "gpu_utilization_ms") == pytest.approx(active)
        assert values(row, "pcie_tx_bytes") == pytest.approx(1e6 * active)
        assert values(row, "energy_joules") == pytest.approx(0.1 * row.duration_ms)


def test_a_probe_between_two_readings_is_noticed_and_a_lock_elsewhere_is_not_believed(
    tmp_path: Path,
) -> None:
    node, tags = Node(tmp_path), Tags(tmp_path / "probing")
    assert tags.tagged(node.reading()).probed_ns is None
    at = node.clock.boottime_ns()
    lock = Lock(tmp_path / "probing", "GPU-1").take("gemm", at + 200_000_000)
    lock.release(at + 700_000_000)
    node.clock.now_ms += 1_000
    seen = tags.tagged(node.reading())
    assert seen.probed_ns == at + 1_000_000_000
    node.clock.now_ms += 2_000
    assert tags.tagged(node.reading()).probed_ns == at + 1_700_000_000  # the driver's means settle
    node.clock.now_ms += 1_000
    assert tags.tagged(node.reading()).probed_ns is None
    path = tmp_path / "probing" / "GPU-1.lock"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    node.clock.now_ms -= 3_000
    assert Tags(tmp_path / "probing").tagged(node.reading()).probed_ns is None


def test_a_guard_that_was_killed_is_tagged_up_to_when_it_was_last_seen(tmp_path: Path) -> None:
    node, tags = Node(tmp_path), Tags(tmp_path / "probing")
    code = (
        "import sys; from pathlib import Path; from flopwatch_agent.probing.lock import Lock\n"
        f"Lock(Path({str(tmp_path / 'probing')!r}), 'GPU-1').take('gemm', {node.clock.boottime_ns()})\n"
        "print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as guard:
        assert guard.stdout is not None
        assert guard.stdout.readline() == b"1\n"
        node.clock.now_ms += 1_000
        assert tags.tagged(node.reading()).probed_ns == node.clock.boottime_ns()
        guard.kill()
    last = node.clock.boottime_ns()
    node.clock.now_ms += 3_000
    assert tags.tagged(node.reading()).probed_ns == last + 1_000_000_000
    node.clock.now_ms += 1_000
    assert tags.tagged(node.reading()).probed_ns is None
