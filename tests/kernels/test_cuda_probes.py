"""The probes on a card, for real up to the driver's C interface: a fake of it multiplies by its own
reading of the operands and lets time pass as an H100 would. No card is needed, and none is measured."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

import fakecuda
import fakenvml
from fakenvml import Script, device
from flopwatch_kernels.fma import expected_sum
from flopwatch_kernels.messages import ProbeResult, Progress
from flopwatch_kernels.probe import ProbeError, ProbeLimits, run_probe
from flopwatch_kernels.transfer import link_bytes_per_second

H100_SMS = 132
CLOCK_HZ = 1.755e9
SMALL = 64 << 20


class Machine:
    """A machine whose cards are fakes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nvml, self.cuda = fakenvml.build(folder), fakecuda.build(folder)
        # Names of its own: a probe locks its card against every other process of this machine.
        uuids = [f"GPU-{uuid.uuid4()}" for _ in range(2)]
        lines = [device(slot, uuid=name) for slot, name in enumerate(uuids)]
        self.script = Script(folder / "script.txt").write(*lines)
        self._monkeypatch = monkeypatch

    def probe(self, kind: str, dtype: str | None = None, **settings: float) -> ProbeResult:
        environment = fakenvml.env(self.nvml, self.script)
        for key, value in fakecuda.env(self.cuda, environment, **settings).items():
            self._monkeypatch.setenv(key, value)
        self.said: list[Progress] = []
        small = kind in ("pcie", "p2p")
        return run_probe(
            kind=kind,
            device="cuda:0",
            peer="cuda:1" if kind == "p2p" else None,
            dtype=dtype,
            limits=ProbeLimits(memory_bytes_max=SMALL if small else 4 << 30, wall_seconds=110.0),
            on_progress=self.said.append,
        )


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drivers")


@pytest.fixture
def machine(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(libraries, monkeypatch)


@pytest.mark.parametrize(
    ("dtype", "flop_per_clock"), [("bf16", 4096), ("fp8", 8192), ("fp64", 256)]
)
def test_a_tensor_probe_tells_flops_clock_and_the_share_of_the_peak_at_that_clock(
    machine: Machine, dtype: str, flop_per_clock: int
) -> None:
    result = machine.probe("tensor", dtype, efficiency=0.97)
    assert (result.kind, result.dtype, result.outcome) == ("tensor", dtype, "ok")
    assert result.of_peak_at_clock == pytest.approx(0.97, abs=1e-4)
    assert result.sm_clock_mhz == pytest.approx(1755, abs=0.1)
    wanted = 0.97 * H100_SMS * flop_per_clock * CLOCK_HZ
    assert result.median_flops == pytest.approx(wanted, rel=1e-4)
    assert result.datasheet_flops is not None
    assert result.of_datasheet == pytest.approx(wanted / result.datasheet_flops, rel=1e-4)
    assert result.detail["blocks_wrong"] == result.detail["blocks_differing"] == 0
    assert result.driver_version == "595.58.03"
    assert result.iterations >= 20


@pytest.mark.parametrize("dtype", ["fp16", "tf32"])
@pytest.mark.parametrize("capability", [80, 120])
def test_older_and_smaller_families_multiply_with_mma(
    machine: Machine, dtype: str, capability: int
) -> None:
    result = machine.probe("tensor", dtype, capability=capability)
    assert str(result.detail["instruction"]).startswith("HMMA.")
    assert result.outcome == "ok"


def test_a_b_cards_mma_is_measured_and_not_held_against_the_datasheet(machine: Machine) -> None:
    result = machine.probe("tensor", "bf16", capability=100)
    assert result.median_flops
    assert (result.datasheet_flops, result.of_datasheet, result.of_peak_at_clock) == (None,) * 3


def test_one_block_that_computes_otherwise_is_a_corrupting_card(machine: Machine) -> None:
    result = machine.probe("tensor", "int8", capability=80, corrupt_block=7)
    assert result.outcome == "corrupt"
    assert result.reason == (
        "of 264 blocks that compute the same, 1 got an exact product wrong and 1 differ after the"
        " load"
    )


def test_a_product_that_every_sm_gets_wrong_alike_is_a_fault_of_the_program(
    machine: Machine,
) -> None:
    with pytest.raises(ProbeError, match=r"tensor_bf16 of mma\.cu computes another product .*not"):
        machine.probe("tensor", "bf16", capability=80, transposed=1)


def test_a_dtype_without_an_instruction_is_told_with_the_cards_capability(
    machine: Machine,
) -> None:
    with pytest.raises(ProbeError, match=r"capability 8\.0\) has no tensor instruction for fp8"):
        machine.probe("tensor", "fp8", capability=80)
    with pytest.raises(ProbeError, match=r"capability 7\.5: 8\.0 is needed"):
        machine.probe("tensor", "fp16", capability=75)


@pytest.mark.parametrize(("dtype", "flop_per_clock"), [("fp32", 256), ("fp64", 128)])
def test_the_fma_probe_is_held_against_the_vector_pipes(
    machine: Machine, dtype: str, flop_per_clock: int
) -> None:
    result = machine.probe("fma", dtype, efficiency=0.98)
    assert result.median_flops == pytest.approx(
        0.98 * H100_SMS * flop_per_clock * CLOCK_HZ, rel=1e-4
    )
    assert result.of_peak_at_clock == pytest.approx(0.98, abs=1e-4)
    assert result.detail["threads_wrong"] == 0


def test_the_sum_that_an_fma_thread_must_give() -> None:
    total = 0
    for chain in range(16):
        x = 5 + chain
        for _ in range(8):
            x = 2 * x + 1
        total += x
    assert expected_sum(5) == total


def test_bandwidth_counts_a_copy_twice_and_gives_each_direction(machine: Machine) -> None:
    result = machine.probe("bandwidth", copy=3.0e12, read=3.1e12, write=2.9e12)
    assert (result.unit, result.outcome) == ("bytes/s", "ok")
    assert result.median_value == pytest.approx(3.0e12, rel=1e-4)
    assert result.of_datasheet == pytest.approx(3.0 / 3.35, rel=1e-4)
    assert result.detail["read_bytes_per_second"] == pytest.approx(3.1e12, rel=1e-4)
    assert result.detail["write_bytes_per_second"] == pytest.approx(2.9e12, rel=1e-4)
    size = result.detail["buffer_bytes"]
    assert isinstance(size, int)
    assert size > 8 * (50 << 20)
    assert result.median_flops is None


def test_pcie_is_the_slower_direction_over_the_links_raw_rate(machine: Machine) -> None:
    result = machine.probe("pcie", h2d=55e9, d2h=50e9)
    assert result.median_value == pytest.approx(50e9, rel=1e-4)
    assert result.detail["h2d_bytes_per_second"] == pytest.approx(55e9, rel=1e-4)
    assert (result.detail["link_generation"], result.detail["link_width"]) == (5, 16)
    assert result.of_datasheet == pytest.approx(50e9 / (32e9 / 8 * 128 / 130 * 16), rel=1e-4)
    assert result.detail["bytes_wrong"] == 0


def test_a_link_of_an_unknown_generation_has_no_raw_rate() -> None:
    assert link_bytes_per_second(3, 16) == pytest.approx(15.75e9, rel=1e-3)
    assert link_bytes_per_second(9, 16) is None


def test_peers_copy_in_both_directions(machine: Machine) -> None:
    result = machine.probe("p2p", devices=2, to_peer=350e9, from_peer=340e9)
    assert result.median_value == pytest.approx(340e9, rel=1e-4)
    assert result.detail["to_peer_bytes_per_second"] == pytest.approx(350e9, rel=1e-4)
    assert result.detail["direct"] == "yes"
    assert result.detail["peer"] != result.device


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bandwidth", "1 words of a copy differ from its source"),
        ("pcie", "1 bytes arrived different from what was sent"),
        ("p2p", "1 bytes arrived different from what was sent"),
    ],
)
def test_one_bit_lost_on_the_way_is_told(machine: Machine, kind: str, reason: str) -> None:
    result = machine.probe(kind, devices=2, lost_bit=1)
    assert (result.outcome, result.reason) == ("corrupt", reason)


def test_launches_are_timed_to_their_end_and_one_behind_the_other(machine: Machine) -> None:
    result = machine.probe("launch")
    assert result.unit == "s"
    assert result.median_value is not None
    assert result.p10_value is not None
    call, p99 = result.detail["call_median_seconds"], result.detail["p99_seconds"]
    assert isinstance(call, float)
    assert isinstance(p99, float)
    assert 0 < call < result.median_value <= p99
    assert result.detail["queued_median_seconds"] == pytest.approx(2e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"refuse_code": 1}, r"does not take NVRTC's code .*INVALID_IMAGE.*newer driver"),
        ({"launch_fails": 1}, r"CUDA_ERROR_LAUNCH_FAILED \(719\): check nvidia-smi and dmesg"),
        ({"devices": 0}, r"CUDA_ERROR_NO_DEVICE"),
    ],
)
def test_what_the_driver_refuses_is_told_in_its_words(
    machine: Machine, settings: dict[str, float], says: str
) -> None:
    with pytest.raises(ProbeError, match=says):
        machine.probe("launch", None, **settings)


def test_a_card_without_room_names_the_cap(machine: Machine) -> None:
    with pytest.raises(ProbeError, match="raise memory_bytes_max or free memory"):
        machine.probe("bandwidth", free_bytes=1e6)


def test_a_card_that_somebody_computes_on_is_left_alone(machine: Machine) -> None:
    machine.script.add("device 0 process 4242 compute 1000000")
    with pytest.raises(ProbeError, match=r"in use \(pid 4242\)"):
        machine.probe("launch")


def test_a_driver_that_does_not_load_is_told(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    machine.cuda = tmp_path
    with pytest.raises(ProbeError, match="the CUDA driver does not load"):
        machine.probe("launch")


@pytest.mark.parametrize("kind", ["tensor", "fma", "pcie", "launch"])
def test_a_kind_that_needs_a_card_says_so_on_a_cpu(kind: str) -> None:
    with pytest.raises(ProbeError, match=rf"a CPU has no {kind} probe: pass --device cuda:N"):
        run_probe(kind=kind, device="cpu")


def test_the_bandwidth_of_this_machines_own_memory() -> None:
    limits = ProbeLimits(memory_bytes_max=768 << 20, wall_seconds=110.0)
    result = run_probe(kind="bandwidth", device="cpu", threads=1, limits=limits)
    assert (result.device, result.unit, result.outcome) == ("cpu", "bytes/s", "ok")
    assert result.median_value is not None
    assert 1e8 < result.median_value < 1e13
    assert result.threads == 1
    size: Any = result.detail["buffer_bytes"]
    assert 64 << 20 <= size <= 256 << 20


def test_too_small_a_cap_for_a_copy_on_a_cpu_names_it() -> None:
    with pytest.raises(ProbeError, match="memory_bytes_max"):
        run_probe(kind="bandwidth", device="cpu", limits=ProbeLimits(memory_bytes_max=100 << 20))


def test_nothing_is_loaded_before_it_is_needed() -> None:
    modules = ("tensor", "fma", "bandwidth", "transfer", "launch", "cuda.operands", "cuda.session")
    script = f"import {', '.join('flopwatch_kernels.' + m for m in modules)}, sys\n"
    script += (
        "print([m for m in ('cuda.core', 'cuda.bindings', 'numpy', 'torch') if m in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert told.stdout.strip() == "[]"
