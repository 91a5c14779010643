"""kappa per card, driver and dtype: from readings beside a load to the file that the estimator reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from flopwatch_agent import calibrate as module
from flopwatch_agent.calibrate import calibrate
from flopwatch_agent.calibrations import FILE_NAME, Calibrations, counted, save
from flopwatch_agent.rates import UNCALIBRATED
from flopwatch_agent.reading import Device, Reading
from flopwatch_kernels import peaks
from flopwatch_kernels.calibration import Calibration
from flopwatch_kernels.errors import ProbeError
from flopwatch_kernels.messages import Mark, ProbeResult
from flopwatch_proto.errors import UsageError
from flopwatch_proto.rows import Absence

DRIVER = "595.58.03"
CARD = Device(
    slot="0000:18:00.0",
    kind="gpu",
    sku="NVIDIA H100 80GB HBM3",
    uuid="GPU-1",
    sm_count=132,
    clock_mhz_max=1980.0,
    driver_version=DRIVER,
)
MHZ = 1755.0
ACTIVE = 0.8


def made(
    kappa: float = 0.98, refused: str | None = None, dtype: str = "bf16", device: str = "GPU-1"
) -> Calibration:
    return Calibration(
        device=device,
        driver=DRIVER,
        sku=CARD.sku,
        dtype=dtype,
        kappa=kappa,
        refused=refused,
        pipes=("hmma",),
        intercept=0.0,
        points=(),
        taken_unix_ns=1,
    )


def test_the_estimator_is_told_kappa_by_card_driver_and_dtype(tmp_path: Path) -> None:
    for each in (made(0.5), made(0.97, dtype="fp64"), made(0.99)):
        save(tmp_path / "data", each)
    known = Calibrations(tmp_path / "data")
    assert known.trust(CARD) == UNCALIBRATED
    known.refresh()
    # A library's fp64 product runs on the tensor pipe, and the peak table calls that fp64_tensor.
    assert dict(known.trust(CARD).kappas) == {"bf16": 0.99, "fp64_tensor": 0.97}
    assert known.trust(CARD).refused == ()
    assert dict(known.trust(CARD).pipes) == {"bf16": ("hmma",), "fp64_tensor": ("hmma",)}
    # Another card has the map of its SKU and driver, and no kappa; under another driver it has nothing.
    other = known.trust(replace(CARD, uuid="GPU-2"))
    assert (other.kappas, other.refused, other.pipes) == ((), (), known.trust(CARD).pipes)
    assert known.trust(replace(CARD, driver_version="580.1")) == UNCALIBRATED


def test_a_refused_calibration_gives_its_reason_and_no_kappa(tmp_path: Path) -> None:
    save(tmp_path, made(2.0, "kappa 2 is outside of 0.9 to 1.05"))
    known = Calibrations(tmp_path)
    known.refresh()
    assert (known.trust(CARD).kappas, known.trust(CARD).refused) == ((), ("bf16",))
    (event,) = known.events(7)
    assert event.text == f"bf16 under driver {DRIVER}: kappa 2 is outside of 0.9 to 1.05"


def test_a_running_agent_hears_of_a_calibration_and_of_its_end(tmp_path: Path) -> None:
    known = Calibrations(tmp_path)
    known.refresh()
    save(tmp_path, made())
    known.refresh()
    assert known.trust(CARD).kappas == (("bf16", 0.98),)
    (tmp_path / FILE_NAME).unlink()
    known.refresh()
    assert known.trust(CARD) == UNCALIBRATED


def test_a_file_that_makes_no_sense_changes_nothing_and_is_not_written_over(tmp_path: Path) -> None:
    save(tmp_path, made())
    known = Calibrations(tmp_path)
    known.refresh()
    (tmp_path / FILE_NAME).write_text("{")
    known.refresh()
    assert known.trust(CARD).kappas == (("bf16", 0.98),)
    with pytest.raises(UsageError, match="not a file of calibrations"):
        save(tmp_path, made(0.99))


def reading(boottime_ns: int, **values: float | Absence) -> Reading:
    told = {"tensor_active_ratio": ACTIVE, "hmma_active_ratio": ACTIVE, "imma_active_ratio": 0.0}
    return Reading(
        device=CARD,
        taken_unix_ms=1_790_000_000_000 + boottime_ns // 1_000_000,
        boottime_ns=boottime_ns,
        values={**told, "sm_active_ratio": 0.98, "sm_clock_mhz": MHZ, **values},
    )


def rate() -> float:
    """FLOP/s that these counters stand for: the peak at the clock, by activity."""
    found = peaks.find(CARD.sku or "")
    assert found is not None
    peak = found.peaks["bf16"]
    assert peak.ref_clock_mhz is not None
    return ACTIVE * MHZ / peak.ref_clock_mhz * peak.dense_flops


def test_the_counters_between_two_readings_are_those_of_the_estimator() -> None:
    [span] = counted([reading(0), reading(250_000_000)], "bf16")
    assert (span.start_ns, span.end_ns) == (0, 250_000_000)
    assert span.flops == pytest.approx(rate() * 0.25)
    assert span.active == ACTIVE
    assert span.pipes == {"hmma": ACTIVE, "imma": 0.0}


def test_the_time_of_a_probe_of_ours_is_what_is_asked_for_here() -> None:
    tagged = [replace(reading(at), probed_ns=at) for at in (0, 250_000_000)]
    [span] = counted(tagged, "bf16")
    assert span.flops == pytest.approx(rate() * 0.25)


def test_readings_without_a_tensor_counter_or_a_card_give_nothing() -> None:
    silent = reading(1, tensor_active_ratio=Absence.NOT_SUPPORTED)
    lost = replace(reading(1), alive=False, values={})
    assert counted([reading(0), silent], "bf16") == []
    assert counted([lost, reading(2)], "bf16") == []
    assert counted([reading(0)], "bf16") == []


LOAD_NS = 10_000_000_000
"""Of each shape, on a clock that goes twenty times as fast as ours."""


class World:
    """A load and the counters of its card, on a boot clock of their own."""

    def __init__(self, ratio: float) -> None:
        self._began = time.monotonic()
        self._ratio = ratio

    def now_ns(self) -> int:
        return round((time.monotonic() - self._began) * 20e9)

    async def read(self) -> Sequence[Reading]:
        return [reading(self.now_ns()), replace(reading(self.now_ns()), device=OTHER)]

    def run_probe(self, *, on_mark: Callable[[Mark], None], **arguments: object) -> ProbeResult:
        assert arguments["kind"] == "calibrate"
        shapes = [(edge,) * 3 for edge in (8192, 4096)]
        for shape in shapes:
            began = self.now_ns()
            while (at := self.now_ns()) - began <= LOAD_NS:
                flops = (at - began) / 1e9 * rate() * self._ratio
                on_mark(Mark(boottime_ns=at, flops=flops, shape=shape))
                time.sleep(0.0005)
        return ProbeResult(
            kind="calibrate",
            device="cuda:GPU-1",
            sku=CARD.sku,
            driver_version=DRIVER,
            dtype="bf16",
            iterations=1,
            seconds=1.0,
            sustained=False,
            started_at_unix_ns=7,
        )


OTHER = replace(CARD, slot="0000:2a:00.0", uuid="GPU-2")


@pytest.mark.parametrize(("ratio", "refused"), [(0.97, False), (0.5, True)])
async def test_a_load_and_the_readings_beside_it_become_a_calibration(
    ratio: float, refused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(ratio)
    monkeypatch.setattr(module, "PERIOD_SECONDS", 0.0125)
    found, load = await calibrate(world.read, device="GPU-1", dtype="bf16", measure=world.run_probe)
    assert load.kappa == found.kappa
    assert load.detail.get("refused") == found.refused
    assert found.kappa == pytest.approx(ratio, rel=0.02)
    assert (found.refused is not None) == refused
    assert (found.device, found.driver, found.sku, found.taken_unix_ns) == (
        "GPU-1",
        DRIVER,
        CARD.sku,
        7,
    )
    save(tmp_path, found)
    known = Calibrations(tmp_path)
    known.refresh()
    assert (known.trust(CARD).kappas == ()) == refused
    assert msgspec.json.decode((tmp_path / FILE_NAME).read_bytes())["v"] == 1


async def test_a_card_that_nobody_reads_is_no_calibration() -> None:
    world = World(1.0)
    with pytest.raises(ProbeError, match=r"no calibration of GPU-3: 0 readings"):
        await calibrate(world.read, device="GPU-3", dtype="bf16", measure=world.run_probe)
