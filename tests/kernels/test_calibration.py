"""kappa from marks of a load and counters beside it, all made up, and the load itself on this processor."""

import itertools

import pytest

from flopwatch_kernels import calibrate
from flopwatch_kernels.calibration import (
    Calibration,
    Counted,
    calibration,
    dtype_map,
    intercept,
    refusal,
)
from flopwatch_kernels.flops import gemm_flops
from flopwatch_kernels.messages import Mark, Message, ProbeSpec

SECOND = 1_000_000_000
PEAK = 132 * 4096 * 1755e6
CUBES = tuple((edge, edge, edge) for edge in (8192, 4096, 2048, 1024))
ACTIVE = (0.85, 0.70, 0.45, 0.20)
"""How busy the pipes are with products of each size."""


def marks(rates: tuple[float, ...] = ACTIVE, seconds: float = 2.5) -> list[Mark]:
    """A load of four shapes one after the other, a mark every 50 ms, at shares of `PEAK`."""
    made = []
    for number, (shape, rate) in enumerate(zip(CUBES, rates, strict=True)):
        began_ns = 100 * SECOND + round(number * (seconds + 0.2) * SECOND)
        for step in range(round(seconds / 0.05) + 1):
            at_ns = began_ns + step * SECOND // 20
            made.append(Mark(boottime_ns=at_ns, flops=step * 0.05 * rate * PEAK, shape=shape))
    return made


def counters(
    scale: float = 1.0,
    *,
    active: tuple[float, ...] = ACTIVE,
    offset: float = 0.0,
    pipes: dict[str, float] | None = None,
    seconds: float = 2.5,
) -> list[Counted]:
    """Readings four times a second over the whole load; FLOP of what the pipes did, times `scale`."""
    shares = {"hmma": 1.0, "imma": 0.0} if pipes is None else pipes
    made = []
    for start, end in itertools.pairwise(range(100 * SECOND, 112 * SECOND, SECOND // 4)):
        number = min(3, int((start / SECOND - 100) / (seconds + 0.2)))
        busy = active[number] + offset
        made.append(
            Counted(
                start_ns=start,
                end_ns=end,
                flops=busy * scale * PEAK * (end - start) / SECOND,
                active=busy,
                pipes={name: share * busy for name, share in shares.items()},
            )
        )
    return made


def found(
    counted: list[Counted], load: list[Mark] | None = None, *, cut: bool = False
) -> Calibration | None:
    return calibration(
        marks() if load is None else load,
        counted,
        device="GPU-1",
        driver="595.58.03",
        sku="NVIDIA H100 80GB HBM3",
        dtype="bf16",
        sm_count=132,
        cut=cut,
        taken_unix_ns=5,
    )


def kept(counted: list[Counted], *, cut: bool = False) -> Calibration:
    seen = found(counted, cut=cut)
    assert seen is not None
    return seen


def test_counters_that_count_right_give_one_and_are_not_refused() -> None:
    seen = kept(counters())
    assert seen.kappa == pytest.approx(1.0)
    assert seen.refused is None
    assert seen.pipes == ("hmma",)
    assert seen.intercept == pytest.approx(0.0, abs=1e-9)
    assert [point.shape for point in seen.points] == list(CUBES)
    assert [point.active for point in seen.points] == pytest.approx(ACTIVE)
    assert seen.points[0].known_flops == pytest.approx(0.85 * PEAK * seen.points[0].seconds)


@pytest.mark.parametrize("scale", [1.0 / 0.97, 1.0 / 1.04, 1.0 / 0.91])
def test_a_small_error_of_the_counters_is_kappa(scale: float) -> None:
    seen = kept(counters(scale))
    assert seen.kappa == pytest.approx(1.0 / scale)
    assert seen.refused is None


@pytest.mark.parametrize(
    ("scale", "cut", "cause"),
    [
        (0.5, False, "another dtype's rate: the map of dtypes is wrong"),
        (4.0, False, "another dtype's rate"),
        (1.0 / 132, False, "averaged over the 132 SMs and were taken as their sum"),
        (132.0, False, "summed over the 132 SMs and were taken as their mean"),
        (0.8, False, "another SKU's rate, clock or number of SMs"),
        (7.0, True, "cut into MIG devices"),
    ],
)
def test_a_kappa_far_from_one_is_kept_and_refused_with_its_cause(
    scale: float, cut: bool, cause: str
) -> None:
    seen = kept(counters(scale), cut=cut)
    assert seen.kappa == pytest.approx(1 / scale, rel=1e-6)
    assert seen.refused is not None
    assert "outside of 0.9 to 1.05" in seen.refused
    assert cause in seen.refused


def test_the_bounds_of_kappa_belong_to_it() -> None:
    arguments = {"dtype": "bf16", "pipes": ("hmma",), "line": 0.0, "sm_count": 132, "cut": False}
    for kappa, refused in ((0.8999, True), (0.90, False), (1.05, False), (1.0501, True)):
        assert (refusal(kappa, **arguments) is not None) == refused  # type: ignore[arg-type]


def test_activity_without_work_is_refused() -> None:
    seen = kept(counters(offset=0.04))
    assert seen.kappa == pytest.approx(0.85 / 0.89)
    assert seen.intercept is not None
    assert seen.intercept == pytest.approx(0.04, abs=0.005)
    assert seen.refused is not None
    assert "active at no FLOPs: the counter is not proportional" in seen.refused


def test_one_shape_has_no_line() -> None:
    assert intercept(kept(counters()).points[:1]) is None


def test_a_dtype_that_only_the_sum_of_all_pipes_shows_is_on_any() -> None:
    assert kept(counters(pipes={"hmma": 0.0, "imma": 0.0})).pipes == ("any",)
    assert kept(counters(pipes={})).pipes == ("any",)


def test_counters_that_stand_still_are_refused_and_no_division_by_zero() -> None:
    seen = kept(counters(0.0, active=(0.0,) * 4))
    assert seen.kappa is None
    assert seen.refused == (
        "no tensor counter moved while bf16 ran: the card or driver does not count it"
    )


def test_less_than_a_second_of_counters_beside_the_largest_shape_is_no_calibration() -> None:
    assert found([]) is None
    assert found(counters()[:5]) is None
    assert found(counters()[:8]) is not None
    assert found(counters()[12:]) is None  # the smaller shapes alone
    assert found(counters(), marks()[:1]) is None


def test_readings_across_two_shapes_and_in_the_first_moments_are_left_out() -> None:
    # The same counters, wrong by far wherever a reading does not lie inside a settled load.
    inside = [(100.3 + number * 2.7, 102.5 + number * 2.7) for number in range(4)]
    spoiled = [
        span
        if any(lo <= span.start_ns / SECOND and span.end_ns / SECOND <= hi for lo, hi in inside)
        else Counted(
            start_ns=span.start_ns, end_ns=span.end_ns, flops=1e20, active=1.0, pipes={"imma": 1.0}
        )
        for span in counters()
    ]
    seen = kept(spoiled)
    assert seen.kappa == pytest.approx(1.0)
    assert seen.pipes == ("hmma",)


def test_the_map_of_dtypes_is_of_the_newest_look_at_each() -> None:
    first = kept(counters())
    newer = Calibration(
        **{name: getattr(first, name) for name in first.__struct_fields__}
        | {"pipes": ("any",), "taken_unix_ns": 9}
    )
    assert dtype_map([newer, first]) == {("NVIDIA H100 80GB HBM3", "595.58.03"): {"bf16": ("any",)}}


def test_the_load_says_how_far_it_has_come_shape_by_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flopwatch_kernels.gemm_devices.resource.setrlimit", lambda *_: None)
    said: list[Message] = []
    spec = ProbeSpec(
        kind="calibrate",
        device="cpu",
        dtype="fp32",
        sustained=False,
        sustained_seconds=0.6,
        threads=None,
        niceness=0,
        memory_bytes_max=8 << 30,
        wall_seconds=60.0,
    )
    result = calibrate.measure(spec, said.append)
    told = [each for each in said if isinstance(each, Mark)]
    assert list(dict.fromkeys(mark.shape[0] for mark in told)) == list(calibrate.EDGES["cpu"])
    known = 0.0
    for edge in calibrate.EDGES["cpu"]:
        of_shape = [mark for mark in told if mark.shape == (edge,) * 3]
        assert of_shape[0].flops == 0
        assert len(of_shape) >= 2
        for before, after in itertools.pairwise(of_shape):
            assert after.boottime_ns > before.boottime_ns
            assert (after.flops - before.flops) % gemm_flops(edge, edge, edge) == 0
        known += of_shape[-1].flops
    assert result.detail["known_flop"] == known
    assert result.median_flops is None
