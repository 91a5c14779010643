"""The GEMM probe for real, on this machine's processor, and every way it can fail."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch

from flopwatch_kernels import probe
from flopwatch_kernels.messages import Failed, Message, ProbeSpec, Progress
from flopwatch_kernels.probe import (
    PROBE_KINDS,
    ProbeError,
    ProbeKind,
    ProbeLimits,
    ProbeResult,
    run_probe,
)
from flopwatch_proto.errors import FlopwatchError

BROKEN = ProbeKind(name="gemm", module="broken_probe", dtypes=("fp32",), on_cpu=True)
FAST = ProbeLimits(wall_seconds=110.0, memory_bytes_max=2 << 30)


def reference_flops(shape: tuple[int, int, int], iterations: int = 12) -> list[float]:
    """Rates of torch.mm in this process, timed with nothing of the probe's."""
    m, n, k = shape
    a_mk, b_kn = torch.randn(m, k), torch.randn(k, n)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.mm(a_mk, b_kn)
    rates = []
    for _ in range(iterations):
        started_at = time.perf_counter()
        torch.mm(a_mk, b_kn)
        rates.append(2 * m * n * k / (time.perf_counter() - started_at))
    return rates


@pytest.fixture(scope="module")
def measured() -> tuple[ProbeResult, list[Progress]]:
    said: list[Progress] = []
    return run_probe(limits=FAST, on_progress=said.append), said


def test_the_probe_agrees_with_torch_timed_by_hand(
    measured: tuple[ProbeResult, list[Progress]],
) -> None:
    result, _ = measured
    # Other work on the machine moves either side: compare with the whole range seen by hand.
    assert result.shape is not None
    by_hand = reference_flops(result.shape) + reference_flops(result.shape)
    assert result.median_flops is not None
    assert result.max_flops is not None
    assert result.median_flops < 3 * max(by_hand)
    assert result.max_flops > statistics.median(by_hand) / 3


def test_the_result_of_a_cpu_is_complete_and_in_order(
    measured: tuple[ProbeResult, list[Progress]],
) -> None:
    result, said = measured
    assert (result.kind, result.device, result.dtype) == ("gemm", "cpu", "fp32")
    rates = (result.p10_flops, result.median_flops, result.p90_flops, result.max_flops)
    assert list(rates) == sorted(rate for rate in rates if rate is not None)
    assert result.iterations >= 2
    assert result.seconds > 0
    assert not result.sustained
    assert result.threads == len(os.sched_getaffinity(0))
    assert result.torch_version == str(torch.__version__)
    assert abs(time.time_ns() - result.started_at_unix_ns) < 600e9
    assert result.datasheet_flops is None
    assert result.of_datasheet is None
    assert 0 not in (result.sm_clock_mhz, result.power_watts, result.energy_joules)
    assert [(each.done, each.total) for each in said[1:]] == [(1, 3), (2, 3), (3, 3)]
    assert all("TFLOP/s" in each.text for each in said[1:])
    assert [shape.iterations >= 2 for shape in result.shapes] == [True] * 3
    assert result.median_flops == max(shape.median_flops for shape in result.shapes)
    assert result.precision is not None
    assert result.precision > 0
    assert (result.outcome, result.reason, result.median_value, result.unit) == ("ok",) + (
        None,
    ) * 3


def test_a_result_survives_json(measured: tuple[ProbeResult, list[Progress]]) -> None:
    result, _ = measured
    encoded = msgspec.json.encode(result)
    assert msgspec.json.decode(encoded, type=ProbeResult) == result
    assert json.loads(encoded)["power_watts"] is result.power_watts


def test_bf16_and_a_given_number_of_threads_are_used() -> None:
    result = run_probe(dtype="bf16", threads=1, limits=FAST)
    assert (result.dtype, result.threads) == ("bf16", 1)


def test_a_probe_over_its_wall_limit_is_killed_and_says_so() -> None:
    started_at = time.monotonic()
    with pytest.raises(ProbeError, match=r"wall limit of 0.3 s and was killed"):
        run_probe(limits=ProbeLimits(wall_seconds=0.3))
    assert time.monotonic() - started_at < 30


def test_a_probe_can_be_stopped_for_a_tenant() -> None:
    with pytest.raises(ProbeError, match="stopped: pid 7 uses the card"):
        run_probe(limits=FAST, stop_reason=lambda: "pid 7 uses the card")


def test_too_little_memory_is_an_error_that_names_the_cap() -> None:
    with pytest.raises(ProbeError, match="memory"):
        run_probe(limits=ProbeLimits(memory_bytes_max=32 << 20, wall_seconds=60))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dtype": "bf17"}, r"unknown dtype 'bf17': --dtype of --kind gemm takes fp32, .*int8"),
        ({"dtype": "tf32"}, r"a CPU has no tf32: pass --dtype fp32, or --device cuda:N"),
        ({"kind": "tensor-core"}, r"unknown probe kind 'tensor-core': --kind takes gemm"),
        ({"kind": "sdc", "dtype": "fp32"}, r"--dtype of --kind sdc takes bf16, fp16, int8, fp8"),
        ({"kind": "bandwidth", "dtype": "bf16"}, r"--dtype of --kind bandwidth is not for this"),
        ({"kind": "tensor"}, r"a CPU has no tensor probe: pass --device cuda:N"),
        ({"kind": "p2p", "device": "cuda:0"}, r"between two cards: pass --peer cuda:N"),
        ({"kind": "p2p", "device": "cuda:0", "peer": "0"}, r"--peer 0: it takes another card"),
        (
            {"kind": "gemm", "device": "cuda:0", "peer": "cuda:1"},
            r"--peer cuda:1: it takes another",
        ),
        ({"device": "gpu0"}, r"unknown device 'gpu0': --device takes cpu, cuda:N"),
        ({"device": "cuda:0; true"}, r"unknown device"),
    ],
)
def test_a_wrong_flag_is_refused_before_anything_starts(
    arguments: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "run_child", None)
    with pytest.raises(ProbeError, match=text):
        run_probe(**arguments)  # type: ignore[arg-type]


def test_a_card_on_a_machine_without_a_driver_is_an_error_that_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "pynvml.py"
    absent.write_text(
        "class NVMLError(Exception): ...\n"
        "def nvmlInit():\n    raise NVMLError('NVML Shared Library Not Found')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ProbeError, match=r"NVML does not know --device cuda:0 .*nvidia-smi -L"):
        run_probe(device="cuda:0", limits=FAST)


def test_a_card_that_somebody_computes_on_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text(
        "class NVMLError(Exception): ...\n"
        "class Process: pid = 4242\n"
        "def nvmlInit(): ...\n"
        "def nvmlDeviceGetHandleByUUID(uuid): return uuid\n"
        "def nvmlDeviceGetComputeRunningProcesses(card): return [Process()]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ProbeError, match=r"GPU-1a2b is in use \(pid 4242\)"):
        run_probe(device="GPU-1a2b", limits=FAST)


def test_without_torch_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no torch', name='torch')\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(ProbeError, match=r"pip install 'flopwatch\[probes\]'"):
            run_probe(limits=FAST)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ProbeError, match=r"torch is not installed"):
            run_probe(limits=FAST)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("print('hello')", r"not a message: b'hello'"),
        ("", r"ended with code 0 without a result: it wrote no reason"),
        ("raise SystemExit('broken here')", r"ended with code 1 .*: broken here"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"killed by signal 11"),
        ('print(\'{"type":"failed","text":"too hot"}\')', r"^too hot$"),
    ],
)
def test_a_child_that_breaks_is_an_error_in_words(
    body: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_probe.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probe, "PROBE_KINDS", (BROKEN,))
    with pytest.raises(ProbeError, match=text):
        run_probe(limits=FAST)


def test_a_child_sees_one_card_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert probe._environment(None)["CUDA_VISIBLE_DEVICES"] == ""
    assert probe._environment("GPU-1a2b")["CUDA_VISIBLE_DEVICES"] == "GPU-1a2b"
    assert probe._environment("3")["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert probe._environment("0", "1")["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_child_whose_parent_is_gone_before_it_looks_measures_nothing() -> None:
    spec = ProbeSpec(
        device="cpu",
        dtype="fp32",
        sustained=False,
        sustained_seconds=10.0,
        threads=1,
        niceness=0,
        memory_bytes_max=1 << 30,
        wall_seconds=60.0,
        parent_pid=os.getppid(),  # ours is another
    )
    told = subprocess.run(
        [sys.executable, "-m", "flopwatch_kernels.gemm", msgspec.json.encode(spec).decode()],
        capture_output=True,
        check=False,
    )
    assert told.returncode == 1
    assert msgspec.json.decode(told.stdout, type=Message) == Failed(
        text="whoever started the probe is gone"
    )


def test_importing_the_package_loads_neither_torch_nor_nvml() -> None:
    modules = ["calibrate", "calibration", "card", "checksum", "child", "errors", "flops", "gemm"]
    modules += ["goldens", "messages", "peaks", "probe", "sdc", "sensors", "statistic"]
    script = f"import {', '.join('flopwatch_kernels.' + m for m in modules)}, sys\n"
    script += "print([m for m in ('torch', 'pynvml', 'numpy') if m in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.strip() == "[]"


def test_a_probe_error_is_an_error_of_flopwatch() -> None:
    assert issubclass(ProbeError, FlopwatchError)


def test_every_kind_has_a_module_and_a_dtype_of_its_own() -> None:
    for kind in PROBE_KINDS:
        assert importlib.util.find_spec(kind.module) is not None
        for on_cpu in (False, True):
            dtype = probe.default_dtype(kind, on_cpu=on_cpu)
            assert (dtype in kind.dtypes) if kind.dtypes else dtype is None
