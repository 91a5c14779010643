"""What a calibration does to rows: FLOPs corrected or refused, and bounds narrowed by where a dtype runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flopwatch_agent.calibrations import Calibrations, save
from flopwatch_agent.events.catalogue import explained
from flopwatch_agent.interval import Fold
from flopwatch_agent.rates import Trust, rates
from flopwatch_agent.reading import Device, Process, Reading, Share
from flopwatch_kernels import peaks
from flopwatch_kernels.calibration import Calibration
from flopwatch_proto.codec import IntervalRow, Value
from flopwatch_proto.rows import Absence, Bucket

DRIVER = "595.58.03"
CARD = Device(
    slot="0000:18:00.0",
    kind="gpu",
    sku="NVIDIA H100 80GB HBM3",
    uuid="GPU-1",
    driver_version=DRIVER,
)
SILENT = Share(bucket=Bucket.ACTIVE, job="llama")
BF16 = replace(SILENT, dtype="bf16")
HALF: Mapping[str, Value] = {
    "sm_active_ratio": 0.9,
    "tensor_active_ratio": 0.5,
    "hmma_active_ratio": 0.5,
    "imma_active_ratio": 0.0,
    "dfma_active_ratio": 0.0,
    "sm_clock_mhz": 1830.0,
}
U = 5 * (peaks.peak_flops("NVIDIA H100 80GB HBM3", "bf16") or 0.0)
COLUMNS = ("hardware_lo_flops", "hardware_hi_flops")
REASON = "kappa 2 is outside of 0.9 to 1.05: the counter runs at another dtype's rate"


def made(dtype: str = "bf16", **more: Any) -> Calibration:
    said: dict[str, Any] = {
        "device": "GPU-1",
        "driver": DRIVER,
        "sku": CARD.sku,
        "dtype": dtype,
        "kappa": 0.97,
        "refused": None,
        "pipes": ("hmma",),
        "intercept": 0.0,
        "points": (),
        "taken_unix_ns": 1,
    }
    return Calibration(**{**said, **more})


def known(directory: Path, *calibrations: Calibration) -> Calibrations:
    for each in calibrations:
        save(directory, each)
    found = Calibrations(directory)
    found.refresh()
    return found


def row(
    trust: Any = None,
    share: Share = SILENT,
    device: Device = CARD,
    values: Mapping[str, Value] = HALF,
    **more: Any,
) -> IntervalRow:
    """Return the row of ten seconds."""
    fold = Fold() if trust is None else Fold(trust=trust)
    rows = []
    for at_ms in (0, 10_000):
        reading = Reading(
            device=device,
            taken_unix_ms=1_793_534_400_000 + at_ms,
            boottime_ns=(at_ms + 1_000) * 1_000_000,
            values=values,
            processes=(Process(pid=1),),
            **more,
        )
        rows += fold.add(reading, (share,))
    (only,) = rows
    return only


def of(row: IntervalRow) -> Any:
    return row.values[COLUMNS[0]], row.values[COLUMNS[1]]


def bounds(trust: Trust, **values: Value) -> Any:
    """Return the bounds of FLOPs where no dtype is declared, in units of bf16's."""
    lo, hi = of(row(lambda _: trust, values={**HALF, **values}))
    return pytest.approx(lo / U, rel=1e-3), pytest.approx(hi / U, rel=1e-3)


# ---- kappa --------------------------------------------------------------------------------------


def test_kappa_corrects_absolute_flops_and_leaves_u(tmp_path: Path) -> None:
    trust = known(tmp_path, made()).trust
    told = row(trust, BF16)
    assert told.values["u_flops"] == pytest.approx(U)
    assert of(told) == (pytest.approx(0.97 * U), pytest.approx(0.97 * U))
    # Undeclared: the kappa is that of bf16 alone, and neither the slowest nor the fastest is bf16.
    assert of(row(trust)) == of(row())


@pytest.mark.parametrize(
    "device",
    [
        replace(CARD, uuid="GPU-2"),
        replace(CARD, uuid=None),
        replace(CARD, driver_version="580.1"),
        replace(CARD, driver_version=None),
    ],
)
def test_kappa_is_of_one_card_under_one_driver(tmp_path: Path, device: Device) -> None:
    trust = known(tmp_path, made()).trust
    assert of(row(trust, BF16, device)) == (pytest.approx(U), pytest.approx(U))


def test_kappas_of_the_slowest_and_the_fastest_move_the_bounds() -> None:
    assert bounds(Trust()) == (0.5, 2.0)
    assert bounds(Trust(kappas=(("tf32", 0.98), ("fp8", 0.95), ("bf16", 1.0)))) == (0.49, 1.9)


def test_a_calibration_of_now_counts_from_the_next_row_on(tmp_path: Path) -> None:
    calibrations = known(tmp_path)
    before = row(calibrations.trust, BF16)
    save(tmp_path, made())
    calibrations.refresh()
    after = row(calibrations.trust, BF16)
    assert of(before) == (pytest.approx(U), pytest.approx(U))
    assert of(after) == (pytest.approx(0.97 * U), pytest.approx(0.97 * U))


def test_a_running_fold_asks_again_whenever_a_row_closes(tmp_path: Path) -> None:
    calibrations = known(tmp_path)
    fold, rows = Fold(trust=calibrations.trust), []
    for second in range(21):
        if second == 10:
            save(tmp_path, made())
            calibrations.refresh()
        at = Reading(
            device=CARD,
            taken_unix_ms=1_793_534_400_000 + second * 1000,
            boottime_ns=(second + 1) * 1_000_000_000,
            values=HALF,
        )
        rows += fold.add(at, (BF16,))
    assert [of(each)[0] for each in rows] == [pytest.approx(0.97 * U), pytest.approx(0.97 * U)]


# ---- refusal ------------------------------------------------------------------------------------


def test_a_refused_calibration_publishes_no_absolute_flops_and_says_so_once(
    tmp_path: Path,
) -> None:
    calibrations = known(tmp_path, made(kappa=2.0, refused=REASON))
    for share in (BF16, SILENT):
        refused = row(calibrations.trust, share)
        assert of(refused) == (Absence.FAILED, Absence.FAILED)
        assert refused.values["u_flops"] == pytest.approx(U)
        assert refused.texts["efficiency_method"] == "gpm"
    (event,) = map(explained, calibrations.events(7))
    assert (event.kind, event.slot, event.time_unix_ms) == ("calibration_refused", CARD.slot, 7)
    assert event.severity == "warning"
    assert "calibrate again" in event.action
    assert event.text == f"bf16 under driver {DRIVER}: {REASON}"
    save(tmp_path, made("fp8"))
    calibrations.refresh()  # the file is another one, the refusal the same
    row(calibrations.trust)
    assert calibrations.events(8) == []


def test_a_refusal_is_told_again_when_the_card_was_calibrated_again(tmp_path: Path) -> None:
    calibrations = known(tmp_path, made(kappa=2.0, refused=REASON))
    row(calibrations.trust)
    assert len(calibrations.events(1)) == 1
    save(tmp_path, made(kappa=0.5, refused=REASON, taken_unix_ns=2))
    calibrations.refresh()
    row(calibrations.trust)
    assert len(calibrations.events(2)) == 1


def test_a_refusal_of_another_card_is_nothing_to_this_one(tmp_path: Path) -> None:
    calibrations = known(tmp_path, made(device="GPU-2", kappa=2.0, refused=REASON))
    assert of(row(calibrations.trust, BF16)) == (pytest.approx(U), pytest.approx(U))
    assert calibrations.events(1) == []


def test_a_dtype_that_did_not_run_cannot_refuse_what_did() -> None:
    trust = Trust(refused=("int8",))
    assert bounds(trust) == (0.5, 2.0)
    ran = row(lambda _: trust, values={**HALF, "hmma_active_ratio": 0.2, "imma_active_ratio": 0.3})
    assert of(ran) == (Absence.FAILED, Absence.FAILED)
    told = row(lambda _: trust, replace(SILENT, dtype="fp8"))
    assert of(told) == (pytest.approx(2 * U, rel=1e-3), pytest.approx(2 * U, rel=1e-3))
    integer = row(
        lambda _: Trust(refused=("bf16",)),
        values={**HALF, "hmma_active_ratio": 0.0, "imma_active_ratio": 0.5},
    )
    assert of(integer) == (pytest.approx(2 * U, rel=1e-3), pytest.approx(2 * U, rel=1e-3))


# ---- which dtype runs where ---------------------------------------------------------------------


def moved(**pipes: str) -> Trust:
    return Trust(pipes=tuple((dtype, (pipe,)) for dtype, pipe in pipes.items()))


ONE = {"hmma_active_ratio": 0.5}
NO_HMMA: dict[str, Value] = {"hmma_active_ratio": 0.0}


@pytest.mark.parametrize(
    ("trust", "values", "wanted"),
    [
        # fp8 on the pipe of bf16: as without a map, they cannot be told apart.
        (moved(fp8="hmma"), ONE, (0.5, 2.0)),
        (moved(fp8="hmma", bf16="hmma", fp16="hmma", tf32="hmma"), ONE, (0.5, 2.0)),
        # fp8 on the integer pipe: what moves HMMA is none, and what moves IMMA is of one rate.
        (moved(fp8="imma"), ONE, (0.5, 1.0)),
        (moved(fp8="imma"), {**NO_HMMA, "imma_active_ratio": 0.5}, (2.0, 2.0)),
        # fp8 on no pipe with a counter of its own: then HMMA is not fp8, and the rest need not be.
        (moved(fp8="any"), ONE, (0.5, 1.0)),
        (moved(fp8="any"), NO_HMMA, (0.5, 2.0)),
        (moved(fp8="any", bf16="hmma", fp16="hmma", tf32="hmma"), NO_HMMA, (2.0, 2.0)),
        # Integers on HMMA as well: the bounds are honest, not narrow.
        (moved(int8="hmma", fp8="any"), ONE, (0.5, 2.0)),
        # Where HMMA is not counted nothing is told apart.
        (moved(fp8="any"), {"hmma_active_ratio": Absence.NOT_SUPPORTED}, (0.5, 2.0)),
        # Double precision: in the rest where its counter is missing, unless its probe moved another pipe.
        (Trust(), {"dfma_active_ratio": Absence.NOT_SUPPORTED}, (0.0625, 2.0)),
        (
            moved(fp64_tensor="hmma"),
            {"dfma_active_ratio": Absence.NOT_SUPPORTED, **NO_HMMA},
            (0.5, 2.0),
        ),
        (moved(fp64_tensor="dmma"), {"dmma_active_ratio": 0.5, **NO_HMMA}, (0.0625, 0.0625)),
        # A probe that moved nothing says nothing.
        (Trust(pipes=(("fp8", ()),)), ONE, (0.5, 2.0)),
    ],
)
def test_a_map_of_dtypes_narrows_what_may_have_run(
    trust: Trust, values: dict[str, Value], wanted: tuple[float, float]
) -> None:
    assert bounds(trust, **values) == wanted


def test_a_part_of_the_time_on_each_pipe_adds_up() -> None:
    trust = moved(fp8="imma")
    both = bounds(trust, hmma_active_ratio=0.25, imma_active_ratio=0.25)
    assert both == (0.5 * 0.5 + 0.5 * 2.0, 0.5 * 1.0 + 0.5 * 2.0)


def test_the_map_is_of_the_sku_and_the_driver_whichever_card_was_probed(tmp_path: Path) -> None:
    probed = made("fp8", device="GPU-7", pipes=("imma",))
    calibrations = known(tmp_path, probed, made("fp64", device="GPU-7", pipes=("dmma",)))
    trust = calibrations.trust(CARD)
    assert dict(trust.pipes) == {"fp8": ("imma",), "fp64_tensor": ("dmma",)}
    assert trust.kappas == ()
    assert of(row(calibrations.trust)) == (
        pytest.approx(0.5 * U, rel=1e-3),
        pytest.approx(U, rel=1e-3),
    )
    assert calibrations.trust(replace(CARD, driver_version="580.1")) == Trust()
    assert calibrations.trust(replace(CARD, sku="NVIDIA H200")) == Trust()


@pytest.mark.parametrize("sku", peaks.names())
def test_a_map_never_leaves_time_without_a_rate(sku: str) -> None:
    every = moved(**dict.fromkeys(peaks.DTYPES, "hmma"))
    plain, mapped = rates(sku, "bf16", None), rates(sku, "bf16", None, every)
    assert plain.other.keys() == mapped.other.keys()
    for unknown, pipe in plain.other.items():
        if pipe is not None:
            assert mapped.pipes.get("hmma") or mapped.other[unknown]
    assert "hmma" not in plain.pipes


# ---- tiers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cycle_counters", "gpm", "dcgm"])
@pytest.mark.parametrize("declares", [False, True])
@pytest.mark.parametrize("counters", [False, True])
def test_the_method_is_one_of_five_and_never_a_guess_from_power(
    method: str, declares: bool, counters: bool
) -> None:
    warm: dict[str, Value] = {"power_watts": 690.0, "gpu_utilization_ratio": 1.0}
    fold = Fold()
    rows: list[IntervalRow] = []
    for second in (0, 10):
        share = replace(SILENT, model_flops_total=second * 4e14) if declares else SILENT
        reading = Reading(
            device=CARD,
            taken_unix_ms=1_793_534_400_000 + second * 1000,
            boottime_ns=(second + 1) * 1_000_000_000,
            values={**(HALF if counters else {}), **warm, "energy_joules_total": 690.0 * second},
            processes=(Process(pid=1),),
            method=method,
        )
        rows += fold.add(reading, (share,))
    (made,) = rows
    wanted = method if counters else "declared" if declares else "none"
    assert made.texts["efficiency_method"] == wanted
    assert made.values["energy_joules"] == 6900.0
    if not counters:
        known = {name for name, value in made.values.items() if not isinstance(value, Absence)}
        assert not known & {"u_flops", "u_hi_flops", "tensor_active_ms", *COLUMNS}
        assert made.card_times["counted_ms"] == 0
