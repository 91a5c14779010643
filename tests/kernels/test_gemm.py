"""The order of a measurement, on a device made of numbers."""

import itertools
from collections.abc import Callable

import msgspec
import pytest

from flopwatch_kernels import card, gemm, gemm_devices, peaks
from flopwatch_kernels.errors import ProbeError
from flopwatch_kernels.flops import gemm_flops
from flopwatch_kernels.gemm_operands import Shape, operand_bytes
from flopwatch_kernels.messages import Message, ProbeResult, ProbeSpec, Progress
from flopwatch_kernels.sensors import Identity, NoSensor, Reading, Sensor

SPEC = ProbeSpec(
    device="cpu",
    dtype="bf16",
    sustained=False,
    sustained_seconds=20.0,
    threads=None,
    niceness=0,
    memory_bytes_max=1 << 30,
    wall_seconds=60.0,
)

CUBE, FLAT, DEEP = (8192, 8192, 8192), (16384, 8192, 4096), (4096, 8192, 16384)


class Fake:
    """A card whose three shapes run at known speeds, with a given spread."""

    name: str = "cuda:GPU-fake"
    threads: int | None = None
    sm_count: int | None = 132
    warm_up_iterations: int = 5
    iterations_min: int = 10
    iterations_max: int = 300
    burst_seconds_max: float = 10.0

    def __init__(self, sku: str | None, jitter: float) -> None:
        self.sku = sku
        self.sensor: Sensor = NoSensor()
        self.jitter = jitter
        self.flops = {CUBE: 4e14, FLAT: 8e14, DEEP: 6e14}
        self.ran: list[tuple[Shape, int]] = []
        self.now_seconds = 0.0  # goes on while the device works, and at no other time

    def monotonic(self) -> float:
        return self.now_seconds

    def shapes(self) -> tuple[Shape, ...]:
        return tuple(self.flops)

    def load(self, shape: Shape) -> Callable[[int], list[float]]:
        seconds = gemm_flops(*shape) / self.flops[shape]
        factors = itertools.cycle((1.0, 1 + self.jitter, 1 - self.jitter))

        def run(iterations: int) -> list[float]:
            self.ran.append((shape, iterations))
            durations = [seconds * next(factors) for _ in range(iterations)]
            self.now_seconds += sum(durations)
            return durations

        return run


def measure(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, *, dtype: str = "bf16", sustained: bool = False
) -> tuple[ProbeResult, list[str]]:
    result, told = measured(fake, monkeypatch, dtype=dtype, sustained=sustained)
    return result, [each.text for each in told]


def measured(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, *, dtype: str = "bf16", sustained: bool = False
) -> tuple[ProbeResult, list[Progress]]:
    monkeypatch.setattr(gemm, "open_device", lambda spec: fake)
    monkeypatch.setattr(gemm, "time", fake)
    said: list[Message] = []
    spec = msgspec.structs.replace(SPEC, dtype=dtype, sustained=sustained)
    result = gemm.measure(spec, said.append)
    return result, [each for each in said if isinstance(each, Progress)]


def test_the_shape_with_the_highest_median_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    result, said = measure(Fake("NVIDIA H100 80GB HBM3", 0.0), monkeypatch)
    assert result.shape == FLAT
    assert result.median_flops == pytest.approx(8e14)
    assert result.datasheet_flops == pytest.approx(989.4e12)
    assert result.of_datasheet == pytest.approx(8e14 / 989.4e12)
    assert [sum("TFLOP/s" in line for line in said), len(said)] == [3, 4]
    assert {each.shape: each.median_flops for each in result.shapes} == pytest.approx(
        {CUBE: 4e14, FLAT: 8e14, DEEP: 6e14}
    )


def test_a_steady_device_needs_the_least_iterations_and_a_noisy_one_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steady, _ = measure(Fake(None, 0.0), monkeypatch)
    noisy, _ = measure(Fake(None, 0.03), monkeypatch)
    wild, _ = measure(Fake(None, 0.6), monkeypatch)
    assert steady.iterations == 10
    assert 30 < noisy.iterations < 60
    assert wild.iterations == 300


def test_an_unknown_card_has_no_datasheet_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = measure(Fake("NVIDIA H100", 0.0), monkeypatch)
    assert result.datasheet_flops is None
    assert result.of_datasheet is None


def test_fp64_is_held_against_the_matrix_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = measure(Fake("NVIDIA H100 80GB HBM3", 0.0), monkeypatch, dtype="fp64")
    assert result.datasheet_flops == pytest.approx(66.9e12)


def test_a_sustained_probe_loads_the_winner_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(None, 0.0)
    result, said = measure(fake, monkeypatch, sustained=True)
    assert result.sustained
    assert result.shape == FLAT
    sustained = [n for shape, n in fake.ran if shape == FLAT][-len(result.moments) :]
    assert sum(sustained) * gemm_flops(*FLAT) / 8e14 == pytest.approx(20.0, rel=0.05)
    assert "sustained" in said[-1]


def test_a_sustained_load_is_told_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = measure(Fake(None, 0.0), monkeypatch, sustained=True)
    seconds = [moment.seconds for moment in result.moments]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(20.0, rel=0.05)
    assert 1 < len(seconds) <= 120
    assert [moment.flops for moment in result.moments] == pytest.approx([8e14] * len(seconds))


def test_the_steps_of_a_probe_are_counted_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for sustained, total in ((False, 3), (True, 3 + 20)):  # a shape and a second are a step each
        _, told = measured(Fake(None, 0.0), monkeypatch, sustained=sustained)
        counted = [(each.done, each.total) for each in told if each.total is not None]
        assert counted == sorted(counted)
        assert counted[0] == (1, total)
        assert counted[-1] == (total, total)


def test_a_probe_states_how_well_it_knows_its_median(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy, _ = measure(Fake(None, 0.03), monkeypatch)
    assert noisy.precision == pytest.approx(0.03)  # durations of 0.97, 1 and 1.03 in turn
    steady, _ = measure(Fake(None, 0.0), monkeypatch)
    assert steady.precision == 0


class Clocked(NoSensor):
    """A card at a known clock, which the power limit held back for a while."""

    def __init__(self) -> None:
        self._throttled = itertools.count(5.0, 0.25)

    def read(self) -> Reading:
        return Reading(clock_mhz=1755.0)

    def throttled_seconds(self) -> dict[str, float]:
        return {"power": next(self._throttled)}

    def identity(self) -> Identity:
        return Identity(serial="1650123", driver_version="595.58.03")


def test_the_clock_tells_silicon_from_software(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake("NVIDIA H100 80GB HBM3", 0.0)
    fake.sensor = Clocked()
    result, _ = measure(fake, monkeypatch)
    assert result.sm_clock_mhz == 1755
    assert result.of_peak_at_clock == pytest.approx(8e14 / (132 * 4096 * 1755e6))
    assert result.throttle_seconds == {"power": 0.25}
    assert (result.serial, result.driver_version) == ("1650123", "595.58.03")


def test_a_capped_card_has_no_peak_at_its_clock() -> None:
    h20, h100 = (peaks.find(name) for name in ("NVIDIA H20", "NVIDIA H100 80GB HBM3"))
    assert h20 is not None
    assert h100 is not None
    for peak, expected in ((h20.peaks["bf16"], None), (h100.peaks["bf16"], pytest.approx(1.0))):
        at_clock = gemm.of_peak_at_clock(78 * 4096 * 1e9, peak, sm_count=78, clock_mhz=1000.0)
        assert at_clock == expected
    assert gemm.of_peak_at_clock(1e14, h100.peaks["bf16"], sm_count=132, clock_mhz=None) is None


def test_unknown_readings_are_none_and_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = measure(Fake(None, 0.0), monkeypatch)
    readings = (
        result.sm_clock_mhz,
        result.power_watts,
        result.temperature_celsius,
        result.energy_joules,
        result.threads,
        result.sku,
    )
    assert readings == (None,) * len(readings)


def test_two_probes_of_one_card_exclude_each_other() -> None:
    name = "cuda:GPU-00000000-test-of-the-lock"
    with card.lock_device(name), pytest.raises(ProbeError, match="another probe"):
        card.lock_device(name)
    card.lock_device(name).close()


def test_the_memory_of_a_shape_counts_operands_output_and_draft() -> None:
    assert operand_bytes((2, 3, 5), "bf16") == (10 + 15 + 6) * 2 + 15 * 4
    assert operand_bytes((2, 3, 5), "int8") == (10 + 15) + 6 * 4 + 15 * 4


def test_every_card_with_shapes_of_its_own_is_in_the_peak_table() -> None:
    keys = {sku.key for sku in peaks.skus()}
    assert set(gemm_devices._CUDA_FAMILY) <= keys
    assert set(gemm_devices._CUDA_FAMILY.values()) == set(gemm_devices._CUDA_WINNERS)
